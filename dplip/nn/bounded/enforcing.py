"""Enforcing nodes: autograd functions that scale each example's gradient of their parameters into a radius."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor

from dplip.errors import ConfigurationError, MixedExamplesError
from dplip.nn.gradient_ball import row_norms, scale_into
from dplip.nn.sums import of_rows
from dplip.norms import Norms
from dplip.rules import Pullback
from dplip.separation import Rows, current
from dplip.validate import positive

LARGEST_NORM = 1e30
"""An example with a larger norm, or one that is not finite, adds no gradient: products with s lose their digits."""

SMALLEST = 1e-12
"""The smallest radius. A scaled entry below 2^-126 is off by 2^-150. Times the other factor, whose norm is at most 2^64
(a larger one has no finite square), the error is sqrt(d) 2^-86 for d entries, far less than ``ROW_SLACK`` of the
radius."""

CANCELLED = 256.0
"""Terms of one example that cancel to less than 1 / this of their magnitudes are scaled by their magnitudes."""


@overload
def checked_radius(radius: float) -> float: ...


@overload
def checked_radius(radius: Radius) -> Radius: ...


def checked_radius(radius: Radius) -> Radius:
    if isinstance(radius, JointRadius):
        return radius
    if positive(radius) < SMALLEST:
        raise ConfigurationError(
            f"radius={radius}: a gradient this small loses its digits. Give at least {SMALLEST:g}, and a "
            "lower learning rate for smaller steps."
        )
    return float(radius)


Within = float | Tensor | None
"""What a sum over examples lets through of each: a radius, or one for each example, in float64; None: all of it. 0:
nothing, so the sum is not computed, and what stands for it has no meaning."""


class JointRadius:
    """A radius of the gradients of all trained parameters together, for ``bound_gradients(model, radius)``.

    Where an example's gradient, as one vector over all parameters, is longer than the radius, all of it is scaled by
    one factor, so that the proportions between the layers stay. That takes two backward passes
    (:mod:`dplip.nn.bounded.joint`), which a private optimizer makes of the ``backward()`` of the loss. Without a
    private optimizer the parameters get no gradient.

    Args:
        radius: the largest l2 norm of one example's gradient of all trained parameters.

    Guarantee: the norm of all that one example adds in one backward pass from the model's output is at most the radius,
    whatever the model, its weights, inputs and cotangents, and whatever changes between the two passes.
    Source: flat clipping, Abadi et al., 2016, arXiv 1607.00133.
    """

    def __init__(self, radius: float) -> None:
        self._radius: float = checked_radius(radius)
        self.measured: list[tuple[Any, int, Tensor]] | None = None  # while a pass measures: node, edge and norms
        self.used = False  # whether a pass has measured

    def __float__(self) -> float:
        return self._radius

    def __format__(self, spec: str) -> str:
        return f"JointRadius({self._radius:{spec}})"

    def __repr__(self) -> str:
        return f"{self:g}"


Sum = Callable[[Within, list[Tensor] | None], Tensor]
"""A sum of examples' gradients of one parameter, each scaled into what is let through of it; a list gets upper bounds
of their norms before that, in float64 and in the order of the examples."""

Radius = float | JointRadius


def sent(node: Any, edge: int, of_examples: Sum, told: list[Tensor] | None = None) -> Tensor | None:
    """What a node sends along one of its edges, to a parameter.

    With a joint radius it is a sum within the shares of the examples, which are used up; nothing without shares, and
    nothing in the pass that measures.
    """
    radius = node.radius
    if not isinstance(radius, JointRadius):
        return of_examples(radius, told)
    norms: list[Tensor] = []
    if radius.measured is not None:
        of_examples(0.0, norms)
        radius.measured.append((node, edge, torch.cat(norms)))
        return None
    share = vars(node).get("shares", {}).pop(edge, None)
    if share is not None:
        return of_examples(share, None)
    if not radius.used:
        warnings.warn(
            f"{radius:g}: layers send their weights no gradient, since nothing measures the examples first. Make the "
            "model private (PrivacyEngine, DPLipTrainer), and call the whole of it.",
            stacklevel=2,
        )
    return None


def nothing(within: Within) -> bool:
    """Whether nothing is let through."""
    return isinstance(within, float) and not within


def some_of(within: Any, some: slice) -> Any:
    """What is let through of some of the examples."""
    return within[some] if isinstance(within, Tensor) else within


class Enforcing(torch.autograd.Function):
    """Base of the functions that bound one example's gradient of each of their parameters.

    The node of such a function in the autograd graph is its context, from which a reader of the graph takes:

    Attributes:
        radius: the bound, or the joint one; None: the function bounds nothing, and only sums in blocks.
        shares: with a joint radius, what is let through of each example along an edge (:mod:`dplip.nn.bounded.joint`).
        given: how many of the leading tensor arguments are inputs, whose gradient is true. The others are parameters.
        terms: the most terms that one example adds to an entry of a parameter's gradient; examples are summed in
            blocks (:mod:`dplip.nn.sums`).

    ``radius`` and ``terms`` are set for each node, ``given`` is the class's.

    Guarantee: for every input, cotangent and parameter, the sum over one example of the gradient of each parameter has
    an l2 norm of at most ``radius``, or its share. The examples are the first axis of the inputs.
    """

    given = 1


def require_in_front(x: Tensor, grouped: bool = False) -> None:
    """Refuse an input of a node whose examples are not its first axis, as far as the present watch knows.

    Args:
        x: the input.
        grouped: whether several rows in turn may belong to one example.
    """
    watch = current()
    rows = None if watch is None else watch.rows(x)  # None: the same value for each example
    if rows not in (None, Rows(0, inner=rows.inner if rows is not None and grouped else 1)):
        raise MixedExamplesError(
            f"a layer that bounds each example's gradient was given a value of shape {tuple(x.shape)} with the "
            f"examples at {rows}. Bring the batch to axis 0."
        )


def is_enforcing(node: Any) -> bool:
    """Whether a node of the autograd graph is of a function that bounds the gradients of its parameters."""
    function = getattr(type(node), "_forward_cls", None)
    return inspect.isclass(function) and issubclass(function, Enforcing) and node.radius is not None


def bounded_rule(bounds: Callable[..., Any], module: Any, x: Norms) -> tuple[Norms, Pullback]:
    """The stock layer's bounds, with parameter bounds of at most the radius in training mode."""
    output, inner = bounds(module, x)
    radius = float(module.radius)  # which the node checks

    def pullback(v: Norms) -> Any:
        below, named = inner(v)
        if module.training:
            named = {k: n & Norms(n.shape, l2=radius) for k, n in named.items()}
        return below, named

    return output, pullback


