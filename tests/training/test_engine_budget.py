"""The budget of an engine: kept over epochs and over runs."""

import math

import pytest
import torch
from helpers.engines import epoch, parts
from helpers.epsilons import DELTA
from helpers.models import plain

import dplip
from dplip import PrivacyEngine
from dplip.accounting import Budget
from dplip.errors import BudgetExceededError, ConfigurationError


def test_the_prv_accountant_reports_no_more_than_the_rdp_one():
    spent = []
    for accountant in ("rdp", "prv"):
        given = parts()
        engine = PrivacyEngine(accountant=accountant)
        epoch(*engine.make_private(**given, noise_multiplier=1.0), given["criterion"])
        spent.append(engine.get_epsilon(DELTA))
    assert 0.5 * spent[0] < spent[1] < spent[0]


def test_a_budget_is_spent_in_the_planned_epochs_and_never_exceeded():
    given = parts()
    engine = PrivacyEngine()
    model, optimizer, loader = engine.make_private_with_epsilon(
        **given, target_epsilon=3.0, target_delta=DELTA, epochs=5
    )
    for _ in range(5):
        epoch(model, optimizer, loader, given["criterion"])
    assert engine.accountant.num_steps == 20
    spent = engine.get_epsilon(DELTA)
    assert 2.95 < spent <= 3.0
    weights = [p.clone() for p in model.parameters()]
    with pytest.raises(BudgetExceededError, match="20 steps"):
        epoch(model, optimizer, loader, given["criterion"])
    assert engine.get_epsilon(DELTA) == spent
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))


def test_what_other_runs_of_the_engine_spend_counts_against_the_budget():
    given = parts()
    engine = PrivacyEngine()
    model, optimizer, loader = engine.make_private_with_epsilon(
        **given, target_epsilon=3.0, target_delta=DELTA, epochs=5
    )
    epoch(model, optimizer, loader, given["criterion"])
    other = parts(plain())
    epoch(*engine.make_private(**other, noise_multiplier=0.5), other["criterion"])
    spent = engine.get_epsilon(DELTA)
    assert spent > 3.0  # the other run has no budget of its own
    with pytest.raises(BudgetExceededError):
        epoch(model, optimizer, loader, given["criterion"])
    assert engine.get_epsilon(DELTA) == spent


def test_an_engine_that_has_spent_something_does_not_plan_a_second_budget():
    given = parts()
    engine = PrivacyEngine()
    epoch(*engine.make_private(**given, noise_multiplier=1.0), given["criterion"])
    with pytest.raises(ConfigurationError, match="new PrivacyEngine"):
        engine.make_private_with_epsilon(**parts(), target_epsilon=3.0, target_delta=DELTA, epochs=1)


@pytest.mark.parametrize(
    "arguments",
    [
        {"target_epsilon": 0.0},
        {"target_epsilon": -1.0},
        {"target_epsilon": math.nan},
        {"target_delta": 0.0},
        {"target_delta": 1.0},
        {"epochs": 0},
        {"epochs": 1.5},
        {"noise_multiplier": 1.0},
    ],
)
def test_a_budget_that_is_none_is_refused(arguments):
    budget = {"target_epsilon": 3.0, "target_delta": DELTA, "epochs": 2, **arguments}
    with pytest.raises(ConfigurationError, match=next(iter(arguments)).replace("target_", "")):
        PrivacyEngine().make_private_with_epsilon(**parts(), **budget)


def test_a_budget_may_be_given_to_a_run_of_chosen_noise():
    given = parts()
    engine = PrivacyEngine()
    budget = Budget(2.0, DELTA)
    model, optimizer, loader = engine.make_private(**given, noise_multiplier=3.0, budget=budget)
    with pytest.raises(BudgetExceededError):
        for _ in range(100):
            epoch(model, optimizer, loader, given["criterion"])
    assert 0 < engine.get_epsilon(DELTA) <= 2.0
    one_more = engine.accountant.epsilon_after(optimizer.event, 1, DELTA)
    assert one_more > 2.0  # it was refused because it would have been too much, and not before


@pytest.mark.parametrize("steps", [1, 7, 20])
def test_a_budget_never_lets_a_step_through_that_the_accountant_would_not(steps):
    event = dplip.accounting.GaussianEvent(2.0, 0.1)
    accountant = dplip.create_accountant("rdp")
    budget = Budget(accountant.epsilon_after(event, steps, DELTA) * (1 + 1e-9), DELTA)
    for _ in range(steps):
        budget.require(accountant, event)
        accountant.step(noise_multiplier=2.0, sample_rate=0.1)
    with pytest.raises(BudgetExceededError, match=f"{steps} steps"):
        budget.require(accountant, event)


def test_two_runs_of_one_engine_add_up():
    engine = PrivacyEngine()
    for noise_multiplier in (1.0, 2.0):
        given = parts()
        epoch(*engine.make_private(**given, noise_multiplier=noise_multiplier), given["criterion"])
    assert engine.accountant.history == [(1.0, 0.25, 4), (2.0, 0.25, 4)]
    assert engine.get_epsilon(DELTA) > dplip.create_accountant("rdp").epsilon_after(
        dplip.accounting.GaussianEvent(1.0, 0.25), 4, DELTA
    )
