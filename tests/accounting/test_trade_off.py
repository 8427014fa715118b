"""The bound of an attack's success: never below what an attack reaches, and close to it for a Gaussian."""

import math
from statistics import NormalDist

import pytest

from dplip.accounting import GaussianEvent, TradeOff, create_accountant, tightest

NORMAL = NormalDist()
RATES = (1e-6, 1e-4, 1e-3, 0.01, 0.1, 0.5, 0.9, 0.999)


def bound(noise: float, rate: float, steps: int, mechanism: str = "rdp", neighboring: str | None = None) -> TradeOff:
    accountant = create_accountant(mechanism, neighboring)
    accountant.count(GaussianEvent(noise, rate), steps)
    return TradeOff(tightest(accountant))


def tail(x: float) -> float:
    """The probability that a normal variable is above x, with all its digits."""
    return math.erfc(x / math.sqrt(2)) / 2


@pytest.mark.parametrize("noise, steps", [(0.5, 1), (1.0, 1), (4.0, 9), (20.0, 100)])
@pytest.mark.parametrize("neighboring", ["add_remove", "replace_one"])
def test_the_best_test_of_a_gaussian_is_within_the_bound(noise, steps, neighboring):
    found, mu = bound(noise, 1.0, steps, neighboring=neighboring), math.sqrt(steps) / noise
    for fpr in RATES:
        reached = NORMAL.cdf(NORMAL.inv_cdf(fpr) + mu)
        assert reached <= found.tpr(fpr) <= 1
    assert mu <= found.gaussian() <= 1.15 * mu + 0.05


@pytest.mark.parametrize("noise, rate", [(0.5, 0.1), (1.0, 0.01), (0.3, 0.5)])
@pytest.mark.parametrize("adding", [True, False])
def test_threshold_tests_of_one_sampled_step_are_within_the_bound(noise, rate, adding):
    found = bound(noise, rate, 1)
    for cut in (k / 20 - 3 for k in range(160)):
        sign = -1 if adding else 1  # the test says "in" above the cut, or below it
        without = tail(-sign * cut / noise)
        with_it = (1 - rate) * without + rate * tail(-sign * (cut - 1) / noise)
        fpr, tpr = (without, with_it) if adding else (with_it, without)
        assert tpr <= found.tpr(fpr) + 1e-12


def test_rdp_alone_bounds_attacks_too():
    accountant = create_accountant("rdp")
    accountant.count(GaussianEvent(1.0, 1.0))
    alone, mu = TradeOff(accountant), 1.0
    assert all(NORMAL.cdf(NORMAL.inv_cdf(fpr) + mu) <= alone.tpr(fpr) for fpr in RATES)
    assert all(bound(1.0, 1.0, 1).tpr(fpr) <= alone.tpr(fpr) for fpr in RATES)


def test_the_curve_rises_and_its_gaussian_lies_above_it():
    found = bound(2.0, 0.1, 200)
    rates = [10 ** (k / 50 - 4) for k in range(1, 197)]
    values = [found.tpr(rate) for rate in rates]
    assert values == sorted(values)
    assert all(v <= NORMAL.cdf(NORMAL.inv_cdf(r) + found.gaussian()) for r, v in zip(rates, values, strict=True))


def test_without_noise_nothing_is_promised_and_without_steps_attacks_are_guesses():
    none = TradeOff(create_accountant("rdp"))
    assert none.tpr(0.01) == pytest.approx(0.01, abs=1e-9)
    assert bound(0.0, 0.1, 1).tpr(0.01) == 1 and math.isinf(bound(0.0, 0.1, 1).gaussian())


def test_what_has_no_theorem_for_losses_stays_with_its_accountant():
    accountant = create_accountant("rdp", "replace_one")
    accountant.count(GaussianEvent(1.0, 0.1), 10)
    assert tightest(accountant) is accountant
