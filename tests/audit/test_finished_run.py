"""The audit of a finished run: sound ones survive, false claims are seen."""

import dataclasses
import functools
import json
import shutil

import pytest
from typer.testing import CliRunner

from dplip.audit import replay
from dplip.audit.canary import CanaryAudit
from dplip.audit.finished_run import _canaries as canaries_row
from dplip.audit.finished_run import _ledger as ledger_row
from dplip.audit.statistics import one_run_epsilon
from dplip.cli.app import app


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    done = CliRunner().invoke(
        app, ["train", "--out", str(folder), "--epochs", "3", "--no-progress"], catch_exceptions=False
    )
    assert done.exit_code == 0
    return folder


def test_a_finished_run_survives_its_audit(finished):
    done = CliRunner().invoke(
        app, ["audit", str(finished), "--canaries", "2000", "--starts", "4"], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[0].split() == ["promise", "tried", "bound", "found", "survived"]
    assert len(lines) >= 8 and all(line.endswith("yes") for line in lines[1:])


@pytest.mark.parametrize("field, value", [("epsilon", 1.0), ("neighboring", "replace_one"), ("steps", 2)])
def test_a_report_that_claims_less_than_its_ledger_is_seen(finished, field, value):
    privacy = json.loads((finished / "report.json").read_text())["privacy"]
    assert ledger_row(finished, privacy).survived
    row = ledger_row(finished, {**privacy, field: value})
    assert not row.survived and "something else" in row.note


def test_canaries_that_are_too_few_say_so():
    few = CanaryAudit(accounted=3.0, lower=0.0, floor=0.0, certain=0.0, canaries=4, most=one_run_epsilon(2, 2, 4, 1e-5))
    assert canaries_row("epsilon", few).note == "so few canaries show 0 at most"
    assert canaries_row("epsilon", dataclasses.replace(few, most=2.0)).note == ""


def test_the_command_fails_when_a_promise_does_not_survive(finished, tmp_path, monkeypatch):
    monkeypatch.setattr("dplip.audit.finished_run.replay", functools.partial(replay, steps=2))  # of 12
    monkeypatch.setattr("dplip.audit.finished_run._EXAMPLES", 100)
    monkeypatch.setattr("dplip.audit.finished_run._STEPS", 3)
    for name in ("report.json", "model.safetensors", "ledger.jsonl"):
        shutil.copy(finished / name, tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    report["privacy"]["epsilon"] = 1.0
    (tmp_path / "report.json").write_text(json.dumps(report))
    done = CliRunner().invoke(
        app, ["audit", str(tmp_path), "--canaries", "200", "--starts", "2"], catch_exceptions=False
    )
    assert done.exit_code == 1
    assert "NO  (the ledger shows something else than the report says)" in done.output