def norms_of_positions(x: Tensor) -> Tensor:
    """Upper bounds of ``|x_t|`` for x of shape (examples, positions, features)."""
    return row_norms(x.flatten(0, 1)).reshape(x.shape[:2])


def of_bias(v: Tensor, radius: Within, told: list[Tensor] | None = None, lengths: Tensor | None = None) -> Tensor:
    """The sum over examples of a bias's gradients, ``sum_t v_t``, for v of shape (examples, positions, features).

    The order over the positions is the machine's, which may be another one in another batch (positions that are in
    front in memory). So terms that cancel are scaled by their magnitudes, as in :func:`sum_into_radius`: what is off by
    some roundings of the sum of the magnitudes is off by ``CANCELLED`` times as many roundings of the radius.

    Args:
        lengths: bounds of the norms of each v_t, whose sum bounds that of the magnitudes; None: that is computed.
        told: see :func:`sum_into_radius`.
    """
    summed = v.sum(1)
    if radius is None:
        return of_rows(summed)
    norms = row_norms(summed)
    if v.shape[1] > 1:
        magnitudes = row_norms(torch.linalg.vector_norm(v, 1, dim=1)) if lengths is None else lengths.sum(1)
        norms = torch.maximum(norms, magnitudes / CANCELLED)
    if told is not None:
        told.append(norms)
    summed, scale = scaled_rows(summed, norms, radius)
    return of_rows(summed * scale[:, None])


def sum_into_radius(
    gradients: Tensor, radius: Within, magnitudes: Tensor | None, told: list[Tensor] | None = None
) -> Tensor:
    """The sum of examples' gradients, each scaled into the radius; with no radius and magnitudes, as they are.

    Each is a sum over positions that has been computed already. Its norm is that of the computed numbers, so how they
    were rounded does not matter: an example adds a multiple of fixed numbers, which depend on no other example.

    Args:
        magnitudes: per example, a bound of the norm of the sum of the magnitudes of its terms. They are scaled into
            ``CANCELLED`` times the radius, so that even a product that rounded otherwise in another batch would move an
            example's share by few hundred roundings of the radius.
        told: gets the bounds of the norms before scaling (:mod:`dplip.nn.bounded.slack`).
    """
    if radius is None or magnitudes is None:
        return gradients.sum(0)
    rows = gradients.flatten(1)
    norms = torch.maximum(row_norms(rows), magnitudes / CANCELLED)
    if told is not None:
        told.append(norms)
    rows, scale = scaled_rows(rows, norms, radius)
    return (scale @ rows).reshape(gradients.shape[1:])


def scaled_rows(rows: Tensor, norms: Tensor, radius: float | Tensor) -> tuple[Tensor, Tensor]:
    """Rows, of which those that are left out are 0, and the factor of each."""
    kept = norms <= LARGEST_NORM  # False for NaN
    if not known(kept):
        rows = torch.where(kept[:, None], rows, 0.0)
        norms = torch.where(kept, norms, math.inf)
    return rows, scale_into(radius, norms, rows.new_empty(0))  # one factor a row, also of rows without entries


def known(condition: Tensor) -> bool:
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
        x, weight, _, given, radius, _, *ctx.geometry = inputs
        ctx.radius = None if radius is None else checked_radius(radius)  # the attribute may have been set
        require_in_front(x)
        ctx.terms = 1
        ctx.save_for_backward(x, weight)
        ctx.mark_dirty(*[given] * (given is not None))  # so that it is returned itself and not as a view
