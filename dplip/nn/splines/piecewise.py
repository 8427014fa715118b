"""Piecewise linear functions on a uniform grid, one for each feature: a gather forward, a segmented sum backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dplip.nn.linf.distance import finite


def piecewise_linear(
    x: Tensor, values: Tensor, tails: Tensor, log_scale: Tensor | None, step: float, dim: int
) -> Tensor:
    """``sigma_f(a x) / a`` for every entry x of feature f, where ``a = exp(log_scale)``, or 1.

    Args:
        x: any shape; NaN counts as 0, and entries are cut at 1e30.
        values: sigma_f at the knots, shape (features, knots), float64.
        tails: constant slopes of sigma_f left and right of all knots, shape (features, 2).
        log_scale: shape (), or None.
        step: distance of neighbouring knots, which lie symmetrically about 0.
        dim: the axis of features of x.

    Guarantee: for every x, the gradient of one output entry in ``values`` is ``(1 - t, t) / a`` at two neighbouring
    knots, with t in [0, 1], and ``1 / a`` at an end knot where x lies beyond it. Sums over entries are in float64.
    """
    return _PiecewiseLinear.apply(x, values, tails, log_scale, step, dim)


def pieces(values: Tensor, tails: Tensor, step: float) -> tuple[Tensor, Tensor]:
    """The intercept and the slope of every piece, left to right: ``sigma(u) = intercept + slope u`` on it.

    Both are (features, knots + 1) and differentiable in ``values``; the first and the last piece are the tails.
    """
    slope = torch.cat((tails[:, :1], values.diff(dim=1) / step, tails[:, 1:]), 1)
    n = values.shape[1]
    knots = step * (torch.arange(n, dtype=values.dtype, device=values.device) - (n - 1) / 2)
    anchored, at = torch.cat((values[:, :1], values), 1), torch.cat((knots[:1], knots))
    return anchored - slope * at, slope


class _PiecewiseLinear(torch.autograd.Function):
    """The splines; only the inputs are saved. The backward pass can be differentiated again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, values: Tensor, tails: Tensor, log_scale: Tensor | None, step: float, dim: int) -> Tensor:
        x = finite(x)
        scale = _scale(log_scale, values)
        index, _ = _locate(x, values, scale, step, dim)
        intercept, slope = pieces(values, tails.to(values), step)
        # Intercept and slope are stored as one complex number, so that one gather reads both.
        table = torch.complex(intercept / scale, slope).to(torch.complex64 if x.dtype == torch.float32 else None)
        found = torch.view_as_real(table.flatten().index_select(0, index)).reshape(*x.shape, 2)
        return torch.addcmul(found[..., 0], found[..., 1], x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, values, tails, log_scale, *ctx.grid = inputs
        ctx.save_for_backward(x, values, tails, log_scale)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, values, tails, log_scale = ctx.saved_tensors
        step, dim = ctx.grid
        for_x, for_values, _, for_scale, *_ = ctx.needs_input_grad
        scale = _scale(log_scale, values)
        index, place = _locate(finite(x), values, scale, step, dim)
        intercept, slope = pieces(values, tails.to(values), step)
        in_x = in_values = in_scale = None
        if for_x:
            in_x = g * slope.to(g.dtype).flatten().index_select(0, index).reshape(g.shape)
        if for_values or for_scale:
            total = _segments(g, index, intercept)
        if for_values:
            right = _segments(g * place, index, intercept)
            in_values = ((total - right)[:, 1:] + right[:, :-1]) / scale
        if for_scale:
            # d/da [sigma(e^a x) / e^a] = x sigma'(u) - sigma(u) / e^a = -intercept / e^a. The last form has no x,
            # whose two terms would cancel for large x.
            in_scale = (-(total * intercept).sum() / scale).to(log_scale.dtype)
        return in_x, in_values, None, in_scale, None, None


def _scale(log_scale: Tensor | None, values: Tensor) -> Any:
    return 1.0 if log_scale is None else log_scale.to(values.dtype).exp()


def _locate(x: Tensor, values: Tensor, scale: Any, step: float, dim: int) -> tuple[Tensor, Tensor]:
    """The index of each entry's piece in the flat table, and the weight of the right knot in the entry's value.

    The weight is 1 in the left tail and 0 in the right tail, so that an end knot has weight 1 in its tail.
    """
    features, knots = values.shape
    position = x * (scale / step).to(x.dtype) if isinstance(scale, Tensor) else x * (1 / step)
    position = position + (knots - 1) / 2
    left = position.floor().clamp(-1, knots - 1)
    shape = [1] * x.ndim
    shape[dim] = features
    first = torch.arange(1, features * (knots + 1), knots + 1, dtype=torch.int32, device=x.device)
    index = (left.to(torch.int32) + first.reshape(shape)).reshape(-1)
    return index, position.clamp(0, knots - 1) - left


def _segments(terms: Tensor, index: Tensor, like: Tensor) -> Tensor:
    """The sum of the terms of each piece, in the shape of ``like``."""
    sums = like.new_zeros(like.numel())
    return sums.index_add(0, index, terms.reshape(-1).to(like.dtype)).reshape(like.shape)
