"""A box of values, and the registry of rules by which boxes go through operations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dplip.rules.registry import Registered, Registry

UNIT = 2.0**-23
"""Twice the largest relative error of one float32 operation."""


@dataclass(frozen=True)
class Box:
    """The lower and upper ends of every entry, of shape (batch, ...), in float64."""

    lower: Tensor
    upper: Tensor

    @property
    def magnitude(self) -> Tensor:
        """The largest absolute value of every entry."""
        return torch.maximum(self.lower.abs(), self.upper.abs())

    def widened(self, error: Tensor) -> Box:
        """The box of what the model computes in float32, off by at most ``error`` from the exact value."""
        return Box(self.lower - error, self.upper + error)

    def rounded(self, operations: int = 1) -> Box:
        """The box after a few float32 roundings of its value."""
        return self.widened(self.magnitude * (UNIT * operations) + 1e-37)

    def map(self, function: Callable[[Tensor], Tensor]) -> Box:
        """The box of a function that is not decreasing in any entry."""
        return Box(function(self.lower), function(self.upper))


IntervalRule = Callable[..., Box]

INTERVALS: Registry[IntervalRule] = Registry()


def interval(*functions: Any) -> Callable[[Registered], Registered]:
    """Register how boxes go through functions, tensor methods or module classes (their ``forward``).

    The rule is called with the module (or a :class:`Call`) and the arguments, :class:`Box` in place of each value that
    depends on the input, and returns the box of the result.

    Guarantee: none of its own. A rule claims that whatever the model computes in float32 for a value in the boxes lies
    in the box it returns; and that smaller boxes give smaller ones.
    """

    return INTERVALS.add(*functions)


REMEDY = "Its certificates rest on the margin alone."


def linear_box(weight: Tensor, bias: Tensor | None, x: Box, apply: Callable[[Tensor, Tensor], Tensor]) -> Box:
    """The box of a linear map, ``apply(input, weight)`` without the bias: the weight's signs choose the ends.

    The model sums in float32: of n terms the error is at most ``(n + 1) 2^-24 sum |w| |x|`` whatever the order, and
    twice that is allowed for.
    """
    w = weight.detach().double()
    positive, negative = w.clamp_min(0), w.clamp_max(0)
    lower = apply(x.lower, positive) + apply(x.upper, negative)
    upper = apply(x.upper, positive) + apply(x.lower, negative)
    error = apply(x.magnitude, w.abs())
    if bias is not None:
        b = bias.detach().double()
        b = b.reshape(-1, *[1] * (lower.ndim - 2)) if apply is not F.linear else b
        lower, upper, error = lower + b, upper + b, error + b.abs()
    return Box(lower, upper).widened(error * (UNIT * (weight[0].numel() + 2)) + 1e-37)
