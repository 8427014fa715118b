"""Tables: read with pandas, encoded by a public schema, one row at a time, so that neighbours stay neighbours."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import numpy as np
import torch
from torch.utils.data import TensorDataset

from dplip.data import holdout
from dplip.errors import ConfigurationError
from dplip.schema import Column, Schema, as_json, read_schema

SUFFIXES = (".csv", ".parquet")
TABLES = ("adult", "compas", "heart", "auto-mpg", "blog")
"""Tables that have a preset; their files are read from a folder that the user names."""

TRUE, FALSE = {"true", "1", "1.0", "yes", "y", "t"}, {"false", "0", "0.0", "no", "n", "f"}


@dataclass(frozen=True)
class Table:
    """An encoded table: rows of features, and targets 0 and 1, or numbers in the units of the file."""

    name: str
    train: TensorDataset
    test: TensorDataset
    schema: Schema


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
            with probability 1/5, by its number and ``seed``.

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

    Guarantee: each row is encoded on its own.
    """
    features = _features(frame, schema, what)
    target = _target(frame, schema, what)
    return TensorDataset(torch.from_numpy(features), torch.from_numpy(target))


def encode_features(frame: Any, schema: Schema, what: str = "table") -> torch.Tensor:
    """The features of :func:`encode`, for rows without a target."""
    return torch.from_numpy(_features(frame, schema, what))


def read_frame(path: Path, rows: int | None = None) -> Any:
    """A pandas data frame of a CSV or Parquet file; in a CSV only blanks count as missing, text stays text."""
    pandas = require_pandas()
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigurationError(f"file {path}: give a table as {' or '.join(SUFFIXES)}.")
    try:
        if path.suffix.lower() == ".parquet":
            frame = pandas.read_parquet(path)
        else:
            frame = pandas.read_csv(path, keep_default_na=False, na_values=[""], skipinitialspace=True, nrows=rows)
    except Exception as wrong:  # whatever a damaged file makes the reader raise
        raise ConfigurationError(f"file {path}: cannot be read as a table ({type(wrong).__name__}: {wrong}).") from None
    return frame


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
        columns = {str(name): _observed(frame[name]) for name in frame.columns}
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
    numbers = [_numbers(_series(frame, c.name, what), c, what) for c in schema.numeric]
    middles = [(c.low + c.high) / 2 for c in schema.numeric]
    filled = [np.where(np.isnan(v), m, v) for v, m in zip(numbers, middles, strict=True)]
    texts = ((_text(_series(frame, c.name, what)), c) for c in schema.columns if c.kind == "categorical")
    levels = [(text == level).astype(float) for text, c in texts for level in c.levels]
    flags = [np.isnan(v).astype(float) for v, c in zip(numbers, schema.numeric, strict=True) if c.missing]
    return np.stack([*filled, *levels, *flags], axis=1).astype(np.float32)


def _target(frame: Any, schema: Schema, what: str) -> Any:
    column, series = schema.target, _series(frame, schema.target.name, what)
    if column.kind != "categorical":
        values = _numbers(series, column, what)
        if np.isnan(values).any():
            _bad_row(column, np.isnan(values), what, "is missing or no number")
        return values.astype(np.float32) if schema.regression else values.astype(np.int64)
    text = _text(series)
    other = ~np.isin(text, list(column.levels))
    if other.any():
        _bad_row(column, other, what, f"is not one of the levels {list(column.levels)}")
    return (text == column.levels[1]).astype(np.int64)


def _series(frame: Any, name: str, what: str) -> Any:
    if name not in frame.columns:
        _no_column(name, [str(c) for c in frame.columns], what)
    return frame[name]


def _numbers(series: Any, column: Column, what: str) -> Any:
    """float64, NaN where it is missing; infinities are numbers beyond every range."""
    pandas = require_pandas()
    if column.kind == "boolean":
        text = np.char.lower(_text(series).astype(str))
        values = np.where(np.isin(text, list(TRUE)), 1.0, np.where(np.isin(text, list(FALSE)), 0.0, np.nan))
    else:
        values = pandas.to_numeric(series, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    wrong = np.isnan(values) & ~series.isna().to_numpy()
    if wrong.any():
        _bad_row(column, wrong, what, f"is not a {column.kind} value")
    return np.clip(values, -1e30, 1e30)  # a float32 holds it; the model clamps to the public range


def _text(series: Any) -> Any:
    """Each value as text without blanks around it; a missing one, as None, equals no level."""
    gone = series.isna().to_numpy()
    text = (str(v).strip() for v in series.to_numpy(dtype=object))
    # Whole numbers are read as floats where a column has gaps: they mean the same level.
    whole = [v[:-2] if v.endswith(".0") and v[:-2].lstrip("-").isdigit() else v for v in text]
    return np.where(gone, "\0missing", np.array(whole, dtype=object))


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


def _observed(series: Any) -> dict[str, Any]:
    pandas = require_pandas()
    values = series.dropna()
    if pandas.api.types.is_bool_dtype(values):
        return {"kind": "boolean"}
    if pandas.api.types.is_numeric_dtype(values) and len(values):
        low, high = float(values.min()), float(values.max())
        entry = {"kind": "numeric", "low": low, "high": high if high > low else low + 1.0}
        return {**entry, "missing": True} if series.isna().any() else entry
    return {"kind": "categorical", "levels": sorted(set(_text(values).tolist()))}


def _typed(kind: str) -> dict[str, Any]:
    if kind == "bool":
        return {"kind": "boolean"}
    if any(word in kind for word in ("int", "float", "double", "decimal")):
        return {"kind": "numeric", "low": None, "high": None}
    if any(word in kind for word in ("string", "dictionary")):
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
    column = table.schema.target
    middle, half = (column.low + column.high) / 2, (column.high - column.low) / 2

    def scaled(data: TensorDataset) -> TensorDataset:
        x, y = data.tensors
        return TensorDataset(x, ((y - middle) / half).clamp(-1, 1) * span)

    return replace(table, train=scaled(table.train), test=scaled(table.test))
