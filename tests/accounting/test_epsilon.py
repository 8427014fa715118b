"""Epsilon against closed forms, against dp_accounting and Opacus, and against an optimistic one."""

import math
import os
import random
import subprocess
import sys

import pytest
from helpers.epsilons import DELTA, epsilon, gaussian_delta

from dplip.accounting import (
    Accountant,
    GaussianEvent,
    create_accountant,
)


def test_importing_does_not_import_opacus():
    code = "import sys, dplip.accounting, dplip.records; sys.exit('opacus' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("sigma, steps", [(0.8, 1), (4.0, 100), (50.0, 1), (300.0, 40), (20000.0, 1)])
def test_a_plain_gaussian_is_bounded_tightly_from_above(sigma, steps):
    mu = math.sqrt(steps) / sigma
    rdp, prv = epsilon("rdp", sigma, 1.0, steps), epsilon("prv", sigma, 1.0, steps)
    for bound in (rdp, prv):
        assert gaussian_delta(bound, mu) <= DELTA
    assert gaussian_delta(rdp / 1.35 - 1e-3, mu) > DELTA
    assert gaussian_delta(prv - 0.025, mu) > DELTA


def test_rdp_is_never_above_dp_accounting_nor_far_below():
    rdp = pytest.importorskip("dp_accounting.rdp")
    import dp_accounting

    default = rdp.RdpAccountant()._orders  # these end at 1,024
    for sigma, rate, steps, delta in [
        (1.0, 0.01, 1000, 1e-5),
        (1.1, 256 / 60000, 14100, 1e-5),
        (0.6, 0.01, 1000, 1e-5),
        (2.0, 0.05, 5000, 1e-6),
        (20.0, 0.5, 300, 1e-6),
        (30.0, 0.001, 10, 1e-7),
    ]:
        larger = [float(round(64 * 2 ** (k / 4))) for k in range(1, 32)] if sigma > 10 else []  # elsewhere none is best
        theirs = rdp.RdpAccountant([*default, *larger])
        theirs.compose(dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(sigma)), steps)
        ours = epsilon("rdp", sigma, rate, steps, delta)
        assert 0.9 * theirs.get_epsilon(delta) < ours <= theirs.get_epsilon(delta) + 1e-9


def test_rdp_equals_opacus():
    from opacus.accountants import RDPAccountant

    draw = random.Random(0)
    for _ in range(10):
        history = [(10 ** draw.uniform(-0.2, 1), 10 ** draw.uniform(-3, -0.7), draw.randint(1, 3000))]
        history.append((2.0, 0.01, 500))
        theirs, ours = RDPAccountant(), create_accountant("rdp")
        theirs.history = history
        ours.load_state_dict({"mechanism": "rdp", "history": history})
        delta = 10 ** draw.uniform(-8, -4)
        assert ours.get_epsilon(delta) <= theirs.get_epsilon(delta) * (1 + 1e-9) + 1e-7
        assert ours.get_epsilon(delta) == pytest.approx(theirs.get_epsilon(delta), rel=1e-3)


@pytest.mark.parametrize(
    "sigma, rate, steps, delta",
    [(1.0, 0.01, 1000, 1e-5), (0.8, 1 / 64, 48, 1e-5), (4.0, 1.0, 100, 1e-8), (2.0, 0.1, 50, 1e-9)],
)
def test_rdp_exceeds_prv_which_exceeds_the_tight_value(sigma, rate, steps, delta):
    rdp, prv = epsilon("rdp", sigma, rate, steps, delta), epsilon("prv", sigma, rate, steps, delta)
    assert rdp >= prv
    pld = pytest.importorskip("dp_accounting.pld")
    import dp_accounting

    event = dp_accounting.GaussianDpEvent(sigma)
    tight = pld.PLDAccountant(value_discretization_interval=1e-3)
    tight.compose(dp_accounting.PoissonSampledDpEvent(rate, event) if rate < 1 else event, steps)
    assert tight.get_epsilon(delta) - 1e-3 * math.sqrt(steps) <= prv <= tight.get_epsilon(delta) + 0.011


def test_prv_leaves_the_field_to_rdp_where_its_rounding_shows():
    # Opacus's PRV says 4.1458 here and the true value is 4.19: its FFT loses deltas of this size.
    assert epsilon("prv", 1.0, 0.01, 1000, 1e-13) == epsilon("rdp", 1.0, 0.01, 1000, 1e-13)


# Edge cases


