"""GradientBall: no cotangent leaves it."""

import math

import pytest
import torch
from helpers.gated import X, gated
from torch import nn

import dplip
from dplip import nn as dn
from dplip.errors import ConfigurationError, UnboundedOperationError


@pytest.mark.parametrize("size", [1.0, 1e-20, 1e20, 3e38])
def test_no_cotangent_leaves_a_gradient_ball(size: float) -> None:
    layer = dn.GradientBall(0.5)
    x = torch.zeros(40, 3, 7, requires_grad=True)
    v = size * torch.randn(40, 3, 7, generator=torch.Generator().manual_seed(0))
    layer(x).backward(v)
    assert x.grad is not None
    norms = torch.linalg.vector_norm(x.grad.double().flatten(1), dim=1)
    assert float(norms.max()) <= 0.5
    if size == 1.0:
        assert float(norms.min()) > 0.49  # projected onto the sphere, and not shrunk further
        cosine = torch.nn.functional.cosine_similarity(x.grad.flatten(1), v.flatten(1))
        torch.testing.assert_close(cosine, torch.ones(40))


@pytest.mark.parametrize("entries", [10, 3000])
@pytest.mark.parametrize("radius", [1e-26, 1e-24, 1e-10, 1e-3, 1.0])
def test_factors_below_the_normal_numbers_do_not_round_out_of_the_ball(entries: int, radius: float) -> None:
    for size in (1e17, 2e17, 3e17, 4e17, 1e18, 1e30, 1e37, 3e38):
        x = torch.full((3, entries), size)
        assert float(dn.BallProjection(radius)(x).double().norm(dim=1).max()) <= radius


def test_a_gradient_ball_neutralises_what_is_not_finite_in_that_example_alone() -> None:
    x = torch.zeros(3, 4, requires_grad=True)
    v = torch.tensor([[0.1] * 4, [math.nan, 1.0, math.inf, 0.0], [0.2] * 4])
    dn.GradientBall(0.5)(x).backward(v)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.tensor([[0.1] * 4, [0.0, 0.5, 0.0, 0.0], [0.2] * 4]), rtol=1e-4, atol=0)


def test_in_evaluation_mode_it_is_the_identity_both_ways() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    layer = dn.GradientBall(1e-3).eval()
    layer(x).backward(torch.ones(3, 4))
    assert torch.equal(layer(x), x) and x.grad is not None and torch.equal(x.grad, torch.ones(3, 4))


@pytest.mark.parametrize("radius", [0.0, -1.0, math.inf, math.nan])
def test_a_radius_that_bounds_nothing_is_refused(radius: float) -> None:
    with pytest.raises(ConfigurationError, match="radius"):
        dn.GradientBall(radius)


def test_derivatives_are_not_read_off_a_surrogate() -> None:
    model = nn.Sequential(nn.Linear(6, 6, bias=False), dn.GradientBall(1e-3))
    with torch.no_grad():
        model[0].weight.copy_(5 * torch.eye(6))
    with pytest.raises(UnboundedOperationError, match=r"1: GradientBall .* model\.eval"):
        dplip.lipschitz(model.train(), (6,))
    assert 5.0 <= dplip.lipschitz(model.eval(), (6,)) <= 5.0001


def test_the_certificate_of_a_gated_model_survives_an_attack_along_the_gradient() -> None:
    model = gated().train()
    radii = dplip.certify(model, X)
    assert model.training and bool((radii > 0).any())
    model.eval()
    before = model(X).argmax(1)
    x = X.clone()
    for _ in range(50):
        x.requires_grad_(True)
        z = model(x)
        top = z.gather(1, before[:, None])[:, 0] - z.scatter(1, before[:, None], -math.inf).max(1).values
        (g,) = torch.autograd.grad(top.sum(), x)
        x = (x - 0.1 * g / g.norm(dim=1, keepdim=True).clamp_min(1e-12)).detach()
        shift = x - X
        x = X + shift * (0.999 * radii / shift.norm(dim=1).clamp_min(1e-12)).clamp_max(1.0)[:, None].float()
        assert torch.equal(model(x).argmax(1)[radii > 0], before[radii > 0])
