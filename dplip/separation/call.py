"""One call of an operator, as its rule sees it, and what the rule says: where each dimension goes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn, TypeVar

import torch
from torch import Tensor

from dplip.separation.rows import Label, Public, Rows, Shape


class Seen(NamedTuple):
    """A tensor among the arguments of a call."""

    label: Label
    shape: tuple[int, ...]
    dtype: torch.dtype
    value: Tensor
    strides: tuple[int, ...]

    @property
    def rank(self) -> int:
        return len(self.shape)


Dimensions = Mapping[int, int]
"""Dimensions of an argument, and those of the result that they become."""


@dataclass(frozen=True)
class Carried:
    """What an operator does to dimensions.

    Attributes:
        parts: for each tensor that the results depend on, those of its dimensions that are carried: slice j of a
            result along the dimension of the result depends on slice j of the argument alone, by the same function
            for all j (or by one that draws alike and independently). All other dimensions are used up.
        fresh: dimensions of the result along which entries are equal where the arguments say nothing else.
        outputs: how many results this is true of; the others depend on no example. None: of all.
    """

    parts: Sequence[tuple[Seen, Dimensions]]
    fresh: frozenset[int] = frozenset()
    outputs: int | None = None


class Refused(Exception):
    """What a rule found, before the operator and the place in the model are known."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason, remedy)
        self.reason, self.remedy = reason, remedy


@dataclass
class Call:
    """A call of an operator.

    Attributes:
        name: the operator's, without overload and without the underscore of writing in place.
        args: its arguments by name, defaults included; tensors as :class:`Seen`.
        shapes: of its results, so far as they are tensors.
        examples: their number.
        by_value: set by a rule that read a tensor's entries; what it says holds for this call alone.
        counted: set where a constant that may depend on the number of examples meets one.
    """

    name: str
    args: dict[str, Any]
    shapes: list[tuple[int, ...]]
    examples: int
    by_value: bool = False
    counted: bool = False
    tensors: list[Seen] = field(default_factory=list)

    def __getitem__(self, name: str) -> Any:
        return self.args[name]

    def get(self, name: str) -> Any:
        return self.args.get(name)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.shapes[0]

    @property
    def has_rows(self) -> bool:
        return any(isinstance(t.label, Rows) for t in self.tensors)


Rule = Callable[["Call"], Carried | list[Label]]
F = TypeVar("F", bound=Rule)

RULES: dict[str, Rule] = {}
SIZED: dict[str, frozenset[str]] = {}
"""Operators' arguments that may be proportional to the number of examples."""


def rule(*names: str, sized: Iterable[str] = ()) -> Callable[[F], F]:
    """Register a rule for operators of torch; ``sized`` names arguments that may grow with the number of examples."""

    def register(function: F) -> F:
        for name in names:
            RULES[name] = function
            SIZED[name] = frozenset(sized)
        return function

    return register


def refuse(reason: str, remedy: str) -> NoReturn:
    raise Refused(reason, remedy)


USED_UP = "computes across the batch axis (dimension {axis})."
OWN = "Compute over dimensions of one example alone, as in x.mean(dim=1) or F.layer_norm(x, x.shape[1:])."


def carry(call: Call, carried: Carried, shape: Shape) -> Label:
    """The label of a result, by where the dimensions of the arguments go; refuses what mixes examples."""
    rows: Rows | None = None
    for seen, dimensions in carried.parts:
        if isinstance(seen.label, Rows):
            target = dimensions.get(seen.label.axis)
            if target is None or target >= len(shape) or shape[target] != seen.shape[seen.label.axis]:
                refuse(USED_UP.format(axis=seen.label.axis), OWN)
            here = seen.label.moved(target)
            if rows not in (None, here):
                refuse(
                    f"pairs examples at {_place(rows, call.examples)} of one tensor with those at "
                    f"{_place(here, call.examples)} of another, so different examples meet.",
                    "Bring the batch to the same axis of both: transpose, or unsqueeze(1) in place of unsqueeze(0).",
                )
            rows = here
    public = [(t, t.label, d) for t, d in carried.parts if isinstance(t.label, Public)]
    counted = any(label.counted for _, label, _ in public)
    counted = counted or any(
        label.grows and any(n % call.examples == 0 for k, n in enumerate(t.shape) if k not in d)
        for t, label, d in public
    )
    if rows is None:
        equal = frozenset(k for k in range(len(shape)) if shape[k] == 1 or _alike(public, k, k in carried.fresh))
        return Public(equal | _places(public), any(label.grows for _, label, _ in public), counted)
    for seen, label, dimensions in public:
        for k, target in dimensions.items():
            same = seen.shape[k] == 1 or k in label.equal or rows.moved(k) in label.equal
            if target == rows.axis and not same:
                refuse(
                    "combines examples with a constant whose entries differ along the batch axis, so an example's "
                    "result depends on its place in the batch.",
                    "Give the constant size 1 along the batch axis.",
                )
    call.counted = call.counted or counted
    return rows


def _alike(public: Sequence[tuple[Seen, Public, Dimensions]], target: int, fresh: bool) -> bool:
    """Whether entries are equal along a dimension of a result that depends on no example."""
    found = False
    for seen, label, dimensions in public:
        for k, to in dimensions.items():
            if to == target:
                found = True
                if seen.shape[k] != 1 and k not in label.equal:
                    return False
    return found or fresh


def _places(public: Sequence[tuple[Seen, Public, Dimensions]]) -> frozenset[Rows]:
    """The places of dimensions of a result along which every argument has equal entries."""
    found: set[Rows] = set()
    for _, label, dimensions in public:
        found |= {p.moved(dimensions[p.axis]) for p in label.equal if isinstance(p, Rows) and p.axis in dimensions}
    for seen, label, dimensions in public:
        for k, to in dimensions.items():
            if seen.shape[k] != 1 and k not in label.equal:
                found = {p for p in found if p.axis != to or p.moved(k) in label.equal}
    return frozenset(found)


def _place(rows: Rows | None, examples: int) -> str:
    assert rows is not None
    parts = [str(n) for n in (rows.outer, examples, rows.inner) if n != 1]
    return f"dimension {rows.axis}" + (f" (as {' x '.join(parts)})" if len(parts) > 1 else "")


# What rules say is made of these.


def tensors_of(value: Any) -> list[Seen]:
    """The tensors in an argument."""
    if isinstance(value, Seen):
        return [value]
    if isinstance(value, (list, tuple)):
        return [v for v in value if isinstance(v, Seen)]
    return []


def wrap(dims: Any, rank: int) -> list[int]:
    """Dimensions as non-negative numbers; all of them for None and for an empty list."""
    if isinstance(dims, int):
        dims = [dims]
    return [d % max(rank, 1) for d in dims] if dims else list(range(rank))


def right(seen: Seen, rank: int) -> dict[int, int]:
    """Dimensions aligned as in broadcasting."""
    return {k: k + rank - seen.rank for k in range(seen.rank)}


def but(seen: Seen, *used: int) -> dict[int, int]:
    """All dimensions but some, each in its place."""
    return {k: k for k in range(seen.rank) if k not in used}


def first(seen: Seen, count: int) -> dict[int, int]:
    """The leading dimensions, each in its place."""
    return {k: k for k in range(min(count, seen.rank))}


def without(seen: Seen, used: Sequence[int]) -> dict[int, int]:
    """The other dimensions, after some were removed."""
    kept = [k for k in range(seen.rank) if k not in used]
    return {k: i for i, k in enumerate(kept)}