@pytest.mark.parametrize("mechanism", ["rdp", "prv"])
def test_no_step_costs_nothing_and_no_noise_costs_everything(mechanism):
    accountant = Accountant(mechanism)
    assert accountant.get_epsilon(DELTA) == 0.0
    assert accountant.epsilon_after(GaussianEvent(0.0, 0.5), 0, DELTA) == 0.0
    accountant.step(noise_multiplier=1.0, sample_rate=0.1)
    assert 0 < accountant.get_epsilon(DELTA) < math.inf
    accountant.step(noise_multiplier=0, sample_rate=0.1)
    assert accountant.get_epsilon(DELTA) == math.inf


@pytest.mark.parametrize("mechanism", ["rdp", "prv"])
@pytest.mark.parametrize("sigma, rate, steps", [(50.0, 1e-4, 1), (1e6, 0.5, 1), (1000.0, 1e-3, 10)])
def test_epsilon_is_never_negative(mechanism, sigma, rate, steps):
    assert 0 <= epsilon(mechanism, sigma, rate, steps) < 0.02


@pytest.mark.parametrize("mechanism", ["rdp", "prv"])
@pytest.mark.parametrize("sigma", [1e-200, 1e-3, 0.05])
def test_hardly_any_noise_is_a_large_number_and_not_an_error(mechanism, sigma):
    assert epsilon(mechanism, sigma, 0.5, 3) > 100


def test_small_epsilons_are_not_held_up_by_the_largest_order():
    sigma = 3000.0
    assert epsilon("rdp", sigma, 1.0, 1) < 1.3 * math.sqrt(2 * math.log(1 / DELTA)) / sigma


def test_the_orders_between_those_of_the_set_are_tried():
    assert epsilon("rdp", 1.7, 1e-5, 1, 1e-9) < 0.236  # at order 67; 0.247 at order 64, and 0.65 at 70


@pytest.mark.parametrize(
    "sigma, rate, steps, delta, least, most",
    [
        (30.0, 1e-3, 10, 1e-7, 0.000244, 0.00053),  # 0.0080 with orders up to 1,024
        (100.0, 0.01, 1, 1e-6, 0.000191, 0.00024),  # 0.0057
        (1000.0, 0.5, 1, 1e-9, 0.002137, 0.00231),  # 0.0047
    ],
)
def test_small_epsilons_of_sampled_batches_come_from_orders_above_1024(sigma, rate, steps, delta, least, most):
    assert least < epsilon("rdp", sigma, rate, steps, delta) < most  # least: an optimistic privacy loss distribution


def test_a_small_epsilon_is_the_accountants_own():
    pytest.importorskip("dp_accounting.pld")
    mu = 0.001
    bound = epsilon("pld", 1 / mu, 1.0, 1, 1e-5)
    assert bound < 0.95 * epsilon("rdp", 1 / mu, 1.0, 1, 1e-5) < 0.01 and gaussian_delta(bound, mu) <= 1e-5


def optimistic_epsilon(events: dict[GaussianEvent, int], delta: float, about: float) -> float:
    """No more than the true one, by privacy loss distributions on a grid that suits an epsilon of ``about``."""
    pld = pytest.importorskip("dp_accounting.pld.privacy_loss_distribution")
    steps = sum(events.values())
    widest = max(1 / (2 * e.noise_multiplier**2) + 9 / e.noise_multiplier for e in events)
    composed = None
    for event, count in events.items():
        loss = pld.from_gaussian_mechanism(
            event.noise_multiplier,
            sampling_prob=event.sample_rate,
            pessimistic_estimate=False,
            value_discretization_interval=max(about / steps / 50, widest / 1e5),
            use_connect_dots=False,
        ).self_compose(count)
        composed = loss if composed is None else composed.compose(loss)
    return composed.get_epsilon_for_delta(delta)


@pytest.mark.parametrize("seed", range(10))
def test_no_accountants_epsilon_is_below_an_optimistic_one(seed):
    draw = random.Random(seed)
    for k in range(int(os.environ.get("DPLIP_FUZZ", "40")) // 10):
        events = {
            GaussianEvent(10 ** draw.uniform(-0.52, 1.3), min(1.0, 10 ** draw.uniform(-6, 0.5))): int(
                10 ** draw.uniform(0, 4)
            )
            for _ in range(draw.randint(1, 3))
        }
        delta = 10 ** draw.uniform(-12, -3)
        bounds = {}
        for mechanism in ("rdp", *(("prv",), ("pld",), (), (), ("pld",), ())[(seed + k) % 6]):  # prv takes five seconds
            accountant = create_accountant(mechanism)
            for event, count in events.items():
                accountant.count(event, count)
            bounds[mechanism] = accountant.get_epsilon(delta)
        assert optimistic_epsilon(events, delta, min(bounds.values())) <= min(bounds.values()), (events, delta, bounds)
