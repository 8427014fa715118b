"""Wavelet scattering: the same as Kymatio's, and Lipschitz with the certified constant."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import dplip
from dplip import nn as dn
from dplip.nn.scattering import scattering_lipschitz, wavelets


def middle(channels: int, size: int, wide: int) -> torch.Tensor:
    """Two random images, zero but in the middle."""
    x = torch.zeros(2, channels, size, size, dtype=torch.float64)
    low = (size - wide) // 2
    generator = torch.Generator().manual_seed(0)
    x[..., low : low + wide, low : low + wide] = torch.rand(
        2, channels, wide, wide, dtype=torch.float64, generator=generator
    )
    return x


def test_the_maps_are_those_of_kymatio():
    kymatio = pytest.importorskip("kymatio.scattering2d.frontend.torch_frontend")
    x = middle(2, 48, 12)  # Kymatio mirrors the image at its border, and here there are zeros
    ours = dn.Scattering2d(48)(x)
    theirs = kymatio.ScatteringTorch2D(2, (48, 48))(x.float()).flatten(1, 2).double()
    assert ours.shape == theirs.shape == (2, 162, 12, 12)
    assert float((ours - theirs).abs().max()) < 1e-4 * float(theirs.abs().max())


def test_the_wavelets_are_those_of_kymatio():
    bank = pytest.importorskip("kymatio.scattering2d.filter_bank")
    theirs = [psi["levels"][0].squeeze() for psi in bank.filter_bank(36, 36, 2, 8)["psi"]]
    ours = np.concatenate([wavelets(36, 0), wavelets(36, 1)])
    assert np.abs(ours - np.stack(theirs)).max() < 4e-5  # Kymatio normalises with pi = 3.1415


@pytest.mark.parametrize("size", [8, 12, 28, 32])
def test_the_constant_is_that_of_a_flat_image_at_least_and_small(size: int):
    # Far from the border the means of a flat image are the image, at a sixteenth of the pixels.
    flat = torch.ones(1, 1, size, size, dtype=torch.float64)
    mean = dn.Scattering2d(size)(flat)[:, :1]
    assert float(mean.norm()) / size <= scattering_lipschitz(size) <= 0.2575
    assert dplip.lipschitz(dn.Scattering2d(size), (3, size, size)) == scattering_lipschitz(size)


@pytest.mark.parametrize(("size", "attained"), [(8, 0.85), (28, 0.97)])
def test_an_attack_on_the_constant_comes_near_and_stays_below(size: int, attained: float):
    """Ascent on |S x - S y| over |x - y|, from zero, from apart, and from near each other."""
    generator = torch.Generator().manual_seed(0)
    module, best = dn.Scattering2d(size).double(), 0.0

    def random() -> torch.Tensor:
        return torch.randn(1, 1, size, size, dtype=torch.float64, generator=generator)

    apart = random()
    starts = [(torch.ones_like(apart), 0 * apart), (random(), random()), (apart, apart + 0.01 * random())]
    for x, y in starts:
        radius = (x - y).norm()
        for _ in range(20):
            x.requires_grad_()
            d = module(x) - module(y)
            best = max(best, float(d.detach().norm() / (x - y).detach().norm()))
            (g,) = torch.autograd.grad((d * d.detach()).sum(), x)
            x = y + g / g.norm() * radius
    assert attained < best / scattering_lipschitz(size) <= 1


def test_the_derivative_at_ties_zeros_and_huge_values_is_finite_and_bounded():
    module = dn.Scattering2d(8)
    generator = torch.Generator().manual_seed(0)
    for x in (torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8), torch.full((1, 1, 8, 8), 1e15)):
        x.requires_grad_()
        v = torch.randn(1, 81, 2, 2, generator=generator)
        (g,) = torch.autograd.grad(module(x), x, v)
        assert float(g.norm()) <= scattering_lipschitz(8) * float(v.norm())
    assert torch.equal(module(torch.zeros(1, 3, 8, 8)), torch.zeros(1, 243, 2, 2))


def test_the_constant_does_not_miss_a_part_of_the_transform():
    """The constant of the linear part alone, by its matrix: a lower bound that the certified one must exceed."""
    unit = torch.eye(64, dtype=torch.float64).reshape(64, 1, 8, 8)
    means = dn.Scattering2d(8)(unit)[:, 0].flatten(1)
    assert float(torch.linalg.matrix_norm(means, 2)) <= scattering_lipschitz(8)


def test_channels_do_not_mix_and_examples_neither():
    x = torch.rand(3, 2, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    module = dn.Scattering2d(12)
    both = module(x)
    assert torch.allclose(both[:, :81], module(x[:, :1])) and torch.allclose(both[:, 81:], module(x[:, 1:]))
    assert torch.allclose(both[1:2], module(x[1:2]))


def test_float32_is_within_the_slack():
    x = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    module = dn.Scattering2d(28)
    assert float((module(x).double() - module(x.double())).norm()) < 1e-5 * float(module(x.double()).norm())


@pytest.mark.parametrize("size", [0, 4, 10, 30])
def test_a_size_that_does_not_divide_is_refused(size: int):
    with pytest.raises(dplip.ConfigurationError, match=f"size={size}"):
        dn.Scattering2d(size)


def test_an_image_of_another_shape_is_refused():
    with pytest.raises(dplip.DPLipError):
        dplip.lipschitz(dn.Scattering2d(8), (1, 12, 12))
    assert math.isfinite(dplip.lipschitz(dn.Scattering2d(8), (1, 8, 8)))


def test_a_mirrored_transform_does_not_know_left_from_right():
    torch.manual_seed(0)
    x = torch.rand(2, 1, 8, 8)
    one = dn.Scattering2d(8)
    both = dn.MeanOverViews(one, [nn.Identity(), dn.Mirror()])
    torch.testing.assert_close(both(x), both(x.flip(-1)))
    torch.testing.assert_close(both(x), (one(x) + one(x.flip(-1))) / 2)
