"""Schemas of tables: read as written, refused with the column, drafted without looking."""

import json
import math

import pytest
from helpers.tables import SCHEMA, frame

import dplip
from dplip.data import draft, read_schema, write_schema
from dplip.data.schema import parse_monotone


def test_a_schema_is_read_as_it_was_written(tmp_path):
    write_schema(tmp_path / "s.json", SCHEMA)
    assert read_schema(tmp_path / "s.json") == SCHEMA
    assert SCHEMA.features == (
        *("age", "price", "member"),
        *("colour=red", "colour=green", "colour=7", "price is missing"),
    )
    assert SCHEMA.directions == [1, -1, 1, 0, 0, 0, 0]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"kind": None}, "kind=None"),
        ({"kind": "numeric", "low": None, "high": None}, "public bounds"),
        ({"kind": "numeric", "low": 3, "high": 3}, "no range"),
        ({"kind": "numeric", "low": 0, "high": math.inf}, "no range"),
        ({"kind": "categorical", "levels": []}, "levels"),
        ({"kind": "categorical", "levels": ["a", "a"]}, "levels"),
        ({"kind": "categorical", "levels": ["a", "b"], "monotone": 1}, "monotone"),
        ({"kind": "numeric", "low": 0, "high": 1, "monotone": 2}, "monotone"),
        ({"kind": "numeric", "low": 0, "high": 1, "sorted": True}, "sorted"),
        ({"kind": "categorical", "levels": ["a"], "log": True}, "log"),
        ("numeric", "numeric"),
    ],
)
def test_what_a_schema_leaves_open_is_refused_with_the_column(tmp_path, change, words):
    text = {"target": "y", "columns": {"x": change, "y": {"kind": "boolean"}}}
    (tmp_path / "s.json").write_text(json.dumps(text))
    with pytest.raises(dplip.ConfigurationError, match=words) as refused:
        read_schema(tmp_path / "s.json")
    assert "'x'" in str(refused.value)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"target": "z", "columns": {"x": {"kind": "boolean"}}}', "{", "null"]
)
def test_a_file_that_is_no_schema_is_refused(tmp_path, text):
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(dplip.ConfigurationError, match="schema"):
        read_schema(tmp_path / "s.json")


def test_directions_are_read_from_one_flag():
    assert parse_monotone("age:+, model year:-,a:b:+") == {"age": 1, "model year": -1, "a:b": 1}
    assert SCHEMA.monotone({"age": -1}).directions == [-1, 0, 0, 0, 0, 0, 0]
    for wrong in ("age", "age:", ":+", "age:up"):
        with pytest.raises(dplip.ConfigurationError, match="monotone"):
            parse_monotone(wrong)
    with pytest.raises(dplip.ConfigurationError, match="agee"):
        SCHEMA.monotone({"agee": 1})
    with pytest.raises(dplip.ConfigurationError, match="colour"):
        SCHEMA.monotone({"colour": 1})


def test_a_draft_depends_on_no_value(tmp_path):
    drafts = []
    for name, value in (("a", "1,x,2020-01-01"), ("b", "-7.5,,true"), ("c", '"1\n2",3,4')):
        (tmp_path / f"{name}.csv").write_text(f"first,second,third\n{value}\n")
        drafts.append(draft(tmp_path / f"{name}.csv", target="third"))
    assert drafts[0] == drafts[1] == drafts[2]
    found = json.loads(drafts[0])
    assert found["target"] == "third" and found["source"] == "public"
    assert all(column["kind"] is None and column["low"] is None for column in found["columns"].values())


def test_a_draft_of_a_parquet_file_knows_its_types_alone(tmp_path):
    drafts = []
    for seed in (0, 1):
        frame(seed=seed).to_parquet(tmp_path / "t.parquet")
        drafts.append(draft(tmp_path / "t.parquet"))
    assert drafts[0] == drafts[1]
    columns = json.loads(drafts[0])["columns"]
    assert columns["age"] == {"kind": "numeric", "low": None, "high": None} and columns["member"] == {"kind": "boolean"}
