"""CSV and Parquet files as pandas data frames, and their columns as texts."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from dplip.data.schema import as_text
from dplip.errors import ConfigurationError

SUFFIXES = (".csv", ".parquet")

Texts = list[str | None]


def read_frame(path: Path, rows: int | None = None) -> Any:
    """The data frame of a CSV file, with its fields as text, or of a Parquet file, with its values as they are.

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


def parquet_types(path: Path) -> dict[str, str]:
    require_pandas()
    try:
        from pyarrow import parquet

        found = parquet.read_schema(path)
    except Exception as wrong:
        raise ConfigurationError(f"file {path}: no Parquet schema can be read ({type(wrong).__name__}).") from None
    return {field.name: str(field.type) for field in found}


def column_texts(frame: Any, name: str, what: str) -> Texts:
    """A column's values as text, each on its own."""
    names = [str(c) for c in frame.columns]
    if name not in frame.columns:
        no_column(name, names, what)
    if names.count(str(name)) > 1:
        raise ConfigurationError(f"{what}: it has {names.count(str(name))} columns {name!r}: name each once.")
    series = frame[name]
    return [None if gone else as_text(value) for value, gone in zip(series.tolist(), series.isna(), strict=True)]


def no_column(name: str, columns: list[str], what: str) -> NoReturn:
    nearest = difflib.get_close_matches(name, columns, n=1, cutoff=0)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    raise ConfigurationError(f"{what}: it has no column {name!r}{hint} Its columns: {columns}.")


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
