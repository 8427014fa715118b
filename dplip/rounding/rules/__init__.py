"""One file per family of rounding rules; importing this package registers them all."""

from dplip.rounding.rules import activation, arithmetic, linear, normalization

__all__ = ["activation", "arithmetic", "linear", "normalization"]
