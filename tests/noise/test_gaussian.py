"""Gaussian noise: its law, and its independence of everything else."""

import copy
import math
import os
import pickle
from typing import Any, cast

import numpy as np
import pytest
import torch

from dplip.errors import ConfigurationError
from dplip.noise import GaussianNoise
from dplip.noise import gaussian as noise

N = 1_000_000


def draw(source: GaussianNoise, *shape: int, std: float = 1.0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return source.add_(torch.zeros(*shape, dtype=dtype), std)


def repeats(one: torch.Tensor, two: torch.Tensor) -> bool:
    """Whether two draws of the same size have more in common than chance gives."""
    return int(torch.isclose(one, two).sum()) > len(one) // 20


# The law


@pytest.mark.parametrize("dtype, std", [(torch.float32, 1.0), (torch.float32, 3e-7), (torch.float64, 20.0)])
def test_the_draws_are_normal_with_the_given_deviation(dtype, std):
    stats = pytest.importorskip("scipy.stats")
    z = draw(GaussianNoise(), N, std=std, dtype=dtype).double() / std
    assert abs(z.std().item() - 1) < 0.005
    assert abs(z.mean().item()) < 0.005
    assert stats.kstest(z[:200_000].numpy(), "norm").pvalue > 1e-5
    for k in (1, 2, 3, 4):  # tails, within six standard errors
        expected = N * math.erfc(k / math.sqrt(2))
        assert abs((z.abs() > k).sum().item() - expected) < 6 * math.sqrt(expected)


def test_the_two_halves_of_a_pair_are_independent():
    block = noise._PAIRS
    z = draw(GaussianNoise(), 2 * block)
    first, second = z[:block], z[block:]
    for f in (lambda t: t, torch.abs, lambda t: (t.abs() > 2).float()):
        assert abs(np.corrcoef(f(first), f(second))[0, 1]) < 5 / math.sqrt(block)


def test_the_tails_go_beyond_those_of_24_bit_uniforms():
    class Words:
        def random_raw(self, count: int) -> np.ndarray:
            return np.tile(np.array([0, 1 << 62, -1 << 63, (1 << 63) - 1]), count // 4).view(np.uint64)

    pool = noise._OnCpu(cast(Any, Words()), torch.float32, made_ahead=False)
    largest = pool.take(2 * noise._PAIRS).reshape(2, -1)[0, :4]
    assert largest[0].item() == pytest.approx(math.sqrt(2 * math.log(2**40)), rel=1e-4)  # 7.4
    assert torch.isfinite(largest).all()


def test_the_method_of_other_devices_draws_normals_too():
    stats = pytest.importorskip("scipy.stats")
    pool = noise._Elsewhere(np.random.SFC64(1), torch.device("cpu"), torch.float32)
    z = torch.cat([pool.take(1 << 18) for _ in range(4)])
    assert len(z.unique()) > 0.9 * len(z)
    assert stats.kstest(z[::4].numpy(), "norm").pvalue > 1e-5
    assert abs(float((z**4).mean()) - 3) < 0.05


def test_draws_that_were_added_are_not_overwritten_by_the_blocks_that_follow():
    """Blocks are made in memory that is used again, while the model computes."""
    source, size = GaussianNoise(), 3 * noise._AHEAD * 2 * noise._PAIRS // 4
    parts = [draw(source, size) for _ in range(6)]
    kept = [part.clone() for part in parts]
    draw(source, 4 * size)
    assert all(map(torch.equal, parts, kept)) and len(torch.cat(parts).unique()) > 0.9 * 6 * size


def test_low_precision_tensors_get_draws_of_float32():
    z = draw(GaussianNoise(), N, dtype=torch.bfloat16)
    assert z.dtype == torch.bfloat16
    assert abs(z.double().std().item() - 1) < 0.005


def test_noise_adds_to_what_is_there_in_any_layout():
    source = GaussianNoise()
    plain = torch.full((64, 8, 3, 3), 5.0).contiguous(memory_format=torch.channels_last)
    strided = torch.full((400, 400), 5.0)[::2, ::2]
    for tensor in (plain, strided, torch.full((), 5.0), torch.full((2, 0), 5.0)):
        before = tensor.clone()
        assert source.add_(tensor, 0.1) is tensor
        assert torch.isclose(tensor, before, atol=1.0).all()
        assert int((tensor == before).sum()) < 10
    assert abs((strided - 5).std().item() - 0.1) < 0.005


def test_no_deviation_adds_nothing():
    assert torch.equal(draw(GaussianNoise(), 9, std=0.0), torch.zeros(9))


def test_it_draws_into_parameters_that_require_gradients():
    parameter = torch.nn.Parameter(torch.zeros(4))
    assert GaussianNoise().add_(parameter, 1.0).abs().sum() > 0


@pytest.mark.parametrize("std", [-1.0, math.inf, math.nan])
def test_an_invalid_deviation_is_refused(std):
    with pytest.raises(ConfigurationError, match="std="):
        draw(GaussianNoise(), 3, std=std)


def test_an_integer_tensor_is_refused():
    with pytest.raises(ConfigurationError, match=r"torch\.int64"):
        GaussianNoise().add_(torch.zeros(3, dtype=torch.int64), 1.0)


# Freshness


def test_every_tensor_and_every_step_gets_fresh_draws():
    source = GaussianNoise()
    draws = torch.cat([draw(source, size) for _ in range(20) for size in (1, 10, 5000)])
    assert len(draws.unique()) > 0.99 * len(draws)
    rows = torch.stack([draw(source, 20_000) for _ in range(6)])
    correlation = torch.corrcoef(rows) - torch.eye(6)
    assert correlation.abs().max() < 5 / math.sqrt(20_000)


def test_global_seeds_do_not_touch_it():
    def seeded_draw() -> torch.Tensor:
        torch.manual_seed(0)
        np.random.seed(0)
        return draw(GaussianNoise(), 100)

    assert not repeats(seeded_draw(), seeded_draw())
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    draw(GaussianNoise(), 100)
    assert torch.equal(torch.rand(3), expected)


def test_a_seed_fixes_the_draws_and_is_admitted():
    one, two, other = GaussianNoise(7), GaussianNoise(7), GaussianNoise(7 + 2**32)
    first = draw(one, 500)
    assert torch.equal(first, draw(two, 500))
    assert not repeats(first, draw(other, 500))  # all bits of a seed count
    assert not repeats(first, draw(one, 500))
    assert one.seeded and not GaussianNoise().seeded


@pytest.mark.parametrize("seed", [-1, 1.5, "1"])
def test_an_invalid_seed_is_refused(seed):
    with pytest.raises(ConfigurationError, match="seed="):
        GaussianNoise(seed)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_a_copy_never_repeats_the_draws(duplicate):
    source = GaussianNoise()
    draw(source, 10)
    twin = duplicate(source)
    assert not repeats(draw(source, 100), draw(twin, 100))
    with pytest.raises(ConfigurationError, match="seed=3"):
        duplicate(GaussianNoise(3))


def test_a_forked_process_never_repeats_the_draws(monkeypatch):
    source = GaussianNoise(None)
    draw(source, 10)
    inherited = source._pools[torch.device("cpu"), torch.float32]
    monkeypatch.setattr(os, "getpid", lambda: -1)
    draw(source, 10)
    assert source._pools[torch.device("cpu"), torch.float32] is not inherited
