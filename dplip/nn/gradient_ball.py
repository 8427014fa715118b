"""The projection of one example's cotangent onto an l2 ball: the bound of a gradient as a part of the model."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from dplip.norms import Norms, least
from dplip.rules import Pullback, rule
from dplip.validate import positive

ROW_SLACK = 4e-6
"""How far inside its radius a row is scaled: more than the rounding of the factor and of its product."""


class GradientBall(nn.Module):
    """The identity, whose backward pass scales each example's cotangent down to the given l2 norm, in training mode.

    Between layers, together with ``BallProjection``, it bounds every parameter's gradient whatever the weights are:
    the sensitivity is then a constant, and no operator norm is needed for privacy.

    Args:
        radius: the largest l2 norm of the cotangent that one example sends back.

    Shape: any shape with the batch first; the norm is over all other axes.

    Guarantee: in training mode every cotangent that leaves is finite, of l2 norm at most ``radius``, and a function of
    that example's cotangent alone (NaN and infinite entries become 0). In evaluation mode it is the identity both ways,
    so that certificates see the derivative of the model.
    """

    surrogate = True  # in training mode the cotangent that it sends on is not its derivative's

    def __init__(self, radius: float) -> None:
        super().__init__()
        self.radius = positive(radius)

    def forward(self, x: Tensor) -> Tensor:
        return _Scaled.apply(x, self.radius) if self.training else x

    def extra_repr(self) -> str:
        return f"radius={self.radius:g}"


class _Scaled(torch.autograd.Function):
    """The identity; backward, the projection onto the ball. ``vmap`` over examples works on both passes."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, radius: float) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.radius = inputs[1]

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None]:
        return project_rows(v, ctx.radius), None


def row_norms(x: Tensor) -> Tensor:
    """The l2 norm of each example of a batch, from above, in float64; inf where its square overflows.

    A sum of n nonnegative terms is off by at most n roundings, the root by half of that; and squares below the smallest
    normal number may vanish, together less than n of it.
    """
    rows = x.flatten(1)
    n, info = rows.shape[1], torch.finfo(x.dtype)
    return torch.linalg.vector_norm(rows, dim=1).double() * (1 + (n + 8) * info.eps / 2) + math.sqrt(n * info.tiny)


def scale_into(radius: float, norms: Tensor, like: Tensor) -> Tensor:
    """Per example, a factor that brings a value of that norm into the radius, shaped to multiply ``like``.

    Rounded towards the inside. A norm that is not finite gives 0, and so does a factor below the normal numbers, whose
    own rounding would be large.
    """
    inside = radius * (1 - ROW_SLACK)
    scale = inside / torch.nan_to_num(norms, nan=math.inf).clamp_min(inside)
    scale = torch.where(scale < torch.finfo(like.dtype).tiny, 0.0, scale)
    return scale.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))


def project_rows(x: Tensor, radius: float) -> Tensor:
    """Each example of a batch projected onto the l2 ball, with NaN and infinite entries taken for 0."""
    x = torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)
    return x * scale_into(radius, row_norms(x), x)


@rule(GradientBall)
def gradient_ball(module: GradientBall, x: Norms) -> tuple[Norms, Pullback]:
    def pullback(v: Norms) -> Any:
        if not module.training:
            return (v,), {}
        # Scaling by a factor of at most 1 shrinks every norm.
        return (Norms(v.shape, v.l1, least(v.l2, module.radius), v.linf),), {}

    return x, pullback
