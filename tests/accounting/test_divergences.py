"""Renyi divergences against closed forms, quadrature, exact sums and dp_accounting."""

import random

import pytest

from dplip.accounting import (
    GaussianEvent,
)
from dplip.accounting.rdp import renyi_divergence


@pytest.mark.parametrize("sigma", [0.3, 1.0, 7.0, 400.0])
@pytest.mark.parametrize("order", [1.01, 2.0, 2.7, 64.0, 2.0**20])
def test_the_divergence_of_a_plain_gaussian_is_its_closed_form(sigma, order):
    assert renyi_divergence(GaussianEvent(sigma, 1.0), order) == pytest.approx(order / (2 * sigma**2), rel=1e-12)


@pytest.mark.parametrize("sigma, rate", [(0.6, 0.01), (1.0, 0.01), (1.1, 256 / 60000), (2.0, 0.05), (20.0, 0.5)])
def test_divergences_agree_with_dp_accounting_at_integer_orders(sigma, rate):
    rdp = pytest.importorskip("dp_accounting.rdp")
    import dp_accounting

    orders = [2.0, 3.0, 8.0, 33.0, 63.0]
    theirs = rdp.RdpAccountant(orders)
    theirs.compose(dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(sigma)))
    for order, value in zip(orders, theirs._rdp, strict=True):
        assert renyi_divergence(GaussianEvent(sigma, rate), order) == pytest.approx(value, rel=1e-9, abs=1e-13)


def test_divergences_bound_a_quadrature_at_fractional_orders():
    mpmath = pytest.importorskip("mpmath")
    for sigma, rate, order in [(0.6, 0.01, 2.7), (20.0, 0.5, 4.6), (1.0, 0.01, 1.05), (50.0, 1e-3, 1.1)]:
        with mpmath.workdps(30):
            s, q, a = map(mpmath.mpf, (sigma, rate, order))
            moment = mpmath.quad(
                lambda x, s=s, q=q, a=a: (1 - q + q * mpmath.exp((2 * x - 1) / (2 * s**2))) ** a * mpmath.npdf(x, 0, s),
                [s * k for k in range(-14, 15, 2)],
            )
            exact = float(mpmath.log(moment) / (a - 1))
        bound = renyi_divergence(GaussianEvent(sigma, rate), order)
        assert exact <= bound <= exact * (1 + 1e-9) + 1e-11


def test_divergences_bound_exact_sums_closely():
    mpmath = pytest.importorskip("mpmath")
    draw = random.Random(0)
    with mpmath.workdps(60):
        for _ in range(40):
            rate, sigma = 10 ** draw.uniform(-12, 0), 10 ** draw.uniform(-0.5, 5)
            order = int(2 ** draw.uniform(1, 9))
            q, s = mpmath.mpf(rate), mpmath.mpf(sigma)
            moment = sum(
                mpmath.binomial(order, k) * q**k * (1 - q) ** (order - k) * mpmath.expm1(k * (k - 1) / (2 * s * s))
                for k in range(2, order + 1)
            )
            exact = mpmath.log1p(moment) / (order - 1)
            assert exact <= GaussianEvent(sigma, rate).renyi_divergence(float(order)) <= exact * (1 + mpmath.mpf(1e-9))
