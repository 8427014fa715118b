"""Tables: schemas, row-by-row encoding, and ``dplip train`` on a user's own file."""

import functools
import json
import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import dplip
from dplip.audit import replay
from dplip.certificates import predictions
from dplip.cli.main import main
from dplip.cli.tables import audit_table, trained_table
from dplip.data import Column, Schema, draft, encode, encode_features, load_table, read_schema, write_schema
from dplip.data.schema import parse_monotone
from dplip.data.tables import is_table, read_frame, with_scaled_target
from dplip.models import TabularPreset, tabular_preset
from dplip.records import read_report, validate_report

torch.set_num_threads(1)

SCHEMA = Schema(
    target=Column("bought", "boolean"),
    columns=(
        Column("age", "numeric", 18, 98, monotone=1),
        Column("colour", "categorical", levels=("red", "green", "7")),
        Column("price", "numeric", 0, 1000, log=True, monotone=-1, missing=True),
        Column("member", "boolean", monotone=1),
    ),
)


def frame(rows: int = 400, seed: int = 0) -> pd.DataFrame:
    g = np.random.default_rng(seed)
    age, price = g.integers(18, 90, rows), np.exp(g.uniform(0, 6.5, rows)).round(2)
    member, colour = g.random(rows) < 0.5, g.choice(["red", "green", "7"], rows)
    chance = 1 / (1 + np.exp(-((age - 50) / 8 - (np.log(price) - 3) + 2 * member)))
    return pd.DataFrame(
        {"age": age, "colour": colour, "price": price, "member": member, "bought": g.random(rows) < chance}
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    frame().to_csv(tmp_path / "shop.csv", index=False)
    write_schema(tmp_path / "shop.schema.json", SCHEMA)
    return tmp_path


@pytest.fixture
def dplip_command(monkeypatch, capfd):
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dplip", *map(str, arguments)])
        capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        return (code, *capfd.readouterr())

    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("DPLIP_DATA", raising=False)
    return run


# ------------------------------------------------------------------------------------------------ schemas


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


def test_a_draft_that_may_look_says_so_and_is_for_no_private_run(folder, dplip_command):
    found = json.loads(draft(folder / "shop.csv", target="bought", look=True))
    assert found["source"] == "observed"
    assert found["columns"]["colour"]["levels"] == ["7", "green", "red"]
    (folder / "seen.schema.json").write_text(draft(folder / "shop.csv", "bought", look=True))
    common = ("train", "--data", folder / "shop.csv", "--schema", folder / "seen.schema.json", "--out", folder / "run")
    code, _, error = dplip_command(*common, "--epsilon", 3, "--epochs", 1, "--no-progress")
    assert code == 2 and "observed" in error and not (folder / "run").exists()
    code, out, _ = dplip_command(*common, "--epsilon", "inf", "--epochs", 1, "--no-progress")
    assert code == 0 and "not private" in out


# ------------------------------------------------------------------------------------------------ encoding


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


# ------------------------------------------------------------------------------------------------ one more row

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


# ------------------------------------------------------------------------------------------------ presets


@torch.no_grad()
def at_the_edge(model: torch.nn.Module) -> None:
    """Weights and biases as large as huge noise makes them."""
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        if p.requires_grad:
            p.add_(100 * torch.randn(p.shape, generator=generator))
    dplip.project(model)


@pytest.mark.parametrize("chain", ["inf", "one", "two"])
def test_every_chain_of_a_preset_is_bounded_and_monotone(chain):
    torch.manual_seed(0)
    recipe = TabularPreset(chain, (8, 6), 8.0, lr=0.01, batch_size=64, epochs=1)
    model = recipe.model(SCHEMA)
    assert dplip.certify_monotonic(model, SCHEMA.directions).margin > 0
    at_the_edge(model)
    bounds = dplip.sensitivity(model, recipe.loss(SCHEMA), (len(SCHEMA.features),))
    # The public worst case: three numbers of at most 1/2, a category and a flag.
    l2 = math.sqrt(3 / 4 + 2)
    first = bounds["1.module.0.weight"]
    assert first == pytest.approx(l2, rel=1e-4) if chain != "one" else first <= math.sqrt(8) * l2 * 1.0001
    assert bounds["1.module.3.weight"] <= 1.0001 * math.sqrt(8) * (math.sqrt(6) if chain == "one" else 1)


@pytest.mark.parametrize("chain", ["inf", "one", "two"])
def test_no_row_has_a_gradient_beyond_the_sensitivities(chain):
    torch.manual_seed(0)
    recipe = TabularPreset(chain, (8, 6), 8.0, lr=0.01, batch_size=64, epochs=1)
    model, loss = recipe.model(SCHEMA), recipe.loss(SCHEMA)
    generator = torch.Generator().manual_seed(1)
    rows = [encode(frame(20), SCHEMA).tensors[0]]
    rows += [size * torch.randn(20, len(SCHEMA.features), generator=generator) for size in (1.0, 1e3, 1e20)]
    rows += [torch.tensor([[98.0, 0, 1, 1, 0, 0, 1], [18.0, 1000, 0, 0, 1, 0, 1], [math.inf] * 7, [-math.inf] * 7])]
    for spread in (0, 1):
        if spread:
            at_the_edge(model)
        bounds = dplip.sensitivity(model, loss, (len(SCHEMA.features),))
        for x in torch.cat(rows):
            for y in (0, 1):
                model.zero_grad()
                loss(model(x[None]), torch.tensor([y])).backward()
                for name, bound in bounds.items():
                    assert float(model.get_parameter(name).grad.norm()) <= bound, (name, x)


def test_hidden_clamps_keep_the_sensitivity_of_the_inf_chain_small():
    def total(clamp: float) -> float:
        recipe = TabularPreset("inf", (32, 32), 8.0, lr=0.01, batch_size=64, epochs=1, clamp=clamp)
        model = recipe.model(SCHEMA)
        at_the_edge(model)
        return dplip.sensitivity(model, recipe.loss(SCHEMA), (len(SCHEMA.features),)).total

    assert total(1.0) < 9 < total(100.0)


def test_presets_and_their_refusals():
    assert tabular_preset("adult", private=True) != tabular_preset("adult", private=False)
    assert tabular_preset("somebody's", private=True) is tabular_preset("adult", private=True)
    for wrong in ({"chain": "three"}, {"lr": 0.0}, {"clamp": math.nan}, {"scale": -1.0}):
        with pytest.raises(dplip.ConfigurationError, match=next(iter(wrong))):
            TabularPreset(
                **{**{"chain": "inf", "widths": (4,), "scale": 1.0, "lr": 1.0, "batch_size": 1, "epochs": 1}, **wrong}
            )


def test_targets_are_scaled_within_their_public_range(tmp_path):
    rows = pd.DataFrame({"x": [0.0, 1.0, 2.0], "y": [10.0, 20.0, 99.0]})
    rows.to_csv(tmp_path / "t.csv", index=False)
    rows.to_csv(tmp_path / "t.test.csv", index=False)
    schema = Schema(Column("y", "numeric", 10, 30), (Column("x", "numeric", 0, 3),))
    table = with_scaled_target(load_table(tmp_path / "t.csv", schema=schema), 0.5)
    assert table.train.tensors[1].tolist() == [-0.5, 0.0, 0.5]


# ------------------------------------------------------------------------------------------------ the command line


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A short private run on a Parquet file, with directions from the flag."""
    folder = tmp_path_factory.mktemp("tables")
    frame(1500).to_parquet(folder / "shop.parquet")
    frame(500, 1).to_parquet(folder / "shop.test.parquet")
    write_schema(folder / "shop.schema.json", SCHEMA)
    arguments = ["dplip", "train", "--data", folder / "shop.parquet", "--target", "bought", "--epsilon", 4]
    arguments += ["--monotone", "age:+,price:-", "--seed", 0, "--epochs", 20, "--out", folder / "run", "--no-progress"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", list(map(str, arguments)))
        main_without_exit()
    return folder


def main_without_exit() -> None:
    try:
        main()
    except SystemExit as ended:
        assert not ended.code


def test_a_users_own_table_trains_privately_and_is_proved_monotone(finished):
    report = json.loads((finished / "run" / "report.json").read_text())
    validate_report(report)
    assert 3.8 < report["privacy"]["epsilon"] <= 4
    assert report["utility"]["accuracy"] > 0.7
    assert report["monotonicity"]["directions"] == {"age": 1, "price": -1}
    assert report["monotonicity"]["margin"] > 0
    assert report["certified"]["norm"] == 1 and len(report["certified"]["accuracy"]) == 4
    assert read_schema(finished / "run" / "schema.json") == SCHEMA.monotone({"age": 1, "price": -1})


def test_the_trained_model_never_violates_a_direction(finished):
    recipe = json.loads((finished / "run" / "report.json").read_text())["run"]["preset"]
    model = TabularPreset(**{**recipe, "widths": tuple(recipe["widths"])}).model(
        SCHEMA.monotone({"age": 1, "price": -1})
    )
    model.load_state_dict(torch.load(finished / "run" / "model.pt", weights_only=True))
    model.double().eval()
    x = load_table(finished / "shop.parquet").test.tensors[0].double()
    generator = torch.Generator().manual_seed(0)
    for size in (1.0, 50.0, 1e5):
        moved = x.clone()
        moved[:, 0] += size * torch.rand(len(x), generator=generator)
        moved[:, 1] -= size * torch.rand(len(x), generator=generator)
        assert bool((model(moved) >= model(x)).all())


def test_certify_reads_a_run_on_a_table(finished, dplip_command):
    code, out, _ = dplip_command("certify", finished / "run", "--norm", 1, "--points", 4)
    assert code == 0 and "average certified radius" in out
    report = json.loads((finished / "run" / "report.json").read_text())
    model, table = trained_table(finished / "run", report, None)
    x, y = table.test.tensors
    assert float((predictions(model(x)) == y).double().mean()) == pytest.approx(report["utility"]["accuracy"])


def test_audit_attacks_a_run_on_a_table(finished, dplip_command):
    code, out, error = dplip_command("audit", finished / "run", "--canaries", 100, "--starts", 1)
    assert code == 0, out + error
    for promise in ("epsilon of the report", "gradient of all", "neighbouring steps", "epsilon of 20 steps"):
        assert promise in out
    assert out.count("  yes") == len(out.splitlines()) - 1


def test_a_regression_reports_its_error_in_the_targets_units(tmp_path, dplip_command):
    g = np.random.default_rng(0)
    x = g.uniform(0, 10, 600)
    pd.DataFrame({"x": x, "y": 50 - 3 * x + g.normal(0, 1, 600)}).to_csv(tmp_path / "t.csv", index=False)
    write_schema(
        tmp_path / "t.schema.json",
        Schema(Column("y", "numeric", 0, 60), (Column("x", "numeric", 0, 10, monotone=-1),)),
    )
    options = ("--epsilon", "inf", "--epochs", 60, "--batch-size", 100, "--lr", 0.05, "--seed", 0, "--no-progress")
    code, out, error = dplip_command("train", "--data", tmp_path / "t.csv", "--out", tmp_path / "run", *options)
    assert code == 0, error
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert 0.7 < report["utility"]["rmse"] < 3 and f"rmse      {report['utility']['rmse']:.4f}" in out
    code, _, error = dplip_command("certify", tmp_path / "run")
    assert code == 2 and "regression" in error


def test_audit_attacks_a_regression_on_a_table(tmp_path, dplip_command, monkeypatch):
    monkeypatch.setattr("dplip.audit.finished_run.replay", functools.partial(replay, steps=3))  # of 12: it is quick
    x = np.linspace(0, 10, 60)
    pd.DataFrame({"x": x, "y": 50 - 3 * x}).to_csv(tmp_path / "t.csv", index=False)
    schema = Schema(Column("y", "numeric", 0, 60), (Column("x", "numeric", 0, 10, monotone=-1),))
    write_schema(tmp_path / "t.schema.json", schema)
    options = ("--epsilon", 8, "--epochs", 1, "--batch-size", 20, "--no-progress", "--out", tmp_path / "run")
    code, _, error = dplip_command("train", "--data", tmp_path / "t.csv", *options)
    assert code == 0, error
    report = read_report(tmp_path / "run")
    rows = {row.promise: row for row in audit_table(tmp_path / "run", report, None, canaries=100, starts=1)}
    assert all(row.survived for row in rows.values())
    assert 0.2 * rows["gradient of all"].bound < rows["gradient of all"].found
    assert "epsilon of one full step" in rows and "epsilon of 3 steps" not in rows


def test_the_schema_command_drafts_beside_the_table_and_overwrites_nothing(tmp_path, dplip_command):
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    code, out, _ = dplip_command("schema", tmp_path / "t.csv", "--target", "b")
    assert code == 0 and "no value was looked at" in out and (tmp_path / "t.schema.json").exists()
    code, _, error = dplip_command("schema", tmp_path / "t.csv")
    assert code == 2 and "not overwritten" in error
    code, out, _ = dplip_command("schema", tmp_path / "t.csv", "--from-data", "--out", tmp_path / "seen.json")
    assert code == 0 and "TAKEN FROM THE VALUES" in out
    code, _, error = dplip_command("train", "--data", tmp_path / "t.csv", "--no-progress")
    assert code == 2 and "kind=None" in error


def test_options_of_tables_are_refused_for_images(dplip_command):
    code, _, error = dplip_command("train", "--data", "digits", "--monotone", "age:+")
    assert code == 2 and "--monotone" in error
