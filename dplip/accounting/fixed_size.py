"""Batches of exactly B examples, drawn anew for each step without replacement: their event and its Renyi divergence.

Two data sets of different sizes have no such batches in common, so neighbours are of one size and differ in one example
(``replace_one``), and what one event costs is not what Poisson batches of the same expected size cost.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import MAX_EMAX, MIN_EMIN, Decimal, localcontext
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from dplip.errors import ConfigurationError
from dplip.validate import is_number


@dataclass(frozen=True)
class FixedSizeEvent:
    """One Gaussian release of a sum over exactly ``batch_size`` of ``size`` examples, drawn without replacement.

    Args:
        noise_multiplier: standard deviation of the noise per unit of how far *replacing* one example can move the sum,
            which is twice one example's bound; 0 means no noise.
        batch_size, size: examples in a batch and in the data, both public.

    Raises:
        ConfigurationError: an argument is out of range or not finite.
    """

    noise_multiplier: float
    batch_size: int
    size: int

    sampling: ClassVar[str] = "fixed_size"
    neighboring: ClassVar[tuple[str, ...]] = ("replace_one",)
    """The neighbouring relations that its divergence is proved for."""

    def __post_init__(self) -> None:
        if not is_number(self.noise_multiplier) or not 0 <= self.noise_multiplier < math.inf:
            raise ConfigurationError(
                f"noise_multiplier={self.noise_multiplier!r}: the noise is a finite number of sensitivities, 0 or "
                "more; pass such a number"
            )
        object.__setattr__(self, "noise_multiplier", float(self.noise_multiplier))
        whole = all(isinstance(n, int) and not isinstance(n, bool) for n in (self.batch_size, self.size))
        if not whole or not 1 <= self.batch_size <= self.size:
            raise ConfigurationError(
                f"batch_size={self.batch_size!r}, size={self.size!r}: a batch is drawn from the data; pass whole "
                "numbers with 1 <= batch_size <= size"
            )

    def mechanisms(self, neighboring: str) -> tuple[str, ...]:
        """The accountants that have a theorem for it under this relation."""
        return ("rdp",)

    @property
    def sample_rate(self) -> float:
        """The probability of an example to be in a batch; not independent of the other examples."""
        return self.batch_size / self.size

    @classmethod
    def worst(cls, events: Iterable[FixedSizeEvent]) -> FixedSizeEvent:
        """An event that costs at least as much as each of these."""
        events = tuple(events)
        batch_size = max(e.batch_size for e in events)
        size = max(batch_size, min(e.size for e in events))
        return cls(min(e.noise_multiplier for e in events), batch_size, size)

    def renyi_divergence(self, order: float, neighboring: str = "replace_one") -> float:
        """An upper bound for neighbours that differ in one example; infinite at worst, and above the order 1024.

        Source: Wang, Balle, Kasiviswanathan 2019 (arXiv 1808.00087), theorem 27.
        """
        sigma, q = self.noise_multiplier, self.sample_rate
        if sigma < 1e-3 or order > 1024:
            return math.inf  # beyond the range of the rounding errors below
        low, high = _log_moment(sigma, q, math.floor(order)), _log_moment(sigma, q, math.ceil(order))
        # (order - 1) D_order is convex in the order.
        between = low + (order - math.floor(order)) * (high - low)
        return between * (1 + 1e-9) / (order - 1)  # 1e-9: the rounding of the logarithms of binomials


_LARGEST_DIFFERENCE = 256


def _log_moment(sigma: float, q: float, order: int) -> float:
    """log E_Q (P / Q)^order at most, for integer orders; 0 at 1."""
    if order == 1:
        return 0.0
    from scipy.special import logsumexp  # late: it takes a quarter of a second

    k = np.arange(2, order + 1)
    bound = math.log(2) + k * (k - 1) / 2 / sigma**2
    few = k[k < _LARGEST_DIFFERENCE]
    moments = _log_central_moments(sigma)
    ternary = math.log(4) + (moments[few // 2 * 2] + moments[(few + 1) // 2 * 2]) / 2
    bound[: len(few)] = np.minimum(bound[: len(few)], ternary)
    total = float(logsumexp(k * math.log(q) + _log_binomial(order, k) + bound))
    return math.log1p(math.exp(total)) if total < 700 else total + 1e-9


@lru_cache(maxsize=256)
def _log_central_moments(sigma: float) -> np.ndarray[Any, Any]:
    """log E_Q (P / Q - 1)^k at most, for even k up to 256 and Gaussians one unit apart.

    The sum alternates, and a double loses all its digits at sigma = 100 from k = 8 on, so decimals are used, with as
    many digits as cancel. Their rounding error is added, so the result is an upper bound for any number of digits.
    """
    logarithms = np.full(_LARGEST_DIFFERENCE + 1, -np.inf)
    digits = 40 + int(_LARGEST_DIFFERENCE * (0.31 + max(0.0, math.log10(sigma))))
    with localcontext() as context:
        context.prec, context.Emax, context.Emin = digits, MAX_EMAX, MIN_EMIN
        twice = 2 * Decimal(sigma) ** 2
        powers = [(i * (i - 1) / twice).exp() for i in map(Decimal, range(_LARGEST_DIFFERENCE + 1))]
        for k in range(2, _LARGEST_DIFFERENCE + 1, 2):
            terms = [math.comb(k, i) * powers[i] for i in range(k + 1)]
            even, odd = sum(terms[::2]), sum(terms[1::2])
            bound = even - odd + (even + odd) * Decimal(10) ** (5 - digits)
            context.prec = 30
            logarithms[k] = float(bound.ln())
            context.prec = digits
    return logarithms


def _log_binomial(n: Any, k: Any) -> Any:
    from scipy.special import gammaln

    return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
