"""Poisson batches: their law and their constants."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.sampling import numbered

from dplip.errors import ConfigurationError
from dplip.sampling import PoissonLoader


def logical_batches(loader: PoissonLoader) -> list[list[int]]:
    """The example numbers of each logical batch of one epoch."""
    batches, rows = [], []
    for x, _ in loader:
        rows += x[:, 0].int().tolist()
        if loader.complete:
            batches.append(rows if loader.take() else [])  # an empty batch is handed out as a blank row
            rows = []
    assert not rows
    return batches


# The law


@pytest.mark.parametrize("rate", [0.003, 0.1, 0.8])
def test_every_example_appears_at_the_sample_rate(rate):
    size, steps = 500, 1000
    loader = PoissonLoader(numbered(size), sample_rate=rate, steps_per_epoch=steps)
    batches = logical_batches(loader)
    assert len(batches) == steps
    assert all(len(set(batch)) == len(batch) for batch in batches)
    error = math.sqrt(rate * (1 - rate))
    sizes = torch.tensor([float(len(batch)) for batch in batches])
    assert abs(sizes.mean() - rate * size) < 5 * error * math.sqrt(size / steps)
    assert 0.75 < sizes.var() / (rate * (1 - rate) * size) < 1.3  # binomial, hence neither fixed nor shuffled
    counts = torch.bincount(torch.tensor(list(itertools.chain(*batches))), minlength=size)
    assert (counts - rate * steps).abs().max() < 6 * error * math.sqrt(steps) + 3


def test_two_examples_appear_independently():
    batches = logical_batches(PoissonLoader(numbered(2), sample_rate=0.5, steps_per_epoch=4000))
    for case in ([], [0], [1], [0, 1]):
        assert abs(batches.count(case) - 1000) < 150


def test_the_full_batch_is_everything_every_time():
    loader = PoissonLoader(numbered(7), sample_rate=1.0, steps_per_epoch=3)
    assert logical_batches(loader) == [list(range(7))] * 3


def test_a_small_rate_is_not_rounded_up(monkeypatch):
    loader = PoissonLoader(numbered(4), sample_rate=1e-6, steps_per_epoch=1)
    # In float32 the first three coins would count as below the rate.
    coins = SimpleNamespace(
        random=lambda size, dtype=float: (1e-6 * (1 + np.array([0, 1e-9, 1e-8, -1e-9]))).astype(dtype)
    )
    monkeypatch.setattr(PoissonLoader, "_generator", coins)
    assert logical_batches(loader) == [[3]]


def test_draws_are_fresh_whatever_the_global_seed():
    def drawn() -> list[list[int]]:
        torch.manual_seed(0)
        return logical_batches(PoissonLoader(numbered(50), sample_rate=0.5))

    assert drawn() != drawn()
    loader = PoissonLoader(numbered(50), sample_rate=0.5)
    assert logical_batches(loader) != logical_batches(loader)


def test_a_seed_fixes_the_draws_and_is_admitted():
    one, two = (PoissonLoader(numbered(50), sample_rate=0.5, seed=3) for _ in range(2))
    assert logical_batches(one) == logical_batches(two)
    assert one.seeded and not PoissonLoader(numbered(50), sample_rate=0.5).seeded


# Public constants


def test_a_neighbouring_data_set_has_the_same_constants():
    loaders = [PoissonLoader(numbered(size), batch_size=10, public_size=100) for size in (99, 100, 101)]
    for loader in loaders:
        assert (loader.sample_rate, loader.expected_batch_size) == (0.1, 10.0)
        assert len(loader) == loader.steps_per_epoch == len(list(loader)) == 10
    # With equal coins an extra example changes nothing but its own presence.
    small, large = (
        logical_batches(PoissonLoader(numbered(size), sample_rate=1.0, public_size=100)) for size in (99, 100)
    )
    assert [set(b) - set(a) for a, b in zip(small, large, strict=True)] == [{99}]


@pytest.mark.parametrize("size", [93, 99, 105, 60000])
def test_an_epoch_has_the_steps_that_were_planned(size):
    loader = PoissonLoader(numbered(size), batch_size=1)
    assert loader.steps_per_epoch == size
    assert PoissonLoader(numbered(size), sample_rate=0.7).steps_per_epoch == 1
    assert PoissonLoader(numbered(size), sample_rate=0.3, steps_per_epoch=11).steps_per_epoch == 11


def test_the_expected_batch_size_follows_the_public_size():
    loader = PoissonLoader(numbered(10), sample_rate=0.25, public_size=1000)
    assert loader.expected_batch_size == 250.0
    assert PoissonLoader(numbered(60), batch_size=7).expected_batch_size == 7.0


# Physical batches


@pytest.mark.parametrize("limit", [1, 7, 32, 1000])
def test_a_logical_batch_is_split_and_counted(limit):
    loader = PoissonLoader(numbered(100), sample_rate=0.5, steps_per_epoch=5, max_physical_batch_size=limit)
    total, steps = 0, 0
    for x, y in loader:
        assert len(x) == len(y) <= limit
        total += len(x)
        assert loader.handed_out == total
        assert loader.logical_batches == 1
        if loader.complete:
            assert loader.take() == total
            assert (loader.handed_out, loader.logical_batches) == (0, 0)
            total, steps = 0, steps + 1
    assert steps == 5


def test_drawing_on_without_taking_is_visible():
    loader = PoissonLoader(numbered(10), sample_rate=1.0, steps_per_epoch=2)
    list(loader)
    assert (loader.handed_out, loader.logical_batches, loader.complete) == (20, 2, True)


def test_an_abandoned_epoch_leaves_nothing_behind():
    loader = PoissonLoader(numbered(10), sample_rate=1.0, max_physical_batch_size=4)
    first = len(next(iter(loader))[0])
    assert (loader.handed_out, loader.complete) == (first, False)
    iterator = iter(loader)
    assert (loader.handed_out, loader.logical_batches, loader.complete) == (0, 0, True)
    first = len(next(iterator)[0])
    assert 1 <= first <= 4
    assert (loader.handed_out, loader.logical_batches, loader.complete) == (first, 1, False)


def test_two_iterations_cannot_be_interleaved():
    loader = PoissonLoader(numbered(10), sample_rate=0.5, steps_per_epoch=3)
    first = iter(loader)
    next(first)
    second = iter(loader)
    next(second)
    with pytest.raises(ConfigurationError, match="iterations=2"):
        next(first)
    assert len(list(second)) == 2
