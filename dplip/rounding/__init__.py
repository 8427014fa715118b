"""How far floating point takes each operation, and a model, from exact arithmetic."""

from dplip.rounding import rules
from dplip.rounding.registry import Roundings, rounding
from dplip.rounding.walk import Rounded, Rounding

__all__ = ["Rounded", "Rounding", "Roundings", "rounding", "rules"]
