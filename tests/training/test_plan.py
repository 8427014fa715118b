"""The plan is known before anything is spent, and is what a fit spends."""

import math

import pytest
import torch
from helpers.epsilons import DELTA
from helpers.runs import examples, interrupted
from helpers.trainers import plain_seeded, trainer, weights

import dplip
from dplip.accounting import Budget, GaussianEvent
from dplip.errors import BudgetExceededError


def test_the_plan_is_known_before_anything_is_spent_and_is_what_fit_spends():
    run = trainer()
    before = weights(run)
    plan = run.plan()
    assert run.accountant.num_steps == 0 and run.get_epsilon() == 0
    assert all(torch.equal(a, b) for a, b in zip(before, weights(run), strict=True))
    assert (plan.sample_rate, plan.steps, plan.expected_batch_size, plan.public_size) == (0.25, 16, 20.0, 80)
    assert (plan.delta, plan.accountant, plan.neighboring) == (DELTA, "rdp", "add_remove")
    assert plan.event == GaussianEvent(plan.noise_multiplier, 0.25)
    assert 3.95 < plan.epsilon <= 4.0
    declared = dplip.sensitivity(run.model.train(), run.loss, (6,))
    assert all(1 < bound / declared[name] < 1.001 for name, bound in plan.sensitivities.items())  # of a sum in float32
    run.fit()
    assert run.accountant.history == [(plan.noise_multiplier, 0.25, 16)]
    assert run.get_epsilon() == run.get_epsilon(delta=DELTA) == plan.epsilon
    assert run.get_epsilon(delta=1e-3) < plan.epsilon


def test_the_plan_prints_every_number():
    plan = trainer().plan()
    text = str(plan)
    for value in ("4 at delta 1e-05", f"{plan.noise_multiplier:.4f}", "16", "0.25", "rdp", "add_remove", "1.weight"):
        assert value.removeprefix("4 at") in text
    assert f"{plan.epsilon:.4f}" in text


def test_fit_returns_the_trainer():
    run = trainer(epochs=1)
    assert run.fit() is run


def test_a_second_fit_is_refused_and_neither_spends_nor_moves_anything():
    run = trainer().fit()
    spent, held = run.get_epsilon(), weights(run)
    with pytest.raises(BudgetExceededError):
        run.fit()
    assert run.get_epsilon() == spent and run.accountant.num_steps == 16
    assert all(torch.equal(a, b) for a, b in zip(held, weights(run), strict=True))


@pytest.mark.parametrize("budget", [math.inf, 100.0])
def test_a_second_fit_takes_no_further_step_even_where_the_budget_has_room(budget):
    """Without a target, or with steps so cheap that one more stays within it, the plan is the limit."""
    run = trainer(noise_multiplier=1.0)
    run._run._budget = Budget(budget, DELTA)
    run.fit()
    spent = run.get_epsilon()
    with pytest.raises(BudgetExceededError):
        run.fit()
    assert run.accountant.num_steps == run.steps
    assert run.get_epsilon() == spent


def test_an_interrupted_fit_goes_on_where_it_stopped():
    run = interrupted(trainer(), 6)
    assert run.accountant.num_steps == 6
    run.fit()
    assert run.accountant.num_steps == 16
    assert run.get_epsilon() <= 4.0


def test_replace_one_needs_more_noise_for_one_epsilon_and_less_than_twice_as_much():
    one, two = trainer().plan(), trainer(neighboring="replace_one").plan()
    assert one.epsilon == pytest.approx(two.epsilon, rel=0.01)
    assert 0.5 * one.noise_multiplier < two.noise_multiplier < 0.95 * one.noise_multiplier  # of twice the sensitivity
    assert two.sensitivities.total == pytest.approx(2 * one.sensitivities.total)


@pytest.mark.parametrize("count", [79, 80, 81])
def test_a_neighbour_of_the_data_is_trained_with_the_same_constants(count):
    run = trainer(train_dataset=examples(count), public_size=80)
    reference = trainer(public_size=80)
    for name in ("noise_multiplier", "sample_rate", "steps", "expected_batch_size", "public_size", "epsilon"):
        assert getattr(run.plan(), name) == getattr(reference.plan(), name)
    assert dict(run.plan().sensitivities) == dict(reference.plan().sensitivities)
    assert run.optimizer.expected_batch_size == 20.0
    assert run.report()["privacy"]["public_size"] == 80


def test_physical_batches_give_the_run_of_the_whole_batches():
    # So little noise that its scale, which grows with the rounding of the parts' sums, does not show.
    runs = (trainer(plain_seeded(), seed=3, max_physical_batch_size=m, noise_multiplier=1e-4) for m in (None, 3))
    whole, parts = (run.fit() for run in runs)
    assert whole.accountant.history == parts.accountant.history
    for a, b in zip(weights(whole), weights(parts), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_seeded_run_is_repeatable_and_its_report_says_so():
    runs = [trainer(plain_seeded(), seed=3).fit() for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(weights(runs[0]), weights(runs[1]), strict=True))
    assert runs[0].report()["privacy"]["seeded"] is True
    secret = [trainer(plain_seeded()) for _ in range(2)]
    for run in secret:
        torch.manual_seed(0)
        run.fit()
    assert not torch.equal(weights(secret[0])[0], weights(secret[1])[0])
    assert secret[0].report()["privacy"]["seeded"] is False


def test_no_noise_spends_everything_and_learns():
    run = trainer(noise_multiplier=0.0, epochs=20, seed=0).fit()
    assert run.get_epsilon() == math.inf
    assert run.evaluate()["accuracy"] > 0.9
