"""Tables, encoded by a public schema, one row at a time, so that neighbours stay neighbours.

Nothing is inferred from a column: a reader that gives each column one type re-encodes all rows when one is added. Each
value is taken as text (:func:`dplip.data.schema.as_text`), and read from that text alone.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch.utils.data import TensorDataset

from dplip.data.checks import holdout
from dplip.data.frames import SUFFIXES, Texts, column_texts, read_frame
from dplip.data.schema import Column, Schema, as_text, read_schema
from dplip.errors import ConfigurationError

TABLES = ("adult", "compas", "heart", "auto-mpg", "blog")
"""Tables that have a preset; their files are read from a folder that the user names."""

BOOLEANS = dict.fromkeys(("true", "1", "yes", "y", "t"), 1.0) | dict.fromkeys(("false", "0", "no", "n", "f"), 0.0)


@dataclass(frozen=True)
class Table:
    """An encoded table: rows of features, and targets 0 and 1, or numbers in the units of the file."""

    name: str
    train: TensorDataset
    test: TensorDataset
    schema: Schema

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of an encoded row."""
        return (len(self.schema.features),)


def is_table(name: str) -> bool:
    """Whether a name for ``dplip train --data`` is that of a table, with a preset or in a file."""
    return name in TABLES or name.lower().endswith(SUFFIXES)


def load_table(
    name: str | Path,
    data_dir: str | Path | None = None,
    *,
    schema: str | Path | Schema | None = None,
    target: str | None = None,
    monotone: Mapping[str, int] | None = None,
    test: str | Path | None = None,
    seed: int = 0,
) -> Table:
    """Read and encode a table.

    Args:
        name: a CSV or Parquet file, or one of ``TABLES``: then ``NAME.csv`` in ``data_dir`` (or ``DPLIP_DATA``).
        schema: by default the file ``NAME.schema.json`` beside the table.
        target: must be the schema's target, if it is given.
        monotone: directions by column, in place of the schema's.
        test: a file of held-out rows, by default ``NAME.test.csv`` beside the table; without one each row is held out
            with probability 1/5, by its own encoding and ``seed`` (:func:`dplip.data.holdout`).

    Raises:
        ConfigurationError: a file is missing or does not fit its schema; pandas is not installed.
    """
    path = _locate(name, data_dir)
    known = schema if isinstance(schema, Schema) else read_schema(_schema_path(path) if schema is None else schema)
    if target is not None and target != known.target.name:
        raise ConfigurationError(
            f"target={target!r}, but the schema's target is {known.target.name!r}: change one of them."
        )
    if monotone is not None:
        known = known.monotone(monotone)
    train = encode(read_frame(path), known, str(path))
    beside = path.with_name(f"{path.stem}.test{path.suffix}")
    if test is None and not beside.exists():
        train, held_out = holdout(train, 0.2, seed)
    else:
        held_path = beside if test is None else Path(test)
        held_out = encode(read_frame(held_path), known, str(held_path))
    return Table(path.stem, train, held_out, known)


def encode(frame: Any, schema: Schema, what: str = "table") -> TensorDataset:
    """Rows of features in the order of ``schema.features``, float32, and their targets.

    Missing values: a number becomes the middle of its range (and has a flag, if the schema's column has
    ``missing: true``), a boolean one half; a level that is missing, or not among the schema's, is none of the levels.
    A missing target is refused.

    Guarantee: a row's encoding is a function of that row and the schema. One more row, whatever it holds, changes no
    bit of the others, unless the whole table is refused for it.
    """
    features = _features(frame, schema, what)
    target = _target(frame, schema, what)
    return TensorDataset(torch.from_numpy(features), torch.from_numpy(target))


def encode_features(frame: Any, schema: Schema, what: str = "table") -> torch.Tensor:
    """The features of :func:`encode`, for rows without a target."""
    return torch.from_numpy(_features(frame, schema, what))


