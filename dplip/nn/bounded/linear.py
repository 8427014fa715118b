"""Linear layers and convolutions that bound each example's gradient of the weight, within one ordinary backward pass.

An example's gradient of a linear layer's weight is the outer product of its cotangent v and its input x, so its norm is
at most ``|v| |x|``, two norms that cost next to nothing. In training mode the weight's gradient is therefore the sum
over the examples of ``s v x^T`` with ``s = min(1, radius / (|v| |x|))``. No gradient per example is formed, and the
bound needs neither a bound of the input nor an operator norm. The layers below get the true cotangent.

Under ``torch.autocast`` the layer's output and the cotangent for the layers below are products in half precision; x and
v are converted to the weight's type, exactly, before their product (see :mod:`dplip.sensitivities.enforced`).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dplip.nn.bounded.convert import bounds
from dplip.nn.bounded.enforcing import Summed, bounded_rule, checked_radius, scaled_rows
from dplip.nn.bounded.slack import slack_of
from dplip.nn.sums import of_products, of_rows
from dplip.norms import Norms
from dplip.rules import ENFORCED, SUMMATIONS, Pullback, rule
from dplip.rules.linear import AFFINE, by_position, linear


@bounds(nn.Linear)
class BoundedLinear(nn.Linear):
    """``nn.Linear`` that bounds each example's gradient of its weight, and of its bias, by ``radius`` in l2.

    Args:
        in_features, out_features, bias: as for ``nn.Linear``; the keys of the ``state_dict`` are the same.
        radius: the largest l2 norm of one example's gradient of the weight; likewise of the bias.

    Guarantee: in training mode the bound holds for every input, cotangent and weight (examples that are not finite, or
    of a norm beyond 1e30, contribute nothing). In evaluation mode the layer is ``nn.Linear``.
    Source: clipping by layer with the norm of an outer product, Goodfellow, 2015, arXiv 1510.01799.
    """

    slack: Tensor | None = None

    def __init__(self, in_features: int, out_features: int, bias: bool = True, radius: float = 1.0) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.radius = checked_radius(radius)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return F.linear(x, self.weight, self.bias)
        return LinearGradients.apply(x, self.weight, self.bias, None, self.radius, self.slack)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, radius={self.radius:g}"


class LinearGradients(Summed):
    """A linear map, whose node bounds the gradients of weight and bias."""

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        output: Tensor | None,
        radius: float | None,
        slack: Tensor | None = None,
    ) -> Tensor:
        return F.linear(x, weight, bias) if output is None else output

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias, _, _, for_slack = ctx.needs_input_grad
        gradient = bias = below = slack = None
        with torch.autocast(v.device.type, enabled=False):
            if for_weight or for_bias:
                inputs, scaled, sent, norms = scaled_rows(x, v, weight, ctx.radius, 1.0, math.prod(v.shape[1:-1]))
                gradient = of_products(scaled.flatten(0, -2), inputs.flatten(0, -2)) if for_weight else None
                bias = of_rows(sent().flatten(0, -2)) if for_bias else None
                if for_slack and norms is not None:
                    slack = slack_of(ctx.radius, norms[0] if for_weight else norms[1])
                del inputs, scaled, sent  # frees the scaled copy before the next product
            below = v @ weight.to(v.dtype) if for_x else None
        return below, gradient, bias, None, None, slack


@rule(BoundedLinear)
def bounded_linear(module: BoundedLinear, x: Norms) -> tuple[Norms, Pullback]:
    return bounded_rule(linear, module, x)


AFFINE.add(bounded_linear)
ENFORCED.add(bounded_linear)
SUMMATIONS[linear] = SUMMATIONS[bounded_linear] = lambda _, output: replace(by_position(_, output), blocked=True)
