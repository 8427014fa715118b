"""The cost of choosing hyper-parameters by the scores of private runs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from dplip.accounting.events import GaussianEvent
from dplip.accounting.rdp import ORDERS, rdp_to_epsilon, renyi_divergence
from dplip.errors import ConfigurationError
from dplip.validate import is_number, require_delta


def selection_epsilon(
    events: Iterable[GaussianEvent],
    *,
    delta: float,
    mean_runs: float,
    shape: float = 1.0,
    neighboring: str = "add_remove",
) -> float:
    """Epsilon of drawing a random number of runs, each with settings drawn at random, and releasing the best alone.

    The number K of runs follows a truncated negative binomial distribution, drawn beforehand and kept secret: with
    ``shape`` 1 the geometric one (after each run, stop with probability 1 / ``mean_runs``), with 0 the logarithmic
    one. Each run draws its settings from one public list, spends ``events``, and is scored. The score must be part of
    what those events pay for, or computed on public data.

    Args:
        events: the events of each run.
        delta: in (0, 1).
        mean_runs: the expected K, at least 1.
        shape: eta >= 0 of the distribution.
        neighboring: the relation that the events' noise multipliers are for.

    Returns:
        epsilon of the whole search. A fixed number of runs, all of whose scores are looked at, costs more: compose
        all their events.

    Raises:
        ConfigurationError: an argument is out of range.

    Source: Papernot and Steinke 2022 (arXiv 2110.03620), theorem 2.

    >>> one_run = [GaussianEvent(2.0, 0.05)] * 200
    >>> spent = selection_epsilon(one_run, delta=1e-5, mean_runs=10)
    >>> alone = selection_epsilon(one_run, delta=1e-5, mean_runs=1)
    >>> alone < spent < 3 * alone
    True
    """
    require_delta(delta)
    if not (is_number(mean_runs) and math.isfinite(mean_runs) and mean_runs >= 1):
        raise ConfigurationError(f"mean_runs={mean_runs!r}: a search makes at least one run.")
    if not (is_number(shape) and math.isfinite(shape) and shape >= 0):
        raise ConfigurationError(f"shape={shape!r}: the shape of the distribution of runs is a finite number >= 0.")
    counted = Counter(events)
    if any(event.noise_multiplier == 0 for event in counted):
        return math.inf
    if not counted:
        return 0.0
    spent = np.array([sum(n * renyi_divergence(e, order, neighboring) for e, n in counted.items()) for order in ORDERS])
    orders = np.array(ORDERS)
    if mean_runs == 1:  # one run, for any shape
        return _best(spent, delta)
    constant = (1 + shape) * float(np.min((1 - 1 / orders) * spent - math.log(_stop(mean_runs, shape)) / orders))
    return _best(spent + constant + math.log(mean_runs) / (orders - 1), delta)


def _best(spent: Any, delta: float) -> float:
    return max(0.0, min(rdp_to_epsilon(float(s), order, delta) for s, order in zip(spent, ORDERS, strict=True)))


def _stop(mean: float, shape: float) -> float:
    """gamma of the truncated negative binomial distribution with this mean."""
    from scipy.optimize import brentq

    def excess(log_gamma: float) -> float:
        gamma = math.exp(log_gamma)
        if shape == 0:
            return (1 / gamma - 1) / -log_gamma - mean
        return shape * (1 - gamma) / (gamma * -math.expm1(shape * log_gamma)) - mean

    return math.exp(float(brentq(excess, -700.0 / max(1.0, shape), -1e-12, xtol=1e-14)))
