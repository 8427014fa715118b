"""Norms that are carried along with a weight are never below the true ones."""

import pytest
import torch
from helpers.operators import bounds_of, explicit, seeded, true_norm
from torch import Tensor, nn

from dplip.norms import NormCache, matrix_norms, spectral_norm
from dplip.norms.cache import active_cache


def changes(weight: Tensor, step: int, generator: torch.Generator) -> None:
    """What may happen to a weight between two steps, behind the cache's back."""
    noise = torch.randn(weight.shape, generator=generator)
    kind = step % 7
    if kind == 0:
        weight.data.add_(1e-4 * noise)
    elif kind == 1:
        weight.data *= 1.003
    elif kind == 2:
        weight.data.reshape(-1)[0] = 5.0
    elif kind == 3:
        weight.data = 3 * noise  # another storage under the same parameter
    elif kind == 4:
        weight.data.copy_(noise[:, :1].expand(weight.shape) if weight.ndim == 2 else noise)
    elif kind == 5:
        weight.data.mul_(1e-3)
    else:
        weight.data.sub_(0.002 * weight.data)


@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e12])
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_a_carried_norm_is_never_below_the_true_one(kind: str, scale: float) -> None:
    layer = nn.Linear(6, 5, bias=False) if kind == "linear" else nn.Conv1d(2, 3, 3, padding=1, bias=False)
    generator = seeded(0)
    with torch.no_grad():
        layer.weight.mul_(scale)
    for cache in (NormCache(), NormCache(0.0), NormCache(0.5)):
        for step in range(60):
            with cache:
                bounds = matrix_norms(layer.weight) if kind == "linear" else bounds_of(layer, (6,))
            plain = layer.weight.detach().double()
            exact = true_norm(plain if kind == "linear" else conv_matrix(plain))
            assert exact <= bounds.two_two * (1 + 1e-9), step
            unscaled = torch.nn.Parameter(layer.weight.detach() / scale)
            changes(unscaled, step, generator)
            layer.weight.data = unscaled.detach() * scale


def conv_matrix(weight: Tensor) -> Tensor:
    layer = nn.Conv1d(2, 3, 3, padding=1, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(weight)
    return explicit(layer, (6,))


def test_a_small_drift_costs_no_exact_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    exact = spectral_norm

    def counted(weight: Tensor) -> float:
        nonlocal calls
        calls += 1
        return exact(weight)

    monkeypatch.setattr("dplip.norms.matrix.spectral_norm", counted)
    layer = nn.Linear(20, 20, bias=False)
    generator = seeded(0)
    cache = NormCache()
    for _ in range(200):
        with cache:
            bound = matrix_norms(layer.weight).two_two
        assert bound <= 1.011 * true_norm(layer.weight)
        layer.weight.data.add_(1e-5 * torch.randn(20, 20, generator=generator))
    assert 1 <= calls <= 5
    for _ in range(3):  # without a cache, every norm is exact
        matrix_norms(layer.weight)
    assert calls <= 8


def test_a_cache_is_active_only_inside_its_block() -> None:
    outer, inner = NormCache(), NormCache()
    assert active_cache() is None
    with outer:
        with inner:
            assert active_cache() is inner
        assert active_cache() is outer
        with outer:
            assert active_cache() is outer
    assert active_cache() is None


def test_a_norm_that_was_certified_in_inference_mode_is_certified_again_outside_of_it() -> None:
    cache, weight = NormCache(), torch.randn(4, 4, generator=seeded(0))
    with cache:
        with torch.inference_mode():
            matrix_norms(weight)
        weight.data *= 3
        assert matrix_norms(weight).two_two >= true_norm(weight)
        with torch.inference_mode():
            weight.data *= 3
            assert matrix_norms(weight).two_two >= true_norm(weight)


def test_an_entry_is_not_taken_for_another_weight() -> None:
    """Identities are reused after a weight is gone; the values are compared, so that costs nothing but a miss."""
    cache = NormCache()
    for seed in range(50):
        weight = torch.randn(4, 4, generator=seeded(seed)) * (seed % 5 + 1)
        with cache:
            assert matrix_norms(weight).two_two >= true_norm(weight)
        del weight
