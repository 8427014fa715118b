"""The rules by which norms go through operations, one file per family; importing the package registers them."""

from dplip.rules import activation, arithmetic, convolution, linear, normalization, pooling, shape
from dplip.rules.registry import (
    ENFORCED,
    RULES,
    SUMMATIONS,
    SUMMED,
    Call,
    Pullback,
    Summation,
    refuse,
    refuse_module,
    rule,
    through,
)

__all__ = [
    "ENFORCED",
    "RULES",
    "SUMMATIONS",
    "SUMMED",
    "Call",
    "Pullback",
    "Summation",
    "activation",
    "arithmetic",
    "convolution",
    "linear",
    "normalization",
    "pooling",
    "refuse",
    "refuse_module",
    "rule",
    "shape",
    "through",
]
