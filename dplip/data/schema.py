"""The schema of a table: for each column its kind, its public range or levels, and its direction, as a JSON file."""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, NoReturn

from dplip.errors import ConfigurationError
from dplip.runtime.files import write_text

KINDS = ("numeric", "boolean", "categorical")

_NUMBERS: Any = (numbers.Real, Decimal)


def as_text(value: Any) -> str | None:
    """The text of a table's value; None: the value is blank.

    The text depends on the value alone, and not on the type of its column, which one more row may change. A whole
    number becomes its digits, so 7, 7.0 and ``"7.0"`` are ``"7"``; other text stays, so ``"01"`` is not 1.

    >>> as_text(7.0), as_text(True), as_text(" 01 "), as_text(" ")
    ('7', 'True', '01', None)
    """
    if isinstance(value, str):
        text = value.strip()
        return (text[:-2] if text.endswith(".0") and text[:-2].lstrip("+-").isdecimal() else text) or None
    if isinstance(value, _NUMBERS) and not isinstance(value, bool):
        with suppress(ArithmeticError, ValueError):  # of a number beyond all floats, or a signalling NaN
            whole = math.isfinite(value) and value == int(value)
            return str(int(value)) if whole else repr(float(value))
    return as_text(str(value))


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        kind: "numeric", "boolean" or "categorical".
        low, high: public ends of a number's range; values beyond them count as the nearest end.
        levels: the levels of a categorical column; a target has two.
        log: scale by the logarithm of the distance from ``low``, for a long tail.
        monotone: +1 or -1: the target does not fall, or rise, with this column; 0: free.
        missing: add a column that says whether the value is missing.
    """

    name: str
    kind: str
    low: float = 0.0
    high: float = 1.0
    levels: tuple[str, ...] = ()
    log: bool = False
    monotone: int = 0
    missing: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            self._refuse(f"kind={self.kind!r} is not one of {', '.join(KINDS)}", "fill it in")
        if self.kind == "numeric" and not (_number(self.low) and _number(self.high) and self.low < self.high):
            self._refuse(
                f"low={self.low!r}, high={self.high!r} is no range", "give public bounds that do not depend on the data"
            )
        if self.kind == "categorical":
            levels = set(map(as_text, self.levels))
            if not levels or len(levels) < len(self.levels):
                self._refuse(f"levels={list(self.levels)}", "list each public level once (7 and 7.0 are one)")
            if None in levels:
                self._refuse(f"levels={list(self.levels)}", "leave out the blank: it stands for a missing value")
        if self.monotone not in (-1, 0, 1) or (self.monotone and self.kind == "categorical"):
            self._refuse(
                f"monotone={self.monotone!r} for a {self.kind} column", "give +1 or -1, for a number or a boolean"
            )
        if (self.log or self.missing) and self.kind == "categorical":
            self._refuse("log or missing is for numbers", "leave it out: a missing level is none of the levels")

    @property
    def middle(self) -> float:
        """The middle of the public range."""
        return (self.low + self.high) / 2

    @property
    def half(self) -> float:
        """Half the width of the public range."""
        return (self.high - self.low) / 2

    def _refuse(self, found: str, remedy: str) -> NoReturn:
        raise ConfigurationError(f"schema, column {self.name!r}: {found}: {remedy}.")


@dataclass(frozen=True)
class Schema:
    """The public facts about a table.

    Attributes:
        target: two levels (or a boolean): a classification, the second level counts as 1; numeric: a regression.
        columns: the features, in the order in which they are read.
        source: "public", or "observed" where ranges and levels were taken from the data: no private run uses those.
    """

    target: Column
    columns: tuple[Column, ...]
    source: str = "public"

    def __post_init__(self) -> None:
        names = [c.name for c in (*self.columns, self.target)]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice or not self.columns:
            raise ConfigurationError(
                f"schema: columns named twice: {twice}, {len(self.columns)} features: name each once."
            )
        if self.target.kind == "categorical" and len(self.target.levels) != 2:
            raise ConfigurationError(
                f"schema, target {self.target.name!r}: levels={list(self.target.levels)}: a table is "
                "classified into two. Give two levels, or a number for a regression; with more classes train a model "
                "of your own: dplip.DPLipTrainer with dplip.losses.CrossEntropy."
            )
        if self.source not in ("public", "observed"):
            raise ConfigurationError(f"schema: source={self.source!r}: write 'public' or 'observed'.")

    @property
    def regression(self) -> bool:
        return self.target.kind == "numeric"

    @property
    def numeric(self) -> tuple[Column, ...]:
        """Numbers and booleans: the first features of an encoded row."""
        return tuple(c for c in self.columns if c.kind != "categorical")

    @property
    def blocks(self) -> tuple[tuple[str, ...], ...]:
        """The one-hot blocks that follow: the levels of each category, and a single entry for each flag."""
        levels = (tuple(f"{c.name}={v}" for v in c.levels) for c in self.columns if c.kind == "categorical")
        return (*levels, *((f"{c.name} is missing",) for c in self.columns if c.missing))

    @property
    def features(self) -> tuple[str, ...]:
        """The names of an encoded row's entries."""
        return (*(c.name for c in self.numeric), *(name for block in self.blocks for name in block))

    @property
    def directions(self) -> list[int]:
        """-1, 0 or +1 for each feature."""
        return [c.monotone for c in self.numeric] + [0] * sum(map(len, self.blocks))

    def monotone(self, directions: Mapping[str, int]) -> Schema:
        """The schema with these directions of the named columns, and none for the others.

        Raises:
            ConfigurationError: a name is of no feature, or of a categorical one.
        """
        unknown = sorted(set(directions) - {c.name for c in self.columns})
        if unknown:
            raise ConfigurationError(f"monotone: {unknown} are not among the columns {[c.name for c in self.columns]}.")
        return replace(self, columns=tuple(replace(c, monotone=directions.get(c.name, 0)) for c in self.columns))


