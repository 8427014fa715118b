"""Attention between the tokens of an example by their distances: a step towards similar tokens, 1-Lipschitz in l2."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from dplip.errors import ConfigurationError
from dplip.norms import Norms, OperatorNorms
from dplip.rules import Pullback, refuse_module, rule, through
from dplip.validate import positive

PART = 2**18
"""The most entries of differences in memory at once, but for those of a single token of each example."""


class DistanceAttention(nn.Module):
    """Move each token towards all others, with weights that fall with the distance.

    ``y_t = x_t - 1/T sum_s w_ts (x_t - x_s)`` for T tokens, ``w_ts = 1 / sqrt(1 + |x_t - x_s|^2 / scale^2)``: a mean of
    all tokens with weights ``w_ts / T`` and the rest on t itself. It has no parameters: put orthogonal maps before and
    behind. Its time grows with T^2.

    Args:
        heads: number of equal parts of the features, each with distances of its own; must divide the features.
        scale: distance at which the weight is ``1 / sqrt 2``.

    Shape: (batch, tokens, features), unchanged.

    Guarantee: 1-Lipschitz in l2 and no l2 norm grows, for every number of tokens; the mean over the tokens is kept. It
    is a gradient step on a convex function (see the rule).
    """

    def __init__(self, heads: int = 1, scale: float = 1.0) -> None:
        super().__init__()
        if not isinstance(heads, int) or isinstance(heads, bool) or heads < 1:
            raise ConfigurationError(f"heads={heads!r}: give the number of parts of the features, 1 or more.")
        self.heads, self.scale = heads, positive(scale)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 3 or x.shape[2] % self.heads:
            raise ConfigurationError(
                f"shape={tuple(x.shape)}: attention with heads={self.heads} is for (batch, tokens, features), and the "
                "heads divide the features."
            )
        parts = x.unflatten(2, (self.heads, -1)).transpose(1, 2)
        return _Step.apply(parts, self.scale).transpose(1, 2).flatten(2)

    def extra_repr(self) -> str:
        return f"heads={self.heads}, scale={self.scale:g}"


class _Step(torch.autograd.Function):
    """The step of tokens (..., T, features), with a backward pass whose sums do not cancel, however far apart they lie.

    ``vmap`` over examples works on both passes.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, scale: float) -> Tensor:
        pulls = [_pulls(rows, x, scale)[0].mean(-2) for rows in _few(x)]
        return x - scale * torch.cat(pulls, -2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.scale = inputs[1]

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        sent = []
        for rows, cotangents in zip(_few(x), _few(v), strict=True):
            pulls, w = _pulls(rows, x, ctx.scale)
            apart = cotangents.unsqueeze(-2) - v.unsqueeze(-3)
            along = (pulls * apart).sum(-1, keepdim=True)
            sent.append((w * (apart - pulls * along)).mean(-2))
        return v - torch.cat(sent, -2), None


def _few(x: Tensor) -> tuple[Tensor, ...]:
    """A few tokens at a time, which bounds the memory of their differences to all tokens."""
    return x.split(max(1, PART // max(1, x.numel())), -2)


def _pulls(rows: Tensor, x: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """``w d`` and w for the differences d of some tokens to all, in units of the scale: |w d| < 1."""
    d = (rows.unsqueeze(-2) - x.unsqueeze(-3)) / scale
    w = (1 + d.square().sum(-1, keepdim=True)).sqrt().reciprocal()
    return torch.where(w > 0, w * d, 0.0), w  # w is 0 where the square of d overflows


@rule(DistanceAttention)
def distance_attention(module: DistanceAttention, x: Norms) -> tuple[Norms, Pullback]:
    """The Jacobian is symmetric with eigenvalues in [0, 1].

    Proof: with ``h(d) = scale^2 sqrt(1 + |d|^2 / scale^2)`` the gradient of ``E(x) = sum over pairs of h(x_t - x_s)``
    in x_t is ``sum_s w_ts (x_t - x_s)``, so that y = x - grad E(x) / T. With e = w d / scale, |e| < 1, the Hessian of h
    at d is ``H = w (I - e e^T)``, and 0 <= H <= I. So for any u the form of the Hessian of E is ``sum over pairs of
    (u_t - u_s)^T H_ts (u_t - u_s)``, at least 0 and at most ``sum over pairs of |u_t - u_s|^2 <= T |u|^2`` (the
    Laplacian of the complete graph). The Jacobian I - Hess E / T lies between 0 and I. Heads are blocks.

    In l1 and l-infinity: a row of the Jacobian has the blocks ``I - sum_s H_ts / T`` and ``H_ts / T``. Its diagonal
    entries are >= 0 by H <= I, so the absolute sum of row i is at most ``1 + 2 mean_s w |e_i| (|e|_1 - |e_i|)``. With n
    features ``|e_i| (|e|_1 - |e_i|) <= sqrt(n - 1) |e|^2 / 2``, and ``w |e|^2 = w (1 - w^2) <= 2 / sqrt 27``.
    """
    if len(x.shape) != 2 or x.shape[1] % module.heads:
        refuse_module(
            module, f"is given one example of shape {x.shape}.", "Give it (tokens, features) that the heads divide."
        )
    tokens, features = x.shape[0], x.shape[1] // module.heads
    spread = 1 + 2 * math.sqrt((features - 1) / 27) * (tokens - 1) / max(1, tokens)
    return through(OperatorNorms(one_one=spread, two_two=1.0, inf_inf=spread), x, x.shape)
