"""The walk over a model: norms forward, then the pullback of cotangent norms."""

from dplip.propagation.walk import Walk, propagate

__all__ = ["Walk", "propagate"]
