"""One mask: the ranks' shares of a batch are a Poisson batch of the whole data, in as many parts on all ranks."""

import copy
import os

import numpy as np
import pytest
import torch
from helpers.forks import in_a_fork
from helpers.joint import DATA, Joint
from helpers.ranks import values
from torch.utils.data import TensorDataset

from dplip import FixedSizeLoader, PoissonLoader
from dplip.errors import ConfigurationError

NUMBERS = TensorDataset(torch.arange(200.0)[:, None], torch.zeros(200))


def shares(group, make):
    """For each batch, the examples of this rank in each of its parts."""
    loader = make()
    loader.join(group)
    batches: list[list[list[float]]] = []
    for x, _ in loader:
        if loader.logical_batches == 1:
            batches.append([])
            loader.logical_batches = 2  # until take()
        new = loader.handed_out
        loader.handed_out = 0
        batches[-1].append(x.flatten().tolist() if new else [])
        if loader.complete:
            loader.take()
    return batches


MAKERS = {
    "whole": lambda: PoissonLoader(NUMBERS, sample_rate=0.1, steps_per_epoch=300),
    "parts": lambda: PoissonLoader(NUMBERS, sample_rate=0.1, steps_per_epoch=300, max_physical_batch_size=3),
    "sparse": lambda: PoissonLoader(NUMBERS, sample_rate=0.005, steps_per_epoch=300, max_physical_batch_size=2),
    "fixed": lambda: FixedSizeLoader(NUMBERS, batch_size=20, steps_per_epoch=300, max_physical_batch_size=4),
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("size", [2, 3])
def test_the_shares_are_one_batch(name, size):
    found = values(size, shares, MAKERS[name])
    loader = MAKERS[name]()
    counts = np.zeros(200)
    sizes = []
    for batch in zip(*found, strict=True):
        assert len({len(parts) for parts in batch}) == 1  # as many parts on all ranks
        if loader.max_physical_batch_size is not None:
            assert max(len(part) for parts in batch for part in parts) <= loader.max_physical_batch_size
        whole = [int(x) for parts in batch for part in parts for x in part]
        assert len(set(whole)) == len(whole)  # nobody twice
        counts[whole] += 1
        sizes.append(len(whole))
        assert not any(all(not parts[i] for parts in batch) for i in range(len(batch[0])) if whole)
    rate = loader.sample_rate
    assert abs(counts.sum() / (200 * 300) - rate) < 5 * np.sqrt(rate / (200 * 300))
    if name == "fixed":
        assert set(sizes) == {20}
    else:  # independent coins
        assert abs(np.var(sizes) / (200 * rate * (1 - rate)) - 1) < 5 * np.sqrt(2 / 300) + 0.1
    each = [sum(len(part) for batch in one for part in batch) for one in found]
    assert max(each) - min(each) < 6 * np.sqrt(sum(each))


def test_an_examples_rank_does_not_depend_on_the_others():
    """With one example more the others keep their ranks and parts, so their sums round as before."""

    def dealt(group):
        loader = PoissonLoader(DATA, batch_size=30, seed=1, max_physical_batch_size=8)
        loader.join(group)
        return [part.tolist() for part in loader._parts(torch.arange(60))]

    def dealt_without(group):
        loader = PoissonLoader(DATA, batch_size=30, seed=1, max_physical_batch_size=8)
        loader.join(group)
        return [part.tolist() for part in loader._parts(torch.arange(59))]

    for more, less in zip(values(3, dealt), values(3, dealt_without), strict=True):
        assert {x for part in more for x in part} - {59} == {x for part in less for x in part}


def test_two_runs_draw_different_batches_whatever_the_global_seeds():
    def first(group):
        torch.manual_seed(0)
        np.random.seed(0)
        return shares(group, MAKERS["whole"])

    assert values(2, first) != values(2, first)


def test_ranks_read_their_examples_by_their_own_chance():
    class Augmented(torch.utils.data.Dataset):
        def __len__(self):
            return 400

        def __getitem__(self, i):
            return torch.randn(1), torch.tensor(0)

    def read(group):
        loader = PoissonLoader(Augmented(), sample_rate=0.5, steps_per_epoch=1, seed=3)
        loader.join(group)
        return next(x.flatten().tolist() for x, _ in loader)

    one, other = values(2, read)
    assert not set(one) & set(other)


def test_a_loader_of_ranks_is_neither_copied_nor_forked():
    def tried(group):
        joint = Joint(group, seed=None)
        with pytest.raises(ConfigurationError):
            copy.deepcopy(joint.loader)
        with pytest.raises(ConfigurationError, match="another one"):
            copy.copy(joint.loader._secret)
        iteration = iter(joint.loader)
        next(iteration)
        assert isinstance(in_a_fork(lambda: next(iteration)), ConfigurationError)
        assert isinstance(in_a_fork(lambda: next(iter(joint.loader))), ConfigurationError)
        return joint.loader.seeded

    assert values(2, tried) == [False, False]


def test_an_iteration_that_began_before_does_not_go_on():
    def tried(group):
        loader = PoissonLoader(DATA, batch_size=10)
        iteration = iter(loader)
        next(iteration)
        loader.join(group)
        with pytest.raises(ConfigurationError, match="iterations="):
            next(iteration)
        return os.getpid()

    assert len(set(values(2, tried))) == 2
