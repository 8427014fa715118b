"""One more row of a table changes nothing of the others."""

from pathlib import Path

import pandas as pd
import pytest
import torch

import dplip
from dplip.data import Column, Schema, encode, load_table, write_schema
from dplip.data.frames import read_frame

MIXED = Schema(
    Column("y", "boolean"),
    (
        Column("zip", "categorical", levels=("01", "02", "7", "True", "0.5", "2020-01-01", "x")),
        Column("flag", "boolean"),
        Column("n", "numeric", 0, 1e6, missing=True),
    ),
)
ROWS = [
    "01,1,5,1",
    "02,0,7.0,0",
    "7,True,1e3,1.0",
    "7.0,no,,0",
    "True,yes,007,true",
    "0.5,1.0,-3,0",
    "2020-01-01,t,0.1,1",
]
PLAIN = ["01,1,5,1", "02,0,7,0", "7,1,3,1"]  # columns that a reader takes for numbers, until one more row comes
AWKWARD = [
    *("x,,,0", ",1,1,0", "1,1,1,0", "01,True,1,0", "7,0.0,1,0", "1.5,Y,1,0", "a b,1,inf,0", "NaN,1,1,0", "None,1,1,0"),
    *("2020-01-01 00:00:00,1,1,0", '"1,000",1,1,0', "9007199254740993,1,9007199254740993,0", "1_0,1,1,0", "true,1,1,0"),
    *("01,1,1e999,0", "é,1,1,0", "#,1,1,0", '"a ""quoted"" word",1,1,0', "-0.0,1,-0.0,0"),
    *("", "   ", ROWS[0]),  # a blank line is no row, and a row may occur twice
]


def encoded(folder: Path, rows: list[str]) -> torch.Tensor:
    (folder / "t.csv").write_text("\n".join(["zip,flag,n,y", *rows]) + "\n", encoding="utf-8")
    return torch.cat([part.reshape(len(part), -1) for part in encode(read_frame(folder / "t.csv"), MIXED).tensors], 1)


@pytest.mark.parametrize("more", AWKWARD)
@pytest.mark.parametrize("rows", [ROWS, PLAIN], ids=["mixed", "plain"])
@pytest.mark.parametrize("place", [0, 2])
def test_one_more_row_of_a_file_changes_no_bit_of_the_others(tmp_path, rows, more, place):
    before = encoded(tmp_path, rows)
    after = encoded(tmp_path, [*rows[:place], more, *rows[place:]])
    added = int(bool(more.strip()))
    assert len(after) == len(rows) + added
    assert torch.equal(torch.cat([after[:place], after[place + added :]]), before)


@pytest.mark.parametrize(
    "more", ["01,1,1,0,", "01,1,1", "01,maybe,1,0", "01,1,two,0", "01,1,nan,0", "01,1,1,", '"01,1,1,0']
)
@pytest.mark.parametrize("place", [0, len(ROWS)])
def test_what_is_no_row_is_refused_wherever_it_stands(tmp_path, more, place):
    with pytest.raises(dplip.ConfigurationError, match=r"t\.csv|row|value"):
        encoded(tmp_path, [*ROWS[:place], more, *ROWS[place:]])


@pytest.mark.parametrize("kind", ["frame", "parquet"])
@pytest.mark.parametrize(
    "values, more, levels",
    [
        ([1, 2, 7], None, ("1", "2", "7")),  # whole numbers become floats
        ([1, 2, 2**53 + 1], None, ("1", "2", str(2**53 + 1))),
        ([1, 2, 7], 0.5, ("1", "2", "7")),
        ([True, False, True], None, ("True", "False")),  # booleans become objects
        (["01", "02", "7"], None, ("01", "02", "7")),
        ([1.0, 2.0, 0.5], 10**16 + 0.0, ("1", "2", "0.5")),
        (list(pd.to_datetime(["2020-01-01", "2021-01-01"])), pd.NaT, ("2020-01-01 00:00:00", "2021-01-01 00:00:00")),
    ],
)
def test_one_more_value_that_changes_a_columns_type_changes_no_other(tmp_path, kind, values, more, levels):
    schema = Schema(Column("y", "boolean"), (Column("c", "categorical", levels=levels),))

    def read(values: list[object], dtype: object = None) -> torch.Tensor:
        table = pd.DataFrame({"c": pd.Series(values, dtype=dtype), "y": [1] * len(values)})
        if kind == "parquet":
            table.to_parquet(tmp_path / "t.parquet")
            table = read_frame(tmp_path / "t.parquet")
        return encode(table, schema).tensors[0]

    before = read(values)
    assert before.sum() == len(values)  # each is found among the levels
    # A frame of pandas has rounded whole numbers beyond 2^53 itself, unless it holds objects.
    after = read([*values, more], object if max(map(str, values), key=len) == str(2**53 + 1) else None)
    assert torch.equal(after[:-1], before)
    if kind == "frame":
        assert torch.equal(read([*values, "x"], object)[:-1], before)


def test_nullable_columns_of_pandas_are_read_value_by_value():
    table = pd.DataFrame({"c": pd.array([7, None, 2**53 + 1], dtype="Int64"), "y": [1, 0, 1]})
    schema = Schema(Column("y", "boolean"), (Column("c", "categorical", levels=("7", str(2**53 + 1))),))
    assert encode(table, schema).tensors[0].tolist() == [[1, 0], [0, 0], [0, 1]]


@pytest.mark.parametrize("more", ["x,,,0", "x,no,9,1"])
def test_neighbouring_tables_have_training_parts_that_differ_in_one_row(tmp_path, more):
    rows = [f"0{i % 2 + 1},{i % 2},{i},{i % 2}" for i in range(300)]
    write_schema(tmp_path / "t.schema.json", MIXED)
    for place in (0, 150, 300):
        parts = []
        for some in (rows, [*rows[:place], more, *rows[place:]]):
            encoded(tmp_path, some)
            table = load_table(tmp_path / "t.csv")
            parts.append([list(map(tuple, data.tensors[0].tolist())) for data in (table.train, table.test)])
        lost = [
            len(set(before) ^ set(after)) + abs(len(after) - len(before)) for before, after in zip(*parts, strict=True)
        ]
        assert sorted(lost) == [0, 2]  # one part has one row more


def test_a_column_named_twice_and_levels_that_mean_the_same_are_refused(tmp_path):
    (tmp_path / "t.csv").write_text("zip,flag,flag,n,y\n01,1,0,1,0\n")
    with pytest.raises(dplip.ConfigurationError, match="2 columns 'flag'"):
        encode(read_frame(tmp_path / "t.csv"), MIXED)
    for levels in (("7", "7.0"), ("a", " a"), ("a", " ")):
        with pytest.raises(dplip.ConfigurationError, match="levels"):
            Column("c", "categorical", levels=levels)
