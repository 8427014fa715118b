"""Rows that are held out: by their own values, whatever else is in the data."""

import pytest
import torch
from torch.utils.data import TensorDataset

from dplip.data import holdout
from dplip.errors import ConfigurationError


def numbered(size: int) -> TensorDataset:
    return TensorDataset(torch.arange(size), torch.arange(size) % 3)


def test_holdout_parts_the_data():
    dataset = numbered(2000)
    train, held = holdout(dataset, 0.25, seed=1)
    assert sorted(torch.cat([train.tensors[0], held.tensors[0]]).tolist()) == list(range(2000))
    assert abs(len(held) - 500) < 100
    assert torch.equal(held.tensors[1], held.tensors[0] % 3)
    assert torch.equal(holdout(dataset, 0.25, seed=1)[1].tensors[0], held.tensors[0])
    assert not set(holdout(dataset, 0.25, seed=2)[1].tensors[0].tolist()) == set(held.tensors[0].tolist())


@pytest.mark.parametrize("size", [16, 100, 1023])
def test_holdout_keeps_neighbours_neighbouring_wherever_the_example_stands(size):
    whole = numbered(size)
    parts = [part.tensors[0].tolist() for part in holdout(whole, 0.4, 5)]
    for gone in (0, 1, size // 2, size - 1):
        fewer = TensorDataset(*(torch.cat([t[:gone], t[gone + 1 :]]) for t in whole.tensors))
        for part, before in zip(holdout(fewer, 0.4, 5), parts, strict=True):
            assert part.tensors[0].tolist() == [value for value in before if value != gone]


def test_holdout_knows_an_example_by_its_values_whatever_their_type():
    torch.manual_seed(0)
    x, y = torch.rand(400, 2, 3, dtype=torch.bfloat16), torch.rand(400) < 0.5
    x[200:], y[200:] = x[:200], y[:200]
    train, held = holdout(TensorDataset(x, y), 0.5, 0)
    assert len(train) % 2 == len(held) % 2 == 0 and 60 < len(train) < 340  # equal examples go to one part
    turned = holdout(TensorDataset(x.flip(0), y.flip(0)), 0.5, 0)
    assert torch.equal(turned[0].tensors[0].flip(0), train.tensors[0])


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_holdout_refuses_a_fraction_outside_0_1(fraction):
    with pytest.raises(ConfigurationError, match="fraction="):
        holdout(numbered(10), fraction, 0)


def test_holdout_refuses_empty_parts_and_negative_seeds():
    with pytest.raises(ConfigurationError, match="one part empty"):
        holdout(numbered(2), 0.001, 0)
    with pytest.raises(ConfigurationError, match="seed=-1"):
        holdout(numbered(10), 0.5, -1)
