"""A rank that differs, or has a problem: all ranks raise one sentence, which names it, and nothing is spent."""

import re
from typing import Any

import pytest
import torch
from helpers.joint import DATA, Joint, network
from helpers.ranks import on_ranks, refusals
from helpers.runs import examples
from torch import nn
from torch.utils.data import Subset, TensorDataset

import dplip
from dplip.errors import BudgetExceededError, ConfigurationError, GroupError


def swapped(data):
    x, y = data.tensors
    order = torch.arange(len(x))
    order[:60] = order[:60].flip(0)
    return TensorDataset(x[order], y[order])


def shorter(data):
    return Subset(data, range(len(data) - 1))


OTHER_BEGINNINGS = {
    "data in another order": (lambda: {"data": swapped(DATA)}, "dataset="),
    "other data": (lambda: {"data": examples(120, seed=7)}, "dataset="),
    "fewer data": (lambda: {"data": shorter(DATA)}, "event="),
    "another batch size": (lambda: {"batch_size": 20}, "event="),
    "other noise": (lambda: {"sigma": 1.0}, "event="),
    "another learning rate": (lambda: {"lr": 0.1}, "optimizer="),
    "another width": (lambda: {"model": network(width=9)}, "parameters="),
    "other radii": (lambda: {"model": network(radius=2.0)}, "model="),
    "another relation": (lambda: {"neighboring": "replace_one"}, "neighboring="),
    "another projection": (lambda: {"project_every": 2}, "project_every="),
    "another seed": (lambda: {"seed": 6}, "noise="),
    "no seed": (lambda: {"seed": None}, "noise="),
}


@pytest.mark.parametrize("name", OTHER_BEGINNINGS)
def test_a_rank_that_begins_otherwise_is_named(name):
    other, what = OTHER_BEGINNINGS[name]
    base = {"model": network(radius=1.0)} if name == "other radii" else {}

    def begin(group):
        Joint(group, **(base | (other() if group.rank == 1 else {})))

    kind, text = refusals(3, begin)
    assert kind is GroupError
    assert re.search(rf"rank 1 of 3: .*{what}", text), text


def test_a_rank_whose_loader_splits_otherwise_is_named():
    def begin(group):
        Joint(
            group, loader=dplip.PoissonLoader(DATA, batch_size=30, max_physical_batch_size=8 if group.rank == 0 else 9)
        )

    kind, text = refusals(2, begin)
    assert kind is GroupError
    assert "max_physical_batch_size=9" in text


def test_a_rank_that_cannot_begin_stops_all():
    def begin(group):
        model = network()
        if group.rank == 1:
            model.append(nn.BatchNorm1d(4))
        return Joint(group, model=model)

    kind, text = refusals(2, begin)
    assert kind in (GroupError, ConfigurationError), text
    assert "rank 1 of 2" in text


def infinite(joint):
    with torch.no_grad():
        joint.model[3].bias.grad[0] = torch.inf


def edited(joint):
    joint.model[1].weight.grad.mul_(2)


def another_rate(joint):
    joint.optimizer.param_groups[0]["lr"] = 0.25


