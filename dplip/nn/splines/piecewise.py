"""Piecewise linear functions, one for each feature, on one uniform grid: a gather forward, a segmented sum backward."""

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
        tails: slopes of sigma_f left and right of all knots, shape (features, 2); constants.
        log_scale: of shape (), or None.
        step: distance of neighbouring knots, which lie symmetric about 0.
        dim: axis of x along which features lie.

    Guarantee: whatever x is, the gradient of one entry in ``values`` is ``(1 - t, t) / a`` at two neighbouring knots,
    with t in [0, 1], and ``1 / a`` at an end knot where x lies beyond it. Sums over entries are carried in float64.
    """
    return _PiecewiseLinear.apply(x, values, tails, log_scale, step, dim)


def pieces(values: Tensor, tails: Tensor, step: float) -> tuple[Tensor, Tensor]:
    """Intercept and slope of every piece, left to right: on it ``sigma(u) = intercept + slope u``.

    Two tensors (features, knots + 1), differentiable in ``values``; the first and the last piece are the tails.
    """
    slope = torch.cat((tails[:, :1], values.diff(dim=1) / step, tails[:, 1:]), 1)
    n = values.shape[1]
    knots = step * (torch.arange(n, dtype=values.dtype, device=values.device) - (n - 1) / 2)
    anchored, at = torch.cat((values[:, :1], values), 1), torch.cat((knots[:1], knots))
    return anchored - slope * at, slope


class _PiecewiseLinear(torch.autograd.Function):
    """Saves its inputs alone. The backward pass is made of torch operations, so it can be differentiated again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, values: Tensor, tails: Tensor, log_scale: Tensor | None, step: float, dim: int) -> Tensor:
        x = finite(x)
        scale = _scale(log_scale, values)
        index, _ = _locate(x, values, scale, step, dim)
        intercept, slope = pieces(values, tails.to(values), step)
        # One gather: intercept and slope are the two parts of a complex number.
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
            # d/da [sigma(e^a x) / e^a] = x sigma'(u) - sigma(u) / e^a = -intercept / e^a: x is not in it, and so it is
            # not in the arithmetic either, where far out it would cancel.
            in_scale = (-(total * intercept).sum() / scale).to(log_scale.dtype)
        return in_x, in_values, None, in_scale, None, None


def _scale(log_scale: Tensor | None, values: Tensor) -> Any:
    return 1.0 if log_scale is None else log_scale.to(values.dtype).exp()


def _locate(x: Tensor, values: Tensor, scale: Any, step: float, dim: int) -> tuple[Tensor, Tensor]:
    """The number of each entry's piece in the flat table, and the share of its value that the right knot has.

    In the left tail that share is 1 and in the right tail it is 0: all of it goes to the end knot, from either side.
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
