"""Epsilon from Renyi divergences: the least bound over many orders."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache

from dplip.accounting.events import LARGEST_SAMPLED_ORDER, Event

# Every order gives a valid bound, so the set decides tightness only: Opacus's orders (tenths below 11, integers to 63),
# closer to 1 for large epsilon, and up to 2^40 for small epsilon.
ORDERS: tuple[float, ...] = tuple(
    [1.01, 1.02, 1.05]
    + [1 + x / 10 for x in range(1, 100)]
    + [float(x) for x in range(11, 64)]
    + [float(round(64 * 2 ** (x / 8))) for x in range(33)]
    + [float(round(1024 * 2 ** (x / 4))) for x in range(1, 121)]
)
_COARSE = tuple(i for i, order in enumerate(ORDERS) if order in (2, 3, 4, 6, 12, 24, 48) or math.log2(order) % 1 == 0)


def rdp_epsilon(events: Mapping[Event, int], neighboring: str, delta: float) -> float:
    def spent(order: float) -> float:
        return sum(steps * renyi_divergence(event, order, neighboring) for event, steps in events.items())

    def epsilon(order: float) -> float:
        return rdp_to_epsilon(spent(order), order, delta)

    # Total variation is at most sqrt(1 - exp(-KL)) (Bretagnolle and Huber 1979); KL at most any other order.
    if -math.expm1(-spent(2.0)) <= delta**2:
        return 0.0
    # epsilon(order) falls and then rises: look closely around the best of few. Any order is a valid bound.
    bounds = [epsilon(ORDERS[i]) for i in _COARSE]
    best = bounds.index(min(bounds))
    left = _COARSE[best - 1] if best > 0 else -1
    right = _COARSE[best + 1] if best + 1 < len(_COARSE) else len(ORDERS)
    bounds = [epsilon(order) for order in ORDERS[left + 1 : right]]
    nearest = left + 1 + bounds.index(min(bounds))
    return _between(epsilon, min(bounds), ORDERS[max(0, nearest - 1)], ORDERS[nearest], ORDERS[nearest + 1 :][:1])


def _between(
    epsilon: Callable[[float], float], least: float, low: float, best: float, above: tuple[float, ...]
) -> float:
    """The least bound among a few whole orders between neighbours of the set, the same ones at each call."""
    high = above[0] if above else best
    while high - low > 2 and high > 64:
        step = max(1.0, (high - low) // 8)
        tried = {epsilon(order): order for order in (low + step * k for k in range(1, int((high - low) / step) + 1))}
        if min(tried) < least:
            least, best = min(tried), tried[min(tried)]
        if step == 1:
            break
        low, high = max(low, best - step), min(high, best + step)
    return least


def rdp_to_epsilon(divergence: float, order: float, delta: float) -> float:
    """Epsilon at ``delta`` of a mechanism of this Renyi divergence at one order (Balle et al. 2020, theorem 21)."""
    return divergence - (math.log(delta) + math.log(order)) / (order - 1) + math.log1p(-1 / order)


@lru_cache(maxsize=1 << 18)
def renyi_divergence(event: Event, order: float, neighboring: str = "add_remove") -> float:
    """An upper bound of the Renyi divergence of one step under a relation; infinite at worst."""
    plain = order / 2 / event.noise_multiplier / event.noise_multiplier
    if event.sample_rate == 1 or order > LARGEST_SAMPLED_ORDER:
        return plain  # sampling never increases it (joint quasi-convexity over the choices of a batch)
    sampled = event.renyi_divergence(order, neighboring)
    return min(plain, sampled) if math.isfinite(sampled) else plain
