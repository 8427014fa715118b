"""A step is charged before its noise is drawn, and not taken where it is not granted."""

import pytest
import torch
from helpers.models import built, plain
from helpers.runs import Handed, X, Y, private

from dplip.accounting import GaussianEvent
from dplip.errors import BudgetExceededError, ConfigurationError


def test_a_step_is_charged_before_its_noise_is_drawn():
    order = []

    def charge(event: GaussianEvent) -> None:
        order.append(("charged", len(run.noise.draws)))

    run = private(built("plain")[0], charge=charge)
    run.step(X, Y)
    run.step(X, Y)
    assert order == [("charged", 0), ("charged", 4)]


def test_a_step_that_is_not_granted_draws_no_noise_and_moves_nothing():
    def refuse(event: GaussianEvent) -> None:
        raise BudgetExceededError("spent")

    model = built("plain")[0]
    run = private(model, charge=refuse, optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    run.backward(X, Y)
    before, gradients = run.weights(), run.released()
    with pytest.raises(BudgetExceededError):
        run.optimizer.step()
    assert not run.noise.draws and not run.optimizer.state
    assert all(torch.equal(before[n], w) for n, w in run.weights().items())
    assert all(torch.equal(gradients[n], g) for n, g in run.released().items())


def test_the_event_charged_holds_the_rate_of_the_loader_and_the_multiplier_of_the_noise():
    run = private(plain(), noise_multiplier=1.3, batches=Handed(sample_rate=0.01))
    run.step(X, Y)
    assert run.charged == [GaussianEvent(1.3, 0.01)]
    assert run.optimizer.noise_multiplier == 1.3
    with pytest.raises(AttributeError):
        run.optimizer.noise_multiplier = 0.1


def test_a_loader_that_changes_its_rate_is_refused():
    run = private(plain(), batches=Handed(sample_rate=0.01))
    run.step(X, Y)
    run.batches.sample_rate = 0.5
    with pytest.raises(ConfigurationError, match="when this optimizer was made"):
        run.step(X, Y)
    assert [event.sample_rate for event in run.charged] == [0.01]
