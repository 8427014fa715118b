"""Enforcing nodes: autograd functions that scale each example's gradient of their parameters into a radius."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dplip.errors import ConfigurationError
from dplip.nn.gradient_ball import ROW_SLACK, row_norms, scale_into
from dplip.norms import Norms
from dplip.rules import Pullback
from dplip.validate import positive

LARGEST_NORM = 1e30
"""An example with a larger norm, or one that is not finite, adds no gradient: products with s lose their digits."""

SMALLEST = 1e-12
"""The smallest radius. A scaled entry below 2^-126 is off by 2^-150. Times the other factor, whose norm is at most 2^64
(a larger one has no finite square), the error is sqrt(d) 2^-86 for d entries, far less than ``ROW_SLACK`` of the
radius."""


def checked_radius(radius: float) -> float:
    if positive(radius) < SMALLEST:
        raise ConfigurationError(
            f"radius={radius}: a gradient this small loses its digits. Give at least {SMALLEST:g}, and a "
            "lower learning rate for smaller steps."
        )
    return float(radius)


class Enforcing(torch.autograd.Function):
    """Base of the functions that bound one example's gradient of each of their parameters.

    The node of such a function in the autograd graph is its context, from which a reader of the graph takes:

    Attributes:
        radius: the bound; None: the function bounds nothing, and only sums in blocks.
        given: how many of the leading tensor arguments are inputs, whose gradient is true. The others are parameters.
        terms: the most terms that one example adds to an entry of a parameter's gradient; examples are summed in
            blocks (:mod:`dplip.nn.sums`).

    ``radius`` and ``terms`` are set for each node, ``given`` is the class's.

    Guarantee: for every input, cotangent and parameter, the sum over one example of the gradient of each parameter has
    an l2 norm of at most ``radius``. The examples are the first axis of the inputs. A tensor argument may be the leaf
    of a slack coordinate (:mod:`dplip.nn.bounded.slack`), which fills the radius of the first trained parameter.
    """

    given = 1


def is_enforcing(node: Any) -> bool:
    """Whether a node of the autograd graph is of a function that bounds the gradients of its parameters."""
    function = getattr(type(node), "_forward_cls", None)
    return inspect.isclass(function) and issubclass(function, Enforcing) and node.radius is not None


def bounded_rule(bounds: Callable[..., Any], module: Any, x: Norms) -> tuple[Norms, Pullback]:
    """The stock layer's bounds, with parameter bounds of at most the radius in training mode."""
    output, inner = bounds(module, x)
    radius = checked_radius(module.radius)  # checked again, since the attribute may have been set

    def pullback(v: Norms) -> Any:
        below, named = inner(v)
        if module.training:
            positions = output.size // module.weight.shape[0]
            # Each example was scaled to the radius before the sum over its positions, which rounds.
            named = {k: n & Norms(n.shape, l2=radius).summed(positions) for k, n in named.items()}
        return below, named

    return output, pullback


def scaled_rows(
    x: Tensor, v: Tensor, weight: Tensor, radius: float | None, reuse: float, positions: int
) -> tuple[Tensor, Tensor, Callable[[], Tensor], tuple[Tensor, Tensor] | None]:
    """Inputs and cotangents for the weight's gradient, a function that gives the cotangents for the bias's, and norms.

    All are in the weight's type. With a radius, each example is scaled so that ``reuse |v| |x|`` and
    ``sqrt(positions) |v|`` lie within it. The norms are those two before scaling, for each example.
    """
    x, v = x.to(weight.dtype), v.to(weight.dtype)  # exact: neither has more digits than the weight
    if radius is None:
        return x, v, lambda: v, None
    sizes, lengths = row_norms(x), row_norms(v)
    kept = torch.maximum(sizes, lengths) <= LARGEST_NORM  # False for NaN
    # The scaling is skipped only where it would change no row, so that a row never depends on the others.
    if not _all(kept & (reuse * sizes * lengths <= radius * (1 - ROW_SLACK))):
        if not _all(kept):
            x, v = (torch.where(kept.reshape(-1, *[1] * (t.ndim - 1)), t, 0.0) for t in (x, v))
            # The norms are not recomputed: a copy may differ in memory layout, which would change the rounding of all.
            sizes, lengths = (torch.where(kept, n, 0.0) for n in (sizes, lengths))
        norms, on_input = reuse * sizes * lengths, x.numel() < v.numel()  # scale the smaller of the two tensors
        inputs = x * scale_into(radius, norms, x) if on_input else x
        cotangents = v if on_input else v * scale_into(radius, norms, v)
    else:
        inputs, cotangents = x, v
    of_bias = math.sqrt(positions) * lengths
    return inputs, cotangents, lambda: v * scale_into(radius, of_bias, v), (reuse * sizes * lengths, of_bias)


def _all(condition: Tensor) -> bool:
    """Whether the condition is known to hold for every example."""
    if torch.compiler.is_compiling():  # a compiled graph cannot branch on values
        return False
    try:
        return bool(condition.all())
    except RuntimeError:  # under vmap the value is not known
        return False


class Summed(Enforcing):
    """A layer's map with a backward pass of sums in blocks; a given output is returned, and a radius scales rows."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        x, weight, _, given, ctx.radius, _, *ctx.geometry = inputs
        ctx.save_for_backward(x, weight)
        ctx.mark_dirty(*[given] * (given is not None))  # so that it is returned itself and not as a view
