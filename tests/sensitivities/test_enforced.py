"""Sensitivity under autocast: what layers enforce, and nothing that is propagated."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.gated import X
from helpers.half import HALF, half, length, stock
from helpers.runs import private
from torch import nn

import dplip
import dplip.nn as dn
from dplip.audit.gradient import gradient_search
from dplip.errors import UnboundedOperationError
from dplip.losses import CrossEntropy
from dplip.norms import Norms
from dplip.propagation import Walk
from dplip.sensitivities import enforced_sensitivity
from dplip.sensitivities.propagated import constant_sensitivity


@HALF
def test_no_ascent_finds_a_gradient_beyond_what_is_enforced(dtype):
    model = stock()
    declared = enforced_sensitivity(Walk(model, (6,)))
    assert all(0.5 <= bound < 0.5 * (1 + 1e-4) for bound in declared.values())
    assert list(declared) == list(dict(model.named_parameters()))
    for scale in (1e-3, 1.0, 100.0):
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(scale)
        with half(dtype):
            found = gradient_search(model, CrossEntropy(), (6,), starts=6, steps=6)
        assert found.tried > 30
        assert all(found.attained[name] <= bound for name, bound in declared.items())
        with torch.no_grad():
            for p in model.parameters():
                p.div_(scale)
        if scale == 1.0:
            assert all(found.attained[name] > 0.99 * declared[name] for name in declared if name[0] in "46")


@pytest.mark.parametrize("kind", ["equal", "near", "positive", "opposed"])
def test_neighbouring_sums_at_batch_65536_lie_within_the_sensitivity(kind):
    batch, generator = 65_536, torch.Generator().manual_seed(0)
    model = dn.bound_gradients(nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 3)), 0.3)
    run = private(model, input_shape=(16,), half_precision=True)
    run.batches.expected_batch_size = float(batch)
    x = 2 * torch.rand(1, 16, generator=generator).expand(batch, 16)
    if kind != "equal":
        x = (
            9 * torch.rand(batch, 16, generator=generator)
            if kind == "positive"
            else x + 0.1 * torch.rand(batch, 16, generator=generator)
        )
    y = torch.full((batch,), 2) if kind != "opposed" else torch.arange(batch) % 3

    def summed(without: int | None = None) -> dict[str, torch.Tensor]:
        kept = torch.arange(batch) != (-1 if without is None else without)
        model.zero_grad()
        with half():
            run.loss(model(x[kept]), y[kept]).backward()
        return {name: p.grad.double() for name, p in model.named_parameters()}

    declared, whole = run.optimizer.sensitivities(), summed()
    for without in (0, 20_000, batch - 1):
        moved = {name: length(whole[name] - total) for name, total in summed(without).items()}
        assert all(moved[name] <= declared[name] for name in declared)
        assert max(moved[name] / declared[name] for name in declared) > 0.54  # the rest is for rounding


def test_a_bound_that_is_propagated_is_not_used():
    """It does not hold: the loss's gradient, of norm 1 before it is rounded, exceeds 1 after it."""
    model = nn.Sequential(dn.BallProjection(1.0), dn.BoundedLinear(6, 4, radius=2.0))
    propagated = constant_sensitivity(Walk(model, (6,)), CrossEntropy(normalize=True))
    assert propagated["1.weight"] < 1.0001 and propagated["1.bias"] < 1.0001
    run = private(model, loss=CrossEntropy(normalize=True), half_precision=True)
    declared = run.optimizer.sensitivities()
    assert all(2.0 <= bound < 2.001 for bound in declared.values())
    longest = 0.0
    for x, y in zip(X.repeat(10, 1), torch.arange(120) % 4, strict=True):
        model.zero_grad()
        with half():
            run.loss(model(x[None]), y[None]).backward()
        longest = max(longest, length(model.get_parameter("1.bias").grad))
        with torch.no_grad():
            model[1].weight.mul_(1.03)
    assert propagated["1.bias"] * 1.001 < longest <= declared["1.bias"]


def test_shared_layers_add_up_and_frozen_ones_need_no_bound():
    layer = dn.BoundedLinear(6, 6, radius=0.5)
    model = nn.Sequential(nn.Linear(6, 6).requires_grad_(False), layer, nn.Tanh(), layer)
    declared = enforced_sensitivity(Walk(model, (6,)))
    assert list(declared) == ["1.weight", "1.bias"]
    assert all(1.0 <= bound < 1.0001 for bound in declared.values())


class Used(nn.Module):
    """A bounded layer whose weight is used once more, outside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.ball, self.layer, self.gate = dn.BallProjection(1.0), dn.BoundedLinear(6, 6), dn.GradientBall(1.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gate(F.linear(self.ball(torch.tanh(self.layer(x))), self.layer.weight))


class Doubled(dn.BoundedLinear):
    """A subclass whose forward is its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def one_stock_layer() -> nn.Module:
    return nn.Sequential(dn.BallProjection(1.0), dn.BoundedLinear(6, 6), nn.Linear(6, 4), dn.GradientBall(1.0))


def one_in_evaluation_mode() -> nn.Module:
    model = nn.Sequential(dn.BallProjection(1.0), dn.BoundedLinear(6, 6), dn.BoundedLinear(6, 4))
    model[2].eval()
    return model


def a_subclass_with_a_rule_that_is_its_own() -> nn.Module:
    @dplip.rule(Doubled)
    def doubled(module: Doubled, x: Norms) -> tuple[Norms, Any]:
        bounds = {"weight": Norms((4, 6), l2=2.0), "bias": Norms((4,), l2=2.0)}
        return Norms((4,)), lambda v: ((Norms(x.shape),), bounds)

    return nn.Sequential(Doubled(6, 4))


@pytest.mark.parametrize("make", [one_stock_layer, a_subclass_with_a_rule_that_is_its_own])
def test_a_parameter_that_no_layer_bounds_by_itself_is_refused(make, rules_as_before):
    model = make()
    private(model)  # in float32 it is bounded
    with pytest.raises(UnboundedOperationError, match="a trainable parameter whose gradient no layer bounds by itself"):
        private(model, half_precision=True)


@pytest.mark.parametrize("make", [one_in_evaluation_mode, Used])
def test_a_weight_that_is_used_outside_of_its_layer_is_bounded_where_it_is_used(make):
    """Where propagated norms do not hold, each use counts by the radius, and no example exceeds it."""
    run = private(make(), half_precision=True)
    assert run.optimizer.enforced
    declared = run.optimizer.sensitivities()
    for x, y in zip(X, torch.arange(12) % 4, strict=True):
        run.model.zero_grad()
        with half():
            run.loss(run.model(x[None]), y[None]).backward()
        for name, p in run.model.named_parameters():
            assert 0 < length(p.grad) <= declared[name]


def test_a_subclass_without_a_rule_is_refused():
    with pytest.raises(UnboundedOperationError, match="custom autograd function"):
        private(nn.Sequential(Doubled(6, 4)), half_precision=True)
