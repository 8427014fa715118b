"""Tables: rows are encoded by the schema, each on its own."""

import pandas as pd
import pytest
import torch
from helpers.tables import SCHEMA, frame

import dplip
from dplip.data import Column, Schema, encode, encode_features, load_table
from dplip.data.frames import read_frame
from dplip.data.tables import is_table


def test_rows_are_encoded_by_the_schema():
    rows = pd.DataFrame(
        {
            "age": [20, None, 1000],
            "colour": ["red", None, "blue"],
            "price": [None, 10, "11"],
            "member": ["yes", None, "False"],
            "bought": [1, 0, True],
        }
    )
    x, y = encode(rows, SCHEMA).tensors
    assert x.tolist() == [
        [20, 500, 1, 1, 0, 0, 1],
        [58, 10, 0.5, 0, 0, 0, 0],
        [1000, 11, 0, 0, 0, 0, 0],
    ]
    assert y.tolist() == [1, 0, 1]
    assert torch.equal(encode_features(rows.drop(columns="bought"), SCHEMA), x)


def test_a_level_that_looks_like_a_number_is_found_however_it_is_read(tmp_path):
    (tmp_path / "t.csv").write_text("c,y\n7,1\n,0\n3,1\n")  # the gap makes pandas read floats
    schema = Schema(Column("y", "boolean"), (Column("c", "categorical", levels=("7", "3")),))
    assert encode(read_frame(tmp_path / "t.csv"), schema).tensors[0].tolist() == [[1, 0], [0, 0], [0, 1]]


def test_text_such_as_na_is_a_level_and_not_a_gap(tmp_path):
    (tmp_path / "t.csv").write_text("c,y\nNA,1\n?,0\n")
    schema = Schema(Column("y", "boolean"), (Column("c", "categorical", levels=("NA", "?")),))
    assert encode(read_frame(tmp_path / "t.csv"), schema).tensors[0].tolist() == [[1, 0], [0, 1]]


def test_each_row_is_encoded_on_its_own():
    rows = frame(50)
    whole = encode(rows, SCHEMA).tensors
    alone = [encode(rows.iloc[i : i + 1], SCHEMA).tensors for i in range(len(rows))]
    for k in (0, 1):
        assert torch.equal(whole[k], torch.cat([part[k] for part in alone]))


@pytest.mark.parametrize("row", ['"01', '"01,1,1', "01,1", "01,1,1,1"])
def test_a_record_that_takes_in_others_is_refused(tmp_path, row):
    """A quote that is left open, a field too few or too many."""
    (tmp_path / "t.csv").write_text(f'zip,n,y\n01,1,1\n{row}\n5",1,0\n02,"1",0\n01,2,1\n')
    with pytest.raises(dplip.ConfigurationError, match="cannot be read as a table"):
        read_frame(tmp_path / "t.csv")


@pytest.mark.parametrize(
    "column, value, words",
    [("age", "old", "no|not"), ("member", "maybe", "boolean"), ("bought", None, "missing"), ("bought", "2", "boolean")],
)
def test_a_value_that_does_not_fit_is_refused_without_being_shown(column, value, words):
    rows = frame(5).astype(object)
    rows.loc[3, column] = value
    with pytest.raises(dplip.ConfigurationError, match=words) as refused:
        encode(rows, SCHEMA)
    assert "row 4" in str(refused.value) and "maybe" not in str(refused.value)


def test_a_missing_column_is_named_with_its_nearest():
    with pytest.raises(dplip.ConfigurationError, match="did you mean 'Age'"):
        encode(frame(3).rename(columns={"age": "Age"}), SCHEMA)


def test_a_target_of_two_levels_and_a_scaled_number():
    rows = pd.DataFrame({"x": [1.0, 2.0], "y": ["<=50K", ">50K"]})
    schema = Schema(Column("y", "categorical", levels=("<=50K", ">50K")), (Column("x", "numeric", 0, 3),))
    assert encode(rows, schema).tensors[1].tolist() == [0, 1]
    with pytest.raises(dplip.ConfigurationError, match="levels"):
        encode(rows.assign(y="other"), schema)


def test_held_out_rows_come_from_a_file_or_from_a_fifth(folder):
    table = load_table(folder / "shop.csv")
    assert 50 < len(table.test) < 110 and len(table.train) + len(table.test) == 400
    frame(30, 1).to_csv(folder / "shop.test.csv", index=False)
    assert len(load_table(folder / "shop.csv").test) == 30
    assert len(load_table(folder / "shop.csv", test=folder / "shop.csv").test) == 400
    with pytest.raises(dplip.ConfigurationError, match="target"):
        load_table(folder / "shop.csv", target="age")


def test_files_that_are_not_there_are_named_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.delenv("DPLIP_DATA", raising=False)
    assert is_table("adult") and is_table("a/b.CSV") and not is_table("digits")
    with pytest.raises(dplip.ConfigurationError, match="data-dir"):
        load_table("adult")
    with pytest.raises(dplip.ConfigurationError, match=r"adult\.csv"):
        load_table("adult", tmp_path)
    (tmp_path / "adult.csv").write_text("a\n1\n")
    with pytest.raises(dplip.ConfigurationError, match="dplip schema"):
        load_table("adult", tmp_path)
    (tmp_path / "t.parquet").write_bytes(b"no table")
    with pytest.raises(dplip.ConfigurationError, match="cannot be read"):
        read_frame(tmp_path / "t.parquet")
