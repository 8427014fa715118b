"""Convolutions that bound each example's gradient of the weight (see :mod:`dplip.nn.bounded.linear`)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from dplip.errors import ConfigurationError
from dplip.nn.bounded.convert import bounds
from dplip.nn.bounded.enforcing import Summed, bounded_rule, checked_radius, scaled_rows
from dplip.nn.bounded.slack import slack_of
from dplip.nn.sums import of_convolution, of_rows
from dplip.norms import Norms
from dplip.rules import ENFORCED, SUMMATIONS, Pullback, Summation, rule
from dplip.rules.convolution import convolution, most_reads


@bounds(nn.Conv2d)
class BoundedConv2d(nn.Conv2d):
    """``nn.Conv2d`` (zero padding) that bounds each example's gradient of its weight, and of its bias, in l2.

    An entry of the input is read by at most m (position, tap) pairs, so the gradient's norm is at most
    ``sqrt(m) |v| |x|`` (see :func:`dplip.rules.convolution.convolution`). That product is scaled down to the radius.

    Args:
        radius: the largest l2 norm of one example's gradient of the weight; likewise of the bias.

    Guarantee: as for :class:`BoundedLinear`.
    """

    slack: Tensor | None = None

    def __init__(self, *arguments: Any, radius: float = 1.0, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.radius = checked_radius(radius)
        self.check_settings()

    def check_settings(self) -> None:
        """Refuse a padding that the bound does not cover."""
        if self.padding_mode != "zeros" or isinstance(self.padding, str):
            raise ConfigurationError(
                f"padding={self.padding!r}, padding_mode={self.padding_mode!r}: give numbers of zeros."
            )

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self._conv_forward(x, self.weight, self.bias)
        settings = (self.stride, self.padding, self.dilation, self.groups)
        padding = tuple((int(p), int(p)) for p in self.padding)
        reuse = math.sqrt(most_reads(tuple(x.shape[2:]), self.kernel_size, self.stride, padding, self.dilation))
        return ConvolutionGradients.apply(x, self.weight, self.bias, None, self.radius, self.slack, reuse, settings)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, radius={self.radius:g}"


class ConvolutionGradients(Summed):
    """A convolution, whose node bounds the gradients of weight and bias."""

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        output: Tensor | None,
        radius: float | None,
        slack: Tensor | None,
        reuse: float,
        settings: Any,
    ) -> Tensor:
        return F.conv2d(x, weight, bias, *settings) if output is None else output

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias, _, _, for_slack, *_ = ctx.needs_input_grad
        (reuse, settings), shapes = ctx.geometry, (x.shape, weight.shape)
        if v.ndim == 3:  # a sequence is treated as an image of height 1
            x, weight, v = (t.unsqueeze(2) for t in (x, weight, v))
            settings = (*((n, *s) for n, s in zip((1, 0, 1), settings[:3], strict=True)), settings[3])
        gradient = bias = below = slack = None
        with torch.autocast(v.device.type, enabled=False):
            if for_weight or for_bias:
                inputs, scaled, sent, norms = scaled_rows(x, v, weight, ctx.radius, reuse, math.prod(v.shape[2:]))
                if for_weight:
                    gradient = of_convolution(inputs, scaled, weight.shape[2:], *settings).reshape(shapes[1])
                bias = of_rows(sent().flatten(2).sum(2)) if for_bias else None
                if for_slack and norms is not None:
                    slack = slack_of(ctx.radius, norms[0] if for_weight else norms[1])
                del inputs, scaled, sent  # frees the scaled copy before the next product
            if for_x:
                below = conv2d_input(x.shape, weight.to(v.dtype), v, *settings).reshape(shapes[0])
        return below, gradient, bias, None, None, slack, None, None


@rule(BoundedConv2d)
def bounded_convolution(module: BoundedConv2d, x: Norms) -> tuple[Norms, Pullback]:
    return bounded_rule(convolution, module, x)


ENFORCED.add(bounded_convolution)
# The positions of one example are summed before the examples.
SUMMATIONS[convolution] = SUMMATIONS[bounded_convolution] = lambda _, output: Summation(blocked=True)
