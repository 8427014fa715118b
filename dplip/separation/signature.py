"""The operators of a pass with their numbers, and what passes over different numbers of examples have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dplip.errors import MixedExamplesError
from dplip.separation.rows import MIXED, Label, Rows, alone


class Entry(NamedTuple):
    """An operator that ran.

    Attributes:
        name: of the operator.
        args: its arguments by name, without tensors.
        results: the label (None: of no example) and shape of each tensor that it returned.
    """

    name: str
    args: tuple[tuple[str, Any], ...]
    results: tuple[tuple[Label | None, tuple[int, ...]], ...]
    sized: frozenset[str]


@dataclass
class Signature:
    """The operators of one pass, in turn, each with its tensors: the result of which operator or which tensor
    given, whether it requires a gradient, and whether gradients are enabled (not inside an autograd function)."""

    entries: list[tuple[Entry, tuple[Any, ...]]] = field(default_factory=list)
    counted: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class Times:
    """A number that is ``factor`` times the number of examples."""

    factor: int


class Unlike(Exception):
    """Two passes differ where they must not."""


class Template:
    """What passes over different numbers of examples have in common: sizes are constant or proportional to it.

    Guarantee: a pass that fits applies the same operators to the same tensors for any number of examples, and no number
    that enters an operator, other than the size of a batch axis, depends on that number.
    """

    def __init__(self, entries: list[tuple[Entry, tuple[Any, ...]]]) -> None:
        self._entries = entries
        self._at: dict[int, list[tuple[Entry, tuple[Any, ...]]]] = {}

    @classmethod
    def of(cls, passes: Sequence[tuple[Signature, int]]) -> Template:
        """The template of passes over at least two different numbers of examples.

        Raises:
            MixedExamplesError: if they differ in more than sizes of the batch axis.
        """
        (one, few), *others = passes
        if not others or any(few == many for _, many in others):
            raise ValueError("Passes over different numbers of examples are compared.")
        merged = one.entries
        for other, many in others:
            if len(other.entries) != len(one.entries):
                at = next(
                    (
                        i
                        for i, (a, b) in enumerate(zip(one.entries, other.entries, strict=False))
                        if a[0].name != b[0].name
                    ),
                    min(len(one.entries), len(other.entries)),
                )
                raise _depends(at, one, f"is followed by other operators for {few} than for {many} examples.")
            found = []
            for i, (a, b) in enumerate(zip(merged, other.entries, strict=True)):
                try:
                    found.append(_merge(a, b, few, many))
                except Unlike as unlike:
                    raise _depends(i, one, f"{unlike} for {few} and {many} examples.") from None
                if i in one.counted and i in other.counted:
                    raise _depends(i, one, "uses a number that was computed from how many examples there are.")
            merged = found
        return cls(merged)

    def fits(self, signature: Signature, examples: int) -> bool:
        """Whether a pass over ``examples`` examples is one of this template.

        For one example torch lays products out in other ways (a size of 1 can be anywhere), so there the arithmetic
        alone is compared: its operators in turn, with their numbers and how many results they have.
        """
        if examples not in self._at:
            self._at[examples] = [_of(entry, examples) for entry in self._entries]
        expected = self._at[examples]
        return expected == signature.entries or (
            examples == 1 and _arithmetic(expected) == _arithmetic(signature.entries)
        )


def _depends(at: int, signature: Signature, what: str) -> MixedExamplesError:
    name = signature.entries[at][0].name if at < len(signature.entries) else "the end"
    return MixedExamplesError(
        f"The model depends on the number of examples: operator {at}, {name}, {what} What one example adds to the "
        "gradient would depend on how many others there are. Use len(x) for the sizes of batch axes alone."
    )


def _merge(a: tuple[Entry, Any], b: tuple[Entry, Any], few: int, many: int) -> tuple[Entry, tuple[Any, ...]]:
    (one, origins), (two, others) = a, b
    if one.name != two.name:
        raise Unlike(f"is {two.name} in its place")
    if origins != others:
        raise Unlike("takes other tensors, or sends their gradients elsewhere,")
    args = tuple(
        (name, _same(value, dict(two.args).get(name), few, many, name in one.sized)) for name, value in one.args
    )
    if len(one.args) != len(two.args) or len(one.results) != len(two.results):
        raise Unlike("has other arguments")
    results = []
    for (label, shape), (other, size) in zip(one.results, two.results, strict=True):
        if label != other or len(shape) != len(size):
            raise Unlike("gives results of other layouts")
        merged = tuple(_same(m, n, few, many, True) for m, n in zip(shape, size, strict=True))
        if isinstance(label, Rows) and any(isinstance(n, Times) for k, n in enumerate(merged) if k != label.axis):
            raise Unlike("gives results with a second dimension as long as the batch")
        results.append((label, merged))
    return Entry(one.name, args, tuple(results), one.sized), origins


def _same(one: Any, two: Any, few: int, many: int, sized: bool) -> Any:
    if isinstance(one, tuple) and isinstance(two, tuple) and len(one) == len(two):
        return tuple(_same(a, b, few, many, sized) for a, b in zip(one, two, strict=True))
    if isinstance(one, Times):
        if two == one.factor * many:
            return one
    elif type(one) is type(two) and one == two:
        return one
    elif sized and type(one) is type(two) is int and one % few == 0 and two % many == 0 and one // few == two // many:
        return Times(one // few)
    raise Unlike(f"has the numbers {one} and {two}")


_MOVES = frozenset({"view", "transpose", "t", "permute", "expand", "unsqueeze", "squeeze"})


def _arithmetic(entries: list[tuple[Entry, tuple[Any, ...]]]) -> list[tuple[Any, ...]]:
    """The operators that compute, products and their sums by one name whatever their layout."""
    found: list[tuple[Any, ...]] = []
    for entry, origins in entries:
        counts = tuple(math.prod(shape) for _, shape in entry.results)
        learns = [learns and enabled for _, learns, enabled in origins]
        if entry.name in ("mm", "bmm"):
            found.append(("product", counts, sorted(learns)))
        elif entry.name in ("addmm", "baddbmm") and dict(entry.args) == {"beta": 1, "alpha": 1}:
            found += [("product", counts, sorted(learns[1:]))]
            found += [("add", (("alpha", 1),), counts, sorted([learns[0], any(learns[1:])]))]
        elif entry.name not in _MOVES:
            found.append((entry.name, entry.args, counts, sorted(learns)))
    return found


def _of(entry: tuple[Entry, tuple[Any, ...]], examples: int) -> tuple[Entry, tuple[Any, ...]]:
    one, origins = entry

    def at(value: Any) -> Any:
        if isinstance(value, Times):
            return value.factor * examples
        return tuple(at(v) for v in value) if isinstance(value, tuple) and not isinstance(value, Rows) else value

    def placed(label: Label | None, shape: tuple[int, ...]) -> Label | None:
        return alone(shape) if examples == 1 and isinstance(label, Rows) and label != MIXED else label

    args = tuple((name, at(value)) for name, value in one.args)
    results = tuple((placed(label, at(shape)), at(shape)) for label, shape in one.results)
    return Entry(one.name, args, results, one.sized), origins
