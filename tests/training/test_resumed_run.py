"""Crashes: a resumed run spends what an undisturbed one spends, and draws afresh."""

import dataclasses
import shutil
from typing import Any

import pytest
import torch
from helpers.durable_runs import at, trainer
from helpers.models import orthogonal
from helpers.runs import TRAIN, RecordedNoise, interrupted
from safetensors.torch import load_file
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, MultiStepLR

from dplip import DPLipTrainer
from dplip.accounting import create_accountant
from dplip.errors import ConfigurationError
from dplip.losses import CrossEntropy
from dplip.records import Checkpoint, Ledger, read_report
from dplip.records.ledger import epsilon_together

# Resuming


@pytest.mark.parametrize("step", [0, 3, 12])
def test_a_resumed_run_spends_what_an_undisturbed_one_spends(tmp_path, step):
    undisturbed = trainer(tmp_path / "a").fit()
    at(tmp_path / "b", step)
    resumed = trainer(tmp_path / "b")
    assert resumed.fit(resume=True) is resumed
    assert resumed.accountant.history == undisturbed.accountant.history
    assert resumed.get_epsilon() == undisturbed.get_epsilon() == Ledger.read(tmp_path / "b" / "ledger.jsonl").epsilon()
    assert read_report(tmp_path / "b")["privacy"] == read_report(tmp_path / "a")["privacy"]


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW"])
@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_a_checkpoint_brings_back_weights_momentum_and_average(tmp_path, optimizer, ema_decay):
    first = trainer(tmp_path, optimizer, ema_decay=ema_decay)
    write = first._run.save

    def watched() -> None:
        write()
        states = [first.model.state_dict(), *first.optimizer.state_dict()["state"].values()]
        kept.append([{k: v.clone() for k, v in state.items() if torch.is_tensor(v)} for state in states])
        averages.append(None if first._average is None else [p.clone() for p in first._average.parameters()])

    kept: list[Any] = []
    averages: list[Any] = []
    first._run.save = watched
    interrupted(first, 7)
    second = trainer(tmp_path, optimizer, ema_decay=ema_decay)
    second._run.open(resume=True)
    second._run.close()
    states = [second.model.state_dict(), *second.optimizer.state_dict()["state"].values()]
    assert len(kept) == 2 and len(kept[-1]) == len(states) == 3
    for before, now in zip(kept[-1], states, strict=True):
        assert before and all(torch.equal(now[k], v) for k, v in before.items())
    if ema_decay is not None:
        assert all(torch.equal(a, b) for a, b in zip(averages[-1], second._average.parameters(), strict=True))
        assert int(second._average.n_averaged) == 6
    assert second.accountant.num_steps == 7


@pytest.mark.parametrize(
    "schedule",
    [
        lambda optimizer: CosineAnnealingLR(optimizer, 16),
        lambda optimizer: MultiStepLR(optimizer, [2, 5, 9], 0.5),
        lambda optimizer: LambdaLR(optimizer, lambda step: 1 / (1 + step)),
    ],
)
def test_a_schedule_goes_on_at_the_step_of_the_ledger(tmp_path, schedule):
    rates = []
    for folder in ("a", "b"):
        run = trainer(tmp_path / folder)
        run.scheduler = schedule(run.optimizer.original)
        if folder == "b":
            interrupted(run, 7)
            run = trainer(tmp_path / folder)
            run.scheduler = schedule(run.optimizer.original)
        seen: list[Any] = []
        step = run.scheduler.step

        def watched(run=run, seen=seen, step=step) -> None:
            seen.append(run.optimizer.param_groups[0]["lr"])
            step()

        run.scheduler.step = watched
        run.fit(resume=True)
        rates.append(seen[-9:])
    assert rates[0] == pytest.approx(rates[1])


