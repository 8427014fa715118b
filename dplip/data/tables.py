"""Tables, encoded by a public schema, one row at a time, so that neighbours stay neighbours.

Nothing is inferred from a column: a reader that gives each column one type re-encodes all rows when one is added. Each
value is taken as text (:func:`dplip.data.schema.as_text`), and read from that text alone.
"""

from __future__ import annotations

import csv
import difflib
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import numpy as np
import torch
from torch.utils.data import TensorDataset

from dplip.data.checks import holdout
from dplip.data.schema import Column, Schema, as_json, as_text, read_schema
from dplip.errors import ConfigurationError

SUFFIXES = (".csv", ".parquet")
TABLES = ("adult", "compas", "heart", "auto-mpg", "blog")
"""Tables that have a preset; their files are read from a folder that the user names."""

BOOLEANS = dict.fromkeys(("true", "1", "yes", "y", "t"), 1.0) | dict.fromkeys(("false", "0", "no", "n", "f"), 0.0)

Texts = list[str | None]


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
    """Whether ``dplip train --data`` means a table by this: one with a preset, or a file of its own."""
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


def read_frame(path: Path, rows: int | None = None) -> Any:
    """A pandas data frame of a CSV or Parquet file: a CSV's fields as their text, a Parquet file's values as they are.

    In a CSV only blanks are missing. A record with more or fewer fields than the header is refused.
    """
    pandas = require_pandas()
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigurationError(f"file {path}: give a table as {' or '.join(SUFFIXES)}.")
    try:
        names, columns = (_parquet if path.suffix.lower() == ".parquet" else _csv)(path, rows)
    except Exception as wrong:  # whatever a damaged file makes the reader raise
        raise ConfigurationError(f"file {path}: cannot be read as a table ({type(wrong).__name__}: {wrong}).") from None
    frame = pandas.DataFrame({k: pandas.Series(values, dtype=object) for k, values in enumerate(columns)})
    return frame.set_axis(names, axis=1)


