"""Batches of a fixed size without replacement: how they are drawn."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from dplip.errors import ConfigurationError
from dplip.sampling import FixedSizeLoader


def positions(size: int = 80, batch_size: int = 20, **arguments) -> FixedSizeLoader:
    """A loader whose examples are their own positions."""
    return FixedSizeLoader(TensorDataset(torch.arange(size)), batch_size=batch_size, **arguments)


@pytest.mark.parametrize("size, batch_size, most", [(80, 20, None), (80, 80, 33), (80, 1, None), (20_000, 37, 10)])
def test_every_batch_holds_exactly_so_many_different_examples(size, batch_size, most):
    loader = positions(size, batch_size, max_physical_batch_size=most, steps_per_epoch=6)
    batches, rows = [], []
    for (x,) in loader:
        assert most is None or len(x) <= most
        rows += x.tolist()
        if loader.complete:
            assert loader.take() == batch_size == len(rows) == len(set(rows)) == loader.expected_batch_size
            batches, rows = [*batches, tuple(rows)], []
    assert len(batches) == 6
    assert batch_size == size or len(set(batches)) > 3  # drawn anew, not one choice for all steps


def test_every_subset_is_as_likely_as_every_other():
    count = 6000
    seen = Counter(tuple(x.tolist()) for (x,) in positions(5, 2, steps_per_epoch=count, seed=3))
    assert set(seen) == set(itertools.combinations(range(5), 2))
    squares = sum((n - count / 10) ** 2 / (count / 10) for n in seen.values())
    assert squares < 27.9  # chi-square with 9 degrees of freedom: beyond it once in a thousand


def test_draws_are_fresh_whatever_the_global_seed():
    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        drawn.append([x.tolist() for (x,) in positions()])
    assert drawn[0] != drawn[1]
    assert len({tuple(x) for x in drawn[0]}) == 4


def test_data_in_which_one_example_was_replaced_are_sampled_at_the_same_positions():
    data, other = torch.arange(80), torch.arange(80)
    other[7] = 1000
    one, two = (FixedSizeLoader(TensorDataset(x), batch_size=20, seed=1) for x in (data, other))
    assert one.event(1.0) == two.event(1.0) and len(one) == len(two)
    for (x,), (y,) in zip(one, two, strict=True):
        assert torch.equal(torch.where(x == 7, 1000, x), y)


@pytest.mark.parametrize("change", [{"batch_size": 0}, {"batch_size": 81}, {"batch_size": 2.5}, {"public_size": 100}])
def test_sizes_that_are_none_are_refused(change):
    with pytest.raises(ConfigurationError, match=next(iter(change))):
        positions(**{"batch_size": 20, **change})
