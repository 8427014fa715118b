"""Accounting beyond Poisson and RDP: PLD, fixed-size batches, DpEvents, and the cost of choosing among runs."""

import math

import dp_accounting as dp
import pytest
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

from dplip.accounting import Accountant, GaussianEvent, fixed_size_epsilon, selection_epsilon, to_dp_event
from dplip.accounting.rdp import ORDERS
from dplip.errors import ConfigurationError

DELTA = 1e-5
INTEGERS = [float(order) for order in ORDERS if order <= 1024 and float(order).is_integer()]


def epsilon(mechanism: str, sigma: float, rate: float, steps: int) -> float:
    return Accountant(mechanism).epsilon_after(GaussianEvent(sigma, rate), steps, DELTA)


@pytest.mark.parametrize(
    "sigma, rate, steps", [(1.0, 0.01, 1000), (4.0, 1.0, 100), (0.8, 1 / 64, 48), (2.0, 0.05, 500)]
)
def test_the_three_accountants_agree_within_their_documented_gaps(sigma, rate, steps):
    rdp, prv, pld = (epsilon(mechanism, sigma, rate, steps) for mechanism in ("rdp", "prv", "pld"))
    assert pld <= prv + 1e-3 and prv - pld == pytest.approx(0.01, abs=0.003)  # PRV adds its own error bound of 0.01
    assert prv <= rdp <= 1.4 * pld


def test_pld_is_never_below_the_exact_gaussian():
    from dplip.audit.statistics import gaussian_epsilon

    for sigma, steps in ((1.0, 1), (4.0, 100), (10.0, 50)):
        exact = gaussian_epsilon(math.sqrt(steps) / sigma, DELTA)
        assert exact <= epsilon("pld", sigma, 1.0, steps) <= 1.002 * exact + 1e-3


def test_a_run_in_the_words_of_dp_accounting_costs_the_same_there():
    events = [GaussianEvent(1.0, 0.02)] * 50 + [GaussianEvent(3.0, 1.0)] * 2
    accountant = Accountant()
    for event in events:
        accountant.step(noise_multiplier=event.noise_multiplier, sample_rate=event.sample_rate)
    theirs = RdpAccountant(orders=INTEGERS)
    theirs.compose(to_dp_event(events))
    assert accountant.get_epsilon(DELTA) <= theirs.get_epsilon(DELTA) <= 1.05 * accountant.get_epsilon(DELTA)
    pld = PLDAccountant()
    pld.compose(to_dp_event(events))
    assert pld.get_epsilon(DELTA) < accountant.get_epsilon(DELTA)
    assert isinstance(to_dp_event([]), dp.NoOpDpEvent)


def test_batches_of_a_fixed_size_cost_more_than_poisson_batches():
    arguments = {"batch_size": 50, "size": 1000, "steps": 200, "delta": DELTA}
    spent = fixed_size_epsilon(noise_multiplier=2.0, **arguments)
    assert spent > 1.5 * epsilon("rdp", 2.0, 0.05, 200)
    full = fixed_size_epsilon(noise_multiplier=2.0, batch_size=1000, size=1000, steps=2, delta=DELTA)
    assert full == pytest.approx(epsilon("rdp", 2.0, 1.0, 2), rel=0.01)
    assert fixed_size_epsilon(noise_multiplier=0.0, **arguments) == math.inf
    assert fixed_size_epsilon(noise_multiplier=1.0, **{**arguments, "steps": 0}) == 0.0


@pytest.mark.parametrize(
    "change, named",
    [({"batch_size": 0}, "batch_size"), ({"batch_size": 11}, "batch_size=11"), ({"delta": 0.0}, "delta"),
     ({"noise_multiplier": -1.0}, "noise_multiplier"), ({"steps": -1}, "steps")],
)  # fmt: skip
def test_fixed_sizes_that_are_none_are_refused(change, named):
    arguments = {"noise_multiplier": 1.0, "batch_size": 5, "size": 10, "steps": 1, "delta": DELTA, **change}
    with pytest.raises(ConfigurationError, match=named):
        fixed_size_epsilon(**arguments)


@pytest.mark.parametrize("mean", [1.5, 10.0, 100.0])
@pytest.mark.parametrize("shape", [0.0, 0.5, 1.0, 2.0])
def test_choosing_among_runs_costs_what_dp_accounting_says(mean, shape):
    events = [GaussianEvent(2.0, 0.05)] * 200
    theirs = RdpAccountant(orders=INTEGERS)
    theirs.compose(dp.dp_event.RepeatAndSelectDpEvent(to_dp_event(events), mean, shape))
    spent = selection_epsilon(events, delta=DELTA, mean_runs=mean, shape=shape)
    assert 0.99 * theirs.get_epsilon(DELTA) <= spent <= theirs.get_epsilon(DELTA) + 1e-9


def test_choosing_costs_less_than_composing_and_more_than_one_run():
    events = [GaussianEvent(2.0, 0.05)] * 200
    one = epsilon("rdp", 2.0, 0.05, 200)
    assert selection_epsilon(events, delta=DELTA, mean_runs=1) == pytest.approx(one)
    spent = [selection_epsilon(events, delta=DELTA, mean_runs=mean) for mean in (1, 2, 10, 50)]
    assert spent == sorted(spent)
    assert spent[-1] < epsilon("rdp", 2.0, 0.05, 200 * 50)
    assert selection_epsilon([], delta=DELTA, mean_runs=10) == 0.0
    assert selection_epsilon([GaussianEvent(0.0, 0.5)], delta=DELTA, mean_runs=10) == math.inf


@pytest.mark.parametrize("change", [{"mean_runs": 0.5}, {"mean_runs": math.inf}, {"shape": -0.5}, {"delta": 1.0}])
def test_searches_that_are_none_are_refused(change):
    with pytest.raises(ConfigurationError, match=next(iter(change))):
        selection_epsilon([GaussianEvent(1.0, 0.1)], **{"delta": DELTA, "mean_runs": 2, **change})


@settings(max_examples=20, deadline=None)
@given(st.floats(0.5, 10), st.floats(0.01, 1), st.integers(1, 300))
def test_rdp_is_never_below_pld(sigma, rate, steps):
    pld = PLDAccountant(value_discretization_interval=1e-2)
    pld.compose(to_dp_event([GaussianEvent(sigma, rate)] * steps))
    rdp = epsilon("rdp", sigma, rate, steps)
    assert pld.get_epsilon(DELTA) <= rdp * 1.02 + 0.02 * math.sqrt(steps) + 0.05
