"""Layers of l-infinity distances to learnable points and of their order statistics."""
