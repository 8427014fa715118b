"""Crashes: a resumed run spends what an undisturbed one spends, draws afresh, and refuses files that do not fit."""

import dataclasses
import json
import math
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_models import orthogonal
from small_runs import RecordedNoise, examples, interrupted
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, MultiStepLR, OneCycleLR

from dplip import DPLipTrainer
from dplip.accounting import create_accountant
from dplip.errors import CheckpointError, ConfigurationError, LedgerError
from dplip.losses import CrossEntropy
from dplip.records import Checkpoint, Ledger, read_report
from dplip.records.ledger import epsilon_together

torch.set_num_threads(1)

HERE = Path(__file__).resolve().parent
TRAIN, HELD_OUT = examples(80), examples(40, seed=1)
STATE = {"scalar": torch.tensor(3.0), "matrix": torch.randn(3, 4), "flags": torch.tensor([True, False])}


def trainer(folder: Path, optimizer: str = "SGD", **arguments) -> DPLipTrainer:
    """Four epochs of four steps."""
    torch.manual_seed(0)
    model = orthogonal()
    more = {"momentum": 0.9} if optimizer == "SGD" else {}
    given = {"batch_size": 20, "epochs": 4, "target_epsilon": 4.0, "checkpoint_every": 3, **arguments}
    return DPLipTrainer(
        model,
        loss=CrossEntropy(8.0, normalize=True),
        optimizer=getattr(torch.optim, optimizer)(model.parameters(), lr=0.1, **more),
        train_dataset=TRAIN,
        eval_dataset=HELD_OUT,
        output_dir=folder,
        progress=False,
        **given,
    )


def at(folder: Path, step: int = 6, **arguments) -> DPLipTrainer:
    """A run that crashed one step after its checkpoint at ``step``."""
    return interrupted(trainer(folder, **arguments), step + 1)


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
    write = first._checkpoint

    def watched() -> None:
        write()
        states = [first.model.state_dict(), *first.optimizer.state_dict()["state"].values()]
        kept.append([{k: v.clone() for k, v in state.items() if torch.is_tensor(v)} for state in states])
        averages.append(None if first._average is None else [p.clone() for p in first._average.parameters()])

    kept, averages = [], []
    first._checkpoint = watched
    interrupted(first, 7)
    second = trainer(tmp_path, optimizer, ema_decay=ema_decay)
    second._open_ledger(resume=True)
    second._close_ledger()
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
        seen, step = [], run.scheduler.step

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
    weights = torch.load(tmp_path / "model.pt")
    before = (tmp_path / "ledger.jsonl").read_bytes()
    for lost in ("report.json", "model.pt"):
        (tmp_path / lost).unlink()
    trainer(tmp_path, ema_decay=0.9).fit(resume=True)
    assert (tmp_path / "ledger.jsonl").read_bytes() == before
    assert read_report(tmp_path)["privacy"]["steps"] == 16
    assert all(torch.equal(v, weights[k]) for k, v in torch.load(tmp_path / "model.pt").items())


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
        *("run", "steps", "chain", "accountant", "sampler", "model", "optimizer", "average", "seconds")
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
    run.scheduler = OneCycleLR(run.optimizer.original, 0.1, total_steps=2)
    with pytest.raises(ConfigurationError, match="Build it for 16 steps"):
        run.fit()
    assert run.get_epsilon() == 0
    assert not (tmp_path / "ledger.jsonl").exists()


def test_a_run_does_not_become_secure_half_way(tmp_path):
    pytest.importorskip("opendp")
    at(tmp_path)
    with pytest.raises(LedgerError, match="secure"):
        trainer(tmp_path, secure=True).fit(resume=True)


def test_no_weights_lie_beside_the_report_of_others(tmp_path, monkeypatch):
    trainer(tmp_path, target_epsilon=1.0).fit()
    weights = (tmp_path / "model.pt").read_bytes()
    run = trainer(tmp_path)
    monkeypatch.setattr(run, "report", raise_interrupt)
    with pytest.raises(KeyboardInterrupt):
        run.fit()
    assert (tmp_path / "model.pt").read_bytes() == weights  # both are still those of the earlier run
    run = trainer(tmp_path)
    monkeypatch.setattr("dplip.training.trainer.write_report", raise_interrupt)
    with pytest.raises(KeyboardInterrupt):
        run.fit()
    assert (tmp_path / "model.pt").read_bytes() != weights
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


# The file


def checkpoint(**change) -> Checkpoint:
    given = {
        **{"run": "r", "steps": 2, "chain": "c", "accountant": {"history": [(1.0, 0.1, 2)], "mechanism": "rdp"}},
        **{"sampler": {}, "model": STATE, "optimizer": {0: {"step": 1, "nothing": None}}, "average": None},
        **{"seconds": math.inf},
        **change,
    }
    return Checkpoint(**given)


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    path = tmp_path / "c.safetensors"
    nested = {0: {"a": [1, 2.5, (True, None, "x")], "b": {"deep": torch.zeros(2, dtype=torch.int64)}}, "lr": -math.inf}
    checkpoint(optimizer=nested).write(path)
    back = Checkpoint.read(path)
    assert back.optimizer[0]["a"] == [1, 2.5, (True, None, "x")] and back.optimizer["lr"] == -math.inf
    assert torch.equal(back.optimizer[0]["b"]["deep"], nested[0]["b"]["deep"])
    assert back.seconds == math.inf and back.accountant["history"] == [(1.0, 0.1, 2)]
    assert all(torch.equal(back.model[k], v) and back.model[k].dtype == v.dtype for k, v in STATE.items())


