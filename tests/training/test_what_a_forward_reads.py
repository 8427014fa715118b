"""What a forward reads that is no attribute: bounds follow it, and it must still hold at the step."""

import os

import pytest
import torch
from helpers.runs import X, Y, private
from torch import Tensor, nn

import dplip
import dplip.nn as dn
from dplip.errors import ConfigurationError, UnboundedOperationError


class Settings:
    scale, hook = 1.0, False


def surroundings(how: str) -> nn.Module:
    """A model that multiplies its scores by a number from somewhere."""
    held = {"closure": 1.0}

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(dn.BallProjection(1.0), nn.Linear(6, 4))
            self.register_buffer("gain", torch.ones(()))
            self.held = lambda: held["closure"]

        def number(self) -> float:
            if how == "weight":
                return 1 / float(dict(self.named_parameters())["layers.1.weight"].detach().norm())
            if how == "buffer":
                return float(dict(self.named_buffers())["gain"])
            if how == "state_dict":
                return float(self.state_dict()["gain"])
            if how == "environment":
                return float(os.environ.get("DPLIP_TEST_SCALE", "1"))
            if how == "closure":
                return self.held()
            return Settings.scale

        def forward(self, x: Tensor) -> Tensor:
            z = self.layers(x)
            if how == "hook" and Settings.hook:
                z.register_hook(lambda g: 20 * g)
            if how == "gradient mode":
                return z * (20.0 if torch.is_grad_enabled() else 1.0)
            return z * self.number()

    def change(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
        held["closure"] = 20.0
        monkeypatch.setattr(Settings, "scale", 20.0)
        monkeypatch.setenv("DPLIP_TEST_SCALE", "20")

    net = Net()
    net.change = change
    return net


@pytest.mark.parametrize("how", ["weight", "buffer", "state_dict", "gradient mode"])
def test_a_number_read_off_a_weight_a_buffer_or_the_mode_is_refused(how):
    with pytest.raises(UnboundedOperationError, match="other results than its trace"):
        private(surroundings(how))


@pytest.mark.parametrize("how", ["global", "environment", "closure"])
def test_the_bounds_follow_what_the_forward_reads_that_is_no_attribute(how, monkeypatch):
    model = surroundings(how)
    run = private(model)
    before = run.optimizer.sensitivities().total
    model.change(model, monkeypatch)
    assert run.optimizer.sensitivities().total == pytest.approx(20 * before, rel=1e-3)
    run.backward(X, Y)
    run.optimizer.step()


@pytest.mark.parametrize("how", ["global", "environment", "closure"])
def test_what_the_forward_read_must_still_hold_at_the_step(how, monkeypatch):
    model = surroundings(how)
    run = private(model)
    with pytest.MonkeyPatch.context() as meanwhile:
        model.change(model, meanwhile)
        run.backward(X, Y)
    if how == "closure":
        model.held = lambda: 1.0
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ConfigurationError, match="has changed since its gradient"):
        run.optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_gradient_that_changes_alone_is_seen(monkeypatch):
    model = surroundings("hook")
    run = private(model)
    monkeypatch.setattr(Settings, "hook", True)
    run.backward(X, Y)
    with pytest.raises((ConfigurationError, UnboundedOperationError)):
        run.optimizer.step()


@pytest.mark.parametrize("call", [{"scale": 50.0}, {"x": X}, (X, 50.0)])
def test_further_arguments_of_the_model_are_refused(call):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(dn.BallProjection(1.0), nn.Linear(6, 4))

        def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
            return self.layers(x) * scale

    model = Net()
    run = private(model)
    run.batches.give(len(X))
    outputs = model(*call) if isinstance(call, tuple) else model(**{"x": X, **call})
    run.loss(outputs, Y).backward()
    with pytest.raises(ConfigurationError, match=r"Call model\(x\)"):
        run.optimizer.step()


def test_the_bound_of_a_loss_must_still_hold_at_the_step():
    class Public(dplip.losses.Huber):
        def logit_gradient(self, shape):
            return super().logit_gradient(shape) * Settings.scale

    model = nn.Sequential(dn.BallProjection(1.0), nn.Linear(6, 4))
    run, targets = private(model, loss=Public()), torch.zeros(len(X), 4)
    before = run.optimizer.sensitivities().total
    with pytest.MonkeyPatch.context() as meanwhile:
        meanwhile.setattr(Settings, "scale", 20.0)
        assert run.optimizer.sensitivities().total > 19 * before
        run.backward(X, targets)
    with pytest.raises(ConfigurationError, match="has changed since its gradient"):
        run.optimizer.step()
