"""Activations on a fine grid, and projections and normalisations in float32."""

import math
from math import inf

import pytest
import torch
from helpers.laws import EXPONENTS, prepared
from helpers.sample import Sample
from helpers.samples_operations import ELEMENTWISE
from torch import nn

import dplip
from dplip import Norms
from dplip import nn as dn
from dplip.propagation import Walk

# ------------------------------------------------------------------------------------------------ particular functions


scalar = [s for s in ELEMENTWISE if "oftmax" not in s.name and s.name != "PReLU(num_parameters=6)"]


@pytest.mark.parametrize("sample", scalar, ids=str)
def test_slopes_and_values_on_a_fine_grid(sample: Sample) -> None:
    """Near zero, where activations bend, and far out: a stated slope such as 1.13 must cover the true one, 1.1290."""
    module = prepared(sample)[0]
    near, far = torch.linspace(-12, 12, 240_001).double(), torch.logspace(-8, 4, 2001).double()
    x = torch.cat((near, far, -far)).reshape(-1, 1).requires_grad_()
    y = module(x)
    slope = float(torch.autograd.grad(y.sum(), x)[0].abs().max())
    walk = Walk(module, (1,))
    assert slope <= walk(None)[1](Norms((1,), linf=1.0))[0].linf * (1 + sample.rounding)
    for radius in (0.1, 1.0, 10.0, inf):
        inside = y[x.abs() <= radius]
        assert float(inside.detach().abs().max()) <= walk(Norms((1,), linf=radius))[0].linf * (1 + sample.rounding)


# ------------------------------------------------------------------------------------------------ float32


@pytest.mark.parametrize("n", [1, 784, 3072, 150_528])
def test_a_ball_is_not_left_by_rounding(n: int) -> None:
    noise = torch.randn(6, n, generator=torch.Generator().manual_seed(0))
    for x in (noise, noise.sign() * 7.3, torch.rand(6, 1).expand(6, n) * 100, noise * 10 ** (3 * noise), noise * 1e18):
        for radius in (1e-3, 1.0, 12.0):
            y = dn.BallProjection(radius)(x).double()
            assert float(torch.linalg.vector_norm(y, dim=1).max()) <= radius


def test_a_ball_takes_whatever_is_not_a_number() -> None:
    x = torch.tensor([[inf, 1.0], [math.nan, -inf], [3e38, 3e38], [-inf, 1e38], [0.0, 0.0]])
    y = dn.BallProjection(2.0)(x)
    assert bool(y.isfinite().all())
    assert float(torch.linalg.vector_norm(y.double(), dim=1).max()) <= 2.0


NORMALISING = [
    (nn.LayerNorm((3, 12), elementwise_affine=False), (3, 12)),
    (nn.LayerNorm(784, elementwise_affine=False), (784,)),
    (nn.GroupNorm(1, 3, affine=False), (3, 12)),
    (nn.InstanceNorm1d(3), (3, 12)),
    (nn.InstanceNorm2d(3), (3, 14, 14)),
]


@pytest.mark.parametrize(("module", "shape"), NORMALISING, ids=lambda v: str(v))
@pytest.mark.parametrize("size", [1.0, 1e3, 1e5, 1e8, 1e20, None])
def test_normalisation_of_large_and_nearly_constant_inputs(
    module: nn.Module, shape: tuple[int, ...], size: float | None
) -> None:
    """An adversary picks a constant image: its mean rounds, and the difference is divided by sqrt(eps)."""
    output, _ = dplip.propagate(module, shape, None if size is None else Norms(shape, linf=size))
    generator = torch.Generator().manual_seed(0)
    level = torch.rand(200, *[1] * len(shape), generator=generator) * (1e30 if size is None else size)
    spread = torch.tensor([0.0, 1e-8, 1e-4, 1e-2])[torch.arange(200) % 4].reshape(level.shape)
    noise = torch.rand(200, *shape, generator=generator) - 1
    y = module(level * (1 + spread * noise)).detach().double().reshape(200, -1)
    for p in EXPONENTS:
        if math.isfinite(output.norm(p)):
            attained = torch.nan_to_num(torch.linalg.vector_norm(y, p, dim=1), nan=inf)
            assert float(attained.max()) <= output.norm(p) * (1 + 1e-5)


def test_sums_over_large_maps_stay_within_the_sensitivity() -> None:
    """One float32 gradient sums 50,176 equal terms: its rounding is part of what one example contributes."""
    conv = nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular")
    with torch.no_grad():
        conv.bias.copy_(torch.tensor([50.0, -50.0]))
    model = nn.Sequential(dn.BallProjection(3.0), conv, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    loss = dplip.losses.CrossEntropy()
    bounds = dplip.sensitivity(model, loss, (1, 224, 224))
    loss(model(torch.full((1, 1, 224, 224), 0.43)), torch.tensor([1])).backward()
    for name, p in model.named_parameters():
        norm = float(torch.linalg.vector_norm(p.grad.double()))
        assert 0.9 * bounds[name] <= norm <= bounds[name], (name, norm, bounds[name])