def parse_monotone(text: str) -> dict[str, int]:
    """``"age:+,price:-"`` as ``{"age": 1, "price": -1}``.

    >>> parse_monotone("age:+,model year:-")
    {'age': 1, 'model year': -1}
    """
    found = {}
    for part in filter(None, text.split(",")):
        name, _, sign = part.rpartition(":")
        if sign.strip() not in ("+", "-", "0") or not name.strip():
            raise ConfigurationError(f"monotone={text!r}: write NAME:+ or NAME:- for each column, with commas between.")
        found[name.strip()] = {"+": 1, "-": -1, "0": 0}[sign.strip()]
    return found


def read_schema(path: str | Path) -> Schema:
    """The schema in a JSON file.

    Raises:
        ConfigurationError: the file is no schema, or is incomplete; names the column.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        columns, target = found["columns"], str(found["target"])
        source = str(found.get("source", "public"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as wrong:
        raise ConfigurationError(
            f"schema {path}: cannot be read ({type(wrong).__name__}: {wrong}): make one with dplip schema FILE."
        ) from None
    if not isinstance(columns, dict) or target not in columns:
        raise ConfigurationError(
            f"schema {path}: target={target!r} is not one of its columns: name the target's column."
        )
    made = {name: _column(name, entry) for name, entry in columns.items()}
    return Schema(made.pop(target), tuple(made.values()), source)


def _column(name: str, entry: Any) -> Column:
    known = set(Column.__dataclass_fields__) - {"name"}
    if not isinstance(entry, dict) or not set(entry) <= known:
        raise ConfigurationError(f"schema, column {name!r}: {entry!r}: it may have {', '.join(sorted(known))}.")
    values = {**entry, "kind": entry.get("kind")}
    if "levels" in values:
        if not isinstance(values["levels"], list | None):
            raise ConfigurationError(f"schema, column {name!r}: levels={values['levels']!r}: give a list.")
        values["levels"] = tuple(str(v) for v in values["levels"] or ())
    try:
        return Column(name, **values)
    except (TypeError, OverflowError) as wrong:  # a list where a word belongs, a number beyond all floats
        raise ConfigurationError(f"schema, column {name!r}: {entry!r}: {wrong}: mend that entry.") from None


def write_schema(path: str | Path, schema: Schema) -> None:
    """Write a schema so that :func:`read_schema` gives it back, whole or not at all.

    Raises:
        ConfigurationError: the file cannot be written.
    """
    columns = {c.name: _entry(c) for c in (*schema.columns, schema.target)}
    write_text(path, as_json(schema.target.name, columns, schema.source))


def _entry(column: Column) -> dict[str, Any]:
    shown = {"numeric": ("low", "high"), "boolean": (), "categorical": ("levels",)}[column.kind]
    entry: dict[str, Any] = {"kind": column.kind, **{k: getattr(column, k) for k in shown}}
    return {**entry, **{k: getattr(column, k) for k in ("log", "monotone", "missing") if getattr(column, k)}}


def as_json(target: str | None, columns: Mapping[str, Any], source: str) -> str:
    """The text of a schema's file, with one column a line."""
    lines = [f"    {json.dumps(name)}: {json.dumps(entry)}" for name, entry in columns.items()]
    body = ",\n".join(lines)
    return (
        f'{{\n  "target": {json.dumps(target)},\n  "source": {json.dumps(source)},\n  "columns": {{\n{body}\n  }}\n}}\n'
    )


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
