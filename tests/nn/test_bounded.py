"""Bounded layers: the outputs of stock ones, and no row of a gradient beyond the radius."""

import math

import pytest
import torch
from helpers.gated import X, Y, bounds
from helpers.runs import private
from torch import nn

import dplip
from dplip import nn as dn
from dplip.losses import CrossEntropy


def stock() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        *(nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 3, 2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(36, 8)),
        *(nn.Tanh(), nn.Linear(8, 4, bias=False)),
    )


def test_a_stock_model_becomes_bounded_with_the_same_parameters_and_outputs() -> None:
    model = stock()
    before, keys = model(X), list(model.state_dict())
    parameters = list(model.parameters())
    dplip.constrain(model[4], "weight", dplip.Orthogonal())
    after = model(X)
    assert dn.bound_gradients(model, 0.5) is model
    assert [type(layer).__name__ for layer in model if not isinstance(layer, nn.Tanh)].count("BoundedLinear") == 2
    assert list(model.state_dict()) == keys and all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert torch.equal(model(X), after) and not torch.equal(before, after)
    assert "constraints" in dict(model[4].named_children())
    layer = nn.Linear(3, 2)
    assert type(dn.bound_gradients(layer)) is dn.BoundedLinear
    tied = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    tied.append(tied[0])
    dn.bound_gradients(tied)
    assert tied[0] is tied[2]


def test_a_large_radius_leaves_the_gradients_of_the_stock_model() -> None:
    model, bounded = stock(), dn.bound_gradients(stock(), 1e6)
    for m in (model, bounded):
        CrossEntropy()(m(X), Y).backward()
    for p, q in zip(model.parameters(), bounded.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=1e-6)


def test_every_example_is_scaled_by_itself_to_the_radius() -> None:
    layer = dn.BoundedLinear(6, 4, radius=0.5)
    v = torch.randn(12, 4, generator=torch.Generator().manual_seed(5))
    layer(X).backward(v)
    weight, bias = torch.zeros(4, 6), torch.zeros(4)
    for x, row in zip(X, v, strict=True):
        outer = torch.outer(row, x)
        weight += outer * min(1.0, 0.5 / float(outer.norm()))
        bias += row * min(1.0, 0.5 / float(row.norm()))
    assert layer.weight.grad is not None and layer.bias.grad is not None
    torch.testing.assert_close(layer.weight.grad, weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.bias.grad, bias, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("huge", [False, True])
def test_an_example_far_out_changes_no_other_row(huge: bool) -> None:
    """Rows just below the radius, and rows of huge and tiny factors, are treated alike whatever the others are."""
    layer = dn.BoundedLinear(2, 2, bias=False, radius=math.sqrt(0.5) * (1 + 1.3e-6)).double()
    angles = torch.linspace(-0.3, 0.3, 3000, dtype=torch.float64)
    x = torch.stack([angles.cos(), angles.sin()], 1)
    v = torch.tensor([[0.5, -0.5]], dtype=torch.float64).expand(len(x), 2)
    if huge:  # a product of ordinary size, of factors that are not
        x, v = x * 1e40, v * 0.5e-40

    def gradient(x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        layer.zero_grad()
        layer(x).backward(v)
        assert layer.weight.grad is not None
        return layer.weight.grad.clone()

    far, away = torch.tensor([[50.0, 0.0], [-50.0, 50.0]], dtype=torch.float64).split(1)
    moved = gradient(torch.cat([x, far]), torch.cat([v, away])) - gradient(x, v)
    assert float(moved.norm()) <= layer.radius * (1 + 1e-9)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e15, 1e30])
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e15, 1e30, math.nan, math.inf])
def test_no_example_exceeds_the_radius_of_a_bounded_layer(scale: float, size: float) -> None:
    model, loss = dn.bound_gradients(stock(), 0.5), CrossEntropy()
    found = bounds(model)
    assert found is not None and all(0.5 <= b <= 0.5 * (1 + 1e-4) for b in found.values())
    generator = torch.Generator().manual_seed(2)
    for p in model.parameters():
        p.data = scale * torch.randn(p.shape, generator=generator)
    for x, y in zip(X[:6], Y[:6], strict=True):
        model.zero_grad()
        x = x.clone()
        x[0] *= size
        loss(model(x[None]), y[None]).backward()
        for name, p in model.named_parameters():
            assert p.grad is not None and float(p.grad.double().norm()) <= found[name]


def test_bounded_layers_train_a_stock_model_without_a_bound_on_its_input() -> None:
    model = dn.bound_gradients(stock(), 0.5)
    run = private(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), noise_multiplier=1.0)
    run.step(X, Y)
    assert len(run.charged) == 1 and set(run.optimizer.sensitivities()) == set(dict(model.named_parameters()))
    assert dplip.lipschitz(model.train(), (6,)) == dplip.lipschitz(model.eval(), (6,))  # its input's cotangent is true


def test_the_certificate_of_a_bounded_layer_goes_through_its_rows() -> None:
    model = nn.Sequential(nn.Linear(6, 4))
    radii = dplip.certify(model, X)
    assert torch.equal(dplip.certify(dn.bound_gradients(model), X), radii)
