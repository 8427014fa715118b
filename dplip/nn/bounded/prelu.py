"""PReLU with a bounded gradient of its slopes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dplip.errors import ConfigurationError
from dplip.nn.bounded.convert import bounds
from dplip.nn.bounded.enforcing import checked_radius
from dplip.nn.bounded.normalization import by_channel
from dplip.nn.bounded.use import per_example, trained
from dplip.norms import Norms
from dplip.rules import ENFORCED, SUMMATIONS, Pullback, Summation, rule
from dplip.rules.activation import prelu
from dplip.separation import examples_first


@bounds(nn.PReLU)
class BoundedPReLU(nn.PReLU):
    """``nn.PReLU`` that bounds each example's gradient of the slopes by ``radius`` in l2.

    Args:
        radius: the largest l2 norm of one example's gradient.

    Guarantee: that of :class:`BoundedLayerNorm`.
    """

    def __init__(self, *arguments: Any, radius: float = 1.0, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.radius = checked_radius(radius)

    def forward(self, x: Tensor) -> Tensor:
        return examples_first(self._bounded, x) if trained(self, x) else super().forward(x)

    def _bounded(self, x: Tensor) -> Tensor:
        slopes = per_example(self.weight, len(x), self.radius)
        if x.ndim < 2:
            if self.num_parameters > 1:
                raise ConfigurationError(
                    f"BoundedPReLU: the input has shape {tuple(x.shape)}, without an axis of examples. Give it a batch "
                    "of one, x[None]."
                )
            slopes = slopes.squeeze(1)
        return torch.where(x > 0, x, by_channel(slopes, x) * x.clamp(max=0))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, radius={self.radius:g}"


@rule(BoundedPReLU)
def bounded_prelu(module: BoundedPReLU, x: Norms) -> tuple[Norms, Pullback]:
    output, inner = prelu(module, x)

    def pullback(v: Norms) -> Any:
        below, named = inner(v)
        if module.training:  # what an example adds is scaled after it was summed over its positions
            named = {k: n & Norms(n.shape, l2=checked_radius(module.radius)) for k, n in named.items()}
        return below, named

    return output, pullback


ENFORCED.add(bounded_prelu)
SUMMATIONS[bounded_prelu] = lambda parameter, output: Summation(blocked=True)
