"""Learnable piecewise linear activations."""
