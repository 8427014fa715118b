"""Report, ledger and output of a run."""

import json
import math
from typing import Any

import pytest
import torch
from helpers.epsilons import DELTA
from helpers.models import orthogonal
from helpers.runs import HELD_OUT, interrupted
from helpers.trainers import trainer, weights
from safetensors.torch import load_file

from dplip.errors import ConfigurationError, LedgerError
from dplip.records import Ledger, read_report, validate_report
from dplip.records.report import FIELDS


def test_the_report_has_every_field_and_says_what_was_spent():
    run = trainer().fit()
    report = run.report(radii=[0.1, 0.2], norm=2)
    validate_report(report)
    for section, fields in FIELDS.items():
        assert set(fields) <= report[section].keys()
    privacy = report["privacy"]
    assert privacy == {
        "epsilon": run.get_epsilon(),
        "delta": DELTA,
        "accountant": "rdp",
        "noise_multiplier": run.optimizer.noise_multiplier,
        "sample_rate": 0.25,
        "sampling": "poisson",
        "steps": 16,
        "releases": [],
        "neighboring": "add_remove",
        "seeded": False,
        "secure": False,
        "distributed": None,
        "trusted_optimizer": None,
        "autocast": None,
        "public_size": 80,
        "tuning": "not accounted",
    }
    assert report["utility"]["accuracy"] == run.evaluate()["accuracy"]
    curve = report["certified"].pop("curve")
    assert report["certified"] == {"norm": 2, "radii": [0.1, 0.2], "accuracy": run.certified_accuracy([0.1, 0.2])}
    assert curve["accuracy"] == run.certified_accuracy(curve["radii"]) and curve["radii"][0] == 0
    confusion = torch.tensor(report["utility"]["confusion"])
    assert confusion.diag().sum() / confusion.sum() == pytest.approx(report["utility"]["accuracy"])
    assert confusion.sum(1).tolist() == HELD_OUT.tensors[1].bincount(minlength=4).tolist()
    assert report["input"] == {"shape": (6,)}
    assert report["time"]["train_seconds"] > 0


def test_the_files_of_a_run_agree_with_it_and_with_each_other(tmp_path):
    folder = tmp_path / "new" / "run"
    run = trainer(output_dir=folder).fit()
    assert {f.name for f in folder.iterdir()} == {
        "report.json",
        "model.safetensors",
        "ledger.jsonl",
        "checkpoint.safetensors",
    }
    report = read_report(folder)
    assert report["privacy"]["epsilon"] == run.get_epsilon()
    record = Ledger.read(folder / "ledger.jsonl")
    assert record.epsilon(DELTA) == record.epsilon() == run.get_epsilon()
    assert record.history() == [run.optimizer.event] * 16
    assert (record.neighboring, record.mechanism) == ("add_remove", "rdp")
    again = orthogonal()
    again.load_state_dict(load_file(folder / "model.safetensors"))
    x = HELD_OUT.tensors[0]
    assert torch.equal(again(x), run.model(x))


def test_an_infinite_epsilon_is_written_as_a_string(tmp_path):
    trainer(noise_multiplier=0.0, epochs=1, output_dir=tmp_path).fit()
    assert json.loads((tmp_path / "report.json").read_text())["privacy"]["epsilon"] == "inf"
    assert Ledger.read(tmp_path / "ledger.jsonl").epsilon(DELTA) == math.inf


def test_the_ledger_holds_a_step_before_its_noise_is_drawn(tmp_path):
    run = trainer(output_dir=tmp_path)
    draw = run.optimizer.noise.add_

    def failing(tensor, std):
        if run.accountant.num_steps == 5:
            raise KeyboardInterrupt
        return draw(tensor, std)

    run.optimizer.noise.add_ = failing
    with pytest.raises(KeyboardInterrupt):
        run.fit()
    assert len(Ledger.read(tmp_path / "ledger.jsonl").history()) == 5


def test_a_step_that_cannot_be_recorded_is_not_taken(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise LedgerError("the disk is full")

    monkeypatch.setattr(Ledger, "append", full)
    run = trainer(output_dir=tmp_path)
    before = weights(run)
    with pytest.raises(LedgerError):
        run.fit()
    assert run.accountant.num_steps == 0
    assert all(torch.equal(a, b) for a, b in zip(before, weights(run), strict=True))


def test_a_new_run_in_the_folder_of_another_keeps_the_record_of_what_that_one_spent(tmp_path):
    trainer(output_dir=tmp_path, epochs=1).fit()
    written = (tmp_path / "ledger.jsonl").read_bytes()
    second = trainer(output_dir=tmp_path, epochs=1).fit()
    kept = [f for f in tmp_path.glob("ledger*.jsonl") if f.read_bytes() == written]
    assert len(kept) == 1 and kept[0].name != "ledger.jsonl"
    assert Ledger.read(tmp_path / "ledger.jsonl").epsilon() == second.get_epsilon()


def test_an_interrupted_run_goes_on_with_its_own_ledger(tmp_path):
    run = interrupted(trainer(output_dir=tmp_path), 6)
    assert len(Ledger.read(tmp_path / "ledger.jsonl").history()) == 6
    charge: Any = run.optimizer._charge
    charge(run.optimizer.event)  # a step by hand is written, too
    assert run.accountant.num_steps == 7 == len(Ledger.read(tmp_path / "ledger.jsonl").history())
    run.fit()
    assert len(Ledger.read(tmp_path / "ledger.jsonl").history()) == 16
    assert len(list(tmp_path.glob("ledger*"))) == 1
    assert read_report(tmp_path)["privacy"]["epsilon"] == Ledger.read(tmp_path / "ledger.jsonl").epsilon()


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = trainer(epochs=1).fit()
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigurationError, match="output_dir"):
        run.save()


@pytest.mark.parametrize("content", [None, "", "{", "[]", "3", "{}", '{"privacy": {}}'])
def test_what_is_no_report_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(ConfigurationError):
        read_report(tmp_path)


def test_a_quiet_run_prints_nothing(capfd, tmp_path):
    run = trainer(output_dir=tmp_path)
    run.plan()
    run.fit()
    run.evaluate()
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err == ""


def test_a_run_shows_its_plan_and_the_epsilon_spent_but_no_private_loss(capfd):
    run = trainer(progress=True)
    run.plan()
    run.fit()
    captured = capfd.readouterr()
    text = captured.out + captured.err
    assert "noise multiplier" in text and "16/16" in text
    assert f"epsilon={run.get_epsilon():.3f}" in text
    assert "loss" not in text


def test_a_private_loss_is_shown_only_on_demand_and_named_as_leaking(capfd):
    trainer(progress=True, show_private_loss=True).fit()
    assert "leaks" in capfd.readouterr().err
