"""Intervals of slopes, and the registry of the rules by which they go back through operations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dplip.norms import Norms
from dplip.rules.registry import Registered, Registry

INTERVAL_SLACK = 1e-12
"""Relative slack for float64 sums of intervals."""


@dataclass(frozen=True)
class Slopes:
    """Bounds on the gradients of every output in one value: an interval for each entry, and norms.

    Attributes:
        lower, upper: float64, of shape (outputs, \\*shape).
        norms: bounds with one entry for each output.
    """

    lower: Tensor
    upper: Tensor
    norms: Norms

    @classmethod
    def meet(cls, lower: Tensor, upper: Tensor, norms: Norms) -> Slopes:
        """Both bounds, each tightened by the other: the l-infinity norm bounds entries, and entries bound the norms."""
        rows = len(lower), *[1] * (lower.ndim - 1)
        peak = torch.as_tensor(norms.linf, dtype=torch.float64).expand(len(lower)).reshape(rows)
        lower, upper = torch.maximum(lower, -peak), torch.minimum(upper, peak)
        size = torch.maximum(lower.abs(), upper.abs()).reshape(len(lower), -1)
        known = [torch.linalg.vector_norm(size, p, 1) * (1 + INTERVAL_SLACK) for p in (1, 2, math.inf)]
        return cls(lower, upper, norms & Norms(norms.shape, *(torch.nan_to_num(k, nan=math.inf) for k in known)))

    @classmethod
    def within(cls, norms: Norms, outputs: int) -> Slopes:
        """The intervals that norms imply."""
        wide = torch.full((outputs, *norms.shape), math.inf, dtype=torch.float64)
        return cls.meet(-wide, wide, norms)

    def __add__(self, other: Slopes) -> Slopes:
        return Slopes.meet(self.lower + other.lower, self.upper + other.upper, self.norms + other.norms)


Interval = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Slope:
    """The first argument of a slope rule.

    Attributes:
        subject: the module, or the :class:`Call`.
        shapes: the shapes of one example's value of each input that depends on the example.
        inside: the slopes are those inside the ranges of clamps.
        steepest: the largest slope of an elementwise function, from its norm rule.
    """

    subject: Any
    shapes: list[tuple[int, ...]]
    inside: bool
    steepest: Callable[[], float]


SlopeRule = Callable[..., list[Interval] | None]

SLOPE_RULES: Registry[SlopeRule] = Registry()


def slope_rule(*functions: Any) -> Callable[[Registered], Registered]:
    """Register how intervals of cotangent entries go back through functions or module classes (their ``forward``).

    The rule is called as ``rule(slope, (lower, upper), *arguments)`` and returns one interval for each input that
    depends on the example, or None where it has no bound. Operations without a rule use norms only.

    Guarantee: none of its own; a rule claims that the pullback of every cotangent in the interval lies in its result.
    """

    return SLOPE_RULES.add(*functions)
