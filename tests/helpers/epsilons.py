"""Epsilons of a Gaussian on Poisson batches, and the exact delta of a plain one."""

import math

from dplip.accounting import Accountant, GaussianEvent
from dplip.accounting.rdp import ORDERS

DELTA = 1e-5


def epsilon(mechanism: str, noise_multiplier: float, sample_rate: float, steps: int, delta: float = DELTA):
    return Accountant(mechanism).epsilon_after(GaussianEvent(noise_multiplier, sample_rate), steps, delta)


def gaussian_delta(epsilon: float, mu: float) -> float:
    """Exact delta of a Gaussian mechanism of sensitivity mu (Balle and Wang 2018, theorem 8)."""

    def cdf(x: float) -> float:
        return math.erfc(-x / math.sqrt(2)) / 2

    return cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * cdf(-mu / 2 - epsilon / mu)


INTEGERS = [float(order) for order in ORDERS if order <= 1024 and float(order).is_integer()]
