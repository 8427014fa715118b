"""Bounds on the rounding errors of each operation and of a model."""

from dplip.rounding import rules
from dplip.rounding.registry import Roundings, rounding
from dplip.rounding.walk import Rounded, Rounding

__all__ = ["Rounded", "Rounding", "Roundings", "rounding", "rules"]
