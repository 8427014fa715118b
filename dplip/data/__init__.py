"""Data sets of images and tables, and the checks that they pass."""

from dplip.data.checks import check_dataset, holdout
from dplip.data.drafts import draft
from dplip.data.images import Data, load
from dplip.data.padding import Padding
from dplip.data.schema import Column, Schema, read_schema, write_schema
from dplip.data.tables import Table, encode, encode_features, load_table

__all__ = [
    "Column",
    "Data",
    "Padding",
    "Schema",
    "Table",
    "check_dataset",
    "draft",
    "encode",
    "encode_features",
    "holdout",
    "load",
    "load_table",
    "read_schema",
    "write_schema",
]
