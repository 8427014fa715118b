"""The Lipschitz constant is no less than any Jacobian attains."""

import math

import pytest
import torch
from helpers.models import MODELS, Standardized, orthogonal
from helpers.norms import every_norm
from torch import nn

import dplip
import dplip.nn as dn


def attained_constant(module: nn.Module, shape: tuple[int, ...], norm: float) -> float:
    """The largest operator norm of a Jacobian at many points."""
    generator = torch.Generator().manual_seed(0)
    best = 0.0
    for trial in range(9):
        x = torch.randn(shape, generator=generator) * (0.1, 1.0, 10.0)[trial % 3]
        jacobian = torch.autograd.functional.jacobian(lambda v: module(v[None])[0], x).double()
        matrix = jacobian.reshape(-1, math.prod(shape))
        best = max(best, float(torch.linalg.matrix_norm(matrix, norm)))
    return best


LAYERS = {
    "linear": (lambda: nn.Linear(6, 4), (6,)),
    "tall": (lambda: nn.Linear(3, 9), (3,)),
    "convolution": (lambda: nn.Conv2d(2, 3, 3, padding=1), (2, 6, 6)),
    "strided": (lambda: nn.Conv2d(2, 3, 3, stride=2), (2, 7, 7)),
    "ball": (lambda: dn.BallProjection(1.0), (5,)),
    "center": (lambda: dn.Center(), (5,)),
    "standardized": (lambda: Standardized(torch.rand(5), 0.1 + torch.rand(5)), (5,)),
    "pooling": (lambda: dn.ScaledL2NormPool2d(2), (1, 4, 4)),
    **MODELS,
}


@pytest.mark.parametrize("name", LAYERS)
@every_norm
def test_no_jacobian_exceeds_the_lipschitz_constant(name, norm):
    builder, shape = LAYERS[name]
    torch.manual_seed(0)
    module = builder().eval()
    assert attained_constant(module, shape, norm) <= dplip.lipschitz(module, shape, norm) * (1 + 1e-6)


@every_norm
def test_the_lipschitz_constant_of_a_linear_layer_is_exact(norm):
    layer = nn.Linear(6, 4)
    exact = float(torch.linalg.matrix_norm(layer.weight.detach().double(), norm))
    assert exact <= dplip.lipschitz(layer, (6,), norm) * (1 + 1e-7)
    assert dplip.lipschitz(layer, (6,), norm) == pytest.approx(exact, rel=2e-5)


def test_an_orthogonal_network_has_lipschitz_constant_one_in_l2():
    assert dplip.lipschitz(orthogonal(16, 16, 8), (16,)) == pytest.approx(1.0, rel=3e-5)
