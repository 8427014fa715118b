"""One file per family of rules; importing this package registers them all."""

from dplip.rules import activation, arithmetic, convolution, linear, normalization, pooling, shape
from dplip.rules.registry import Call, rule

__all__ = [
    "Call",
    "activation",
    "arithmetic",
    "convolution",
    "linear",
    "normalization",
    "pooling",
    "rule",
    "shape",
]
