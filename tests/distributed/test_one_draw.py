"""With noise: each coordinate gets one draw of the accounted deviation, and all ranks hold the same weights."""

import copy

import numpy as np
import pytest
import torch
from helpers.joint import DATA, Joint, network
from helpers.ranks import values
from helpers.runs import Handed

import dplip
from dplip.accounting import create_accountant
from dplip.distributed import Group
from dplip.nn.sums import added
from dplip.noise import split
from dplip.sensitivities import Sensitivities
from dplip.training.step_bounds import StepBounds

WIDTH = 2000


def drawn(group, steps, **arguments):
    """The noisy gradients over their deviations, step by step, and what was charged and drawn in this rank."""
    joint = Joint(group, sigma=50.0, seed=None, model=network(width=WIDTH, radius=1.0), lr=0.0, **arguments)
    named = dict(joint.model.named_parameters())
    stds = split(joint.optimizer.sensitivities(), {n: p.numel() for n, p in named.items()}, 50.0)
    found: list[np.ndarray] = []
    while len(found) < steps:
        for x, y in joint.loader:
            joint.backward(x, y)
            joint.optimizer.step()
            units = [named[n].grad.flatten() * joint.loader.expected_batch_size / stds[n] for n in named]
            found.append(torch.cat(units).numpy())
    return np.stack(found[:steps]), len(joint.charged), sum(size for size, _ in joint.noise.draws) / len(found)


@pytest.mark.parametrize("size", [2, 3])
def test_one_draw_a_coordinate_of_the_accounted_deviation(size):
    found = values(size, drawn, 8)
    noises = [noise for noise, _, _ in found]
    assert all(np.array_equal(noise, noises[0]) for noise in noises)
    noise, count = noises[0], noises[0].size
    assert abs(noise.std() - 1) < 0.005 + 4 / np.sqrt(2 * count)
    assert sum(draws for _, _, draws in found) == noise.shape[1]  # no coordinate is drawn twice
    pieces = np.array_split(noise, size, axis=1)
    width = min(piece.shape[1] for piece in pieces)
    for one in range(size):  # no rank draws what another one draws
        for other in range(one):
            together = np.corrcoef(pieces[one][:, :width].ravel(), pieces[other][:, :width].ravel())[0, 1]
            assert abs(together) < 5 / np.sqrt(8 * width)
    steps = np.corrcoef(noise)
    assert np.abs(steps - np.eye(len(steps))).max() < 5 / np.sqrt(noise.shape[1])


def test_a_seeded_run_draws_other_noise_in_each_rank():
    def moved(group):
        model = network(width=WIDTH, radius=1.0)
        joint = Joint(group, sigma=50.0, model=model)
        before = joint.weights()
        return joint.epoch().weights() - before

    one, other = values(2, moved)
    assert torch.equal(one, other)
    first, second = one.sign().chunk(2)  # what each of them draws
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.05


def engine(group):
    model = network()
    private = dplip.PrivacyEngine()
    module, optimizer, loader = private.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=dplip.PoissonLoader(DATA, batch_size=30),
        criterion=(loss := dplip.losses.CrossEntropy()),
        noise_multiplier=1.0,
        distributed=group,
    )
    for x, y in loader:
        optimizer.zero_grad()
        loss(module(x), y).backward()
        optimizer.step()
    return private.get_epsilon(1e-5), private.accountant.num_steps, dict(optimizer.sensitivities())


def test_every_rank_counts_what_one_process_counts():
    alone = engine(Group())
    found = values(3, engine)
    assert {epsilon for epsilon, _, _ in found} == {alone[0]}
    assert {steps for _, steps, _ in found} == {alone[1]}
    again = create_accountant("rdp")
    for _ in range(alone[1]):
        again.count(dplip.PoissonLoader(DATA, batch_size=30).event(1.0))
    assert found[0][0] == again.get_epsilon(1e-5)


def test_the_noise_hardly_depends_on_the_number_of_ranks():
    """One rounding more is added, and smaller sums round less."""
    alone = Joint(Group(), sigma=1.0).optimizer.sensitivities().total
    for size in (2, 3):
        several = values(size, lambda group: Joint(group, sigma=1.0).optimizer.sensitivities().total)
        assert all(alone * (1 - 1e-3) < total < alone * (1 + 1e-4) for total in several)


def test_the_radii_that_follow_the_gradients_are_those_of_one_process():
    def radii(group):
        joint = Joint(group, model=network(radius="auto")).epoch()
        return joint.optimizer.radii.present(), joint.weights()

    alone, weights = radii(Group())
    for present, found in values(2, radii):
        assert present.keys() == alone.keys()
        assert all(present[k] == pytest.approx(alone[k], rel=1e-5) for k in alone)
        assert torch.allclose(found, weights, atol=1e-5)
    assert any(radius != 1.0 for radius in alone.values())


@pytest.mark.parametrize("radius", [1.0, dplip.nn.JointRadius(1.0)])
def test_the_noise_is_for_the_rank_with_the_largest_bound(radius):
    """An example is in one rank's sum, and is bounded by what that rank's model did with it."""

    def drawn(group):
        joint = Joint(group, sigma=1.0, model=network(radius=copy.deepcopy(radius)))
        kind = type(joint.optimizer._bounds)
        doubled = type("", (kind,), {"__call__": lambda own, seen=None: larger(kind.__call__(own, seen), group)})
        joint.optimizer._bounds.__class__ = doubled
        joint.epoch()
        return {std for _, std in joint.noise.draws}

    def larger(bounds, group):
        together = None if bounds.together is None else bounds.together * (1 + group.rank)
        return Sensitivities({name: bound * (1 + group.rank) for name, bound in bounds.items()}, together)

    alone = Joint(Group(), sigma=1.0, model=network(radius=copy.deepcopy(radius)))
    bounds = alone.optimizer.sensitivities()
    stds = split(bounds, {n: p.numel() for n, p in alone.model.named_parameters()}, 1.0, bounds.together)
    for std in set.union(*values(2, drawn)):
        assert any(std == pytest.approx(2 * one, rel=1e-2) for one in stds.values())


def test_the_rounding_of_the_sum_of_sums_is_counted():
    model, example = network(radius=1.0), dplip.Example.of_shape((6,))
    alone, both = (
        StepBounds(model, dplip.losses.CrossEntropy(), example, Handed(), "add_remove", False, 0.01, processes)
        for processes in (1, 2)
    )
    more = added(2 * both.share, 2, torch.float32) - added(alone.share, 1, torch.float32)
    for name, rounding in both._roundings().items():
        assert rounding.relative - alone._roundings()[name].relative >= more * (1 - 1e-6)
