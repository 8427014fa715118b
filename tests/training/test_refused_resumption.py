"""Folders and files that do not fit a run are refused."""

import dataclasses
import os
import sys
from pathlib import Path

import pytest
import torch
from helpers.durable_runs import at, trainer
from torch.optim.lr_scheduler import OneCycleLR

from dplip.errors import CheckpointError, ConfigurationError, LedgerError
from dplip.records import Checkpoint, Ledger


@pytest.mark.parametrize(
    "change, named",
    [
        ({"target_epsilon": 5.0}, "facts="),
        ({"epochs": 5}, "facts="),
        ({"batch_size": 10}, "facts="),
        ({"public_size": 100}, "facts="),
        ({"accountant": "prv"}, "mechanism='rdp' on record"),
        ({"neighboring": "replace_one"}, "neighboring='add_remove' on record"),
        ({"target_delta": 1e-6}, "delta=1e-05 on record"),
        ({"seed": 1}, "facts="),
    ],
)
def test_another_plan_does_not_go_on_with_a_run(tmp_path, change, named):
    at(tmp_path)
    before = (tmp_path / "ledger.jsonl").read_bytes()
    with pytest.raises(LedgerError, match=named):
        trainer(tmp_path, **change).fit(resume=True)
    assert (tmp_path / "ledger.jsonl").read_bytes() == before


def test_a_checkpoint_without_its_ledger_is_refused(tmp_path):
    at(tmp_path)
    (tmp_path / "ledger.jsonl").unlink()
    with pytest.raises(LedgerError, match="is missing, so what was spent is unknown"):
        trainer(tmp_path).fit(resume=True)


def test_a_ledger_that_lost_whole_lines_is_refused_at_the_line(tmp_path):
    at(tmp_path)
    path = tmp_path / "ledger.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:5]))
    with pytest.raises(LedgerError, match="line 5: the checkpoint was written after 6 steps"):
        trainer(tmp_path).fit(resume=True)


@pytest.mark.parametrize("resume", [True, False])
def test_what_was_refused_is_not_gone_on_with_at_the_second_try(tmp_path, resume):
    at(tmp_path)
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:5]))
    run, left = trainer(tmp_path), path.read_bytes()
    with pytest.raises(LedgerError, match="lines were lost"):
        run.fit(resume=True)
    with pytest.raises(LedgerError, match="new trainer"):
        run.fit(resume=resume)
    assert path.read_bytes() == left
    assert not (tmp_path / "report.json").exists()


def test_a_ledger_that_lost_lines_between_two_fits_is_refused(tmp_path):
    run = at(tmp_path)
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))
    with pytest.raises(LedgerError, match="holds 2 steps, and this trainer has taken 7"):
        run.fit()


def test_a_schedule_that_is_set_later_is_rehearsed_before_anything_is_spent(tmp_path):
    run = trainer(tmp_path)
    with pytest.raises(ConfigurationError, match="Build it for 16 steps"):
        run.scheduler = OneCycleLR(run.optimizer.original, 0.1, total_steps=2)
    assert run.scheduler is None
    assert run.get_epsilon() == 0
    assert not (tmp_path / "ledger.jsonl").exists()


def test_a_run_does_not_become_secure_half_way(tmp_path):
    pytest.importorskip("opendp")
    at(tmp_path)
    with pytest.raises(LedgerError, match="secure"):
        trainer(tmp_path, secure=True).fit(resume=True)


def test_no_weights_lie_beside_the_report_of_others(tmp_path, monkeypatch):
    trainer(tmp_path, target_epsilon=1.0).fit()
    weights = (tmp_path / "model.safetensors").read_bytes()
    run = trainer(tmp_path)
    monkeypatch.setattr(run, "report", raise_interrupt)
    with pytest.raises(KeyboardInterrupt):
        run.fit()
    assert (tmp_path / "model.safetensors").read_bytes() == weights  # both are still those of the earlier run
    run = trainer(tmp_path)
    monkeypatch.setattr("dplip.training.durable_run.write_report", raise_interrupt)
    with pytest.raises(KeyboardInterrupt):
        run.fit()
    assert (tmp_path / "model.safetensors").read_bytes() != weights
    assert not (tmp_path / "report.json").exists()


def raise_interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    at(tmp_path / "a")
    at(tmp_path / "b")
    os.replace(tmp_path / "a" / "checkpoint.safetensors", tmp_path / "b" / "checkpoint.safetensors")
    with pytest.raises(CheckpointError, match="it is of run"):
        trainer(tmp_path / "b").fit(resume=True)


def test_a_ledger_rewritten_under_the_same_name_is_refused(tmp_path):
    at(tmp_path)
    record = Ledger.read(tmp_path / "ledger.jsonl")
    (tmp_path / "ledger.jsonl").unlink()
    with Ledger(tmp_path / "ledger.jsonl", run=record.run, delta=record.delta, facts=record.facts) as ledger:
        for event in record.events:
            ledger.append(dataclasses.replace(event, noise_multiplier=2 * event.noise_multiplier))
    with pytest.raises(LedgerError, match="lines were lost"):
        trainer(tmp_path).fit(resume=True)


@pytest.mark.parametrize("other", ["Adam", "average", "model"])
def test_a_checkpoint_of_another_recipe_is_refused(tmp_path, other):
    at(tmp_path)
    run = trainer(tmp_path, optimizer="Adam") if other == "Adam" else trainer(tmp_path)
    if other == "average":
        run = trainer(tmp_path, ema_decay=0.9)
    if other == "model":
        path = tmp_path / "checkpoint.safetensors"
        kept = Checkpoint.read(path)
        dataclasses.replace(kept, model={"other": torch.zeros(2)}).write(path)
    with pytest.raises(CheckpointError, match="does not fit this trainer"):
        run.fit(resume=True)


@pytest.mark.skipif(sys.platform == "win32", reason="needs file locks")
def test_two_processes_cannot_train_in_one_folder(tmp_path):
    run = trainer(tmp_path)
    run._run.open(resume=False)
    before = sorted(f.name for f in tmp_path.iterdir())
    for resume in (True, False):
        with pytest.raises(LedgerError, match="another run has this ledger open"):
            trainer(tmp_path).fit(resume=resume)
    assert sorted(f.name for f in tmp_path.iterdir()) == before
    run._run.close()


def test_a_folder_that_cannot_be_made_is_refused():
    with pytest.raises(ConfigurationError, match="output_dir="):
        trainer(Path("/proc/none") if sys.platform == "linux" else Path("nul:/x"))
