"""An iterate's norm is at most what was proved, whatever it starts from; and steps of training cost few iterates."""

import math
from collections.abc import Iterator

import pytest
import torch
from helpers.weights import linear, singular
from torch import Tensor

import dplip.constraints.bjorck as bjorck
from dplip import Orthogonal, constrain, project
from dplip.constraints.bjorck import iterate
from dplip.norms import NormCache, matrix_norms

SHAPES = [(1, 1), (1, 9), (2, 2), (7, 7), (5, 40), (64, 64), (130, 300)]


def orthonormal(m: int, n: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(n, m, generator=g, dtype=torch.float64))[0].mT


def starts(m: int, n: int) -> Iterator[tuple[str, Tensor]]:
    """Near and far, of every spectrum and scale: what an iterate may be handed."""
    g = torch.Generator().manual_seed(m)
    q, u = orthonormal(m, n), orthonormal(m, m, 1)
    noise = torch.randn(m, n, generator=g, dtype=torch.float64)
    for size in (0.0, 1e-7, 1e-3, 0.03, 0.3, 3.0):
        yield f"noise of {size:g}", q + size * noise / math.sqrt(n)
    for top in (1 + 1e-6, 1.7, math.sqrt(3), 1.999, 2.0, 2.001, 3.0, 1e3):
        for rest in (0.0, 1e-6, 0.5, 1.0):
            values = torch.full((m,), rest, dtype=torch.float64)
            values[: max(1, m // 5)] = top  # repeated
            yield f"top {top:g} over {rest:g}", u @ (values[:, None] * q)
            values[1:] = rest
            yield f"one {top:g} over {rest:g}", u @ (values[:, None] * q)
    yield "rank one", noise[:, :1] * noise[:1]
    yield "equal", torch.ones(m, n, dtype=torch.float64)
    yield "identity", torch.eye(m, n, dtype=torch.float64)
    for scale in (1e-45, 1e-39, 1e-20, 1e-7, 1e-5, 1e5, 1e7, 1e19, 1e38):
        yield f"scale {scale:g}", scale * q
    yield "some denormal", torch.where(noise > 0, q, 1e-40 * q)
    yield "rows of all sizes", q * torch.logspace(-8, 8, m, dtype=torch.float64)[:, None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_an_iterate_is_within_its_bound(m: int, n: int, dtype: torch.dtype) -> None:
    for name, start in starts(m, n):
        w, bound, _ = iterate(start.to(dtype)[None])
        if math.isfinite(bound):
            assert float(singular(w[0]).max()) <= bound < 1.01, name
        else:
            assert not 1e-6 < float(torch.linalg.matrix_norm(start)) / math.sqrt(m) < 1e6, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_iterates_come_near_an_orthogonal_matrix_and_stay_the_polar_factor(dtype: torch.dtype) -> None:
    for m, n in SHAPES:
        q = orthonormal(m, n)
        spread = torch.linspace(0.5, 1.6, m, dtype=torch.float64)
        u = orthonormal(m, m, 2)
        w = (u * spread @ u.mT @ q).to(dtype)[None]
        for _ in range(8):
            w, bound, _ = iterate(w)
            assert math.isfinite(bound)
        assert float((w[0].double() - q).abs().max()) < 1e-4


def test_values_that_are_no_numbers_have_no_bound() -> None:
    for bad in (math.nan, math.inf, -math.inf):
        w = torch.eye(4, 6)[None].repeat(2, 1, 1)
        w[1, 2, 3] = bad
        assert iterate(w)[1] == math.inf
    assert iterate(torch.zeros(1, 3, 3))[1] == math.inf


def test_the_worst_of_a_stack_counts() -> None:
    near = torch.eye(6)[None] * (1 + 1e-3)
    far = torch.diag(torch.tensor([2.4, 0.3, 0.3, 0.3, 0.3, 0.3]))[None]
    w, bound, _ = iterate(torch.cat([near, far]))
    assert max(float(singular(one).max()) for one in w) <= bound
    for stack in ([near, far], [far, near]):
        _, bound, error = iterate(torch.cat(stack))
        assert bound >= max(iterate(one)[1] for one in stack) * (1 - 1e-12)
        assert error >= max(iterate(one)[2] for one in stack) * (1 - 1e-6)


def test_a_float32_matrix_whose_rounding_takes_too_much_is_taken_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    w = orthonormal(40, 50).float()[None]
    assert iterate(w)[0].dtype == torch.float32
    monkeypatch.setattr(bjorck, "LOOSENESS", 1e-7)
    found, bound, _ = iterate(w)
    assert found.dtype == torch.float64 and bound < 1 + 1e-8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(20, 20), (9, 40), (40, 9), (1, 12)])
def test_a_stored_weight_is_within_the_recorded_bound(shape: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = linear(torch.randn(shape))
    cache = NormCache()
    constrain(layer, "weight", Orthogonal())
    layer.to(dtype)
    for size in (0.02, 0.1, 0.5):
        layer.weight.data.add_((size * torch.randn(shape) / math.sqrt(max(shape))).to(dtype))
        with cache, torch.autocast("cpu", torch.bfloat16):
            project(layer)
            bound = cache.norm(id(layer.weight), layer.weight, lambda: math.nan, 1.0, lambda: None)  # as recorded
        assert float(singular(layer.weight).max()) <= bound


@pytest.mark.parametrize("noise", [1e-3, 0.01, 0.05, 0.2, 0.5, 1.0])
def test_noise_of_any_size_costs_a_few_iterates_and_no_svd(noise: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The noise of every step here has ``noise`` times the norm of the weight, about."""
    layer, cache, calls = linear(orthonormal(48, 64).float()), NormCache(), 0

    def counted(w: Tensor) -> tuple[Tensor, float, float]:
        nonlocal calls
        calls += 1
        return iterate(w)

    def refused(w: Tensor) -> Tensor:
        raise AssertionError("SVD")

    constrain(layer, "weight", Orthogonal())
    monkeypatch.setattr("dplip.constraints.orthogonal.iterate", counted)
    monkeypatch.setattr("dplip.constraints.orthogonal._polar", refused)
    torch.manual_seed(0)
    for _ in range(20):
        layer.weight.data.add_(noise * torch.randn(48, 64) / (math.sqrt(48) + math.sqrt(64)))
        with cache:
            project(layer)
            bound = matrix_norms(layer.weight).two_two
        assert float(singular(layer.weight).max()) <= bound <= 1.0125
        assert float(singular(layer.weight).min()) >= 0.8
    assert calls <= 20 * (1 if noise <= 0.2 else 3)
