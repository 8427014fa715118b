"""Several processes: refused at construction and at every step, unless each says that its release is its own."""

import os
from typing import Any

import pytest
import torch
from helpers.forks import forks, in_a_fork
from helpers.runs import examples, private
from torch import nn

import dplip
from dplip.errors import ConfigurationError

LAUNCHERS = [
    "WORLD_SIZE",
    "OMPI_COMM_WORLD_SIZE",
    "PMI_SIZE",
    "HOROVOD_SIZE",
    "SLURM_STEP_NUM_TASKS",
    "MV2_COMM_WORLD_SIZE",
]


def network() -> nn.Module:
    return nn.Sequential(dplip.nn.BallProjection(1.0), nn.Linear(6, 4))


def trainer(**arguments):
    model = network()
    return dplip.DPLipTrainer(
        model,
        loss=dplip.losses.CrossEntropy(),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        train_dataset=examples(),
        batch_size=10,
        epochs=1,
        noise_multiplier=1.0,
        progress=False,
        **arguments,
    )


def engine(**arguments):
    model = network()
    return dplip.PrivacyEngine().make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=dplip.PoissonLoader(examples(), batch_size=10),
        criterion=dplip.losses.CrossEntropy(),
        noise_multiplier=1.0,
        **arguments,
    )


MAKERS = [trainer, engine, lambda **arguments: private(network(), **arguments)]


@pytest.fixture(params=MAKERS, ids=["trainer", "engine", "optimizer"])
def make(request):
    return request.param


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_one_of_several_processes_is_refused(make, launcher, monkeypatch):
    monkeypatch.setenv(launcher, "2")
    with pytest.raises(ConfigurationError, match=rf"{launcher}=2: .*one process; .*distributed='independent'"):
        make()


@pytest.mark.parametrize("size", ["1", "", "unknown"])
def test_one_process_is_not(make, size, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", size)
    make()


def test_what_says_that_its_release_is_its_own_trains_and_its_report_says_so(tmp_path, monkeypatch):
    assert trainer().fit().report()["privacy"]["distributed"] is None
    monkeypatch.setenv("WORLD_SIZE", "4")
    for make in MAKERS:
        make(distributed="independent")
    assert trainer(distributed="independent").fit().report()["privacy"]["distributed"] == "independent"


@pytest.mark.parametrize("word", ["all", "", True, 2])
def test_another_word_is_refused(make, word):
    with pytest.raises(ConfigurationError, match="distributed="):
        make(distributed=word)


def test_a_step_is_refused_once_there_are_other_processes(monkeypatch):
    run = private(network())
    x, y = examples(10).tensors
    run.step(x, y)
    run.backward(x, y)
    gradients, weights = run.released(), run.weights()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigurationError, match="WORLD_SIZE=2"):
        run.optimizer.step()
    assert len(run.charged) == 1 and all(torch.equal(run.released()[n], g) for n, g in gradients.items())
    assert all(torch.equal(run.weights()[n], w) for n, w in weights.items())


def test_a_fit_is_refused_before_it_writes(tmp_path, monkeypatch):
    made = trainer(output_dir=tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigurationError, match="WORLD_SIZE=2"):
        made.fit()
    assert not list(tmp_path.iterdir()) and made.accountant.num_steps == 0


@forks
def test_a_fork_of_what_was_made_takes_no_step(tmp_path):
    run, made = private(network()), trainer(output_dir=tmp_path, distributed="independent")
    x, y = examples(10).tensors
    run.backward(x, y)
    for release in (run.optimizer.step, made.fit):
        wrong = in_a_fork(release)
        assert isinstance(wrong, ConfigurationError) and "was forked from" in str(wrong)
    assert not list(tmp_path.iterdir())
    run.optimizer.step()
    made.fit()


@forks
def test_a_group_that_comes_up_later_is_seen(tmp_path):
    """Two processes that would average their weights after each step, as local SGD does."""

    def rank(number: int):
        run = private(network())
        x, y = examples(10).tensors
        run.step(x, y)
        run.backward(x, y)
        group: dict[str, Any] = {"rank": number, "world_size": 2, "init_method": f"file://{tmp_path}/group"}
        torch.distributed.init_process_group("gloo", **group)
        try:
            run.optimizer.step()
        except ConfigurationError as wrong:
            return str(wrong), len(run.charged)
        return "no error", len(run.charged)

    other = os.fork()
    if other == 0:
        try:
            rank(1)
        finally:
            os._exit(0)
    said, charged = in_a_fork(lambda: rank(0))
    os.waitpid(other, 0)
    assert "torch.distributed.get_world_size()=2" in said and charged == 1
