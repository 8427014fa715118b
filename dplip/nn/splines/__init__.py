"""Learnable piecewise linear activations, their constraints and their regularity."""
