"""Gradients that the bounds do not cover are refused, and nothing has happened."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers.misuses import REFUSED, a_layer_called_by_itself, other_loss, right, two_batches_in_one_step
from helpers.models import Pooled, built
from helpers.runs import X, Y, private
from torch import nn

import dplip.nn as dn
from dplip.errors import ConfigurationError, DPLipError
from dplip.losses import CrossEntropy


@pytest.mark.parametrize("misuse", REFUSED, ids=lambda f: f.__name__)
def test_a_gradient_that_the_bounds_do_not_cover_is_refused_and_nothing_is_spent_or_changed(misuse):
    model = built("plain")[0]
    run = private(model, optimizer=torch.optim.Adam(model.parameters(), lr=0.1))
    run.batches.give(len(X))
    before, released = run.weights(), run.released()
    with pytest.raises(DPLipError) as refusal:
        misuse(run)
        before, released = run.weights(), run.released()
        run.optimizer.step()
    assert len(str(refusal.value)) > 40
    assert not run.charged and not run.noise.draws and not run.optimizer.state
    for name, weight in run.weights().items():
        assert torch.equal(weight.nan_to_num(0.5), before[name].nan_to_num(0.5))
    for name, gradient in run.released().items():
        assert torch.equal(gradient.nan_to_num(0.5), released[name].nan_to_num(0.5))


def test_after_a_refusal_the_same_batch_can_be_done_right():
    run = private(built("plain")[0])
    run.batches.give(len(X))
    other_loss(run)
    with pytest.raises(ConfigurationError, match="declared loss"):
        run.optimizer.step()
    run.optimizer.zero_grad()
    right(run).backward()
    run.optimizer.step()
    assert len(run.charged) == 1


def test_a_sum_of_the_values_is_the_loss():
    model = built("plain")[0]
    run = private(model, noise_multiplier=0.0)
    run.batches.give(len(X))
    run.loss(model(X), Y, reduction="none").sum().backward()
    run.optimizer.step()
    assert len(run.charged) == 1


def test_gradients_left_from_before_the_model_was_made_private_are_not_released():
    model = built("plain")[0]
    (1e3 * F.cross_entropy(model(X), Y, reduction="sum")).backward()
    run = private(model, noise_multiplier=0.0)
    run.batches.give(len(X))
    right(run).backward()  # without zero_grad() first
    run.optimizer.step()
    released = run.released()
    model.zero_grad()
    CrossEntropy()(model(X), Y).backward()
    for name, gradient in released.items():
        torch.testing.assert_close(gradient, model.get_parameter(name).grad / 10.0)


def test_examples_of_another_shape_than_the_declared_one_are_refused():
    """A convolution takes images of every size, but its bounds are those of one size."""
    run = private(Pooled(), input_shape=(1, 4, 4))
    run.batches.give(3)
    with pytest.raises(ConfigurationError, match="shape"):
        run.loss(run.model(torch.randn(3, 1, 16, 16)), torch.tensor([0, 1, 2])).backward()
        run.optimizer.step()
    assert not run.charged


def test_a_closure_is_refused():
    run = private(built("plain")[0])
    run.backward(X, Y)
    with pytest.raises(ConfigurationError, match="closure"):
        run.optimizer.step(lambda: right(run))
    assert not run.charged


def test_an_input_that_is_not_a_number_is_refused_unless_the_model_neutralises_it():
    broken = X.clone()
    broken[0, 0] = math.nan
    run = private(nn.Sequential(dn.Clamp(-1.0, 1.0), nn.Linear(6, 4)))
    run.backward(broken, Y)
    with pytest.raises(ConfigurationError, match="BallProjection"):
        run.optimizer.step()
    assert not run.charged
    neutral = private(nn.Sequential(dn.BallProjection(1.0), nn.Linear(6, 4)))
    neutral.step(broken, Y)
    assert all(g.isfinite().all() for g in neutral.released().values())


def test_a_hook_on_the_output_is_named_even_if_it_does_nothing():
    run = private(built("plain")[0])
    run.batches.give(len(X))
    z = run.model(X)
    z.register_hook(lambda gradient: None)
    run.loss(z, Y).backward()
    with pytest.raises(ConfigurationError, match="a hook is registered on the model's output"):
        run.optimizer.step()


def test_two_batches_in_one_step_are_named():
    run = private(built("plain")[0])
    run.batches.give(len(X))
    two_batches_in_one_step(run)
    with pytest.raises(ConfigurationError, match="handed out 2 batches since the last step"):
        run.optimizer.step()


def test_a_part_that_was_called_by_itself_is_named():
    run = private(built("plain")[0])
    run.batches.give(len(X))
    a_layer_called_by_itself(run)
    with pytest.raises(ConfigurationError, match="a part of the model, Linear, was called by itself"):
        run.optimizer.step()


def test_evaluation_between_steps_is_not_mistaken_for_training():
    run = private(built("plain")[0])
    run.batches.give(len(X))
    run.optimizer.zero_grad()
    value = right(run)
    with torch.no_grad():
        run.loss(run.model(X[:3]), Y[:3])
    value.backward()
    run.optimizer.step()
    assert len(run.charged) == 1


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_an_adversarial_search_beside_the_loss_is_not_mistaken_for_training(mode):
    """Its gradient ends at the inputs, in whatever mode and of whatever loss, and nothing of it is released."""
    model = nn.Sequential(dn.BallProjection(2.0), nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 4))
    run = private(model)
    run.batches.give(len(X))
    run.optimizer.zero_grad()
    x = X.clone().requires_grad_()
    model.train(mode)
    (slope,) = torch.autograd.grad(F.cross_entropy(model(x), Y), x)
    model.train()
    value = run.loss(model((x + slope.sign()).detach()), Y)
    torch.autograd.grad(F.cross_entropy(model(x), Y), x)
    value.backward()
    run.optimizer.step()
    assert len(run.charged) == 1


def test_a_foreign_loss_after_an_adversarial_search_is_refused():
    run = private(built("plain")[0])
    run.batches.give(len(X))
    x = X.clone().requires_grad_()
    torch.autograd.grad(run.model(x).sum(), x)
    z = run.model(x)
    (run.loss(z, Y) + z.sum()).backward()
    with pytest.raises(ConfigurationError, match="something else"):
        run.optimizer.step()
