"""Intervals of the slopes of a model; importing the package registers their rules."""

from dplip.certificates.slopes import rules
from dplip.certificates.slopes.registry import slope_rule
from dplip.certificates.slopes.walk import slopes

__all__ = ["rules", "slope_rule", "slopes"]
