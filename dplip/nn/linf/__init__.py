"""l-infinity distances and their order statistics."""
