"""What is decided of a call: the labels of its results, worked out once for each operator, shapes and labels."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

import dplip.separation.rules  # noqa: F401  # registers them
from dplip.separation.call import RULES, SIZED, Call, Carried, Refused, Rule, Seen, carry, refuse
from dplip.separation.rows import MIXED, Label, Public, Rows, alone
from dplip.separation.rules.elementwise import elementwise
from dplip.separation.rules.indexing import index
from dplip.separation.signature import Entry

SAME = frozenset({"alias", "clone", "contiguous", "detach"})
"""Operators that give their argument's entries as they are; a signature leaves them out."""

VIEWS = frozenset({"view", "_unsafe_view", "reshape", "_reshape_alias"})
"""Operators that the shape of their result describes."""


class Operator:
    """An operator of torch.

    Attributes:
        name: without its overload; of those that write in place, without the underscore.
        rule: None if it has none.
        written: names of the arguments that it writes to.
        in_place: whether it writes to the entries of its first argument alone, and returns it.
        reshapes: whether it changes the shape of its first argument, and no entry.
        views: whether its results are views of its first argument.
        parts: whether its results are parts of its first argument, but torch counts writes to them apart.
        same: whether its result has its argument's entries.
        fixed: whether shapes of arguments say the shapes of results.
    """

    def __init__(self, function: Any) -> None:
        schema = function._schema
        space, _, name = schema.name.partition("::")
        self.written = [a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
        alone = bool(self.written) and self.written == [schema.arguments[0].name]
        self.reshapes = torch.Tag.inplace_view in function.tags
        self.in_place = alone and not self.reshapes
        self.views = any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)
        self.fixed = torch.Tag.dynamic_output_shape not in function.tags
        if alone and name.startswith("__i"):
            name = "__" + name[3:]
        elif alone and not name.endswith("__"):
            name = name.removesuffix("_")
        self.name = name if space == "aten" else f"{space}::{name}"
        known: Rule | None = elementwise if torch.Tag.pointwise in function.tags and name != "equal" else None
        self.parts = self.name.startswith("unsafe_")
        self.same = self.name in SAME
        self.rule = RULES.get(self.name, known)
        self.arguments = [(a.name, a.default_value if a.has_default_value() else None) for a in schema.arguments]

    def bound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments by name."""
        given = {name: value for (name, _), value in zip(self.arguments, args, strict=False)}
        return {**dict(self.arguments), **given, **kwargs}


class Decision(NamedTuple):
    """Labels of a call's results, their codes by type, the entry in a signature; whether it met a counted constant."""

    labels: tuple[Label, ...]
    codes: tuple[dict[torch.dtype, object], ...]
    entry: Entry
    counted: bool


def decide(
    operator: Operator, args: dict[str, Any], shapes: list[tuple[int, ...]], examples: int
) -> tuple[Decision, bool]:
    """Ask an operator's rule; ``args`` have :class:`Seen` in place of tensors. Also whether it holds for other entries.

    Raises:
        Refused: if examples mix, or no rule says that they do not.
    """
    tensors = [t for value in args.values() for t in _seen(value)]
    call = Call(operator.name, args, shapes, examples, tensors=tensors)
    if operator.rule is None or (operator.written and not operator.in_place and not operator.reshapes):
        labels = _unknown(call, operator)
    elif examples == 1 and call.has_rows:  # one example mixes with none: its pass must fit the template of others
        try:
            labels = _ruled(call, operator.rule)
        except Refused:
            if not shapes:
                raise
            labels = [Rows(0)] * len(shapes)
        labels = [
            alone(s) if isinstance(label, Rows) and label != MIXED else label
            for label, s in zip(labels, shapes, strict=True)
        ]
    else:
        labels = _ruled(call, operator.rule)
    entry = _entry(operator, call, labels)
    decision = Decision(tuple(labels), tuple({} for _ in labels), entry, call.counted)
    return decision, (operator.fixed or operator.rule is index) and not call.by_value


def _ruled(call: Call, rule: Rule) -> list[Label]:
    said = rule(call)
    if isinstance(said, Carried):
        number = len(call.shapes) if said.outputs is None else said.outputs
        labels = [carry(call, said, shape) for shape in call.shapes[:number] or [()]]
        said = [*labels, *[Public()] * (len(call.shapes) - len(labels))]
    return said[: len(call.shapes)]


def _unknown(call: Call, operator: Operator) -> list[Label]:
    if call.has_rows:
        if operator.written:
            refuse(
                "writes its result, which depends on examples, into a tensor that was given for it.",
                "Use the form that returns a new tensor.",
            )
        refuse(
            "has no rule that says where its examples are.",
            "Write it with operators that have one: arithmetic, torch.where, matmul, F.scaled_dot_product_attention; "
            'or for a fused layer or kernel choose the plain one (attn_implementation="eager").',
        )
    grown = [t.label for t in call.tensors if isinstance(t.label, Public)]
    counted = any(
        label.counted or (label.grows and any(n % call.examples == 0 for n in t.shape))
        for t, label in zip(call.tensors, grown, strict=True)
    )
    return [Public(frozenset(), any(label.grows for label in grown), counted) for _ in call.shapes]


def _entry(operator: Operator, call: Call, labels: list[Label]) -> Entry:
    if operator.name == "lift_fresh":  # a constant that was made of Python numbers
        call.by_value = True
        named = [("value", _entries(call["self"].value))]
    else:
        named = [(name, _plain(value)) for name, value in call.args.items() if not isinstance(value, Seen)]
    name, args = ("view", ()) if operator.name in VIEWS else (operator.name, tuple(named))
    results = []
    for label, shape in zip(labels, call.shapes, strict=True):
        rows = label if isinstance(label, Rows) else None
        known = rows != MIXED if rows is not None else operator.fixed
        results.append((rows, shape if known else ()))
    return Entry(name, args, tuple(results), SIZED.get(operator.name, frozenset()))


def _entries(t: Tensor) -> Any:
    """The entries of a constant; of a long one some of its sums."""
    t = t.detach()
    return repr(t.tolist() if t.numel() <= 64 else [t.sum(d).flatten()[:64].tolist() for d in range(t.ndim)])


def _plain(value: Any) -> Any:
    """A value that can be compared: of tensors only that they are there."""
    if isinstance(value, (list, tuple)) and not isinstance(value, Seen):
        return tuple(_plain(v) for v in value)
    if isinstance(value, (Seen, Tensor, torch.Generator)):
        return "a tensor"
    return "nan" if value != value else value


def _seen(value: Any) -> list[Seen]:
    if isinstance(value, Seen):
        return [value]
    return [v for v in value if isinstance(v, Seen)] if isinstance(value, (list, tuple)) else []
