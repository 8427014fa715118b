"""The projection of one example's cotangent onto an l2 ball, which bounds gradients inside the model."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from dplip.norms import Norms, least
from dplip.rules import Pullback, rule
from dplip.validate import positive

ROW_SLACK = 4e-6
"""Relative distance inside the radius to which a row is scaled: more than the rounding of the factor and product."""

PIECE = 1024
"""Numbers whose norm is computed at once; each adds 2^-24 to the bound of its rounding."""


class GradientBall(nn.Module):
    """The identity, whose backward pass scales each example's cotangent down to the given l2 norm, in training mode.

    Between layers, together with ``BallProjection``, it bounds every parameter's gradient for all weights. The
    sensitivity is then a constant, and privacy needs no operator norm.

    Args:
        radius: the largest l2 norm of one example's cotangent after this layer.

    Shape: any shape with the batch first; the norm is over all other axes.

    Guarantee: in training mode every cotangent that leaves is finite, of l2 norm at most ``radius``, and a function of
    that example's cotangent alone (NaN and infinite entries become 0). In evaluation mode it is the identity both ways,
    so that certificates see the derivative of the model.
    """

    surrogate = True  # in training mode the backward pass is not the derivative

    def __init__(self, radius: float) -> None:
        super().__init__()
        self.radius = positive(radius)

    def forward(self, x: Tensor) -> Tensor:
        return _Scaled.apply(x, self.radius) if self.training else x

    def extra_repr(self) -> str:
        return f"radius={self.radius:g}"


class _Scaled(torch.autograd.Function):
    """The identity, whose backward pass projects onto the ball. ``vmap`` over examples works on both passes."""

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
    """An upper bound on the l2 norm of each example of a batch, in float64; inf where its square overflows.

    Proof: a sum of n nonnegative terms is off by at most n roundings, its root by half of that. The norms of pieces are
    computed in the type of the values, that of all pieces in float64, whose roundings are no larger. Squares below the
    smallest normal number may underflow; n of them lose less than n times that number.
    """
    rows = x.flatten(1)
    n, info = rows.shape[1], torch.finfo(x.dtype)
    whole = n - n % PIECE if n > PIECE else 0
    norms = torch.linalg.vector_norm(rows[:, whole:], dim=1).double()
    if whole:
        pieces = torch.linalg.vector_norm(rows[:, :whole].unflatten(1, (-1, PIECE)), dim=2)
        norms = torch.linalg.vector_norm(torch.cat([pieces.double(), norms[:, None]], 1), dim=1)
    return norms * (1 + (min(n, PIECE) + whole // PIECE + 8) * info.eps / 2) + math.sqrt(n * info.tiny)


def scale_into(radius: float | Tensor, norms: Tensor, like: Tensor) -> Tensor:
    """Per example, a factor that scales a value of norm ``norms`` into the radius (or its own), shaped for ``like``.

    The factor is rounded towards 0. It is 0 for a norm that is not finite, and where it would be below the normal
    numbers, with a large rounding error.
    """
    inside = radius * (1 - ROW_SLACK)
    scale = norms.clamp_min(inside).reciprocal() * inside
    scale = torch.where(scale >= torch.finfo(like.dtype).tiny, scale, 0.0)  # NaN is not
    return scale.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))


def project_rows(x: Tensor, radius: float) -> Tensor:
    """Each example of a batch projected onto the l2 ball, after NaN and infinite entries are set to 0."""
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
