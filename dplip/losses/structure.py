"""Outputs, targets and shapes as a loss takes them: one of them, or tuples and dicts of them, one within another."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from dplip.errors import ConfigurationError

Structure = Any
"""One leaf (a tensor, or the shape of one example's tensor), or a tuple, list or dict of structures."""


def leaves(value: Structure) -> list[Any]:
    """The leaves of a structure, in order."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if not isinstance(value, (tuple, list)) or is_shape(value):
        return [value]
    return [leaf for part in value for leaf in leaves(part)]


def tensors(value: Structure, what: str) -> list[Tensor]:
    """The tensors of a structure, in order.

    Raises:
        ConfigurationError: something else stands in it, or a tensor without an axis.
    """
    found = leaves(value)
    for leaf in found or [None]:
        if not isinstance(leaf, Tensor) or leaf.ndim == 0:
            kind = "shape ()" if isinstance(leaf, Tensor) else f"type {type(leaf).__name__}"
            raise ConfigurationError(
                f"{what} of {kind}: a loss takes tensors with a row for each example, one, or a tuple or dict of them. "
                "Give it those; dplip.losses.Heads reads some by their names."
            )
    return found


def rebuilt(like: Structure, new: Iterator[Any]) -> Structure:
    """A structure like another one, with new leaves."""
    if isinstance(like, Mapping):
        return {key: rebuilt(part, new) for key, part in like.items()}
    if not isinstance(like, (tuple, list)) or is_shape(like):
        return next(new)
    return tuple(rebuilt(part, new) for part in like)


def mapped(function: Callable[[Any], Any], value: Structure) -> Structure:
    """A structure with a function applied to each leaf."""
    return rebuilt(value, iter([function(leaf) for leaf in leaves(value)]))


def shapes(value: Structure) -> Structure:
    """The shapes of one example's tensors."""
    return mapped(lambda t: tuple(t.shape[1:]), value)


def is_shape(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(size, int) for size in value)


def entries(shape: int | Structure) -> int:
    """The number of entries of one example's tensors, given as such or by their shapes."""
    return shape if isinstance(shape, int) else math.prod(joint(shape))


def joint(shape: Structure) -> tuple[int, ...]:
    """The shape of one example's tensors as one vector; one tensor keeps its own."""
    return shape if is_shape(shape) else (sum(math.prod(leaf) for leaf in leaves(shape)),)
