"""Lower bounds of epsilon: they hold as often as they say, and are not idle."""

import math

import numpy as np
import pytest

from dplip import audit
from dplip.audit.statistics import best_threshold
from dplip.errors import ConfigurationError


def test_gaussian_epsilon_is_exact():
    from dp_accounting.pld import privacy_loss_distribution

    for mu in (0.268, 0.925, 1.666, 5.0):
        pld = privacy_loss_distribution.from_gaussian_mechanism(1 / mu, value_discretization_interval=1e-3)
        assert audit.gaussian_epsilon(mu, 1e-5) == pytest.approx(pld.get_epsilon_for_delta(1e-5), abs=2e-4)
    assert audit.gaussian_epsilon(0.0, 1e-5) == audit.gaussian_epsilon(-1.0, 1e-5) == 0.0
    assert math.isfinite(audit.gaussian_epsilon(100.0, 1e-5))


def test_the_bound_from_canaries_holds_as_often_as_it_says_and_is_not_idle():
    generator = np.random.default_rng(0)
    mu, count = 0.925, 500
    threshold, shown = best_threshold(mu, count)
    true = audit.gaussian_epsilon(mu, 1e-5)
    lower = [
        audit.canary_epsilon(generator.normal(mu, 1, count), generator.normal(0, 1, count), 1e-5, threshold)
        for _ in range(400)
    ]
    assert np.mean(np.array(lower) > true) <= 0.05
    assert np.median(lower) == pytest.approx(audit.gaussian_epsilon(shown, 1e-5), rel=0.1)


def test_the_bound_from_one_run_holds_for_randomized_response_and_is_not_idle():
    """Randomized response guesses each coin right with probability q = e^eps / (1 + e^eps), on its own."""
    generator = np.random.default_rng(0)
    for epsilon in (0.5, 2.0):
        q = 1 / (1 + math.exp(-epsilon))
        counts, often = np.unique(generator.binomial(400, q, size=1000), return_counts=True)
        lower = np.repeat([audit.one_run_epsilon(int(c), 400, 400, 1e-6) for c in counts], often)
        assert np.mean(lower > epsilon) <= 0.05 + 0.02  # three standard errors
        assert np.median(lower) > 0.5 * epsilon


def test_published_values_of_the_one_run_bound_of_a_gaussian():
    """1e4 canaries at mu of epsilon 4, of which 3% are guessed: 2.14 in the median of 12 runs."""
    generator = np.random.default_rng(1)
    lower = []
    for _ in range(9):
        present = generator.random(10_000) < 0.5
        scores = generator.normal(0.9249 * present, 1.0)
        order = np.argsort(scores)
        right = int(present[order[-150:]].sum() + (~present[order[:150]]).sum())
        lower.append(audit.one_run_epsilon(right, 300, 10_000, 1e-5))
    assert np.median(lower) == pytest.approx(2.14, abs=0.25)


def test_nonsensical_counts_are_refused():
    with pytest.raises(ConfigurationError, match="correct=3"):
        audit.one_run_epsilon(3, 2, 10, 1e-5)
    with pytest.raises(ConfigurationError, match="0 canaries present"):
        audit.canary_epsilon([], [1.0], 1e-5, 0.0)
