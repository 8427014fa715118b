"""A trainer in several ranks: one run, one folder, the epsilon of one process; and what a killed rank leaves behind."""

import json
import os
import random
import signal
import threading

import pytest
import torch
from helpers.joint import network
from helpers.ranks import on_ranks, refusals, values
from helpers.runs import examples
from torch import nn

import dplip
from dplip.distributed import Group
from dplip.errors import ConfigurationError, GroupError, LedgerError
from dplip.noise import GaussianNoise
from dplip.records import read_report

TRAIN, HELD_OUT = examples(400), examples(100, seed=1)


def trainer(group, model=None, **arguments):
    model = network() if model is None else model
    given = {
        "batch_size": 80,
        "epochs": 2,
        "target_epsilon": 20.0,
        "max_physical_batch_size": 16,
        "progress": False,
        "distributed": group,
    }
    return dplip.DPLipTrainer(
        model,
        loss=dplip.losses.CrossEntropy(),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.5),
        train_dataset=TRAIN,
        eval_dataset=HELD_OUT,
        **(given | arguments),
    )


def run(group, **arguments):
    made = trainer(group, **arguments).fit()
    weights = torch.cat([p.detach().flatten() for p in made.model.parameters()])
    return weights, made.get_epsilon(), made.evaluate(), made.optimizer.noise_multiplier


def test_one_run_with_the_epsilon_of_one_process(tmp_path):
    alone = run(Group(), output_dir=tmp_path / "alone", seed=3)
    found = values(2, lambda group: run(group, output_dir=tmp_path / "both", seed=3))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1:] == found[1][1:]
    assert (found[0][1], found[0][3]) == (alone[1], alone[3])
    assert found[0][2]["accuracy"] > 0.6  # 0.25 by chance
    assert sorted(os.listdir(tmp_path / "both")) == sorted(os.listdir(tmp_path / "alone"))
    reports = [read_report(tmp_path / name) for name in ("alone", "both")]
    assert reports[0]["privacy"] == reports[1]["privacy"]
    lines = [(tmp_path / name / "ledger.jsonl").read_text().splitlines() for name in ("alone", "both")]
    assert len(lines[0]) == len(lines[1])
    assert json.loads(lines[0][0]).keys() == json.loads(lines[1][0]).keys()


def test_without_noise_the_weights_are_those_of_one_process():
    arguments = {"target_epsilon": None, "noise_multiplier": 0.0, "seed": 3, "ema_decay": 0.5}
    alone = run(Group(), **arguments)
    for weights, epsilon, _, _ in values(3, lambda group: run(group, **arguments)):
        assert torch.allclose(weights, alone[0], atol=1e-5)
        assert epsilon == alone[1]


def test_the_mean_is_one_release_over_all_data():
    def means(group):
        layers = [dplip.nn.PrivateMean((6,), 2.0, noise_multiplier=1e-3), dplip.nn.BallProjection(2.0), nn.Linear(6, 4)]
        made = trainer(group, model=nn.Sequential(*layers), target_epsilon=None, noise_multiplier=1.0)
        made._run.release_mean()
        return made.model[0].mean.clone(), made.accountant.num_steps

    alone, _ = means(Group())
    found = values(3, means)
    assert all(torch.equal(mean, found[0][0]) and count == 1 for mean, count in found)
    assert torch.allclose(found[0][0], alone, atol=1e-3)


def test_secure_noise_is_drawn_on_the_grid_of_whole_parameters():
    pytest.importorskip("opendp")

    def grids(group):
        made = trainer(group, secure=True, epochs=1, noise_multiplier=2.0, target_epsilon=None)
        sizes, grid = set(), made.optimizer.noise.grid

        def noted(std, size):
            sizes.add(size)
            return grid(std, size)

        made.optimizer.noise.grid = noted
        made.fit()
        return torch.cat([p.detach().flatten() for p in made.model.parameters()]), sizes

    found = values(2, grids)
    assert torch.equal(found[0][0], found[1][0])
    sizes = {p.numel() for p in network().parameters()}
    assert found[0][1] | found[1][1] == sizes


def test_a_run_of_several_is_not_resumed(tmp_path):
    kind, text = refusals(2, lambda group: trainer(group, output_dir=tmp_path).fit(resume=True))
    assert kind is ConfigurationError
    assert "resume=True: 2 processes" in text


def test_a_ledger_that_cannot_be_written_stops_all(tmp_path):
    def fit(group):
        made = trainer(group, output_dir=tmp_path)
        if group.rank == 0:
            made._run._folder.append = torn
        try:
            made.fit()
        finally:
            assert made.accountant.num_steps == 0

    def torn(event):
        raise LedgerError("no space left")

    assert refusals(2, fit) == (LedgerError, "rank 0 of 2: no space left")


def test_ranks_with_other_plans_are_refused():
    kind, text = refusals(2, lambda group: trainer(group, epochs=1 + group.rank))
    assert kind is GroupError
    assert "epochs=2" in text


def test_a_folder_that_only_another_rank_has_is_refused(tmp_path):
    """The first rank writes the ledger, so nobody would."""
    kind, text = refusals(2, lambda group: trainer(group, output_dir=tmp_path if group.rank else None))
    assert kind is GroupError
    assert "written=True, and rank 0 has written=False" in text


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("moment", range(4))
def test_a_killed_rank_leaves_at_least_as_many_lines_as_draws(victim, moment, tmp_path, monkeypatch):
    """The others stop soon, and what was drawn is on the ledger."""
    drawn, add = tmp_path / "drawn", GaussianNoise.add_

    def fit(group):
        begun: list[bool] = []

        def counted(noise, tensor, std):
            if group.rank == victim and not begun:
                begun.append(True)
                after = random.Random(moment).random() / 2
                threading.Timer(after, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
            with drawn.open("a") as file:
                file.write(f"{made.accountant.num_steps}\n")
            return add(noise, tensor, std)

        monkeypatch.setattr(GaussianNoise, "add_", counted)
        made = trainer(group, epochs=200, target_epsilon=None, noise_multiplier=1.0, output_dir=tmp_path)
        made.fit()

    outcomes = on_ranks(2, fit)
    assert outcomes[victim].error is None
    assert isinstance(outcomes[1 - victim].error, GroupError)
    lines = len((tmp_path / "ledger.jsonl").read_text().splitlines()) - 1
    steps = {int(line) for line in drawn.read_text().split()}
    assert 0 < max(steps) <= lines
