"""What an attacker can do at most: the true-positive rate of any test for one example, at a false-positive rate.

An epsilon is hard to picture. The same promise, said of a test that sees all that was released and guesses whether an
example was in the data: of the cases in which it was not, the test errs in a share alpha; then in at most ``B(alpha)``
of the cases in which it was does the test say so.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
from collections.abc import Sequence
from statistics import NormalDist

from dplip.accounting.accountant import Accountant

DELTAS = (*(10.0 ** -(k / 4) for k in range(1, 17)), *(10.0**-k for k in range(5, 11)))
"""The deltas, from 0.6 to 1e-10, whose epsilons the bound is the least of; the larger ones decide where it is large."""


def tightest(accountant: Accountant) -> Accountant:
    """An accountant of the same events by privacy loss distributions, where these have a theorem and are installed.

    Its epsilons at large deltas, of which a trade-off is made, are much smaller than those of Renyi divergences.
    """
    events = accountant.events
    proved = all("pld" in event.mechanisms(accountant.neighboring) for event, _ in events)
    if not proved or importlib.util.find_spec("dp_accounting") is None:
        return accountant
    again = Accountant("pld", accountant.neighboring)
    for event, steps in events:
        again.count(event, steps)
    return again


class TradeOff:
    """A bound of the true-positive rate of every test, from what an accountant has counted.

    Args:
        accountant: all that the attacker sees.
        deltas: each gives an epsilon, and so a bound; the least of these bounds is taken.

    Guarantee: no test has a true-positive rate above ``tpr(fpr)`` at the false-positive rate ``fpr``.

    Proof: let S be where the test says "in", with probability a under one data set and t under its neighbour. By
    (epsilon, delta)-DP, t <= e^epsilon a + delta, and of where it says "out", 1 - a <= e^epsilon (1 - t) + delta. Each
    pair (epsilon, delta) holds, so their least bound does.
    """

    def __init__(self, accountant: Accountant, deltas: Sequence[float] = DELTAS) -> None:
        self.pairs = [(accountant.get_epsilon(delta), delta) for delta in deltas]

    def tpr(self, fpr: float) -> float:
        """The largest true-positive rate at a false-positive rate in [0, 1]."""
        return min([1.0, *(bound for pair in self.pairs for bound in _bounds(*pair, fpr))])

    def gaussian(self, low: float = 1e-4, high: float = 0.9, points: int = 400) -> float:
        """The least mu found of which the curve of mu-GDP lies above :meth:`tpr`, between two false-positive rates.

        The run is as hard to attack there as one look at a Gaussian whose mean moves by mu deviations; infinite: there
        is no such mu. Outside the two rates nothing is said, so this is not a proof of mu-GDP.

        Proof: both curves rise, so that of mu-GDP, Phi(Phi^-1(a) + mu), lies above on a whole interval if its left end
        is above the right end of the other.
        """
        normal, step = NormalDist(), (high / low) ** (1 / points)
        ends = [low * step**k for k in range(points + 1)]
        found = 0.0
        for left, right in itertools.pairwise(ends):
            rate = self.tpr(right)
            if rate >= 1:
                return math.inf
            found = max(found, normal.inv_cdf(rate) - normal.inv_cdf(left))
        return found + 1e-6  # what the quantiles may have been rounded


def _bounds(epsilon: float, delta: float, fpr: float) -> tuple[float, float]:
    if math.isinf(epsilon):
        return 1.0, 1.0
    grown = math.exp(min(epsilon, 700.0))
    return (delta + grown * fpr) * (1 + 1e-12), 1 - (1 - fpr - delta) / grown + 1e-12
