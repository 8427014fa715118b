"""Constraints that keep the slopes of splines in a public interval, for both kinds of coordinates."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dplip.constraints import Constraint
from dplip.errors import ConfigurationError


class EntryRange(Constraint):
    """Weights with all entries in [low, high]."""

    axes = 0

    def __init__(self, low: float = -math.inf, high: float = math.inf) -> None:
        super().__init__()
        self.low, self.high = checked_range("EntryRange", low, high)

    def project(self, weight: Tensor, layer: nn.Module) -> None:
        weight.detach().clamp_(self.low, self.high)

    def extra_repr(self) -> str:
        return f"low={self.low:g}, high={self.high:g}"


class SplineProj(Constraint):
    """Values at knots with slopes in [low, high]; the projection clips each slope and keeps the mean of the values.

    Args:
        low, high: the public interval of slopes.
        step: distance of neighbouring knots.

    Guarantee: idempotent, with slopes within the interval, up to rounding; not the Euclidean projection. In the
    coordinates (mean, slopes) it is :class:`EntryRange` on the slopes.
    Source: Ducotterd, Goujon, Bohra, Perdios, Neumayer and Unser, 2024 (arXiv 2210.16222), section 3.2.
    """

    def __init__(self, low: float, high: float, step: float) -> None:
        super().__init__()
        self.low, self.high = checked_range("SplineProj", low, high)
        if not (math.isfinite(step) and step > 0):
            raise ConfigurationError(f"step={step}: knots are a finite distance > 0 apart.")
        self.step = float(step)

    def project(self, weight: Tensor, layer: nn.Module) -> None:
        values = weight.detach().double()
        rises = values.diff(dim=1).clamp(self.low * self.step, self.high * self.step)
        weight.detach().copy_(centred_values(rises) + values.mean(1, keepdim=True))

    def extra_repr(self) -> str:
        return f"low={self.low:g}, high={self.high:g}, step={self.step:g}"


def centred_values(rises: Tensor) -> Tensor:
    """The values of mean zero with these differences along axis 1."""
    values = torch.nn.functional.pad(rises.cumsum(1), (1, 0))
    return values - values.mean(1, keepdim=True)


def checked_range(name: str, low: float, high: float) -> tuple[float, float]:
    if not low <= high:
        raise ConfigurationError(f"{name}: low={low}, high={high}: an interval has low <= high.")
    return float(low), float(high)
