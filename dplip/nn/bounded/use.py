"""A parameter's use by each example: a copy for every example, whose gradients are bounded before they are added."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from dplip.nn.bounded.enforcing import LARGEST_NORM, Enforcing, checked_radius
from dplip.nn.gradient_ball import row_norms, scale_into
from dplip.nn.sums import of_rows
from dplip.separation import current


def per_example(p: Tensor, examples: int, radius: float) -> Tensor:
    """A parameter of any shape, repeated for each example without memory.

    Args:
        p: the parameter.
        examples: their number.
        radius: the largest l2 norm of one example's gradient of the parameter.

    Returns:
        A tensor of shape (examples, *p.shape), to be used by example i at index i alone.

    Guarantee: whatever the cotangent, example i adds to the parameter's gradient its own slice, scaled into the radius
    (nothing, if it is not finite or beyond 1e30). So any function of a parameter and an example has a bounded gradient.
    """
    return PerExample.apply(p, examples, checked_radius(radius))


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
