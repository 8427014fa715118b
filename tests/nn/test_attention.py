"""Attention by distances is a gradient step: its Jacobian is symmetric, with eigenvalues between 0 and 1."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap

import dplip
import dplip.nn as dn


def by_definition(x: Tensor, scale: float) -> Tensor:
    d = x[..., :, None, :] - x[..., None, :, :]
    w = (1 + d.square().sum(-1, keepdim=True) / scale**2).rsqrt()
    return x - (w * d).mean(-2)


@pytest.mark.parametrize(("tokens", "features", "heads", "scale"), [(1, 3, 1, 1.0), (5, 4, 2, 0.3), (3, 2, 1, 4.0)])
def test_it_is_the_formula_and_its_backward_pass_the_derivative(tokens, features, heads, scale):
    torch.manual_seed(0)
    layer = dn.DistanceAttention(heads, scale)
    x = torch.randn(2, tokens, features, dtype=torch.float64, requires_grad=True)
    parts = [by_definition(part, scale) for part in x.chunk(heads, 2)]
    torch.testing.assert_close(layer(x), torch.cat(parts, 2))
    assert torch.autograd.gradcheck(layer, x)
    assert torch.autograd.gradgradcheck(layer, x)
    together = torch.cat((x[:, :1], x[:, :1]), 1)
    assert torch.autograd.gradcheck(layer, together.detach().requires_grad_())


def test_similar_tokens_become_their_mean_and_distant_ones_hardly_move():
    x = torch.tensor([[[0.0, 0.0], [0.01, 0.0], [0.0, 0.02]]])
    torch.testing.assert_close(dn.DistanceAttention()(x), x.mean(1, keepdim=True).expand_as(x), rtol=1e-3, atol=1e-4)
    far = 1e4 * torch.eye(3)[None]
    assert float((dn.DistanceAttention()(far) - far).norm(dim=2).max()) < 1.0
    x = torch.randn(4, 6, 3)
    torch.testing.assert_close(dn.DistanceAttention()(x).mean(1), x.mean(1))
    order = torch.randperm(6)
    torch.testing.assert_close(dn.DistanceAttention()(x[:, order]), dn.DistanceAttention()(x)[:, order])


def jacobians(layer: nn.Module, x: Tensor) -> Tensor:
    """One square matrix for each example."""
    return vmap(jacrev(lambda row: layer(row[None])[0]))(x).reshape(len(x), x[0].numel(), x[0].numel())


@pytest.mark.parametrize(("tokens", "features", "scale"), [(2, 1, 1.0), (2, 3, 0.5), (6, 4, 2.0)])
def test_the_search_finds_eigenvalues_between_0_and_1_alone(tokens, features, scale):
    """Ascent on the largest eigenvalue apart from those of the mean, and descent on the least."""
    torch.manual_seed(0)
    layer = dn.DistanceAttention(scale=scale)
    for sign in (1.0, -1.0):
        x = torch.randn(24, tokens, features, dtype=torch.float64) * torch.logspace(-2, 1, 24)[:, None, None].double()
        for _ in range(15):
            x = x.detach().requires_grad_()
            jacobian = jacobians(layer, x)
            torch.testing.assert_close(jacobian, jacobian.mT)
            values = torch.linalg.eigvalsh(jacobian)
            spectrum = values.detach()
            assert float(spectrum.min()) >= -1e-12 and float(spectrum.max()) <= 1 + 1e-12
            edge = values[:, -features - 1].sum() if sign > 0 else values[:, 0].sum()
            (up,) = torch.autograd.grad(edge, x)
            x = x.detach() + sign * 0.3 * up / up.flatten(1).norm(dim=1)[:, None, None].clamp_min(1e-30)
    assert float(spectrum.min()) < 0.6


@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_no_two_inputs_come_apart(scale):
    torch.manual_seed(0)
    layer = dn.DistanceAttention(2, scale)
    x, y = (torch.randn(64, 5, 4, dtype=torch.float64) for _ in range(2))
    for _ in range(40):
        x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
        ratio = (layer(x) - layer(y)).flatten(1).norm(dim=1) / (x - y).flatten(1).norm(dim=1)
        assert float(ratio.detach().max()) <= 1 + 1e-12
        up_x, up_y = torch.autograd.grad(ratio.sum(), (x, y))
        x, y = x + 2 * up_x, y + 2 * up_y
    assert float(ratio.detach().max()) > 0.99


@pytest.mark.parametrize(("tokens", "features"), [(2, 2), (4, 5), (9, 3)])
@pytest.mark.parametrize("norm", [1, math.inf])
def test_the_constant_in_l1_and_l_infinity_is_attained(tokens, features, norm):
    """All others lie apart from the first token by a vector of length sqrt 2, half of whose square is in one entry."""
    d = torch.full((features,), math.sqrt(1 / (features - 1)), dtype=torch.float64)
    d[0] = 1.0
    x = torch.zeros(1, tokens, features, dtype=torch.float64)
    x[0, 1:] = d
    layer = dn.DistanceAttention()
    found = float(torch.linalg.matrix_norm(jacobians(layer, x)[0], norm))
    bound = dplip.lipschitz(layer, (tokens, features), norm)
    assert 0.999 * bound <= found <= bound * (1 + 1e-9)


def test_it_composes_to_a_constant_of_one():
    torch.manual_seed(0)
    model = nn.Sequential(
        dn.OrthogonalConv2d(3, 8, 2), nn.Flatten(2), Transposed(), dn.OrthogonalLinear(8, 8), dn.DistanceAttention(4),
        dn.RollChannels(1, 2), dn.OrthogonalLinear(8, 8), dn.GroupSort(2, 2), nn.Flatten(), dn.OrthogonalLinear(128, 5),
    )  # fmt: skip
    assert dplip.lipschitz(model, (3, 8, 8)) == pytest.approx(1, rel=1e-4)


class Transposed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


def test_tokens_so_far_apart_that_squares_overflow_leave_each_other_alone():
    for size in (1e19, 1e25, 1e38):
        x = (size * torch.tensor([[[1.0, 0.0], [-1.0, 0.5], [-1.0, 0.5]]])).requires_grad_()
        y = dn.DistanceAttention()(x)
        (v,) = torch.autograd.grad(y, x, torch.ones_like(y))
        assert bool(y.isfinite().all()) and float(v.norm()) <= math.sqrt(6) * (1 + 1e-6)


@pytest.mark.parametrize(
    "build", [lambda: dn.DistanceAttention(0), lambda: dn.DistanceAttention(True), lambda: dn.DistanceAttention(-2),
              lambda: dn.DistanceAttention(1, 0.0), lambda: dn.DistanceAttention(1, math.nan)]
)  # fmt: skip
def test_arguments_that_make_no_sense_are_refused(build):
    with pytest.raises(dplip.DPLipError):
        build()


def test_inputs_that_are_no_tokens_are_refused():
    for shape in ((2, 6), (2, 3, 5), (2, 1, 3, 4)):
        with pytest.raises(dplip.ConfigurationError, match=r"shape=.*tokens, features"):
            dn.DistanceAttention(2)(torch.zeros(shape))
        with pytest.raises(dplip.DPLipError):
            dplip.lipschitz(dn.DistanceAttention(2), shape[1:])
