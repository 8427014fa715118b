"""A parameter's use by each example: a copy for every example, whose gradients are bounded before they are added."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dplip.errors import ConfigurationError
from dplip.nn.bounded.enforcing import LARGEST_NORM, Enforcing, checked_radius
from dplip.nn.gradient_ball import row_norms, scale_into
from dplip.nn.sums import of_rows
from dplip.separation import Rows, current


def per_example(p: Tensor, examples: int, radius: float) -> Tensor:
    """A parameter of any shape, repeated for each example without memory.

    Args:
        p: the parameter.
        examples: their number.
        radius: the largest l2 norm of one example's gradient of the parameter.

    Returns:
        A tensor of shape (examples, *p.shape), of which example i must use index i alone.

    Guarantee: whatever the cotangent, example i adds to the parameter's gradient its own slice, scaled into the radius
    (nothing, if it is not finite or beyond 1e30). So any function of a parameter and an example has a bounded gradient.
    """
    return _owned(PerExample.apply(p, examples, checked_radius(radius)))


def at_examples(p: Tensor, x: Tensor, radius: float, shape: Sequence[int] | None = None) -> Tensor:
    """A parameter repeated for each example of a value, in the value's layout, to be broadcast with it.

    Args:
        p: the parameter.
        x: the value; its examples are where the present watch finds them, without one along axis 0.
        radius: as for :func:`per_example`.
        shape: the parameter's shape when it is broadcast with the value; None: its own.

    Raises:
        ConfigurationError: the parameter has entries along the axis of the examples.

    Guarantee: that of :func:`per_example`.
    """
    watch, shape = current(), p.shape if shape is None else shape
    rank = max(x.ndim, len(shape))
    rows = Rows(0) if watch is None else watch.rows(x)
    full = [1] * (rank - len(shape)) + list(shape)
    axis = None if rows is None else rows.axis + rank - x.ndim
    if rows is None or axis is None or axis >= rank or full[axis] != 1:
        raise ConfigurationError(
            f"a parameter of shape {tuple(p.shape)} meets a value of shape {tuple(x.shape)} that has no axis of "
            "examples apart from the parameter's own. Give a batch, of one example as x[None]."
        )
    count = x.shape[rows.axis] // (rows.outer * rows.inner) if watch is None else watch.examples
    rest = full[:axis] + full[axis + 1 :]
    copies = per_example(p, count, radius).reshape(count, *rest)
    if rows.outer * rows.inner != 1:
        copies = copies[None, :, None].expand(rows.outer, -1, rows.inner, *rest).flatten(0, 2)
    return copies.movedim(0, axis)


def _owned(copies: Tensor) -> Tensor:
    """Tell the watch that slice i belongs to example i, so that no other example may use it."""
    watch = current()
    if watch is not None:
        watch.own(copies)
    return copies


def without_examples(x: Tensor) -> bool:
    """Whether a value is known to depend on no example: its cotangent is a sum over all of them, and has no bound."""
    watch = current()
    return watch is not None and watch.rows(x) is None


def trained(layer: nn.Module, x: Tensor) -> bool:
    """Whether a layer must bound gradients.

    A layer whose input depends on no example cannot; it computes as torch's does, which a reader of the autograd graph
    sees.
    """
    return layer.training and not without_examples(x)


class PerExample(Enforcing):
    """The expansion of a parameter, whose node bounds each example's slice of the gradient."""

    given = 0
    generate_vmap_rule = True

    @staticmethod
    def forward(p: Tensor, examples: int, radius: float) -> Tensor:
        return p.expand(examples, *p.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.radius, ctx.terms = inputs[2], 1

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Any:
        with torch.autocast(v.device.type, enabled=False):
            rows = v.reshape(len(v), math.prod(v.shape[1:]))
            return of_rows(into_radius(rows, ctx.radius)).reshape(v.shape[1:]), None, None


def into_radius(rows: Tensor, radius: float) -> Tensor:
    """Rows scaled into the radius, each by itself; what is not finite, or beyond 1e30, is 0."""
    norms = row_norms(rows)
    kept = norms <= LARGEST_NORM  # False for NaN
    return torch.where(kept[:, None], rows, 0.0) * scale_into(radius, norms, rows)
