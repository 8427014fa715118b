"""The loader: empty batches, collates, conversions, and what is refused."""

import math
import time
from typing import NamedTuple

import pytest
import torch
from helpers.sampling import Items, numbered
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)

from dplip.errors import ConfigurationError
from dplip.sampling import PoissonLoader
from dplip.sampling.loader import example_shape


class Pair(NamedTuple):
    x: torch.Tensor
    label: int


# Empty batches

image = torch.ones(3, 4, dtype=torch.float64)


@pytest.mark.parametrize(
    "item, shapes",
    [
        ((image, 1), [(1, 3, 4), (1,)]),
        (Pair(image, 1), [(1, 3, 4), (1,)]),
        ({"x": image, "more": (image, 2.0)}, [(1, 3, 4), (1, 3, 4), (1,)]),
        ((image, "a name"), [(1, 3, 4)]),
        (image, [(1, 3, 4)]),
    ],
)
def test_an_empty_batch_is_a_blank_row_with_the_structure_of_any_other(item, shapes):
    def tensors(batch):
        if isinstance(batch, torch.Tensor):
            return [batch]
        parts = batch.values() if isinstance(batch, dict) else batch
        return [t for part in parts if not isinstance(part, str) for t in tensors(part)]

    data = Items([item] * 3)
    (empty,) = PoissonLoader(data, sample_rate=1e-12, steps_per_epoch=1)
    (full,) = PoissonLoader(data, sample_rate=1.0)
    assert type(empty) is type(full)
    assert [tuple(t.shape) for t in tensors(empty)] == shapes
    assert [t.dtype for t in tensors(empty)] == [t.dtype for t in tensors(full)]
    assert all(not t.any() for t in tensors(empty))


def test_what_a_collate_adds_to_its_tensors_stays():
    def collate(items):
        return torch.stack([x for x, _ in items]), 5, "metres", ["a"] * len(items)

    (empty,) = PoissonLoader(numbered(3), sample_rate=1e-12, steps_per_epoch=1, collate_fn=collate)
    assert empty[0].shape == (1, 1)
    assert empty[1:] == (5, "metres", ["a"])


def test_empty_batches_of_tensors_are_steps_too():
    loader = PoissonLoader(numbered(5), sample_rate=1e-12, steps_per_epoch=3, max_physical_batch_size=2)
    for x, y in loader:
        assert (x.shape, x.dtype, y.shape, y.dtype) == ((1, 1), torch.float32, (1,), torch.int64)
        assert loader.complete and loader.logical_batches == 1
        assert loader.take() == 0
    assert len(list(loader)) == 3


def test_a_batch_that_cannot_be_made_fails_at_once_and_not_by_chance():
    def collate(items):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        PoissonLoader(numbered(5), sample_rate=1e-12, collate_fn=collate)


# Reading


class Doubled(TensorDataset):
    def __getitem__(self, index):
        return tuple(2 * t for t in super().__getitem__(index))


def test_subsets_read_the_right_rows():
    data = numbered(20)
    subset = Subset(Subset(data, range(10, 20)), [9, 0, 5])
    ((x, y),) = PoissonLoader(subset, sample_rate=1.0)
    assert x[:, 0].tolist() == [19, 10, 15]
    assert y.tolist() == [9, 0, 5]


def test_a_data_set_with_its_own_way_of_reading_is_read_so():
    ((x, _),) = PoissonLoader(Doubled(*numbered(3).tensors), sample_rate=1.0)
    assert x[:, 0].tolist() == [0, 2, 4]
    ((x, _),) = PoissonLoader(Subset(Doubled(*numbered(3).tensors), [2, 1]), sample_rate=1.0)
    assert x[:, 0].tolist() == [4, 2]
    (total,) = PoissonLoader(numbered(3), sample_rate=1.0, collate_fn=lambda items: sum(x for x, _ in items))
    assert total.item() == 3


