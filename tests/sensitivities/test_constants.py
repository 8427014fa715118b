"""Bounds that hold whatever the weights are."""

import math

import pytest
import torch
from helpers.gated import X, Y, bounds, gated
from helpers.runs import private
from torch import Tensor, nn

import dplip
from dplip import Norms
from dplip import nn as dn
from dplip.losses import CrossEntropy


def test_the_constants_follow_from_the_radii() -> None:
    found = bounds(gated())
    assert found is not None
    expected = {"1.weight": 1.5, "1.bias": 0.5, "5.weight": 0.5, "5.bias": 0.25, "9.weight": 1.5 * math.sqrt(2)}
    for name, value in expected.items():
        assert value <= found[name] <= value * (1 + 1e-4)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 30.0, 1e10, 1e30])
def test_no_example_exceeds_the_constants_whatever_the_weights(scale: float) -> None:
    model, loss = gated(), CrossEntropy()
    found = bounds(model)
    assert found is not None
    generator = torch.Generator().manual_seed(2)
    attained = dict.fromkeys(found, 0.0)
    for _ in range(4):
        for p in model.parameters():
            p.data = scale * torch.randn(p.shape, generator=generator)
        for x, y in zip(X, Y, strict=True):
            for size in (1.0, 1e30):
                model.zero_grad()
                loss(model(size * x[None]), y[None]).backward()
                for name, p in model.named_parameters():
                    assert p.grad is not None and float(p.grad.double().norm()) <= found[name]
                    attained[name] = max(attained[name], float(p.grad.double().norm()) / found[name])
    if scale == 30.0:  # a constant that were smaller would be exceeded
        assert attained["1.weight"] > 0.99 and attained["5.weight"] > 0.99


def test_a_model_whose_bounds_need_a_weight_has_no_constants() -> None:
    model = gated()
    assert bounds(nn.Sequential(dn.BallProjection(1.0), nn.Linear(6, 4))) is not None
    assert bounds(nn.Sequential(*model, nn.ReLU(), nn.Linear(4, 4))) is None
    del model[2]  # the first gradient ball
    assert bounds(model) is None


def test_a_tied_weight_keeps_its_one_name() -> None:
    model = gated()
    model[5] = nn.Linear(8, 8)
    model.insert(6, dn.GradientBall(0.25))
    model.insert(7, dn.BallProjection(2.0))
    model.insert(8, model[5])
    model[12] = nn.Linear(8, 4)
    found = bounds(model)
    assert found is not None and found["5.weight"] >= 2 * 0.25 * 2.0 and "8.weight" not in found


class Held(nn.Module):
    """Multiplies by a plain tensor attribute, which anyone may change in place."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.ones(6)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def test_tensors_that_are_not_parameters_are_unknown_too() -> None:
    below = nn.Sequential(dn.BallProjection(1.0), Held(), nn.Linear(6, 4))
    assert bounds(below) is None
    assert bounds(nn.Sequential(Held(), dn.BallProjection(1.0), nn.Linear(6, 4))) is not None


class Peeking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def test_a_rule_that_reads_a_weight_by_itself_gives_no_constant(rules_as_before: None) -> None:
    @dplip.rule(Peeking)
    def peeking(module: Peeking, x: Norms) -> tuple[Norms, object]:
        largest = float(module.weight.detach().abs().max())
        return x * largest, lambda v: ((v * largest,), {"weight": Norms(x.shape, l2=x.l2 * v.linf)})

    model = nn.Sequential(dn.BallProjection(1.0), Peeking(), nn.Linear(6, 4))
    assert bounds(model) is None
    assert dplip.sensitivity(model, CrossEntropy(), (6,))["1.weight"] > 0


def test_the_constants_follow_the_loss_and_the_mode() -> None:
    run = private(gated(), loss=CrossEntropy())
    whole = run.optimizer.sensitivities()["9.weight"]
    run.loss.max_gradient = 0.1
    assert run.optimizer.sensitivities()["9.weight"] == pytest.approx(whole * 0.1 / math.sqrt(2))
    run.model[2].radius = 0.05
    before = run.optimizer.sensitivities()["1.weight"]
    assert before == pytest.approx(3.0 * 0.05, rel=1e-3)
    run.model.eval()  # the gradient balls are open now
    for p in run.model.parameters():
        p.data.mul_(100)
    assert run.optimizer.sensitivities()["1.weight"] > 10 * before
