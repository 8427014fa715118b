"""Whitening: what it evens out, and the norms that are certified for it."""

import math

import pytest
import torch
from torch import nn

import dplip
from dplip import nn as dn
from dplip.errors import ConfigurationError
from dplip.losses import CrossEntropy

SHAPE = (3, 2, 2)


def samples(count: int = 400) -> torch.Tensor:
    """Channels that are nearly copies of each other, in another way at each place, with a mean."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.eye(3) + 2 * torch.rand(2, 2, 3, 3, generator=generator)
    noise = torch.randn(count, *SHAPE, generator=generator)
    return 5 + torch.einsum("hwkc,bchw->bkhw", mix, noise)


def test_full_power_gives_samples_of_covariance_one_at_each_place():
    x = samples()
    white = dn.Whitening(x, power=0.5, floor=1e-6)(x - x.mean(0))
    variance = float((x - x.mean(0)).square().mean())
    for place in white.flatten(2).permute(2, 1, 0):
        torch.testing.assert_close(place.cov(correction=0), variance * torch.eye(3), rtol=1e-3, atol=1e-3 * variance)


def test_no_power_changes_nothing_and_some_is_the_power_of_the_covariance():
    x = samples()
    torch.testing.assert_close(dn.Whitening(x, power=0.0)(x), x)
    half, full = dn.Whitening(x, power=0.25), dn.Whitening(x, power=0.5)
    torch.testing.assert_close(half(half(x)), full(x), rtol=1e-4, atol=1e-4)


def test_the_certified_norm_is_at_most_that_of_the_floor_and_is_reached():
    for power, floor in ((0.5, 0.1), (0.35, 0.01), (1.0, 2.0)):
        flat = torch.zeros(40, 3, 2, 2)
        flat[:, 0] = torch.randn(40, 2, 2, generator=torch.Generator().manual_seed(1))  # two directions do not vary
        layer = dn.Whitening(flat, power, floor)
        bound = dplip.lipschitz(layer, SHAPE)
        assert bound <= floor**-power * (1 + 1e-4)
        reached = torch.linalg.svdvals(layer.matrices.double()).max()
        assert 0.999 * bound < float(reached) <= bound
        x = torch.randn(200, *SHAPE, generator=torch.Generator().manual_seed(2))
        assert float((layer(x).flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1)).max()) <= bound


def test_the_certified_norm_is_the_largest_of_all_places():
    layer = dn.Whitening(samples())
    each = torch.linalg.svdvals(layer.matrices.double())[:, 0]
    assert float(each.min()) < 0.95 * float(each.max()) <= dplip.lipschitz(layer, SHAPE)


@pytest.mark.parametrize(
    "layer, shape, buffer",
    [(lambda: dn.Whitening(samples()), SHAPE, "matrices"), (lambda: dn.LowPass(6, 6, 4), (1, 6, 6), "rows")],
)
def test_the_norms_of_a_fixed_layer_follow_its_buffer(layer, shape, buffer):
    module = layer()
    before = dplip.lipschitz(module, shape)
    getattr(module, buffer).mul_(10)
    assert dplip.lipschitz(module, shape) == pytest.approx(10 * before, rel=1e-4)
    getattr(module, buffer).data.mul_(10)  # which torch does not count
    assert dplip.lipschitz(module, shape) == pytest.approx(100 * before, rel=1e-4)
    module.bfloat16().float()  # rounds the buffer, which is another then
    x = torch.randn(50, *shape, generator=torch.Generator().manual_seed(0))
    assert float((module(x).flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1)).max()) <= dplip.lipschitz(module, shape)


def test_it_has_nothing_to_train_or_to_save():
    layer = dn.Whitening(samples())
    assert not list(layer.parameters()) and not layer.state_dict()
    model = nn.Sequential(layer, nn.Flatten(), dn.BallProjection(2.0), nn.Linear(12, 2, bias=False))
    assert dplip.sensitivity(model, CrossEntropy(normalize=True), SHAPE).total == pytest.approx(2.0, rel=1e-4)
    fixed, _ = dplip.training.feature_extractor.split(model, CrossEntropy(), SHAPE)
    assert type(fixed[0]) is dn.Whitening and len(fixed) == 2


@pytest.mark.parametrize(
    "arguments, named",
    [
        ((torch.zeros(4, 3, 2),), "samples"),
        ((torch.randn(1, *SHAPE),), "samples"),
        ((torch.ones(4, *SHAPE),), "alike"),
        ((torch.full((4, *SHAPE), math.nan),), "finite"),
        ((torch.randn(4, *SHAPE), -0.5), "power"),
        ((torch.randn(4, *SHAPE), math.inf), "power"),
        ((torch.randn(4, *SHAPE), 0.5, 0.0), "floor"),
        ((torch.randn(4, *SHAPE), 0.5, math.nan), "floor"),
    ],
)
def test_what_cannot_be_whitened_is_refused(arguments, named):
    with pytest.raises(ConfigurationError, match=named):
        dn.Whitening(*arguments)


def test_an_input_of_another_shape_is_refused():
    layer = dn.Whitening(samples())
    with pytest.raises(ConfigurationError, match="shape"):
        layer(torch.zeros(2, 3, 2, 3))
    with pytest.raises(ConfigurationError, match="shape"):
        dplip.sensitivity(nn.Sequential(layer, nn.Flatten(), nn.Linear(12, 2)), CrossEntropy(), (3, 4, 4))