def test_tensors_are_served_without_a_loop_over_items():
    data = TensorDataset(torch.zeros(60_000, 100), torch.zeros(60_000))
    loader = PoissonLoader(Subset(data, range(60_000)), batch_size=8192, steps_per_epoch=10)
    started = time.perf_counter()
    list(loader)
    assert time.perf_counter() - started < 2.0  # 80,000 items one by one take longer


# From a DataLoader


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_plain_loader_is_converted(shuffle):
    data = numbered(50)
    loader = PoissonLoader.from_data_loader(
        DataLoader(data, batch_size=5, shuffle=shuffle), public_size=100, max_physical_batch_size=3, seed=1
    )
    assert loader.dataset is data
    assert (loader.sample_rate, loader.expected_batch_size) == (0.05, 5.0)
    assert (loader.max_physical_batch_size, loader.seeded) == (3, True)


def test_a_loaders_collate_is_kept():
    loader = DataLoader(numbered(4), batch_size=4, collate_fn=len)
    assert list(PoissonLoader.from_data_loader(DataLoader(Items([1] * 4), 4, collate_fn=len))) == [4]
    assert list(PoissonLoader.from_data_loader(loader)) == [4]


data = numbered(16)


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(data, batch_size=4, sampler=WeightedRandomSampler([1.0] * 16, 16)),
        DataLoader(data, batch_size=4, sampler=RandomSampler(data, replacement=True)),
        DataLoader(data, batch_size=4, sampler=RandomSampler(data, num_samples=3)),
        DataLoader(data, batch_size=4, sampler=RandomSampler(range(8))),
        DataLoader(data, batch_size=4, sampler=range(4)),
        DataLoader(data, batch_sampler=BatchSampler(SequentialSampler(data), 4, False)),
        DataLoader(data, batch_size=None),
    ],
)
def test_a_loader_that_samples_otherwise_is_refused(loader):
    with pytest.raises(ConfigurationError, match=r"sampler="):
        PoissonLoader.from_data_loader(loader)


# Bad input


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(3))


@pytest.mark.parametrize(
    "dataset, options, found",
    [
        (numbered(10), {}, "sample_rate=None"),
        (numbered(10), {"sample_rate": 0.1, "batch_size": 1}, "batch_size=1"),
        (numbered(10), {"sample_rate": 0.0}, "sample_rate=0.0"),
        (numbered(10), {"sample_rate": 1.1}, "sample_rate=1.1"),
        (numbered(10), {"sample_rate": math.nan}, "sample_rate=nan"),
        (numbered(10), {"batch_size": 0}, "batch_size=0"),
        (numbered(10), {"batch_size": 11}, "batch_size=11, public_size=10"),
        (numbered(10), {"batch_size": 5, "public_size": 0}, "public_size=0"),
        (numbered(10), {"batch_size": 5, "steps_per_epoch": 0}, "steps_per_epoch=0"),
        (numbered(10), {"batch_size": 5, "steps_per_epoch": 1.5}, "steps_per_epoch=1.5"),
        (numbered(10), {"batch_size": 5, "max_physical_batch_size": 0}, "max_physical_batch_size=0"),
        (numbered(10), {"batch_size": 5, "seed": -1}, "seed=-1"),
        (numbered(0), {"sample_rate": 0.5}, r"len\(dataset\)=0"),
        (Stream(), {"sample_rate": 0.5}, "dataset=Stream"),
    ],
)
def test_bad_input_is_refused_by_name_and_value(dataset, options, found):
    with pytest.raises(ConfigurationError, match=found):
        PoissonLoader(dataset, **options)


def test_the_shape_of_an_example():
    assert example_shape(TensorDataset(torch.zeros(5, 3, 4), torch.zeros(5))) == (3, 4)
    assert example_shape(Items([[0.0, 1.0]])) == ()
    assert example_shape(Items([torch.zeros(2)])) == (2,)
    with pytest.raises(ConfigurationError, match="str"):
        example_shape(Items([("text", 1)]))
    with pytest.raises(ConfigurationError, match=r"len\(dataset\)=0"):
        example_shape(Items([]))
