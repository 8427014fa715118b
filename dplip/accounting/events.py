"""Events: what one step spends, as a record of public numbers, and its Renyi divergence."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, ClassVar

from dplip.accounting.fixed_size import FixedSizeEvent
from dplip.accounting.replace_one import replacing
from dplip.errors import ConfigurationError
from dplip.validate import is_number

LARGEST_SAMPLED_ORDER = 2**16  # above it the plain Gaussian's divergence is taken
_LEAST_NOISE = 1e-3  # below it Opacus's series becomes NaN or does not end; the plain Gaussian costs as much there


NEIGHBORING = {"add_remove": 1.0, "replace_one": 2.0}
"""How far two neighbouring sums lie apart, in units of one example's bound."""


@dataclass(frozen=True)
class GaussianEvent:
    """One Poisson-subsampled Gaussian release.

    Args:
        noise_multiplier: standard deviation of the noise per unit of l2 sensitivity under the relation (under
            ``replace_one``, twice one example's bound); 0 means no noise.
        sample_rate: probability with which each example takes part, in (0, 1]; 1 is the plain Gaussian mechanism.

    Raises:
        ConfigurationError: either is out of range or not finite.
    """

    noise_multiplier: float
    sample_rate: float

    sampling: ClassVar[str] = "poisson"
    neighboring: ClassVar[tuple[str, ...]] = ("add_remove", "replace_one")

    def __post_init__(self) -> None:
        if not is_number(self.noise_multiplier) or not 0 <= self.noise_multiplier < math.inf:
            raise ConfigurationError(
                f"noise_multiplier={self.noise_multiplier!r}: the noise is a finite number of sensitivities, "
                "0 or more; pass such a number, or calibrate one with get_noise_multiplier"
            )
        if not is_number(self.sample_rate) or not 0 < self.sample_rate <= 1:
            raise ConfigurationError(
                f"sample_rate={self.sample_rate!r}: a sampling probability lies in (0, 1]; "
                "pass the expected batch size divided by the public size of the data"
            )
        object.__setattr__(self, "noise_multiplier", float(self.noise_multiplier))
        object.__setattr__(self, "sample_rate", float(self.sample_rate))

    @classmethod
    def worst(cls, events: Iterable[GaussianEvent]) -> GaussianEvent:
        """An event that costs at least as much as each of these."""
        events = tuple(events)
        return cls(min(e.noise_multiplier for e in events), max(e.sample_rate for e in events))

    def mechanisms(self, neighboring: str) -> tuple[str, ...]:
        """The accountants that have a theorem for it under this relation."""
        return ("rdp",) if neighboring == "replace_one" and self.sample_rate < 1 else ("rdp", "prv", "pld")

    def renyi_divergence(self, order: float, neighboring: str = "add_remove") -> float:
        """An upper bound of the Renyi divergence; infinite at worst."""
        q, sigma = self.sample_rate, self.noise_multiplier
        if neighboring == "add_remove":
            return _sampled_gaussian(q, sigma, order)
        return replacing(lambda at: _sampled_gaussian(q, 2 * sigma, at), q, order)


def _sampled_gaussian(q: float, sigma: float, order: float) -> float:
    """A bound of the divergence for adding or removing one example; infinite where there is none."""
    if order > LARGEST_SAMPLED_ORDER or sigma < _LEAST_NOISE:
        return math.inf
    if float(order).is_integer():
        return _log_moment(q, sigma, int(order)) / (order - 1)
    from opacus.accountants.analysis.rdp import compute_rdp

    try:
        sampled = float(compute_rdp(q=q, noise_multiplier=sigma, steps=1, orders=float(order)))
    except (ValueError, ArithmeticError):  # its series ran out of floating-point range
        return math.inf
    if not math.isfinite(sampled):  # NaN included
        return math.inf
    # Its series is cut off at exp(-30).
    return max(0.0, sampled) * (1 + 1e-12) + 4e-13 / (order - 1)


def _log_moment(q: float, sigma: float, order: int) -> float:
    """log E (1 - q + q L)^order at most, L the likelihood ratio of two Gaussians one unit apart (Mironov et al. 2019).

    As the probabilities of k among ``order`` draws sum to one, it is log(1 + sum of C(order, k) q^k (1 - q)^(order - k)
    (exp(k (k - 1) / 2 sigma^2) - 1)) with k from 2 on, whose terms are all positive: nothing cancels, however small.
    """
    import numpy as np

    k = np.arange(2.0, order + 1)
    binomial, size = _log_binomials(order)
    taken, left, gained = k * math.log(q), (k - order) * math.log1p(-q), k * (k - 1) / 2 / sigma**2
    terms = binomial + taken - left + gained + np.log(-np.expm1(-gained))
    terms += 4e-15 * (size - taken + left + gained)  # what may have been rounded
    largest = float(terms.max())
    total = largest + math.log(float(np.exp(terms - largest).sum())) + 1e-12
    return math.log1p(math.exp(total)) * (1 + 1e-15) if total < 700 else total + 1e-12 * total


@lru_cache(maxsize=128)
def _log_binomials(order: int) -> tuple[Any, float]:
    """log C(order, k) for k from 2 on, and the size of the terms that it was computed from."""
    import numpy as np
    from scipy.special import gammaln

    factorials = gammaln(np.arange(1.0, order + 2))
    return (factorials[-1] - factorials - factorials[::-1])[2:], 2 * float(factorials[-1])


Event = GaussianEvent | FixedSizeEvent
"""What one step spends: a record of public numbers that names its sampling and the relations it is proved for."""

_FIELDS: dict[type[Event], tuple[str, ...]] = {
    kind: tuple(field.name for field in fields(kind)) for kind in (GaussianEvent, FixedSizeEvent)
}


def event_of(record: Mapping[str, Any]) -> Event:
    """The event with these fields.

    Raises:
        ConfigurationError: no event has these fields, or a field is out of range.
    """
    kind = next((kind for kind, names in _FIELDS.items() if record.keys() == set(names)), None)
    if kind is None:
        raise ConfigurationError(f"an event of {sorted(record)}: pass the fields of one of {sorted(_FIELDS.values())}")
    return kind(**record)


def event_of_values(values: list[Any]) -> Event:
    """The event with these values, unnamed as in Opacus's history; their number tells the class."""
    names = next((names for names in _FIELDS.values() if len(names) == len(values)), ())
    return event_of(dict(zip(names, values, strict=False)))


def require_relation(event: Event, neighboring: str) -> None:
    """Refuse a relation for which the cost of the event is not proved."""
    if neighboring not in event.neighboring:
        raise ConfigurationError(
            f"neighboring={neighboring!r}: what {event.sampling} batches cost is proved for "
            f"{' and '.join(map(repr, event.neighboring))}. Choose that relation, or Poisson sampling."
        )