def _features(frame: Any, schema: Schema, what: str) -> Any:
    numbers = [_numbers(column_texts(frame, c.name, what), c, what) for c in schema.numeric]
    filled = [np.where(np.isnan(v), c.middle, v) for v, c in zip(numbers, schema.numeric, strict=True)]
    texts = ((column_texts(frame, c.name, what), c) for c in schema.columns if c.kind == "categorical")
    levels = [_equal(text, level) for text, c in texts for level in c.levels]
    flags = [np.isnan(v).astype(float) for v, c in zip(numbers, schema.numeric, strict=True) if c.missing]
    return np.stack([*filled, *levels, *flags], axis=1).astype(np.float32)


def _target(frame: Any, schema: Schema, what: str) -> Any:
    column, texts = schema.target, column_texts(frame, schema.target.name, what)
    if column.kind != "categorical":
        values = _numbers(texts, column, what)
        if np.isnan(values).any():
            _bad_row(column, np.isnan(values), what, "is missing or no number")
        return values.astype(np.float32) if schema.regression else values.astype(np.int64)
    first, second = (_equal(texts, level) for level in column.levels)
    if (first + second == 0).any():
        _bad_row(column, first + second == 0, what, f"is not one of the levels {list(column.levels)}")
    return second.astype(np.int64)


def _equal(texts: Texts, level: str) -> Any:
    wanted = as_text(level)
    return np.fromiter((text == wanted for text in texts), dtype=np.float64, count=len(texts))


def _numbers(texts: Texts, column: Column, what: str) -> Any:
    """A column's values as float64, NaN where one is missing; infinities count as beyond every range."""
    read: Callable[[str], float | None] = _boolean if column.kind == "boolean" else as_number
    found = [math.nan if text is None else read(text) for text in texts]
    wrong = np.fromiter((value is None for value in found), dtype=bool, count=len(found))
    if wrong.any():
        _bad_row(column, wrong, what, f"is not a {column.kind} value")
    return np.clip(np.array(found, dtype=np.float64), -1e30, 1e30)  # a float32 holds it; the model clamps to the range


def _boolean(text: str) -> float | None:
    return BOOLEANS.get(text.lower())


def as_number(text: str) -> float | None:
    """The number that a text stands for, which may be infinite; None: there is none."""
    try:
        value = float(text)
    except ValueError:
        return None
    return None if math.isnan(value) or "_" in text else value


def _bad_row(column: Column, wrong: Any, what: str, why: str) -> NoReturn:
    raise ConfigurationError(
        f"{what}, column {column.name!r}: the value of row {int(np.argmax(wrong)) + 1} "
        f"(and of {int(wrong.sum()) - 1} others) "
        f"{why}: correct the rows, or the schema."
    )


def _locate(name: str | Path, data_dir: str | Path | None) -> Path:
    path = Path(name)
    if str(name) in TABLES:
        folder = data_dir or os.environ.get("DPLIP_DATA")
        if not folder:
            raise ConfigurationError(
                f"data={name}: name a folder that holds {name}.csv and {name}.schema.json by --data-dir DIR "
                "(or set DPLIP_DATA). "
                "docs/tabular.md says how to make them."
            )
        options = [Path(folder) / f"{name}{suffix}" for suffix in SUFFIXES]
        path = next((option for option in options if option.exists()), options[0])
    if not path.exists():
        raise ConfigurationError(f"file {path}: there is none. Give a CSV or Parquet file (docs/tabular.md).")
    return path


def _schema_path(path: Path) -> Path:
    beside = path.with_name(f"{path.stem}.schema.json")
    if not beside.exists():
        raise ConfigurationError(
            f"schema {beside}: there is none. Draft it with dplip schema {path} and fill in the public ranges."
        )
    return beside


def with_scaled_target(table: Table, span: float) -> Table:
    """Targets of a regression mapped from their public range to [-span, span], values beyond it at its ends."""
    parts = (part.tensors for part in (table.train, table.test))
    train, test = (TensorDataset(x, scaled_target(y, table.schema.target, span)) for x, y in parts)
    return replace(table, train=train, test=test)


def scaled_target(values: torch.Tensor, target: Column, span: float) -> torch.Tensor:
    """Values mapped from a target's public range to [-span, span], those beyond it to its ends."""
    return ((values - target.middle) / target.half).clamp(-1, 1) * span