def test_bfloat16_and_views_and_shared_tensors_come_back(tmp_path):
    path = tmp_path / "c.safetensors"
    w = torch.randn(4, 6)
    state = {"half": w.bfloat16(), "view": w.T[::2], "same": w, "again": w, "empty": torch.zeros(0, 3)}
    checkpoint(model=state).write(path)
    assert all(torch.equal(v, state[k]) for k, v in Checkpoint.read(path).model.items())


def test_every_changed_byte_of_a_checkpoint_is_noticed(tmp_path):
    path = tmp_path / "c.safetensors"
    checkpoint().write(path)
    content = path.read_bytes()
    for k in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[k] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            Checkpoint.read(path)


def test_a_checkpoint_that_was_cut_off_is_refused(tmp_path):
    path = tmp_path / "c.safetensors"
    checkpoint().write(path)
    content = path.read_bytes()
    for cut in range(0, len(content), 11):
        path.write_bytes(content[:cut])
        with pytest.raises(CheckpointError):
            Checkpoint.read(path)
    path.unlink()
    with pytest.raises(CheckpointError):
        Checkpoint.read(path)


def test_a_pickle_is_not_read(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    path = tmp_path / "c.safetensors"
    path.write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(CheckpointError):
        Checkpoint.read(path)
    assert not (tmp_path / "harm").exists()


def test_what_is_not_data_is_not_written(tmp_path):
    with pytest.raises(CheckpointError, match=r"model\.hook: it holds a builtin_function_or_method"):
        checkpoint(model={"hook": print}).write(tmp_path / "c")
    with pytest.raises(CheckpointError, match="key"):
        checkpoint(model={(1, 2): 3}).write(tmp_path / "c")
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    path = tmp_path / "c.safetensors"
    checkpoint().write(path)
    before = path.read_bytes()

    def full(_):
        raise OSError("no space left")

    monkeypatch.setattr("dplip.records.files.os.fsync", full)
    with pytest.raises(CheckpointError, match=r"no space left.*the steps on the ledger stand"):
        checkpoint(steps=3).write(path)
    assert path.read_bytes() == before and [f.name for f in tmp_path.iterdir()] == [path.name]


# Whole processes


def python(code: str, *arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}"}
    return subprocess.run(
        [sys.executable, *(["-c", code] if code else []), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=HERE,
        timeout=300,
    )


FULL_DISK = """
import resource, sys
from pathlib import Path
from test_checkpoint import trainer
from dplip.errors import CheckpointError, LedgerError
for name, limit, every in (("header", 1, 3), ("line", 1000, 100), ("checkpoint", 1000, 3)):
    folder = Path(sys.argv[1]) / name
    run = trainer(folder, checkpoint_every=every)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        run.fit()
    except (LedgerError, CheckpointError) as refused:
        print(type(refused).__name__, refused)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    before = run.accountant.num_steps
    run = trainer(folder, checkpoint_every=every).fit(resume=True)
    print(before, run.accountant.num_steps, run.get_epsilon() <= 4.0)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits on the size of files")
def test_a_full_disk_stops_a_run_with_one_sentence_and_loses_nothing(tmp_path):
    """The kernel itself refuses to write more: at the first byte, in the middle of a line, in a checkpoint."""
    done = python(FULL_DISK, str(tmp_path))
    assert done.returncode == 0, done.stderr
    header, resumed, line, again, kept, last = done.stdout.splitlines()
    assert header.startswith("LedgerError") and line.startswith("LedgerError") and "must not be released" in line
    assert kept.startswith("CheckpointError") and "the steps on the ledger stand" in kept
    assert resumed == "0 16 True" and last == "3 16 True"
    assert 0 < int(again.split()[0]) < 16 and again.endswith("16 True")


@pytest.mark.skipif(sys.platform == "win32", reason="needs file locks")
def test_two_processes_cannot_train_in_one_folder(tmp_path):
    run = trainer(tmp_path)
    run._open_ledger(resume=False)
    before = sorted(f.name for f in tmp_path.iterdir())
    for resume in (True, False):
        with pytest.raises(LedgerError, match="another run has this ledger open"):
            trainer(tmp_path).fit(resume=resume)
    assert sorted(f.name for f in tmp_path.iterdir()) == before
    run._close_ledger()


def test_a_folder_that_cannot_be_made_is_refused():
    with pytest.raises(ConfigurationError, match="output_dir="):
        trainer(Path("/proc/none") if sys.platform == "linux" else Path("nul:/x"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_a_run_survives_being_killed_at_random_moments():
    """Ten times here; make audit does it a hundred times."""
    done = python("", "kill_runs.py", "--kills", "10")
    assert done.returncode == 0, done.stdout + done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["kills"] == 10 and outcome["finished"] >= 1
