"""Lower bounds of epsilon from an attacker's results, which hold with a stated confidence for any attack."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri
from scipy.stats import beta, binom

from dplip.errors import ConfigurationError

_LARGEST = 200.0  # no audit of feasible size shows more


def gaussian_epsilon(mu: float, delta: float) -> float:
    """The exact epsilon at ``delta`` of a mechanism as private as N(0, 1) against N(mu, 1).

    Source: Balle and Wang 2018 (arXiv 1805.06530), theorem 8; Dong, Roth, Su 2022 (1905.02383), corollary 1.

    >>> round(gaussian_epsilon(1.0, 1e-5), 4)
    4.3772
    """
    if not mu > 0:
        return 0.0

    def excess(epsilon: float) -> float:
        first, second = ndtr(mu / 2 - epsilon / mu), ndtr(-mu / 2 - epsilon / mu)
        return float(first - math.exp(epsilon) * second - delta)

    if excess(0.0) <= 0:
        return 0.0
    high = 1.0
    while excess(high) > 0:
        high *= 2
        if high > _LARGEST:
            return _LARGEST
    return float(brentq(excess, 0.0, high, xtol=1e-9))


def canary_epsilon(
    present: ArrayLike, absent: ArrayLike, delta: float, threshold: float, confidence: float = 0.95
) -> float:
    """A lower bound of epsilon from scores of canaries that were in the data and of others that were not.

    Args:
        present, absent: scores, one for each canary; independent of one another.
        delta: in (0, 1).
        threshold: score above which a canary is guessed to be present, chosen before the scores were seen.
        confidence: probability with which the bound holds.

    Guarantee: for a mechanism whose trade-off curve is that of a Gaussian, with probability ``confidence`` over its
    randomness the bound is at most its epsilon. Both error rates are bounded from above by Clopper and Pearson.

    Source: Nasr et al. 2023 (arXiv 2302.07956), section 4: mu >= Phi^-1(1 - FPR) - Phi^-1(FNR).
    """
    present, absent = np.asarray(present, dtype=np.float64), np.asarray(absent, dtype=np.float64)
    if not (len(present) and len(absent)):
        raise ConfigurationError(
            f"{len(present)} canaries present, {len(absent)} absent: an audit needs some of both. Use more canaries."
        )
    false_positive = _above(int((absent > threshold).sum()), len(absent), (1 - confidence) / 2)
    false_negative = _above(int((present <= threshold).sum()), len(present), (1 - confidence) / 2)
    return gaussian_epsilon(float(-ndtri(false_positive) - ndtri(false_negative)), delta)


def best_threshold(mu: float, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """The threshold at which ``count`` scores of each kind, N(0, 1) and N(mu, 1), are expected to show most.

    Returns:
        ``(threshold, shown)``: the threshold, and the mu that the scores are expected to show there.
    """
    thresholds = np.linspace(mu / 2 - 4, mu / 2 + 4, 161)
    risk = (1 - confidence) / 2
    positive, negative = count * ndtr(-thresholds), count * ndtr(thresholds - mu)
    upper = [beta.ppf(1 - risk, k + 1, np.maximum(count - k, 1e-9)) for k in (positive, negative)]
    shown = -ndtri(upper[0]) - ndtri(upper[1])
    best = int(np.argmax(shown))
    return float(thresholds[best]), float(shown[best])


def one_run_epsilon(correct: int, guesses: int, canaries: int, delta: float, confidence: float = 0.95) -> float:
    """A lower bound of epsilon from guesses which of ``canaries`` were in the data of a single run.

    Args:
        correct: number of right guesses.
        guesses: number of canaries that were guessed, fixed before the scores were seen.
        canaries: number of canaries, each of which was put in with probability 1/2, independently.

    Guarantee: for an (epsilon, delta)-DP mechanism, with probability ``confidence`` the bound is at most epsilon.
    It has no more power than half of epsilon for a Gaussian: a small value shows nothing.

    Source: Steinke, Nasr, Jagielski 2023 (arXiv 2305.08846), theorem 5.2.

    >>> one_run_epsilon(50, 100, 1000, 1e-5)
    0.0
    >>> 1.8 < one_run_epsilon(95, 100, 1000, 1e-5) < 2.5
    True
    """
    if not 0 <= correct <= guesses <= canaries:
        raise ConfigurationError(
            f"correct={correct}, guesses={guesses}, canaries={canaries}: guesses are of canaries. Count again."
        )

    def improbable(epsilon: float) -> bool:
        """Whether so many right guesses would be improbable for this epsilon."""
        q = 1 / (1 + math.exp(-epsilon))
        chance = float(binom.sf(correct - 1, guesses, q))
        missed = np.arange(1, correct + 1)
        alpha = float(
            ((binom.cdf(correct - 1, guesses, q) - binom.cdf(correct - missed - 1, guesses, q)) / missed).max()
        )
        return chance + 2 * canaries * delta * alpha <= 1 - confidence

    if correct == 0 or not improbable(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while improbable(high) and high < _LARGEST:
        low, high = high, 2 * high
    for _ in range(25):
        middle = (low + high) / 2
        low, high = (middle, high) if improbable(middle) else (low, middle)
    return low


def _above(count: int, trials: int, risk: float) -> float:
    """An upper bound of a probability, which fails with this risk at most (Clopper and Pearson 1934)."""
    return 1.0 if count == trials else float(beta.ppf(1 - risk, count + 1, trials - count))
