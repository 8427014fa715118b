"""Epsilon by numerical composition (PRV and PLD) beside that of Renyi divergences."""

import math

import pytest
from dp_accounting.pld import PLDAccountant
from helpers.epsilons import DELTA, epsilon
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dplip.accounting import GaussianEvent, to_dp_event


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


@settings(max_examples=20, deadline=None)
@given(st.floats(0.5, 10), st.floats(0.01, 1), st.integers(1, 300))
def test_rdp_is_never_below_pld(sigma, rate, steps):
    pld = PLDAccountant(value_discretization_interval=1e-2)
    pld.compose(to_dp_event([GaussianEvent(sigma, rate)] * steps))
    rdp, reference = epsilon("rdp", sigma, rate, steps), pld.get_epsilon(DELTA)
    assume(reference < math.inf)  # it gives up on epsilons of several hundred
    assert reference <= rdp * 1.02 + 0.02 * math.sqrt(steps) + 0.05
