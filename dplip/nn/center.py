"""Subtraction of an example's own mean."""

from __future__ import annotations

import math

from torch import Tensor, nn

from dplip.errors import ConfigurationError
from dplip.norms import Norms, OperatorNorms
from dplip.rules import Pullback, rule, through


class Center(nn.Module):
    """Subtract from each example the mean of its own entries, over all its axes (never over the batch).

    Guarantee: an orthogonal projection, so 1-Lipschitz in l2 and of norm ``2 (1 - 1/n)`` in l1 and l-infinity.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim < 2:
            raise ConfigurationError(f"shape={tuple(x.shape)}: Center needs (batch, ...) with at least two axes.")
        return x - x.mean(dim=tuple(range(1, x.ndim)), keepdim=True)


@rule(Center)
def center(module: Center, x: Norms) -> tuple[Norms, Pullback]:
    n = x.size
    spread = 2 * (1 - 1 / n)
    peak = 1 - 1 / n
    jacobian = OperatorNorms(spread, math.sqrt(peak), peak, 1.0, math.sqrt(peak), spread)
    return through(jacobian, x, x.shape)
