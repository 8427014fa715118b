"""Replacing one example in Poisson batches: its Renyi divergence, from that of adding or removing one."""

from __future__ import annotations

import math
from collections.abc import Callable


def replacing(adding: Callable[[float], float], sample_rate: float, order: float) -> float:
    """A bound of the divergence between the two sums of a batch in which one example may be replaced.

    Args:
        adding: from an order to a bound of the divergence for adding and for removing *one* example, at noise of
            ``2 noise_multiplier`` times one example's bound: ``replace_one`` measures noise in twice that bound.
        sample_rate: q < 1, of the Poisson batch.
        order: a > 1.

    Guarantee: let P and Q be the sums with the old example and with the new one, each sampled with probability q, and R
    the sum without either; all else in the batch is shared, over whose choices the divergence is jointly quasi-convex.

    1. By way of R. For every p > 1 (Hoelder's inequality on P^a R^(1/p - a) times R^(a - 1/p) Q^(1 - a)),
       D_a(P | Q) <= (a - 1/p) / (a - 1) D_pa(P | R) + D_b(R | Q), b = (a - 1/p) p / (p - 1). With p = 2 - 1/a
       that is 2a / (2a - 1) D_(2a-1)(P | R) + D_2a(R | Q), exact for Gaussians (q = 1).
    2. Beside R. Q is at least (1 - q) R everywhere, so that Q^(1 - a) <= (1 - q)^(1 - a) R^(1 - a), and
       D_a(P | Q) <= D_a(P | R) - log(1 - q).

    Either holds, and so does the smaller. The first is tighter where noise is large, the second where it is small.

    Source: Mironov 2017 (arXiv 1702.07476), proposition 11, for the first.
    """
    twice = 2 * order
    by_way = twice / (twice - 1) * adding(twice - 1) + adding(twice)
    beside = adding(order) - math.log1p(-sample_rate)
    return min(by_way, beside)
