"""Coordinatewise clamping, which bounds an input in l-infinity and does not mix features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dplip.errors import ConfigurationError
from dplip.norms import Norms
from dplip.rules import Pullback, rule
from dplip.rules.activation import clamped


class Clamp(nn.Module):
    """Clamp every coordinate to [low, high] (public constants); infinite entries are clamped, NaN is not.

    Guarantee: for inputs without NaN, ``|y|_inf <= max(|low|, |high|)``; 1-Lipschitz in every lp norm; monotone.
    """

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        if not low < high:
            raise ConfigurationError(f"low={low}, high={high}: the interval is empty. Give low < high.")
        self.low, self.high = float(low), float(high)

    def forward(self, x: Tensor) -> Tensor:
        return torch.clamp(x, self.low, self.high)

    def extra_repr(self) -> str:
        return f"low={self.low:g}, high={self.high:g}"


@rule(Clamp)
def clamp(module: Clamp, x: Norms) -> tuple[Norms, Pullback]:
    return clamped(x, module.low, module.high)