PROBLEMS = {
    "a gradient that is not finite": (infinite, ConfigurationError, "rank 1 of 3: step\\(\\): a gradient"),
    "an edited gradient": (edited, ConfigurationError, "rank 1 of 3: step\\(\\): a gradient has changed"),
    "another learning rate": (another_rate, GroupError, "rank 1 of 3 is at .*0.25"),
    "other weights": (lambda j: j.model[1].weight.data.mul_(2), ConfigurationError, "rank 1 of 3: step"),
    "no gradient": (
        lambda j: j.optimizer.zero_grad(),
        ConfigurationError,
        "rank 1 of 3: step\\(\\): the gradients did",
    ),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_rank_with_a_problem_stops_all_before_anything_is_spent(name):
    spoil, kind, text = PROBLEMS[name]

    def step(group):
        joint = Joint(group, sigma=1.0).epoch()
        spent, drawn, weights = len(joint.charged), len(joint.noise.draws), joint.weights()
        x, y = next(iter(joint.loader))
        joint.backward(x, y)
        if group.rank == 1:
            spoil(joint)
        try:
            joint.optimizer.step()
        except Exception:
            assert (len(joint.charged), len(joint.noise.draws)) == (spent, drawn)
            assert name == "other weights" or torch.equal(joint.weights(), weights)
            raise
        raise AssertionError("not refused")

    found, sentence = refusals(3, step)
    assert found is kind, sentence
    assert re.match(text, sentence), sentence


def test_a_blank_row_does_not_hide_what_changed_before_it():
    """The weights of a rank's only part with examples are others than those that its bound is computed for."""

    def train(group):
        loader = dplip.PoissonLoader(DATA, batch_size=4, seed=5, max_physical_batch_size=1, steps_per_epoch=20)
        joint, deal, drawn = Joint(group, loader=loader, lr=0.0), loader._parts, []
        number = place = 0

        def noted(chosen):
            drawn.append(parts := deal(chosen))
            return parts

        loader._parts = noted
        for x, y in loader:
            place, number = (0 if number != loader.number else place + 1), loader.number
            lengths = [len(part) for part in drawn[-1]]
            other = group.rank == 1 and lengths[place] and sum(lengths) == lengths[place] and not lengths[-1]
            joint.model[1].weight.data.mul_(128.0 if other else 1.0)
            joint.backward(x, y)
            joint.model[1].weight.data.div_(128.0 if other else 1.0)
            joint.optimizer.step()

    kind, text = refusals(2, train)
    assert kind is ConfigurationError
    assert "rank 1 of 2: step(): the weights" in text


def test_a_refusal_by_the_first_ranks_ledger_reaches_all():
    def charge(group):
        def full(event):
            raise OSError("No space left on device")

        return full if group.rank == 0 else None

    def step(group):
        charged: list[Any] = []
        joint = Joint(group, sigma=1.0, charge=charge(group) or charged.append)
        x, y = next(iter(joint.loader))
        joint.backward(x, y)
        try:
            joint.optimizer.step()
        finally:
            assert not charged
            assert not joint.noise.draws

    kind, text = refusals(2, step)
    assert kind is GroupError
    assert text == "rank 0 of 2: OSError: No space left on device"


def test_a_spent_budget_refuses_in_all_ranks():
    def train(group):
        model = network()
        engine = dplip.PrivacyEngine()
        _, optimizer, loader = engine.make_private(
            module=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            data_loader=dplip.PoissonLoader(DATA, batch_size=30, steps_per_epoch=50),
            criterion=(loss := dplip.losses.CrossEntropy()),
            noise_multiplier=2.0,
            budget=dplip.accounting.Budget(3.0, 1e-5),
            distributed=group,
        )
        try:
            for x, y in loader:
                optimizer.zero_grad()
                loss(model(x), y).backward()
                optimizer.step()
        finally:
            assert 0 < engine.accountant.num_steps < 50
            assert engine.get_epsilon(1e-5) <= 3.0

    kind, _ = refusals(2, train)
    assert kind is BudgetExceededError


def test_weights_that_drift_apart_are_found():
    def train(group):
        joint = Joint(group, sigma=1.0, loader=dplip.PoissonLoader(DATA, batch_size=30, steps_per_epoch=200))
        steps = 0
        for x, y in joint.loader:
            joint.backward(x, y)
            joint.optimizer.step()
            steps += 1
            if group.rank == 1 and steps == 10:
                with torch.no_grad():
                    joint.model[1].weight[0, 0] += 1e-6

    kind, text = refusals(2, train)
    assert kind is GroupError
    assert "step 50, weights" in text


def test_a_rank_that_takes_other_steps_is_refused():
    def train(group):
        joint = Joint(group, sigma=1.0)
        if group.rank == 1:
            next(iter(joint.loader))  # a batch that the others know nothing of
        joint.epoch()

    kind, _ = refusals(2, train)
    assert kind is GroupError


def test_different_begun_data_sets_of_any_kind_are_compared():
    class Words(torch.utils.data.Dataset):
        def __init__(self, shift):
            self.shift = shift

        def __len__(self):
            return 100

        def __getitem__(self, i):
            return {"input": torch.full((6,), 0.01 * i), "name": f"{i + self.shift}", "other": [i, 0.5]}, i % 4

    def digest(group, shift):
        loader = dplip.PoissonLoader(Words(shift * group.rank), batch_size=10)
        loader.join(group)

    assert all(outcome.error is None for outcome in on_ranks(2, digest, 0))
    assert refusals(2, digest, 1)[0] is GroupError
