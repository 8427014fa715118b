"""Replacing one example: Poisson batches are charged what is proved."""

import math
from functools import partial

import numpy as np
import pytest
from helpers.epsilons import DELTA
from scipy.special import logsumexp

import dplip
from dplip.accounting import NEIGHBORING, Accountant, FixedSizeEvent, GaussianEvent
from dplip.accounting.rdp import ORDERS, renyi_divergence
from dplip.accounting.replace_one import replacing
from dplip.errors import ConfigurationError


def divergence(p, q, order):
    """Renyi's, of log densities on a grid of spacing 1."""
    return logsumexp(order * p + (1 - order) * q) / (order - 1)


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("std", [0.3, 1.0, 2.0, 8.0, 32.0])
def test_no_pair_of_examples_is_further_apart_than_is_charged(rate, std):
    """By quadrature, wherever in the ball of radius 1 the two examples lie; the noise is ``std`` of one bound."""
    for order in (1.1, 1.5, 2.0, 4.0, 16.0):
        x, step = np.linspace(-12 * std - 2 * order - 2, 12 * std + 2 * order + 2, 20_001, retstep=True)
        base = -math.log(std * math.sqrt(2 * math.pi)) + math.log(step)

        def mixture(mean, x=x, base=base):
            old, new = (-((x - m) ** 2) / 2 / std**2 + base for m in (0.0, mean))
            return np.logaddexp(math.log1p(-rate) + old, math.log(rate) + new)

        charged = renyi_divergence(GaussianEvent(std / 2, rate), order, "replace_one")
        one = mixture(1.0)
        for mean in (-1.0, -0.5, 0.0, 0.5):
            other = mixture(mean)
            attained = max(divergence(one, other, order), divergence(other, one, order))
            assert attained <= charged * (1 + 1e-9) + 1e-9


def full_batches(sigma: float, order: float) -> float:
    return order / 2 / (2 * sigma) ** 2


@pytest.mark.parametrize("order", [1.01, 1.1, 2.0, 7.0, 64.0, 512.0])
def test_it_is_exact_for_full_batches_and_for_nearly_full_ones(order):
    for sigma in (0.5, 4.0):
        plain = order / 2 / sigma**2
        assert renyi_divergence(GaussianEvent(sigma, 1.0), order, "replace_one") == pytest.approx(plain, rel=1e-12)
        beside = order / 8 / sigma**2 + 15 * math.log(10)  # for much less noise: the rate is not quite 1
        bound = replacing(partial(full_batches, sigma), 1 - 1e-15, order)
        assert bound == pytest.approx(min(plain, beside), rel=0.01 if beside < plain else 1e-12)


@pytest.mark.parametrize("sigma", [0.02, 0.3, 1.0, 5.0])
@pytest.mark.parametrize("rate", [0.001, 0.05, 0.7])
def test_it_lies_between_adding_one_example_and_adding_one_of_twice_the_length(sigma, rate):
    for order in (1.01, 1.5, 2.0, 5.0, 32.0, 256.0):
        charged = renyi_divergence(GaussianEvent(sigma, rate), order, "replace_one")
        assert renyi_divergence(GaussianEvent(2 * sigma, rate), order) <= charged
        doubled = renyi_divergence(GaussianEvent(sigma, rate), order)
        assert charged <= doubled * (1.02 if order >= 2 else 5.0) + 1e-11


@pytest.mark.parametrize(
    "sigma, rate, steps, doubled, charged", [(0.865, 0.01, 1000, 3.00, 1.776), (1.656, 0.5, 100, 20.0, 19.01)]
)
def test_the_figures_of_the_guide(sigma, rate, steps, doubled, charged):
    event = GaussianEvent(sigma, rate)
    spent = [Accountant("rdp", relation).epsilon_after(event, steps, DELTA) for relation in NEIGHBORING]
    assert spent == pytest.approx([doubled, charged], rel=2e-3)


def test_the_two_bounds_by_hand():
    """Both at whole orders, from the binomial formula of Mironov, Talwar, Zhang (2019)."""

    def adding(order, sigma, q):
        terms = [math.comb(order, k) * (1 - q) ** (order - k) * q**k * math.exp((k * k - k) / 2 / sigma**2)
                 for k in range(order + 1)]  # fmt: skip
        return math.log(sum(terms)) / (order - 1)

    large, small = GaussianEvent(1.0, 0.1), GaussianEvent(0.2, 0.001)
    by_way = 8 / 7 * adding(7, 2.0, 0.1) + adding(8, 2.0, 0.1)
    assert renyi_divergence(large, 4.0, "replace_one") == pytest.approx(by_way, rel=1e-9)
    beside = adding(2, 0.4, 0.001) - math.log(0.999)
    assert renyi_divergence(small, 2.0, "replace_one") == pytest.approx(beside, rel=1e-9)


@pytest.mark.parametrize("sigma", [1e-160, 1e-20, 1e-4])
def test_noise_beyond_the_range_of_the_series_is_charged_as_the_plain_gaussian(sigma):
    """Its series was NaN there, which Python's max() takes for 0: such steps were free."""
    for relation in ("add_remove", "replace_one"):
        for order in (1.5, 2.0, 3.0, 5.0, 1024.0):
            plain = order / 2 / sigma / sigma
            assert renyi_divergence(GaussianEvent(sigma, 0.1), order, relation) == pytest.approx(plain)
        assert Accountant("rdp", relation).epsilon_after(GaussianEvent(sigma, 0.1), 1, DELTA) > 100


def test_no_divergence_at_any_order_is_nothing():
    for sigma in (0.05, 1.0, 20.0):
        for relation in ("add_remove", "replace_one"):
            spent = [renyi_divergence(GaussianEvent(sigma, 0.1), order, relation) for order in ORDERS[::7]]
            assert min(spent) > 1e-6


def test_events_proved_for_another_relation_are_refused():
    with pytest.raises(ConfigurationError, match="fixed_size batches cost is proved for 'replace_one'"):
        Accountant().count(FixedSizeEvent(2.0, 5, 100))
    with pytest.raises(ConfigurationError, match="'replace_one'"):
        dplip.get_noise_multiplier(
            target_epsilon=3.0, target_delta=DELTA, steps=3, event=lambda sigma: FixedSizeEvent(sigma, 5, 100)
        )
