"""Where the examples of a batch are in a tensor, and where they go when it is viewed in another shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Shape = Sequence[int]


@dataclass(frozen=True)
class Rows:
    """The place of the examples: dimension ``axis`` has size ``outer * examples * inner``.

    An entry whose index along it is ``(o * examples + b) * inner + i`` depends on no example but ``b``.
    """

    axis: int
    outer: int = 1
    inner: int = 1

    def moved(self, axis: int) -> Rows:
        """The same place along another dimension."""
        return Rows(axis, self.outer, self.inner)


@dataclass(frozen=True)
class Public:
    """A tensor that depends on no example.

    Attributes:
        equal: dimensions, or places in them, along which all entries are equal, or drawn alike and independently.
        grows: whether a dimension's size may depend on the number of examples.
        counted: whether its entries may depend on the number of examples.
    """

    equal: frozenset[int | Rows] = frozenset()
    grows: bool = False
    counted: bool = False


Label = Rows | Public

UNKNOWN = Public(frozenset(), True, True)
"""The label of a constant of which nothing else is known."""

MIXED = Rows(-1, 0, 0)
"""The label of what depends on all examples, such as a kernel's workspace: no dimension carries it."""


def alone(shape: Shape) -> Rows:
    """The place of the only example of a batch of one: all entries are its."""
    return Rows(0, 1, shape[0]) if shape and shape[0] else MIXED


def span(shape: Shape, axis: int) -> int:
    """How far apart two entries are in row-major order that are neighbours along a dimension."""
    return math.prod(shape[axis + 1 :])


def step(rows: Rows, shape: Shape) -> int:
    """How far apart two examples are in row-major order."""
    return rows.inner * span(shape, rows.axis)


def at_step(distance: int, shape: Shape, examples: int) -> Rows | None:
    """The place of the examples, ``distance`` apart in row-major order, in a shape; None if no one dimension has them.

    The example of an entry is ``position // distance % examples``. Along dimension k, whose entries are R apart, the
    index is ``position // R % n``. If R divides the distance and ``distance * examples`` divides ``R * n``, that is
    ``(o * examples + example) * inner + i`` with ``inner = distance / R``.
    """
    found = []
    if distance < 1:
        return None
    for k, size in enumerate(shape):
        apart = span(shape, k)
        if apart and distance % apart == 0 and size and (apart * size) % (distance * examples) == 0:
            found.append(Rows(k, apart * size // (distance * examples), distance // apart))
    # Several dimensions can have them only if there is one example: the first that has nothing else, if any.
    return next((rows for rows in found if rows.outer == rows.inner == 1), found[0] if found else None)


def by_strides(distance: int, shape: Shape, strides: Shape, offset: int, examples: int) -> Rows | None:
    """The place of the examples in a tensor over memory whose entry at ``address`` is of example
    ``address // distance % examples``; None if the tensor does not have them all along one dimension.

    Along one dimension the example must be the index (with inner and outer factors, as above); what the offset and all
    other indices add must stay below ``distance``, or be a multiple of ``distance * examples``.
    """
    whole = distance * examples
    if distance < 1:
        return None
    for k, (size, stride) in enumerate(zip(shape, strides, strict=True)):
        if not stride or distance % stride or size * stride % whole:
            continue
        others = [(n, s) for j, (n, s) in enumerate(zip(shape, strides, strict=True)) if j != k and s % whole]
        rest = offset % whole + sum((n - 1) * s for n, s in others) + distance - stride
        if rest < distance:
            return Rows(k, size * stride // whole, distance // stride)
    return None


def viewed_equal(equal: frozenset[int | Rows], shape: Shape, new: Shape, examples: int) -> frozenset[int | Rows]:
    """The dimensions with equal entries after a view of a public tensor."""
    found: set[int | Rows] = set()
    for k, size in enumerate(new):
        low = span(new, k)
        high = low * size
        inside = [j for j, n in enumerate(shape) if n > 1 and span(shape, j) < high and span(shape, j) * n > low]
        # No carry leaves the dimensions inside if their ends divide those of the new dimension.
        whole = not inside or (
            span(shape, inside[0]) * shape[inside[0]] % high == 0 and low % span(shape, inside[-1]) == 0
        )
        if high and (size == 1 or (whole and all(j in equal for j in inside))):
            found.add(k)
    for place in equal:
        rows = place if isinstance(place, Rows) else Rows(place)
        if shape[rows.axis] == rows.outer * examples * rows.inner:
            moved = at_step(step(rows, shape), new, examples)
            if moved is not None:
                found.add(moved)
    return frozenset(found)
