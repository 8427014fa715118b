"""Orthogonal weights never exceed one, in a matrix or a convolution, and a recorded bound is no less."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.weights import linear, singular, sized
from torch import Tensor, nn

from dplip import (
    Orthogonal,
    SpectralBall,
    constrain,
    project,
)
from dplip.constraints import Constraint
from dplip.norms import NormCache, matrix_norms

# ------------------------------------------------------------------------------------------------ orthogonal

SHAPES = [(1, 1), (3, 3), (8, 8), (5, 20), (20, 5), (64, 64), (1, 7), (7, 1), (100, 128)]


@pytest.mark.parametrize("kind", ["random", "near orthogonal", "rank deficient", "huge", "enormous", "tiny"])
@pytest.mark.parametrize("shape", SHAPES)
def test_an_orthogonal_weight_never_exceeds_one(shape: tuple[int, int], kind: str) -> None:
    if kind == "rank deficient" and min(shape) < 3:
        return
    layer = constrain(linear(sized(shape, kind)), "weight", Orthogonal())
    values = singular(layer.weight)
    assert float(values.max()) <= 1 + 1e-4
    if kind == "rank deficient":  # what is zero stays zero; the rest becomes one
        values = values[:2]
    assert float((values**2 - 1).square().mean().sqrt()) <= 0.03
    if kind != "random" and shape[0] != shape[1]:
        assert float(values.min()) >= 0.95


def test_an_adversarial_spectrum_is_still_bounded() -> None:
    """One singular value at the edge of what the first Gram matrix certifies, at zero, or far out."""
    for top in (1.9999, 2.0, 2.0001, 1.9, 1.7320508, 1.0, 1e-3, 1e3):
        for rest in (0.0, 1e-4, 1.0, 0.99, 2.0):
            for r in (2, 3, 9, 40):
                u = torch.linalg.qr(torch.randn(r, r, generator=torch.Generator().manual_seed(r)))[0]
                v = torch.linalg.qr(torch.randn(r, r, generator=torch.Generator().manual_seed(r + 1)))[0]
                layer = linear(u @ torch.diag(torch.tensor([top] + [rest] * (r - 1))) @ v)
                constrain(layer, "weight", Orthogonal())
                assert float(singular(layer.weight).max()) <= 1 + 1e-4, (top, rest, r)


CONVOLUTIONS: list[tuple[type, tuple[Any, ...], dict[str, Any], tuple[int, ...]]] = [
    (nn.Conv2d, (2, 3, 3), {"padding": 1}, (2, 5, 5)),
    (nn.Conv2d, (2, 8, 2), {"stride": 2}, (2, 4, 4)),
    (nn.Conv2d, (2, 4, 3), {"stride": 2, "padding": 1}, (2, 6, 6)),
    (nn.Conv2d, (4, 4, 3), {"groups": 2, "padding": 1}, (4, 4, 4)),
    (nn.Conv2d, (2, 2, 3), {"dilation": 2, "padding": 2}, (2, 6, 6)),
    (nn.Conv2d, (2, 2, 3), {"stride": 2, "dilation": 2, "padding": 2}, (2, 7, 7)),
    (nn.Conv2d, (2, 2, 4), {"stride": 3, "dilation": 2}, (2, 10, 10)),
    (nn.Conv2d, (2, 3, (3, 1)), {"padding": "same", "padding_mode": "circular"}, (2, 4, 4)),
    (nn.Conv1d, (3, 2, 5), {"stride": 2, "padding": 2}, (3, 12)),
    (nn.Conv1d, (4, 6, 3), {"groups": 2, "stride": 3}, (4, 9)),
]


def explicit(layer: nn.Module, shape: tuple[int, ...]) -> Tensor:
    n = math.prod(shape)
    return layer(torch.eye(n).reshape(n, *shape)).detach().double().reshape(n, -1).T


@pytest.mark.parametrize("kind", ["random", "near orthogonal", "huge", "tiny"])
@pytest.mark.parametrize("constraint", [Orthogonal, SpectralBall])
@pytest.mark.parametrize(("cls", "sizes", "options", "shape"), CONVOLUTIONS)
def test_a_constrained_convolution_has_norm_at_most_one(
    cls: type, sizes: tuple[int, ...], options: dict[str, object], shape: tuple[int, ...], constraint: type, kind: str
) -> None:
    layer = cls(*sizes, bias=False, **options)
    layer.weight.data = sized(tuple(layer.weight.shape), kind)
    constrain(layer, "weight", constraint())
    assert float(torch.linalg.matrix_norm(explicit(layer, shape), 2)) <= 1 + 1e-3
    assert float(layer.weight.detach().abs().max()) > 0


def test_patches_that_do_not_overlap_make_an_orthogonal_convolution() -> None:
    layer = constrain(nn.Conv2d(2, 8, 2, stride=2, bias=False), "weight", Orthogonal())
    values = torch.linalg.svdvals(explicit(layer, (2, 6, 6)))
    assert 0.95 <= float(values.min()) <= float(values.max()) <= 1 + 1e-4


# ------------------------------------------------------------------------------------------------ with carried norms


@pytest.mark.parametrize("build", [Orthogonal, SpectralBall])
@pytest.mark.parametrize("shape", [(6, 6), (4, 12), (12, 4), (64, 32)])
def test_a_recorded_bound_is_never_below_the_true_norm(build: Callable[[], Constraint], shape: tuple[int, int]) -> None:
    """Noisy steps, small and large, then the projection, as in training; and writes behind the cache's back."""
    torch.manual_seed(0)
    layer = linear(torch.randn(shape))
    cache = NormCache()
    with cache:
        constrain(layer, "weight", build())
    for step in range(80):
        size = (1e-5, 1e-3, 0.05, 1.0, 100.0)[step % 5]
        layer.weight.data.add_(size * torch.randn(shape) / math.sqrt(shape[0]))
        with cache:
            if step % 7 != 3:
                project(layer)
            bound = matrix_norms(layer.weight).two_two
        assert float(singular(layer.weight).max()) <= bound * (1 + 1e-9), step
        if step % 7 != 3:
            assert bound <= 1.03, step
        if step % 11 == 10:
            layer.weight.data = torch.randn(shape) * 10 ** float(torch.randn(()))


def test_a_small_drift_is_not_projected_again() -> None:
    layer = linear(torch.randn(32, 32))
    cache = NormCache()
    with cache:
        constrain(layer, "weight", Orthogonal())
        for _ in range(5):
            layer.weight.data.add_(1e-6)
            kept = layer.weight.detach().clone()
            project(layer)
            assert torch.equal(layer.weight.detach(), kept)
        layer.weight.data.add_(0.1)
        project(layer)
        assert float(singular(layer.weight).max()) <= 1 + 1e-4
