"""Subtraction of a public constant."""

from __future__ import annotations

import math

from torch import Tensor, nn

from dplip.errors import ConfigurationError
from dplip.norms import Norms
from dplip.rules import Pullback, rule


class Shift(nn.Module):
    """Subtract a public constant from every entry, such as the middle of the range of a pixel; 1-Lipschitz."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        if not math.isfinite(offset):
            raise ConfigurationError(f"offset={offset}: the constant to subtract is a finite number.")
        self.offset = float(offset)

    def forward(self, x: Tensor) -> Tensor:
        return x - self.offset

    def extra_repr(self) -> str:
        return f"offset={self.offset:g}"


@rule(Shift)
def shift(module: Shift, x: Norms) -> tuple[Norms, Pullback]:
    return x + Norms(x.shape, linf=abs(module.offset)), lambda v: ((v,), {})
