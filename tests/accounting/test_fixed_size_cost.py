"""What batches of a fixed size cost."""

import json
import math
from typing import Any

import dp_accounting as dp
import numpy as np
import pytest
from dp_accounting.rdp import RdpAccountant
from helpers.epsilons import DELTA, epsilon

from dplip.accounting import (
    Accountant,
    FixedSizeEvent,
    GaussianEvent,
    event_of,
    fixed_size_epsilon,
    to_dp_event,
)
from dplip.accounting.rdp import renyi_divergence
from dplip.errors import ConfigurationError


def test_batches_of_a_fixed_size_cost_more_than_poisson_batches():
    arguments: dict[str, Any] = {"batch_size": 50, "size": 1000, "steps": 200, "delta": DELTA}
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


# The cost


@pytest.mark.parametrize("sigma, batch_size", [(0.7, 10), (2.0, 50), (10.0, 500), (1.0, 1000)])
def test_a_run_costs_what_dp_accounting_says(sigma, batch_size):
    event = FixedSizeEvent(sigma, batch_size, 1000)
    theirs = RdpAccountant(neighboring_relation=dp.NeighboringRelation.REPLACE_ONE)
    theirs.compose(to_dp_event([event] * 3))
    spent = Accountant(neighboring="replace_one").epsilon_after(event, 3, DELTA)
    assert 0.9 * theirs.get_epsilon(DELTA) <= spent <= theirs.get_epsilon(DELTA) * (1 + 1e-6)
    assert spent == fixed_size_epsilon(noise_multiplier=sigma, batch_size=batch_size, size=1000, steps=3, delta=DELTA)


@pytest.mark.parametrize("sigma", [0.5, 3.0, 20.0, 100.0])
@pytest.mark.parametrize("batch_size, order", [(1, 3), (100, 8), (500, 20), (999, 4)])
def test_a_divergence_is_not_below_its_theorem_in_exact_arithmetic(sigma, batch_size, order):
    """Theorem 27 of Wang, Balle, Kasiviswanathan 2019 cancels in doubles; here it has 250 digits."""
    from mpmath import binomial, exp, log, mp, mpf, sqrt

    with mp.workdps(250):
        square, q = mpf(sigma) ** 2, mpf(batch_size) / 1000

        def moment(k: int):
            """E (p / q - 1)^k for Gaussians one unit apart."""
            return sum((-1) ** (k - i) * binomial(k, i) * exp(mpf(i * (i - 1)) / 2 / square) for i in range(k + 1))

        total = 1 + q**2 * binomial(order, 2) * min(4 * (exp(1 / square) - 1), 2 * exp(1 / square))
        for k in range(3, order + 1):
            ternary = 4 * sqrt(moment(2 * (k // 2)) * moment(2 * ((k + 1) // 2)))
            total += q**k * binomial(order, k) * min(ternary, 2 * exp(mpf(k * (k - 1)) / 2 / square))
        exact = min(log(total) / (order - 1), mpf(order) / 2 / square)
        claimed = renyi_divergence(FixedSizeEvent(sigma, batch_size, 1000), float(order))
        assert exact * (1 - mpf(10) ** -15) <= claimed <= exact * (1 + mpf(10) ** -8)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("batch_size", [1, 10, 50])
def test_no_pair_of_neighbours_is_further_apart_than_is_charged(sigma, batch_size):
    """All others sum to a point; the example sits at one place of the ball or another (diameter 1 = two bounds)."""
    event, q = FixedSizeEvent(sigma, batch_size, 100), batch_size / 100
    x = np.linspace(-12 * sigma - 8, 12 * sigma + 8, 20_001)

    def log_density(shift: float) -> np.ndarray:
        def bell(m: float) -> np.ndarray:
            return -((x - m) ** 2) / 2 / sigma**2 - math.log(sigma * math.sqrt(2 * math.pi))

        return np.logaddexp(math.log(1 - q) + bell(0.0), math.log(q) + bell(shift))

    for order in (1.5, 2.0, 4.0, 8.0):
        for here in np.linspace(0, 1, 9):  # the two places, seen from the example that would be drawn instead
            p, other = log_density(here), log_density(here - 1)
            for a, b in ((p, other), (other, p)):
                integral = np.trapezoid(np.exp(order * a + (1 - order) * b), x)
                assert math.log(integral) / (order - 1) <= renyi_divergence(event, order) + 1e-12


def test_it_costs_more_than_poisson_batches_and_less_than_full_ones():
    sizes = {"batch_size": 50, "size": 1000}
    spent, poisson, full = (
        Accountant(neighboring=event.neighboring[0]).epsilon_after(event, 200, DELTA)
        for event in (FixedSizeEvent(2.0, **sizes), GaussianEvent(2.0, 0.05), GaussianEvent(2.0, 1.0))
    )
    assert 1.5 * poisson < spent < full


def test_events_of_both_kinds_survive_an_accountants_state():
    accountant = Accountant(neighboring="replace_one")
    accountant.count(FixedSizeEvent(2.0, 5, 100), 3)
    accountant.count(FixedSizeEvent(2.0, 5, 100))
    accountant.step(noise_multiplier=2.0, sample_rate=0.05)
    assert accountant.history == [(2.0, 5, 100, 4), (2.0, 0.05, 1)]
    again = Accountant()
    again.load_state_dict(json.loads(json.dumps(accountant.state_dict())))
    assert again.history == accountant.history and again.get_epsilon(DELTA) == accountant.get_epsilon(DELTA)


@pytest.mark.parametrize(
    "record", [{}, {"noise_multiplier": 1.0}, {"noise_multiplier": 1.0, "batch_size": 5, "rate": 1}]
)
def test_records_of_no_event_are_refused(record):
    with pytest.raises(ConfigurationError, match="event"):
        event_of(record)


@pytest.mark.parametrize("values", [(-1.0, 5, 10), (math.nan, 5, 10), (1.0, 11, 10), (1.0, 0, 10), (1.0, 2.5, 10)])
def test_events_that_are_none_are_refused(values):
    with pytest.raises(ConfigurationError):
        FixedSizeEvent(*values)
