"""Selections of entries in an autograd graph, and which entries of a tensor each fills with its gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple, TypeVar

SELECTIONS = {
    f"{name}Backward{number}"
    for name in ("Alias", "Clone", "Permute", "Select", "Slice", "Split", "SplitWithSizes", "Squeeze", "T", "Transpose")
    for number in range(3)
} | {f"{name}Backward0" for name in ("Unbind", "UnsafeView", "Unsqueeze", "View", "ReshapeAlias", "Narrow", "Chunk")}
"""Nodes of torch whose map copies each entry to at most one place."""


class Part(NamedTuple):
    """The entries of a tensor whose index along a dimension is at least ``start`` and less than ``end``."""

    dim: int
    start: int
    end: int


def part_of(node: Any, output: int) -> Part | None:
    """Where the gradient of an output of a selection goes, in the tensor that it selects from; None: perhaps anywhere.

    Everywhere else it sends zeros. It is read off what torch saved for its backward pass.
    """
    name = type(node).__name__.rstrip("0123456789").removesuffix("Backward")
    sizes, dim = getattr(node, "_saved_self_sym_sizes", None), getattr(node, "_saved_dim", None)
    find = _PARTS.get(name)
    if find is None or sizes is None or dim is None:
        return None
    dim = _signed(dim) % len(sizes)
    return Part(dim, *find(node, output, sizes[dim]))


def _signed(number: int) -> int:
    """Torch shows a negative number of 64 bits as one without a sign."""
    return number - (1 << 64) if number >= 1 << 63 else number


def _select(node: Any, output: int, size: int) -> tuple[int, int]:
    index = _signed(node._saved_index) % size
    return index, index + 1


def _slice(node: Any, output: int, size: int) -> tuple[int, int]:
    start, end, _ = slice(_signed(node._saved_start), _signed(node._saved_end)).indices(size)
    return start, end


def _split(node: Any, output: int, size: int) -> tuple[int, int]:
    each = node._saved_split_size
    return output * each, (output + 1) * each


def _split_with_sizes(node: Any, output: int, size: int) -> tuple[int, int]:
    ends = [0, *accumulate(node._saved_split_sizes)]
    return ends[output], ends[output + 1]


_PARTS: dict[str, Callable[[Any, int, int], tuple[int, int]]] = {
    "Select": _select,
    "Slice": _slice,
    "Split": _split,
    "SplitWithSizes": _split_with_sizes,
}

T = TypeVar("T")


def apart(held: Sequence[tuple[Part | None, T]]) -> list[list[T]]:
    """What is held for parts of a tensor, in groups: parts of different groups have no entry in common.

    Proof: along one dimension, in the order of their starts, a part opens a group if it starts where all before it
    have ended. Parts along different dimensions, or of which nothing is known, are one group.
    """
    parts = [part for part, _ in held if part is not None]
    if len(parts) < len(held) or len({part.dim for part in parts}) > 1:
        return [[value for _, value in held]]
    groups: list[list[T]] = []
    reached = 0
    for part, value in sorted(zip(parts, (value for _, value in held), strict=True), key=lambda pair: pair[0]):
        if not groups or part.start >= reached:
            groups.append([])
        groups[-1].append(value)
        reached = max(reached, part.end)
    return groups
