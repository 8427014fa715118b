"""The walk of norms forward through a model, and of cotangent norms back."""

from dplip.propagation.walk import Walk, propagate

__all__ = ["Walk", "propagate"]
