"""The private optimizer is a torch optimizer to torch: schedules, state, hooks and copies."""

import copy
import io
import warnings

import pytest
import torch
import torch.nn.functional as F
from helpers.models import built, orthogonal, plain
from helpers.runs import X, Y, private
from torch import nn

import dplip
import dplip.nn as dn
from dplip.losses import CrossEntropy, Huber
from dplip.training import DPLipOptimizer


def test_without_noise_a_step_is_that_of_the_wrapped_optimizer_on_the_divided_sum():
    def optimizers(parameters):
        yield torch.optim.SGD(parameters(), lr=0.1)
        yield torch.optim.SGD(parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
        yield torch.optim.Adam(parameters(), lr=0.05)
        yield torch.optim.AdamW(parameters(), lr=0.05, weight_decay=0.1)
        yield torch.optim.RMSprop(parameters(), lr=0.01)

    start = built("plain")[0]
    for index in range(5):
        model, twin = copy.deepcopy(start), copy.deepcopy(start)
        inner = list(optimizers(model.parameters))[index]
        vanilla = list(optimizers(twin.parameters))[index]
        run = private(model, noise_multiplier=0.0, optimizer=inner)
        for batch in range(4):
            x, y = X[batch::4], Y[batch::4]
            run.step(x, y)
            vanilla.zero_grad()
            (F.cross_entropy(twin(x), y, reduction="sum") / 10.0).backward()
            vanilla.step()
        for name, weight in run.weights().items():
            torch.testing.assert_close(weight, twin.get_parameter(name), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "NAdam"])
def test_every_torch_optimizer_takes_private_steps(optimizer):
    model = orthogonal()
    run = private(model, optimizer=getattr(torch.optim, optimizer)(model.parameters(), lr=0.1))
    before = run.weights()
    for _ in range(3):
        run.step(X, Y)
    assert all(not torch.equal(before[n], w) and w.isfinite().all() for n, w in run.weights().items())
    assert len(run.charged) == 3
    assert dplip.lipschitz(model, (6,)) < 1.001  # the constraints hold again after the step


def test_hooks_of_steps_work_as_on_any_optimizer():
    run, seen = private(plain()), []
    run.optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    run.optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    run.step(X, Y)
    assert seen == ["before", "after"]


# ----------------------------------------------------------------------------------------- a torch optimizer to torch


SCHEDULERS = {
    "StepLR": lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.5),
    "LambdaLR": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "CosineAnnealingLR": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 5),
    "OneCycleLR": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.3, total_steps=6),
    "SequentialLR": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [torch.optim.lr_scheduler.ConstantLR(o, 0.1, 2), torch.optim.lr_scheduler.ExponentialLR(o, 0.5)],
        milestones=[2],
    ),
}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_schedulers_work_around_the_private_optimizer_and_around_the_wrapped_one(name, kind):
    rates = []
    for target in ("vanilla", "wrapped", "private"):
        model = built("plain")[0]
        momentum = {"momentum": 0.9} if kind == "SGD" else {}
        inner = getattr(torch.optim, kind)(model.parameters(), lr=0.1, **momentum)
        run = private(model, optimizer=inner, noise_multiplier=0.0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # torch warns where it believes that no step was taken
            scheduler = SCHEDULERS[name](run.optimizer if target == "private" else inner)
            found = []
            for _ in range(5):
                if target == "vanilla":
                    run.optimizer._only.open = True
                    inner.step()
                else:
                    run.step(X, Y)
                found.append(inner.param_groups[0]["lr"])
                assert run.optimizer.param_groups[0]["lr"] == found[-1]
                scheduler.step()
        rates.append(found)
    assert rates[0] == rates[1] == rates[2]
    assert len(set(rates[0])) > 1


def test_the_state_of_the_optimizer_survives_a_round_trip():
    model = built("plain")[0]
    run = private(model, noise_multiplier=0.0, optimizer=torch.optim.Adam(model.parameters(), lr=0.05))
    for _ in range(3):
        run.step(X, Y)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": run.optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = built("plain", seed=9)[0]
    again.load_state_dict(saved["model"])
    resumed = private(again, noise_multiplier=0.0, optimizer=torch.optim.Adam(again.parameters(), lr=0.9))
    resumed.optimizer.load_state_dict(saved["optimizer"])
    assert resumed.optimizer.param_groups[0]["lr"] == 0.05
    for each in (run, resumed):
        each.step(X, Y)
    for name, weight in run.weights().items():
        torch.testing.assert_close(weight, resumed.weights()[name])
    resumed.optimizer.param_groups[0]["lr"] = 0.0
    held = resumed.weights()
    resumed.step(X, Y)
    assert all(torch.equal(held[n], w) for n, w in resumed.weights().items())


def test_a_copy_of_a_trained_model_is_an_ordinary_model():
    run = private(orthogonal(), optimizer=None)
    run.step(X, Y)
    duplicate = copy.deepcopy(run.model)
    file = io.BytesIO()
    torch.save(run.model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for other in (duplicate, loaded):
        torch.testing.assert_close(other(X), run.model(X))
        optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
        F.cross_entropy(other(X), Y).backward()
        optimizer.step()
        assert dplip.certify(other, X).shape == (40,)
        dplip.sensitivity(other, CrossEntropy(), (6,))
    run.step(X, Y)  # and nothing of that is held against the original
    assert len(run.charged) == 2


def test_the_state_dict_of_a_private_model_is_that_of_stock_layers():
    run = private(orthogonal())
    run.step(X, Y)
    stock = nn.Sequential(nn.Identity(), nn.Linear(6, 8, bias=False), dn.GroupSort(2), nn.Linear(8, 4, bias=False))
    stock.load_state_dict(run.model.state_dict())
    assert list(run.model.state_dict()) == ["1.weight", "3.weight"]


def test_a_model_can_be_made_private_again():
    model = built("plain")[0]
    first = private(model)
    first.step(X, Y)
    second = private(model)
    second.step(X, Y)
    assert len(second.charged) == 1
    assert len(model._forward_hooks) == 1


def test_outputs_are_not_kept_alive():
    run = private(built("plain")[0])
    for _ in range(20):
        run.step(X, Y)
    watched = list(run.model._forward_hooks.values())
    assert all(len(getattr(hook, "outputs", ())) <= 2 for hook in watched)


def test_regression_through_a_huber_loss_is_private_too():
    model = plain(classes=2)
    run = private(model, loss=Huber(0.5), optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    run.step(X, torch.randn(40, 2))
    assert len(run.charged) == 1


def test_the_optimizer_is_a_torch_optimizer_and_says_its_noise():
    run = private(plain(), noise_multiplier=1.5)
    assert isinstance(run.optimizer, torch.optim.Optimizer) and isinstance(run.optimizer, DPLipOptimizer)
    assert "1.5" in repr(run.optimizer)
