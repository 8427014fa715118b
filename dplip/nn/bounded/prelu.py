"""PReLU with a bounded gradient of its slopes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dplip.nn.bounded.convert import bounds
from dplip.nn.bounded.enforcing import checked_radius
from dplip.nn.bounded.normalization import channels
from dplip.nn.bounded.use import at_examples, trained
from dplip.norms import Norms
from dplip.rules import ENFORCED, SUMMATIONS, Pullback, Summation, rule
from dplip.rules.activation import prelu


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
        if not trained(self, x):
            return super().forward(x)
        shape = () if self.num_parameters == 1 else channels(self.weight, x)
        return torch.where(x > 0, x, at_examples(self.weight, x, self.radius, shape) * x.clamp(max=0))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, radius={self.radius:g}"


@rule(BoundedPReLU)
def bounded_prelu(module: BoundedPReLU, x: Norms) -> tuple[Norms, Pullback]:
    output, inner = prelu(module, x)

    def pullback(v: Norms) -> Any:
        below, named = inner(v)
        if module.training:  # what an example adds is scaled after it was summed over its positions
            named = {k: n & Norms(n.shape, l2=float(checked_radius(module.radius))) for k, n in named.items()}
        return below, named

    return output, pullback


ENFORCED.add(bounded_prelu)
SUMMATIONS[bounded_prelu] = lambda parameter, output: Summation(blocked=True)
