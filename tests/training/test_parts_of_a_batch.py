"""Parts of a batch: one more example changes its own part alone."""

import itertools
import math

import pytest
import torch
from helpers.models import built
from helpers.runs import Handed, private
from scipy.stats import poisson
from torch import nn
from torch.utils.data import TensorDataset

import dplip.nn as dn
from dplip import DPLipOptimizer, PoissonLoader
from dplip.errors import ConfigurationError
from dplip.losses import CrossEntropy, Hinge
from dplip.nn import sums


def parts_of(loader: PoissonLoader) -> list[list[int]]:
    return [x.flatten().long().tolist() for x, _ in loader]


def numbered(count: int) -> TensorDataset:
    return TensorDataset(torch.arange(float(count))[:, None], torch.zeros(count))


def test_one_more_example_changes_its_own_part_alone():
    """Of the same draws: those of the example that comes last are used by no other."""
    few, many = (
        PoissonLoader(
            numbered(n), sample_rate=1.0, public_size=400, max_physical_batch_size=64, seed=7, steps_per_epoch=1
        )
        for n in (400, 401)
    )
    one, other = parts_of(few), parts_of(many)
    differ = [p for p in other if p not in one]
    assert len(one) > 5 and len(differ) <= 2 and any(400 in p for p in differ)


def test_parts_fit_into_memory_and_make_up_the_batch():
    for most, size in itertools.product((1, 3, 64, 500), (1, 40, 700)):
        loader = PoissonLoader(numbered(size), sample_rate=1.0, max_physical_batch_size=most, steps_per_epoch=3)
        seen: list[int] = []
        for x, _ in loader:
            assert 1 <= len(x) <= most
            seen += x.flatten().long().tolist()
            if loader.complete:
                assert sorted(seen) == list(range(size))
                seen = []


def test_parts_are_of_even_size_and_who_is_with_whom_changes():
    loader = PoissonLoader(numbered(6000), sample_rate=1.0, max_physical_batch_size=1024, steps_per_epoch=1)
    first, second = parts_of(loader), parts_of(loader)
    assert first != second
    assert loader.expected_part_size <= 1024
    assert all(abs(len(p) - loader.expected_part_size) < 6 * math.sqrt(1024) for p in first)


def test_parts_are_added_in_float64():
    """A part that is small beside the others is not rounded away."""
    model = dn.BoundedLinear(1, 1, bias=False, radius=2.0)
    nn.init.zeros_(model.weight)
    batches = Handed(expected_batch_size=64.0)
    run = private(model, loss=Hinge(), input_shape=(1,), batches=batches, noise_multiplier=0.0)
    sizes = [1.0, *[2.0**-25] * 8]
    for number, size in enumerate(sizes, start=1):
        batches.give(1, part=number, complete=number == len(sizes))
        run.loss(run.model(torch.tensor([[size]])), torch.zeros(1, 1)).backward()
        run.optimizer.step()
    share = float(model.weight.grad) * 64 / (1 - 1e-6)  # the loss ends so far inside its bound
    assert share == pytest.approx(1 + 2.0**-22, abs=2.0**-23)


def test_a_small_physical_batch_keeps_the_noise_of_a_large_batch_small():
    data = TensorDataset(torch.rand(60_000, 6), torch.zeros(60_000, dtype=torch.int64))
    totals = []
    for most in (None, 512):
        model = nn.Sequential(dn.BallProjection(1.0), nn.Linear(6, 4))
        loader = PoissonLoader(data, sample_rate=1.0, max_physical_batch_size=most)
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)

        def made(
            model: nn.Module = model, loader: PoissonLoader = loader, sgd: torch.optim.SGD = sgd
        ) -> DPLipOptimizer:
            return DPLipOptimizer(
                sgd, model=model, loss=CrossEntropy(), input_shape=(6,), noise_multiplier=1.0, batches=loader
            )

        if most is None:
            with pytest.warns(UserWarning, match="max_physical_batch_size"):
                totals.append(made().sensitivities().total)
        else:
            totals.append(made().sensitivities().total)
    alone = math.sqrt(2) * math.sqrt(2)  # of the weight and of the bias
    assert totals[1] < 1.02 * alone < 1.5 * alone < totals[0]


def test_more_losses_than_are_covered_are_refused():
    run = private(built("plain")[0])
    x, y = torch.randn(40, 6), torch.zeros(40, dtype=torch.int64)
    run.batches.give(40)
    for part in x.split(4):
        run.loss(run.model(part), y[:4]).backward()
    with pytest.raises(ConfigurationError, match="losses went into"):
        run.optimizer.step()
    assert not run.charged


@pytest.mark.parametrize("how", ["joined", "a new size"])
def test_more_examples_at_once_than_a_part_has_are_refused(how):
    """Roundings are covered for parts: not for parts that are joined, or handed out otherwise later."""
    model = nn.Sequential(dn.BallProjection(1.0), nn.Linear(1, 1))
    loader = PoissonLoader(numbered(512), sample_rate=1.0, max_physical_batch_size=16, steps_per_epoch=1)
    loss, sgd = Hinge(), torch.optim.SGD(model.parameters(), lr=0.1)
    charged: list[object] = []
    private = DPLipOptimizer(
        sgd, model=model, loss=loss, input_shape=(1,), noise_multiplier=1.0, batches=loader, charge=charged.append
    )
    if how == "a new size":
        with pytest.raises(ConfigurationError, match="max_physical_batch_size"):
            loader.max_physical_batch_size = None
        vars(loader)["max_physical_batch_size"] = None  # past the guard
    x = torch.cat([rows for rows, _ in loader])
    loss(model(x), torch.zeros(len(x), 1)).backward()
    with pytest.raises(ConfigurationError, match="more examples were summed at once"):
        private.step()
    assert not charged


@pytest.mark.parametrize("expected", [0.5, 10.0, 512.0, 6000.0])
def test_a_batch_is_hardly_ever_larger_than_the_most_that_is_reckoned_with(expected):
    most = sums.most_examples(expected)
    assert poisson.sf(most, expected) < 2.0**-80
    assert most < 2 * expected + 100
