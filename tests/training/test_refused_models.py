"""Models and optimizers that cannot be bounded or accounted are refused before training."""

import copy
import math
import pickle

import pytest
import torch
from helpers.models import plain
from helpers.runs import X, Y, private
from torch import Tensor, nn

import dplip.nn as dn
from dplip.errors import ConfigurationError, UnboundedOperationError


def test_an_optimizer_over_other_parameters_than_the_models_is_refused():
    model, stranger = plain(), nn.Parameter(torch.zeros(3))
    with pytest.raises(ConfigurationError, match=r"3\.weight"):
        private(model, optimizer=torch.optim.SGD(model[1].parameters(), lr=0.1))
    with pytest.raises(ConfigurationError, match="not the model's"):
        private(model, optimizer=torch.optim.SGD([*model.parameters(), stranger], lr=0.1))
    run = private(model)
    with pytest.raises(ConfigurationError, match="already private"):
        private(model, optimizer=run.optimizer)
    with pytest.raises(ConfigurationError, match="add_param_group"):
        run.optimizer.add_param_group({"params": [stranger]})


@pytest.mark.parametrize(
    "arguments, error",
    [
        ({"neighboring": "swap"}, ConfigurationError),
        ({"noise_multiplier": -1.0}, ConfigurationError),
        ({"noise_multiplier": math.nan}, ConfigurationError),
        ({"loss": nn.CrossEntropyLoss()}, ConfigurationError),
        ({"input_shape": (5,)}, ConfigurationError),
    ],
)
def test_what_cannot_be_bounded_or_accounted_is_refused_before_training(arguments, error):
    with pytest.raises(error):
        private(plain(), **arguments)


def test_a_model_without_a_bound_is_refused_before_training_and_left_untouched():
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 4))
    with pytest.raises(UnboundedOperationError, match="BatchNorm"):
        private(model)
    assert not model._forward_hooks


def test_frozen_parameters_are_neither_noised_nor_moved():
    model = plain()
    model[1].requires_grad_(False)
    run = private(model, optimizer=torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1))
    before = run.weights()
    run.step(X, Y)
    moved = {n for n, w in run.weights().items() if not torch.equal(w, before[n])}
    assert moved == {"3.weight", "3.bias"}
    assert list(run.optimizer.sensitivities()) == ["3.weight", "3.bias"]


def test_a_forward_that_counts_its_calls_is_refused():
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ball, self.linear, self.calls = dn.BallProjection(1.0), nn.Linear(6, 4), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.linear(self.ball(x) * (100.0 if self.calls < 1000 else 1.0))

    with pytest.raises(UnboundedOperationError, match="changes the model's attributes"):
        private(Counting())


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_copy_is_refused_and_breaks_nothing(copied):
    run = private(plain())
    with pytest.raises(ConfigurationError, match="a copy would take steps that no budget counts"):
        copied(run.optimizer)
    run.step(X, Y)
    private(plain()).step(X, Y)


def test_an_optimizer_of_several_evaluations_and_a_model_of_frozen_weights_are_refused():
    model = plain()
    with pytest.raises(ConfigurationError, match="LBFGS"):
        private(model, optimizer=torch.optim.LBFGS(model.parameters()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ConfigurationError, match="nothing to train"):
        private(model.requires_grad_(False), optimizer=optimizer)
