"""Augmentation and batches that no known seed fixes, and that no copy, fork or worker repeats."""

import copy
import pickle
import random

import numpy as np
import pytest
import torch
from helpers.forks import forks, in_a_fork
from helpers.runs import examples
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import dplip
from dplip.errors import ConfigurationError
from dplip.noise import GaussianNoise
from dplip.runtime.group import Group
from dplip.sampling import FixedSizeLoader, PoissonLoader
from dplip.training.feature_extractor import features
from dplip.training.mean_release import mean_release

# What reads examples


class Augmented(Dataset):
    """Items with noise from one of the global generators."""

    def __init__(self, draw) -> None:
        self.draw = draw

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int):
        return torch.tensor([float(self.draw())]), index


@pytest.mark.parametrize("draw", [lambda: torch.rand(()), np.random.random, random.random], ids=["t", "np", "py"])
def test_augmentation_follows_no_known_seed(draw):
    def seeded() -> None:
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)

    def after(loader: PoissonLoader) -> torch.Tensor:
        seeded()
        return next(iter(loader))[0]

    loader = PoissonLoader(Augmented(draw), sample_rate=1.0)
    assert not torch.equal(after(loader), after(loader))
    seeded()
    expected = [float(draw()) for _ in range(3)]
    after(loader)
    assert [float(draw()) for _ in range(3)] == expected
    one, two = (after(PoissonLoader(Augmented(draw), sample_rate=1.0, seed=2)) for _ in range(2))
    assert torch.equal(one, two) and len(one.unique()) == 40


@pytest.mark.parametrize("draw", [lambda: torch.rand(()), np.random.random, random.random], ids=["t", "np", "py"])
def test_augmentation_that_is_read_before_training_follows_no_known_seed(draw):
    """A fixed front end and the mean of the inputs: under a known seed one example less would change all the others."""

    class Silent(GaussianNoise):
        def add_(self, tensor, std):
            return tensor

    def precomputed(seed=None):
        return features(dplip.nn.BallProjection(9.0), Augmented(draw), seed=seed).tensors[0]

    def mean():
        model = nn.Sequential(dplip.nn.PrivateMean((1,), 9.0), dplip.nn.BallProjection(1.0), nn.Linear(1, 2))
        release = mean_release(model, (1,))
        release.run(Augmented(draw), Silent(), 1.0, 40, Group())
        return release.layer.mean

    def after(read):
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        return read()

    for read in (precomputed, mean):
        assert not torch.equal(after(read), after(read))
    assert torch.equal(precomputed(seed=2), precomputed(seed=2))


# Copies and forks


def loaders():
    data = TensorDataset(torch.arange(400.0)[:, None], torch.zeros(400))
    items = Augmented(np.random.random)
    return [
        PoissonLoader(data, batch_size=20),
        PoissonLoader(Subset(data, range(300)), batch_size=20),
        PoissonLoader(items, batch_size=20),
        FixedSizeLoader(data, batch_size=20),
    ]


COPIES = [copy.copy, copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))]


def drawn(loader) -> list:
    """The batches of the coming steps."""
    return [loader._draw().tolist() for _ in range(4)]


@pytest.mark.parametrize("duplicate", COPIES, ids=["copy", "deepcopy", "pickle"])
@pytest.mark.parametrize("loader", loaders(), ids=["tensors", "subset", "items", "fixed"])
def test_a_copied_loader_draws_other_batches(duplicate, loader):
    twin = duplicate(loader)
    assert drawn(twin) != drawn(loader)
    assert all(x.shape[1:] == (1,) for x, _ in twin)


@pytest.mark.parametrize("duplicate", COPIES[1:], ids=["deepcopy", "pickle"])
def test_a_seeded_loader_is_not_copied(duplicate):
    with pytest.raises(ConfigurationError, match="seed=3"):
        duplicate(PoissonLoader(examples(), batch_size=4, seed=3))


@forks
@pytest.mark.parametrize("loader", loaders(), ids=["tensors", "subset", "items", "fixed"])
def test_a_forked_process_draws_other_batches(loader):
    drawn(loader)
    theirs, others = in_a_fork(lambda: drawn(loader)), in_a_fork(lambda: drawn(loader))
    ours = drawn(loader)
    assert ours != theirs != others != ours


@forks
@pytest.mark.parametrize("limit", [None, 3])
def test_an_iteration_that_had_begun_does_not_go_on_in_a_fork(limit):
    loader = PoissonLoader(examples(), batch_size=10, max_physical_batch_size=limit)
    iterator = iter(loader)
    next(iterator)
    assert isinstance(wrong := in_a_fork(lambda: next(iterator)), ConfigurationError) and "began in process" in str(
        wrong
    )
    next(iterator)
    assert len(in_a_fork(lambda: [len(x) for x, _ in loader])) >= 4


class Stream(IterableDataset):
    """What a user would write to read ahead by workers."""

    def __init__(self, loader: PoissonLoader) -> None:
        self.loader = loader

    def __iter__(self):
        return iter(self.loader)


def test_workers_of_a_data_loader_draw_each_their_own():
    stream = Stream(PoissonLoader(TensorDataset(torch.arange(500.0)[:, None]), batch_size=50))
    batches = [tuple(x[:, 0].tolist()) for (x,) in DataLoader(stream, batch_size=None, num_workers=2)]
    assert len(batches) == 20 and len(set(batches)) == 20


def test_a_stream_of_examples_is_refused_for_what_it_is():
    with pytest.raises(ConfigurationError, match="dataset=Stream: examples are drawn by index"):
        PoissonLoader.from_data_loader(DataLoader(Stream(PoissonLoader(examples(), batch_size=4)), batch_size=4))