def _csv(path: Path, rows: int | None) -> tuple[list[str], Iterable[list[str]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        records = csv.reader(file, skipinitialspace=True, strict=True)
        filled = (record for record in records if len(record) > 1 or "".join(record).strip())
        names = next(filled, None)
        if names is None:
            raise ValueError("it has no header line")
        seen: dict[str, str] = {}  # equal texts are one object: a table of numbers fits into memory
        columns: list[list[str]] = [[] for _ in names]
        for record in islice(filled, rows):
            if any("\n" in field or "\r" in field for field in record):  # a quote left open takes in later rows
                raise ValueError(f"the record that ends in line {records.line_num} goes over several lines")
            if len(record) != len(names):
                raise ValueError(f"line {records.line_num} has {len(record)} fields, and the header {len(names)}")
            for column, field in zip(columns, record, strict=True):
                column.append(seen.setdefault(field, field))
    return names, columns


def _parquet(path: Path, rows: int | None) -> tuple[list[str], Iterable[list[Any]]]:
    from pyarrow import parquet

    table = parquet.read_table(path).slice(0, rows)
    return table.column_names, (column.to_pylist() for column in table.columns)


def draft(path: str | Path, target: str | None = None, look: bool = False) -> str:
    """A schema to fill in, as the text of its file.

    Args:
        path: a CSV or Parquet file.
        target: the column to predict.
        look: take kinds, ranges and levels **from the values**: the draft then says ``"source": "observed"``, and no
            private run will use it. Without it only the columns' names are read (and a Parquet file's types).
    """
    path = Path(path)
    if look:
        frame = read_frame(path)
        columns = {str(name): _observed(_texts(frame, name, str(path))) for name in frame.columns}
    elif path.suffix.lower() == ".parquet":
        columns = {name: _typed(kind) for name, kind in _parquet_types(path).items()}
    else:
        columns = {str(name): _typed("") for name in read_frame(path, rows=0).columns}
    if target is not None and target not in columns:
        _no_column(target, list(columns), str(path))
    return as_json(target, columns, "observed" if look else "public")


def require_pandas() -> ModuleType:
    """pandas, which is an extra.

    Raises:
        ConfigurationError: it is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise ConfigurationError("Reading a table needs pandas: pip install 'dplip[tabular]'.") from None
    return pandas


def _features(frame: Any, schema: Schema, what: str) -> Any:
    numbers = [_numbers(_texts(frame, c.name, what), c, what) for c in schema.numeric]
    filled = [np.where(np.isnan(v), c.middle, v) for v, c in zip(numbers, schema.numeric, strict=True)]
    texts = ((_texts(frame, c.name, what), c) for c in schema.columns if c.kind == "categorical")
    levels = [_equal(text, level) for text, c in texts for level in c.levels]
    flags = [np.isnan(v).astype(float) for v, c in zip(numbers, schema.numeric, strict=True) if c.missing]
    return np.stack([*filled, *levels, *flags], axis=1).astype(np.float32)


def _target(frame: Any, schema: Schema, what: str) -> Any:
    column, texts = schema.target, _texts(frame, schema.target.name, what)
    if column.kind != "categorical":
        values = _numbers(texts, column, what)
        if np.isnan(values).any():
            _bad_row(column, np.isnan(values), what, "is missing or no number")
        return values.astype(np.float32) if schema.regression else values.astype(np.int64)
    first, second = (_equal(texts, level) for level in column.levels)
    if (first + second == 0).any():
        _bad_row(column, first + second == 0, what, f"is not one of the levels {list(column.levels)}")
    return second.astype(np.int64)


def _texts(frame: Any, name: str, what: str) -> Texts:
    """A column's values as text, each on its own."""
    names = [str(c) for c in frame.columns]
    if name not in frame.columns:
        _no_column(name, names, what)
    if names.count(str(name)) > 1:
        raise ConfigurationError(f"{what}: it has {names.count(str(name))} columns {name!r}: name each once.")
    series = frame[name]
    return [None if gone else as_text(value) for value, gone in zip(series.tolist(), series.isna(), strict=True)]


def _equal(texts: Texts, level: str) -> Any:
    wanted = as_text(level)
    return np.fromiter((text == wanted for text in texts), dtype=np.float64, count=len(texts))


def _numbers(texts: Texts, column: Column, what: str) -> Any:
    """float64, NaN where it is missing; infinities are numbers beyond every range."""
    read: Callable[[str], float | None] = _boolean if column.kind == "boolean" else _number
    found = [math.nan if text is None else read(text) for text in texts]
    wrong = np.fromiter((value is None for value in found), dtype=bool, count=len(found))
    if wrong.any():
        _bad_row(column, wrong, what, f"is not a {column.kind} value")
    return np.clip(np.array(found, dtype=np.float64), -1e30, 1e30)  # a float32 holds it; the model clamps to the range


def _boolean(text: str) -> float | None:
    return BOOLEANS.get(text.lower())


def _number(text: str) -> float | None:
    """The number that a text is; infinite at most, and never NaN."""
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


def _no_column(name: str, columns: list[str], what: str) -> NoReturn:
    nearest = difflib.get_close_matches(name, columns, n=1, cutoff=0)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    raise ConfigurationError(f"{what}: it has no column {name!r}{hint} Its columns: {columns}.")


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


def _observed(texts: Texts) -> dict[str, Any]:
    values = [text for text in texts if text is not None]
    if values and all(text.lower() in ("true", "false") for text in values):
        return {"kind": "boolean"}
    numbers = [number for number in map(_number, values) if number is not None]
    if numbers and len(numbers) == len(values):
        low, high = min(numbers), max(numbers)
        entry = {"kind": "numeric", "low": low, "high": high if high > low else low + 1.0}
        return {**entry, "missing": True} if None in texts else entry
    return {"kind": "categorical", "levels": sorted(set(values))}


def _typed(kind: str) -> dict[str, Any]:
    if kind == "bool":
        return {"kind": "boolean"}
    if kind.startswith(("int", "uint", "float", "double", "halffloat", "decimal")):
        return {"kind": "numeric", "low": None, "high": None}
    if kind.startswith(("string", "large_string", "dictionary")):
        return {"kind": "categorical", "levels": None}
    return {"kind": None, "low": None, "high": None, "levels": None}


def _parquet_types(path: Path) -> dict[str, str]:
    require_pandas()
    try:
        from pyarrow import parquet

        found = parquet.read_schema(path)
    except Exception as wrong:
        raise ConfigurationError(f"file {path}: no Parquet schema can be read ({type(wrong).__name__}).") from None
    return {field.name: str(field.type) for field in found}


def with_scaled_target(table: Table, span: float) -> Table:
    """Targets of a regression mapped from their public range to [-span, span], values beyond it at its ends."""
    parts = (part.tensors for part in (table.train, table.test))
    train, test = (TensorDataset(x, scaled_target(y, table.schema.target, span)) for x, y in parts)
    return replace(table, train=train, test=test)


def scaled_target(values: torch.Tensor, target: Column, span: float) -> torch.Tensor:
    """Values mapped from a target's public range to [-span, span], those beyond it to its ends."""
    return ((values - target.middle) / target.half).clamp(-1, 1) * span
