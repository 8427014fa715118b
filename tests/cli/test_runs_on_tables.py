"""The command line on a user's own table: train, certify, audit and draft a schema."""

import functools
import json
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.tables import SCHEMA, frame
from safetensors.torch import load_file

import dplip
from dplip.audit import replay
from dplip.certificates import correct_radii, predictions
from dplip.cli.audit import attacked
from dplip.cli.certify import certified_part
from dplip.cli.main import main
from dplip.data import Column, Schema, draft, load_table, read_schema, write_schema
from dplip.models import TabularPreset
from dplip.records import validate_report


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


@pytest.fixture(scope="module")
def finished_table(tmp_path_factory):
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


def test_a_users_own_table_trains_privately_and_is_proved_monotone(finished_table):
    report = json.loads((finished_table / "run" / "report.json").read_text())
    validate_report(report)
    assert 3.8 < report["privacy"]["epsilon"] <= 4
    assert report["utility"]["accuracy"] > 0.7
    assert report["monotonicity"]["directions"] == {"age": 1, "price": -1}
    assert report["monotonicity"]["margin"] > 0
    assert report["certified"]["norm"] == 1 and len(report["certified"]["accuracy"]) == 4
    assert read_schema(finished_table / "run" / "schema.json") == SCHEMA.monotone({"age": 1, "price": -1})


def test_a_table_is_certified_once_and_its_report_stands_last(tmp_path, dplip_command, monkeypatch):
    frame(200).to_csv(tmp_path / "shop.csv", index=False)
    write_schema(tmp_path / "shop.schema.json", SCHEMA)
    calls = []

    def counted(*arguments):
        calls.append(sorted(path.name for path in (tmp_path / "run").iterdir()))
        return correct_radii(*arguments)

    def full(path, schema):
        raise dplip.ConfigurationError("the disk is full")

    monkeypatch.setattr("dplip.models.table_trainer.correct_radii", counted)
    options = ("--epsilon", 4, "--epochs", 1, "--out", tmp_path / "run", "--no-progress")
    code, _, error = dplip_command("train", "--data", tmp_path / "shop.csv", *options)
    assert code == 0, error
    assert len(calls) == 1 and not {"report.json", "model.safetensors"} & set(calls[0])
    monkeypatch.setattr("dplip.models.table_trainer.write_schema", full)
    code, _, error = dplip_command("train", "--data", tmp_path / "shop.csv", *options)
    assert code == 2 and "an earlier run" in error and "the disk is full" in error
    code, _, error = dplip_command("certify", tmp_path / "run")  # no report of a run whose schema is not there
    assert code == 2 and "report.json" in error


@pytest.mark.parametrize("name, content", [("schema.json", "{}"), ("model.safetensors", "junk"), ("report.json", "[]")])
@pytest.mark.parametrize("command", ["certify", "audit"])
def test_a_damaged_run_on_a_table_is_refused(finished_table, dplip_command, tmp_path, command, name, content):
    for file in ("report.json", "model.safetensors", "schema.json"):
        (tmp_path / file).write_bytes((finished_table / "run" / file).read_bytes())
    (tmp_path / name).write_text(content)
    code, _, error = dplip_command(command, tmp_path)
    assert code == 2 and "Traceback" not in error and error.startswith("error: ")


def test_the_trained_model_never_violates_a_direction(finished_table):
    recipe = json.loads((finished_table / "run" / "report.json").read_text())["run"]["preset"]
    model = TabularPreset(**{**recipe, "widths": tuple(recipe["widths"])}).model(
        SCHEMA.monotone({"age": 1, "price": -1})
    )
    model.load_state_dict(load_file(finished_table / "run" / "model.safetensors"))
    model.double().eval()
    x = load_table(finished_table / "shop.parquet").test.tensors[0].double()
    generator = torch.Generator().manual_seed(0)
    for size in (1.0, 50.0, 1e5):
        moved = x.clone()
        moved[:, 0] += size * torch.rand(len(x), generator=generator)
        moved[:, 1] -= size * torch.rand(len(x), generator=generator)
        assert bool((model(moved) >= model(x)).all())


def test_certify_reads_a_run_on_a_table(finished_table, dplip_command):
    code, out, _ = dplip_command("certify", finished_table / "run", "--norm", 1, "--points", 4)
    assert code == 0 and "average certified radius" in out
    report = json.loads((finished_table / "run" / "report.json").read_text())
    model, test = certified_part(finished_table / "run", None)
    x, y = test.tensors
    assert float((predictions(model(x)) == y).double().mean()) == pytest.approx(report["utility"]["accuracy"])


def test_audit_attacks_a_run_on_a_table(finished_table, dplip_command, monkeypatch):
    monkeypatch.setattr("dplip.audit.finished_run.replay", functools.partial(replay, steps=3))  # of 12: it is quick
    code, out, error = dplip_command("audit", finished_table / "run", "--canaries", 100, "--starts", 1)
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
    options = ("--epsilon", "inf", "--epochs", 30, "--batch-size", 100, "--lr", 0.1, "--seed", 0, "--no-progress")
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
    rows = {row.promise: row for row in attacked(tmp_path / "run", None, canaries=100, starts=1)}
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
