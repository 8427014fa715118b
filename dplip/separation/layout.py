"""Examples brought to the front, for a function that wants them there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from dplip.errors import MixedExamplesError
from dplip.separation.recomputed import Knowledge, current
from dplip.separation.rows import Rows


def examples_first(
    function: Callable[..., Any],
    *tensors: Tensor,
    expand: bool = False,
    constant: Callable[..., Any] | None = None,
) -> Any:
    """Call a function on views of tensors whose axis 0 counts the examples; its results have the first one's layout.

    Without a watch, or where axis 0 counts the examples already, this is ``function(*tensors)``. A tensor whose batch
    axis is (outer * B * inner) comes as (B, outer, inner, ...), without the factors that are 1. Constants with a row
    for each example, all alike, count as the examples'.

    Args:
        function: one whose results keep all axes of its first argument but the last, which may change in size or go:
            linear maps of the last axis, normalization over it, functions of entries.
        tensors: with the examples in the same place.
        constant: what to call where all tensors depend on no example.
        expand: whether a tensor that depends on no example is expanded, one copy for each; else it is refused.

    Raises:
        MixedExamplesError: if a tensor depends on no example, or has its examples in another place than the first.
    """
    watch = current()
    if watch is None:
        return function(*tensors)
    places = [watch.rows(t) for t in tensors]
    rows = next((r for r in places if r is not None), None)
    if rows is None and all(_each(watch, t) for t in tensors):
        return function(*map(_owned, tensors))
    if rows is None and constant is not None:
        return constant(*tensors)
    if None in places and (rows is None or not expand):
        shape = tuple(tensors[places.index(None)].shape)
        raise MixedExamplesError(
            f"A layer that bounds each example's gradient is applied to a tensor of shape {shape} that depends on no "
            "example, so there is no example whose gradient could be bounded. Apply it to values of the examples, or "
            "freeze its weights."
        )
    assert rows is not None
    if any(r not in (None, rows) for r in places):
        raise MixedExamplesError(
            f"A layer's inputs have the examples in different places: {places}. Bring the batch to one axis of all."
        )
    if rows == Rows(0) and None not in places:
        return function(*tensors)
    like = tensors[places.index(rows)]
    given = [
        _front(t if r is not None else t.expand_as(like), rows, watch.examples)
        for t, r in zip(tensors, places, strict=True)
    ]
    result = function(*given)
    if isinstance(result, tuple):
        return tuple(_back(t, rows) for t in result)
    return _back(result, rows)


def _each(watch: Knowledge, t: Tensor) -> bool:
    """Whether a constant has a row for each example along axis 0, all of them alike: ``torch.zeros(len(x), n)``."""
    return t.ndim > 0 and len(t) == watch.examples and watch.equal(t, 0)


def _owned(t: Tensor) -> Tensor:
    """A view of a constant with a row for each example, as the examples' own: row i is to be used by example i alone.

    Rows that are alike are the same function of each example, so what is computed of row i depends on no other.
    """
    mine = t.view(t.shape)
    watch = current()
    assert watch is not None
    watch.own(mine)
    return mine


def _front(t: Tensor, rows: Rows, examples: int) -> Tensor:
    """The batch axis split into its factors, and the examples moved to the front."""
    axis = rows.axis
    split = t if rows.outer == rows.inner == 1 else t.unflatten(axis, _factors(rows, examples))
    return split.movedim(axis + (rows.outer != 1), 0)


def _back(t: Tensor, rows: Rows) -> Tensor:
    """The same the other way."""
    axis = rows.axis
    moved = t.movedim(0, axis + (rows.outer != 1))
    return moved if rows.outer == rows.inner == 1 else moved.flatten(axis, axis + (rows.outer != 1) + (rows.inner != 1))


def _factors(rows: Rows, examples: int) -> list[int]:
    return [n for n, one in ((rows.outer, True), (examples, False), (rows.inner, True)) if n != 1 or not one]
