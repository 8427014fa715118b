"""Drafts of schemas, from a table's column names or, on request, from its values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dplip.data.frames import Texts, column_texts, no_column, parquet_types, read_frame
from dplip.data.schema import as_json
from dplip.data.tables import as_number


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
        columns = {str(name): _observed(column_texts(frame, name, str(path))) for name in frame.columns}
    elif path.suffix.lower() == ".parquet":
        columns = {name: _typed(kind) for name, kind in parquet_types(path).items()}
    else:
        columns = {str(name): _typed("") for name in read_frame(path, rows=0).columns}
    if target is not None and target not in columns:
        no_column(target, list(columns), str(path))
    return as_json(target, columns, "observed" if look else "public")


def _observed(texts: Texts) -> dict[str, Any]:
    values = [text for text in texts if text is not None]
    if values and all(text.lower() in ("true", "false") for text in values):
        return {"kind": "boolean"}
    numbers = [number for number in map(as_number, values) if number is not None]
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
