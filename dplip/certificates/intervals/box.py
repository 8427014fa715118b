"""Boxes of values, and the registry of the rules by which boxes go through operations."""

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
    """Lower and upper bounds of every entry, shape (batch, ...), float64."""

    lower: Tensor
    upper: Tensor

    @property
    def magnitude(self) -> Tensor:
        """The largest absolute value of every entry."""
        return torch.maximum(self.lower.abs(), self.upper.abs())

    def widened(self, error: Tensor) -> Box:
        """The box of values that are off by at most ``error`` from a value in this box."""
        return Box(self.lower - error, self.upper + error)

    def rounded(self, operations: int = 1) -> Box:
        """The box of the values after ``operations`` float32 roundings."""
        return self.widened(self.magnitude * (UNIT * operations) + 1e-37)

    def map(self, function: Callable[[Tensor], Tensor]) -> Box:
        """The box of a function that does not decrease in any entry."""
        return Box(function(self.lower), function(self.upper))


IntervalRule = Callable[..., Box]

INTERVALS: Registry[IntervalRule] = Registry()


def interval(*functions: Any) -> Callable[[Registered], Registered]:
    """Register how boxes go through functions, tensor methods or module classes (their ``forward``).

    The rule is called with the module (or a :class:`Call`) and the arguments, with a :class:`Box` in place of each
    value that depends on the input, and returns the box of the result.

    Guarantee: none of its own. A rule claims that the float32 result for values in the boxes lies in the returned box,
    and that smaller boxes give smaller ones.
    """

    return INTERVALS.add(*functions)


REMEDY = "Its certificates rest on the margin alone."


def linear_box(weight: Tensor, bias: Tensor | None, x: Box, apply: Callable[[Tensor, Tensor], Tensor]) -> Box:
    """The box of a linear map, ``apply(input, weight) + bias``; the weight's signs select the ends.

    The error of a float32 sum of n terms is at most ``(n + 1) 2^-24 sum |w| |x|`` in any order; the box allows twice
    that.
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
