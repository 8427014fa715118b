"""A parameter's use by each example: a copy for every example, whose gradients are bounded before they are added."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dplip.errors import ConfigurationError
from dplip.nn.bounded.enforcing import (
    CANCELLED,
    Enforcing,
    JointRadius,
    Radius,
    Within,
    checked_radius,
    scaled_rows,
    sent,
)
from dplip.nn.gradient_ball import row_norms, scale_into
from dplip.nn.sums import of_rows
from dplip.separation import Rows, current

Function = Callable[..., Tensor]


def per_example(p: Tensor, examples: int, radius: Radius) -> Tensor:
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
    return copies_of(None, (p,), examples, radius)


def copies_of(function: Function | None, parameters: Sequence[Tensor], examples: int, radius: Radius) -> Tensor:
    """A function of parameters, repeated for each example; the watch knows copy i as example i's own."""
    watch = current()
    if watch is not None and examples != watch.examples:
        raise ConfigurationError(
            f"per_example(examples={examples}): there are {watch.examples}, and what one example does with several "
            "copies has no bound. Give the number of examples, and expand its copy where it is used more than once."
        )
    copies = PerExample.apply(function, examples, checked_radius(radius), *parameters)
    if watch is not None:
        watch.own(copies)
    return copies


class PerExample(Enforcing):
    """A function of parameters repeated for each example, whose node bounds each example's gradient of each parameter.

    Without a function the gradient of the one parameter is the cotangent; with one, each example's gradient is its
    vector-Jacobian product, which is as large as the parameter.
    """

    given = 0
    generate_vmap_rule = True

    @staticmethod
    def forward(function: Function | None, examples: int, radius: Radius, *parameters: Tensor) -> Tensor:
        value = parameters[0] if function is None else function(*parameters)
        return value.expand(examples, *value.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.function, _, ctx.radius, *parameters = inputs
        ctx.terms, ctx.dtype, ctx.magnitudes = 1, parameters[0].dtype, None
        ctx.save_for_backward(*parameters if ctx.function is not None else ())

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Any:
        with torch.autocast(v.device.type, enabled=False), torch._C.DisableTorchFunctionSubclass():
            given = [v.to(ctx.dtype)] if ctx.function is None else pulled(ctx.function, ctx.saved_tensors, v)
            needed = ctx.needs_input_grad[3:]
            sums = [
                sent(ctx, i, partial(sum_of_examples, g, ctx.magnitudes)) if needed[i] else None
                for i, g in enumerate(given)
            ]
        return None, None, None, *sums


def pulled(function: Function, parameters: Sequence[Tensor], v: Tensor) -> Sequence[Tensor]:
    """Each example's gradient of each parameter, of its cotangent of a function of the parameters."""
    if not len(v):
        return [p.new_zeros(0, *p.shape) for p in parameters]
    pull: Any = torch.func.vjp(function, *(p.detach() for p in parameters))[1]
    return tuple(torch.func.vmap(pull)(v))


def sum_of_examples(gradients: Tensor, magnitudes: Tensor | None, radius: Within, told: list[Tensor] | None) -> Tensor:
    """The sum of gradients, each scaled into the radius; what is not finite, or beyond 1e30, is 0.

    Magnitudes, of the terms that each is a sum of, are scaled into ``CANCELLED`` times the radius.
    """
    assert radius is not None
    rows = gradients.reshape(len(gradients), math.prod(gradients.shape[1:]))
    norms = row_norms(rows)
    if magnitudes is not None:
        norms = torch.maximum(norms, magnitudes / CANCELLED)
    if told is not None:
        told.append(norms)
    rows, scale = scaled_rows(rows, norms, radius)
    return of_rows(rows * scale[:, None]).reshape(gradients.shape[1:])


@dataclass(frozen=True)
class Place:
    """Where copies go that are broadcast with a value: dimension ``axis`` of the result has the examples.

    Attributes:
        rows: the place of the examples in the value.
        axis: the same dimension, of the result; None: there is one example, and all dimensions are its own.
        rest: the other dimensions of what is repeated, aligned with those of the result.
        examples: their number.
    """

    rows: Rows
    axis: int | None
    rest: tuple[int, ...]
    examples: int

    def put(self, copies: Tensor) -> Tensor:
        """Copies, with the examples first, in their place."""
        if self.axis is None:
            return copies.reshape(self.rest)
        copies, rows = copies.reshape(self.examples, *self.rest), self.rows
        if rows.outer * rows.inner != 1:
            copies = copies[None, :, None].expand(rows.outer, -1, rows.inner, *self.rest).flatten(0, 2)
        return copies.movedim(0, self.axis)

    def taken(self, value: Tensor) -> Tensor:
        """A value's entries in the layout (examples, outer, inner, *rest)."""
        if self.axis is None:
            return value[None, None, None]
        rows = self.rows
        return value.movedim(self.axis, 0).unflatten(0, (rows.outer, self.examples, rows.inner)).movedim(1, 0)


class Spread(torch.autograd.Function):
    """Copies in their place, repeated along a value's other dimensions.

    Its backward pass sums over these for each example. As the order of the sum is the machine's, and may be another one
    in another batch, terms that cancel are scaled by their magnitudes (:func:`~dplip.nn.bounded.enforcing.of_bias`).
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(copies: Tensor, found: Place, shape: tuple[int, ...], radius: Radius | None) -> Tensor:
        return found.put(copies).expand(shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        copies, ctx.found, _, ctx.radius = inputs
        ctx.copies = copies.shape

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Any:
        terms = ctx.found.taken(v)
        over = [1, 2, *(k for k, n in enumerate(ctx.found.rest, 3) if n == 1)]
        summed = terms.sum(over).reshape(ctx.copies)
        if ctx.radius is not None and terms.numel() > summed.numel():
            magnitudes = row_norms(terms.abs().sum(over).reshape(len(summed), math.prod(ctx.copies[1:])))
            if isinstance(ctx.radius, JointRadius):  # a scale of its own would change the direction
                ctx.next_functions[0][0].magnitudes = magnitudes
            else:
                summed = summed * scale_into(CANCELLED * ctx.radius, magnitudes, summed)
        return summed, None, None, None


def place(shape: Sequence[int], x: Tensor, expanded: bool = False) -> Place | None:
    """The place of copies of something of this shape in a value with which it is broadcast.

    The examples are where the present watch finds them, without one along axis 0. None: the value depends on no
    example, or the shape has entries along their axis (other than one for each example, if it is ``expanded``).
    """
    watch = current()
    rows = Rows(0) if watch is None else watch.rows(x)
    if rows is None or x.ndim == 0:
        return None
    rank = max(x.ndim, len(shape))
    axis, aligned = rows.axis + rank - x.ndim, (*[1] * (rank - len(shape)), *shape)
    count = x.shape[0] if watch is None else watch.examples
    if count == 1 and watch is not None:
        return Place(rows, None, aligned, 1)
    if aligned[axis] != 1 and not (expanded and aligned[axis] == count and rows.outer * rows.inner == 1):
        return None
    return Place(rows, axis, aligned[:axis] + aligned[axis + 1 :], count)


def at_examples(p: Tensor, x: Tensor, radius: Radius, shape: Sequence[int]) -> Tensor:
    """A parameter repeated for each example of a value, in the value's layout, to be broadcast with it.

    Args:
        p: the parameter.
        x: the value.
        radius: as for :func:`per_example`.
        shape: the parameter's shape when it is broadcast with the value.

    Raises:
        ConfigurationError: the parameter has entries along the axis of the examples.

    Guarantee: that of :func:`per_example`.
    """
    found = place(shape, x)
    if found is None:
        raise ConfigurationError(
            f"a parameter of shape {tuple(p.shape)} meets a value of shape {tuple(x.shape)} that has no axis of "
            "examples apart from the parameter's own. Give a batch, of one example as x[None]."
        )
    return spread(per_example(p, found.examples, radius), found, x, radius)


def spread(copies: Tensor, found: Place, x: Tensor, radius: Radius | None) -> Tensor:
    """Copies in their place in a value, as large as it is; the radius is theirs, if they are a parameter's own."""
    whole = [1] * (len(found.rest) + (found.axis is not None) - x.ndim) + list(x.shape)
    rest = list(found.rest) if found.axis is None else [*found.rest[: found.axis], 1, *found.rest[found.axis :]]
    shape = tuple(max(n, m) if n and m else 0 for n, m in zip(whole, rest, strict=True))
    return Spread.apply(copies, found, shape, radius)


def trained(layer: nn.Module, x: Tensor) -> bool:
    """Whether a layer must bound gradients: in training, for an input that depends on examples.

    Of an input that depends on none, the cotangent is a sum over all examples, and has no bound. The layer then
    computes as torch's does, and a reader of the autograd graph sees that.
    """
    return layer.training and not without_examples(x)


def without_examples(x: Tensor) -> bool:
    """Whether a value depends on no example, as far as the present watch knows."""
    watch = current()
    return watch is not None and watch.rows(x) is None