def test_copies_of_a_run_that_are_gone_on_with_are_told_apart_and_add_up(tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    at(folders[0])
    shutil.copytree(*folders)
    for folder in folders:
        trainer(folder).fit(resume=True)
    one, two = (Ledger.read(folder / "ledger.jsonl") for folder in folders)
    assert one.chains[:8] == two.chains[:8] and not set(one.chains[8:]) & set(two.chains[8:])
    assert [step for step, _ in one.resumes] == [7] and one.resumes != two.resumes
    for folder, record in zip(folders, (one, two), strict=True):
        said = read_report(folder)["resume"]
        assert said["numbers"] == [number for _, number in record.resumes] and "after step 6 of 7" in said["begun"]
    both = create_accountant("rdp")
    for event in [*one.events, *two.events]:
        both.count(event)
    assert epsilon_together([one, two], 1e-5) == both.get_epsilon(1e-5) > one.epsilon(1e-5)
    with pytest.raises(ConfigurationError, match="adds up"):
        epsilon_together([], 1e-5)


def test_a_run_says_that_it_began_anew_where_there_was_nothing_to_go_on_with(tmp_path):
    run = trainer(tmp_path).fit(resume=True)
    assert "begun             anew" in str(run.plan())
    assert read_report(tmp_path)["resume"]["begun"].startswith("anew")


def test_resuming_begins_a_run_where_there_is_none(tmp_path):
    run = trainer(tmp_path).fit(resume=True)
    assert run.accountant.num_steps == 16 and len(list(tmp_path.glob("ledger*"))) == 1


@pytest.mark.parametrize("left", [b"", b'{"ledger":"dpl'])
def test_a_header_that_was_never_written_whole_is_no_run(tmp_path, left):
    (tmp_path / "ledger.jsonl").write_bytes(left)
    assert trainer(tmp_path).fit(resume=True).accountant.num_steps == 16


def test_resuming_a_finished_run_spends_nothing_and_writes_its_report(tmp_path):
    trainer(tmp_path, ema_decay=0.9).fit()
    weights = load_file(tmp_path / "model.safetensors")
    before = (tmp_path / "ledger.jsonl").read_bytes()
    for lost in ("report.json", "model.safetensors"):
        (tmp_path / lost).unlink()
    trainer(tmp_path, ema_decay=0.9).fit(resume=True)
    assert (tmp_path / "ledger.jsonl").read_bytes() == before
    assert read_report(tmp_path)["privacy"]["steps"] == 16
    assert all(torch.equal(v, weights[k]) for k, v in load_file(tmp_path / "model.safetensors").items())


def test_a_new_run_sets_the_checkpoint_of_an_earlier_one_aside(tmp_path):
    at(tmp_path)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    interrupted(trainer(tmp_path), 1)
    assert (tmp_path / "checkpoint-1.safetensors").read_bytes() == before
    assert not (tmp_path / "checkpoint.safetensors").exists()
    assert trainer(tmp_path).fit(resume=True).accountant.num_steps == 16


def test_a_crash_between_a_line_and_its_count_is_counted(tmp_path):
    run = trainer(tmp_path)
    append = Ledger.append

    def failing(ledger, event):
        append(ledger, event)
        if ledger.steps == 5:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ledger, "append", failing)
        with pytest.raises(KeyboardInterrupt):
            run.fit()
    assert run.accountant.num_steps == 4
    run.fit()
    assert run.accountant.num_steps == 16 == len(Ledger.read(tmp_path / "ledger.jsonl").events)


def test_a_seeded_run_draws_from_another_stream_after_a_crash(tmp_path):
    """The steps that a crash took from the model are on the ledger; their noise must not serve other weights."""
    drawn = []

    class Listening(RecordedNoise):
        def add_(self, tensor, std):
            before = tensor.clone()
            super().add_(tensor, std)
            drawn.append(((tensor - before) / std).flatten()[:4].round(decimals=3))
            return tensor

    def run() -> DPLipTrainer:
        made = trainer(tmp_path, seed=3)
        vars(made.optimizer)["noise"] = Listening(4)
        return made

    interrupted(run(), 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dplip.noise.gaussian.GaussianNoise", Listening)
        run().fit(resume=True)
    assert len(drawn) == 2 * 16
    assert len({tuple(d.tolist()) for d in drawn}) == len(drawn)


def test_a_checkpoint_holds_no_state_of_a_random_generator(tmp_path):
    at(tmp_path, seed=3)
    content = Checkpoint.read(tmp_path / "checkpoint.safetensors")
    assert [f.name for f in dataclasses.fields(content)] == [
        *("run", "steps", "chain", "accountant", "sampler", "model", "optimizer", "average", "seconds", "history")
    ]
    assert content.sampler == {"sample_rate": 0.25, "public_size": 80, "steps": 4}


def test_the_command_line_resumes(tmp_path):
    from typer.testing import CliRunner

    from dplip.cli.app import app

    arguments = ["train", "--out", str(tmp_path), "--epochs", "2", "--no-progress", "--resume"]
    first = CliRunner().invoke(app, arguments, catch_exceptions=False)
    ledger = (tmp_path / "ledger.jsonl").read_bytes()
    second = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert first.exit_code == second.exit_code == 0 and first.output == second.output
    assert (tmp_path / "ledger.jsonl").read_bytes() == ledger


# What does not fit


def test_there_must_be_a_folder_to_resume_from():
    run = DPLipTrainer(
        (model := orthogonal()),
        loss=CrossEntropy(),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        train_dataset=TRAIN,
        batch_size=20,
        noise_multiplier=1.0,
        progress=False,
    )
    with pytest.raises(ConfigurationError, match="output_dir"):
        run.fit(resume=True)
