"""Norms that a published package of training without clipping gets wrong."""

import math

import pytest
import torch
from helpers.operators import bounds_of, explicit, seeded, true_norm
from torch import Tensor, nn

import dplip
from dplip import Norms
from dplip.norms import spectral_norm


def attained_gradient(model: nn.Module, name: str, x: Tensor, v: Tensor) -> float:
    model.zero_grad()
    (model(x[None])[0] * v).sum().backward()
    return float(torch.linalg.vector_norm(model.get_parameter(name).grad.double()))


def rounding(terms: int) -> float:
    """The slack that a bound carries for a float32 sum of so many terms, and 1e-5 for all else."""
    return terms * 2.0**-24 + 1e-5


def test_lip_dp_1_a_kernel_gradient_has_the_root_of_the_taps() -> None:
    """lip-dp, section 2, item 1: |dK| is up to sqrt(kh kw) |x| |v|, where a border-corrected factor is too small."""
    layer = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    n = 28
    bound = dplip.parameter_bounds(layer, (1, n, n), Norms((1, n, n), l2=1.0))["weight"]
    wave = torch.sin(math.pi * (torch.arange(n) + 1) / (n + 1))
    x = (wave[:, None] * wave)[None]
    x = x / x.norm()
    attained = attained_gradient(layer, "weight", x, x)
    kh2 = 1  # its factor of deel-lip, for a 3x3 kernel at stride 1
    factor = n * n / ((3 * n - kh2 * (kh2 + 1)) ** 2)
    assert math.sqrt(factor) * 3 < attained <= bound <= 3 * (1 + rounding(n * n))


def test_lip_dp_2_a_bias_gradient_sums_over_positions() -> None:
    """Item 2: one bias a channel is shared by H W positions, so its gradient reaches sqrt(H W) |v|, not |v|."""
    layer = nn.Conv2d(1, 2, 3, padding=1)
    bound = dplip.parameter_bounds(layer, (1, 28, 28), Norms((1, 28, 28), l2=1.0))["bias"]
    v = torch.ones(2, 28, 28)
    attained = attained_gradient(layer, "bias", torch.zeros(1, 28, 28), v / v.norm())
    assert 27.9 < attained <= bound <= 28 * (1 + rounding(28 * 28))
    tokens = dplip.parameter_bounds(nn.Linear(3, 2), (50, 3), Norms((50, 3), l2=1.0))["bias"]
    assert math.isclose(tokens, math.sqrt(50), rel_tol=1e-5)


def test_lip_dp_2_a_bias_adds_to_every_position_forward() -> None:
    layer = nn.Conv2d(1, 1, 1)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.fill_(0.5)
    output, _ = dplip.propagate(layer, (1, 8, 8), Norms((1, 8, 8), l2=0.0))
    assert 4.0 <= output.l2 <= 4.0 * (1 + 1e-5)


def test_lip_dp_3_centring_never_mixes_examples() -> None:
    """Item 3: a mean over the batch couples examples; ours is over the axes of one example alone."""
    x = torch.randn(4, 3, 5, 5, generator=seeded(0), requires_grad=True)
    y = dplip.nn.Center()(x)
    (gradient,) = torch.autograd.grad(y[0].square().sum(), x)
    assert float(gradient[1:].abs().max()) == 0.0
    assert float(y.detach().flatten(1).sum(1).abs().max()) < 1e-4


def test_lip_dp_7_an_orthogonal_kernel_matrix_is_no_orthogonal_convolution() -> None:
    """Item 7: after the mean-field border correction, a box kernel still has norm 1.02; the bound must say so."""
    n, k = 14, 3
    layer = nn.Conv2d(1, 1, k, padding=1, bias=False).double()
    half = (k - 1) // 2
    with torch.no_grad():
        layer.weight.fill_(1 / k)  # unit Frobenius norm
        layer.weight.mul_(n / (k * n - half * (half + 1)))
    exact = true_norm(explicit(layer, (n, n)))
    assert 1.005 < exact <= bounds_of(layer, (n, n)).two_two


def test_lip_dp_9_no_power_iteration() -> None:
    """Item 9: a start without weight on the top singular vector leaves power iteration far below; a bound is not."""
    weight = torch.diag(torch.tensor([10.0, 1.0, 1.0, 1.0]))
    torch.manual_seed(0)
    lower = torch.nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4, bias=False), n_power_iterations=1)
    for seed in range(20):  # nearly degenerate: ten iterations from a random start do not find the largest value
        g = seeded(seed)
        u, _, v = torch.linalg.svd(torch.randn(60, 60, generator=g, dtype=torch.float64))
        w = (u * torch.linspace(1.0, 0.9, 60)) @ v
        x = torch.randn(60, generator=g, dtype=torch.float64)
        for _ in range(10):
            x = w.T @ (w @ x)
            x = x / x.norm()
        assert float((w @ x).norm()) < 0.9999 <= 1.0 <= spectral_norm(w)
    assert spectral_norm(weight) >= 10.0
    with pytest.raises(dplip.UnboundedOperationError, match="lower bound"):
        dplip.propagate(lower, (4,))
