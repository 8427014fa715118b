"""The rounding rules, one file per family; importing the package registers them."""

from dplip.rounding.rules import activation, arithmetic, linear, normalization

__all__ = ["activation", "arithmetic", "linear", "normalization"]
