"""What a run spent: one event a step, composed into epsilon by Opacus's RDP or PRV implementation.

Opacus is imported when an epsilon is first asked for, so that importing this module stays cheap.
"""

from __future__ import annotations

import difflib
import math
import operator
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import astuple, dataclass, fields
from functools import lru_cache
from typing import Any, ClassVar, SupportsIndex

from dplip.errors import ConfigurationError, is_number
from dplip.fixed_size import FixedSizeEvent
from dplip.replace_one import replacing

# Every order gives a valid bound, so the set decides tightness only: Opacus's orders (tenths below 11,
# integers to 63), closer to 1 for large epsilon, and up to 2^40 for small epsilon, where orders above 2^16
# use the plain Gaussian.
_LARGEST_SAMPLED_ORDER = 2**16
_LEAST_NOISE = 1e-3  # below it Opacus's series becomes NaN or does not end; the plain Gaussian costs as much there
ORDERS: tuple[float, ...] = tuple(
    [1.01, 1.02, 1.05]
    + [1 + x / 10 for x in range(1, 100)]
    + [float(x) for x in range(11, 64)]
    + [float(round(64 * 2 ** (x / 8))) for x in range(33)]
    + [float(round(1024 * 2 ** (x / 4))) for x in range(1, 121)]
)
_COARSE = tuple(i for i, order in enumerate(ORDERS) if order in (2, 3, 4, 6, 12, 24, 48) or math.log2(order) % 1 == 0)


NEIGHBORING = {"add_remove": 1.0, "replace_one": 2.0}
"""How far two neighbouring sums lie apart, in units of one example's bound."""


@dataclass(frozen=True)
class GaussianEvent:
    """One Poisson-subsampled Gaussian release.

    Args:
        noise_multiplier: Standard deviation of the noise per unit of l2 sensitivity (that of the relation: of
            ``replace_one`` it is twice one example's bound); 0 means no noise.
        sample_rate: Probability with which each example takes part, in (0, 1]; 1 is the plain Gaussian
            mechanism.

    Raises:
        ConfigurationError: If either is out of range or not finite.
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
        """One that costs no less than any of these."""
        events = tuple(events)
        return cls(min(e.noise_multiplier for e in events), max(e.sample_rate for e in events))

    def mechanisms(self, neighboring: str) -> tuple[str, ...]:
        """The accountants that have a theorem for it under this relation."""
        return ("rdp",) if neighboring == "replace_one" and self.sample_rate < 1 else ("rdp", "prv", "pld")

    def renyi_divergence(self, order: float, neighboring: str = "add_remove") -> float:
        """An upper bound; infinite at worst."""
        q, sigma = self.sample_rate, self.noise_multiplier
        if neighboring == "add_remove":
            return _sampled_gaussian(q, sigma, order)
        return replacing(lambda at: _sampled_gaussian(q, 2 * sigma, at), q, order)


def _sampled_gaussian(q: float, sigma: float, order: float) -> float:
    """A bound of the divergence for adding or removing one example; infinite where there is none."""
    if order > _LARGEST_SAMPLED_ORDER or sigma < _LEAST_NOISE:
        return math.inf
    if float(order).is_integer():
        return _log_moment(q, sigma, int(order)) / (order - 1)
    from opacus.accountants.analysis.rdp import compute_rdp

    try:
        sampled = float(compute_rdp(q=q, noise_multiplier=sigma, steps=1, orders=float(order)))
    except (ValueError, ArithmeticError):  # its series ran out of floating-point range
        return math.inf
    if not math.isfinite(sampled):  # NaN too, which is no number to compare with
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
    """log C(order, k) for k from 2 on, and the size of what it was computed from."""
    import numpy as np
    from scipy.special import gammaln

    factorials = gammaln(np.arange(1.0, order + 2))
    return (factorials[-1] - factorials - factorials[::-1])[2:], 2 * float(factorials[-1])


Event = GaussianEvent | FixedSizeEvent
"""What one step spends: a record of public numbers that names its sampling and the relations it is proved for."""

_KINDS: dict[tuple[str, ...], type[Event]] = {
    tuple(field.name for field in fields(kind)): kind for kind in (GaussianEvent, FixedSizeEvent)
}


def event_of(record: Mapping[str, Any]) -> Event:
    """The event whose fields these are.

    Raises:
        ConfigurationError: There is none, or a field is out of range.
    """
    kind = _KINDS.get(tuple(record))
    if kind is None:
        raise ConfigurationError(f"an event of {sorted(record)}: pass the fields of one of {sorted(_KINDS)}")
    return kind(**record)


class Accountant:
    """Composes the events of a run into epsilon.

    Args:
        mechanism: "rdp" (Renyi divergences), "prv" or "pld" (numerical composition of privacy losses, by Opacus or by
            dp_accounting, which the extra ``accounting`` installs).
        neighboring: "add_remove", or "replace_one"; None: the first that it is :meth:`relate`d to, and "add_remove" as
            soon as a step is counted.

    Guarantee: after any number of steps the mechanism that released them is (get_epsilon(delta), delta)-DP
    for neighbours under its relation, whose sums lie one unit of the noise multiplier apart at most. "prv"
    and "pld" report the smaller of their own upper bound and that of RDP, and RDP alone where they are numerically
    unsafe: epsilon above 100, or delta below 1e-10 or below 1e-13 per step.

    Source: Mironov, Talwar, Zhang 2019 (arXiv 1908.10530); Balle et al. 2020 (1905.09982, theorem 21); Gopi,
    Lee, Wutschitz 2021 (2106.02848); Opacus for the implementations.
    """

    def __init__(self, mechanism: str = "rdp", neighboring: str | None = None) -> None:
        if mechanism not in _EPSILON:
            nearest = difflib.get_close_matches(str(mechanism), _EPSILON, n=1, cutoff=0)[0]
            raise ConfigurationError(
                f"accountant={mechanism!r}: there is no such accountant; the nearest name is {nearest!r} "
                f"(known: {', '.join(map(repr, _EPSILON))})"
            )
        self._mechanism = mechanism
        self._neighboring: str | None = None
        self._history: list[tuple[Any, ...]] = []
        if neighboring is not None:
            self.relate(neighboring)

    def mechanism(self) -> str:
        """The name of the accounting mechanism."""
        return self._mechanism

    @property
    def neighboring(self) -> str:
        """The relation that its epsilon is for."""
        return self._neighboring or "add_remove"

    def relate(self, neighboring: str) -> None:
        """Take this relation for good.

        Raises:
            ConfigurationError: It has another, under which the sum of both would be no epsilon; or there is none such.
        """
        self._same(neighboring)
        self._neighboring = neighboring

    def require(self, event: Event, neighboring: str) -> None:
        """Refuse another relation than its own, and an event for which it has no theorem under this one.

        Raises:
            ConfigurationError: Names the reason.
        """
        self._same(neighboring)
        require_relation(event, neighboring)
        mechanisms = event.mechanisms(neighboring)
        if self._mechanism not in mechanisms:
            raise ConfigurationError(
                f"accountant={self._mechanism!r}: it has no theorem for {event.sampling} batches under "
                f"{neighboring!r}; choose one of {list(mechanisms)}"
            )

    @property
    def history(self) -> list[tuple[Any, ...]]:
        """(noise_multiplier, sample_rate, num_steps) in order of time, equal neighbours merged; a copy.

        Steps of another sampling hold their event's own fields and the number of steps.
        """
        return list(self._history)

    @property
    def num_steps(self) -> int:
        """The number of steps taken so far."""
        return sum(entry[-1] for entry in self._history)

    def step(self, *, noise_multiplier: float, sample_rate: float) -> None:
        """Count one more step.

        Raises:
            ConfigurationError: If the pair is not a valid :class:`GaussianEvent`; nothing is counted then.
        """
        self.count(GaussianEvent(noise_multiplier, sample_rate))

    def count(self, event: Event, steps: int = 1) -> None:
        """Count so many more steps of an event.

        Raises:
            ConfigurationError: If this accountant has no theorem for it; nothing is counted then.
        """
        self.require(event, self.neighboring)
        self._neighboring = self.neighboring
        if self._history and self._history[-1][:-1] == astuple(event):
            steps += self._history.pop()[-1]
        self._history.append((*astuple(event), steps))

    def get_epsilon(self, delta: float) -> float:
        """An upper bound of epsilon at ``delta``: 0 before any step, infinite after one without noise."""
        return _epsilon(self._mechanism, self.neighboring, self._events(), delta)

    def epsilon_after(self, event: Event, steps: int, delta: float) -> float:
        """What :meth:`get_epsilon` would return after ``steps`` more of ``event``; changes nothing."""
        self.require(event, self.neighboring)
        events = self._events()
        events[event] += whole("steps", steps, least=0)
        return _epsilon(self._mechanism, self.neighboring, events, delta)

    def state_dict(self) -> dict[str, Any]:
        """The state under Opacus's keys, "history" and "mechanism"; and "neighboring" if it is not Opacus's."""
        state = {"history": self.history, "mechanism": self._mechanism}
        return state if self.neighboring == "add_remove" else {**state, "neighboring": self.neighboring}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Replace the state by one that :meth:`state_dict` or an Opacus accountant wrote.

        Raises:
            ConfigurationError: If it is of another mechanism or relation, or not such a state; nothing is changed then.
        """
        for key in ("history", "mechanism"):
            if key not in state_dict:
                raise ConfigurationError(
                    f"state_dict with the keys {sorted(state_dict)}: {key!r} is missing; "
                    "pass the state_dict() of an accountant"
                )
        if state_dict["mechanism"] != self._mechanism:
            raise ConfigurationError(
                f"mechanism={state_dict['mechanism']!r} in the state: this accountant is "
                f"{self._mechanism!r}; load it into create_accountant({state_dict['mechanism']!r})"
            )
        loaded = Accountant(self._mechanism, self._neighboring)
        if state_dict["history"] or "neighboring" in state_dict:
            loaded.relate(state_dict.get("neighboring", "add_remove"))
        for *values, steps in state_dict["history"]:
            loaded.count(_of_values(values), whole("num_steps", steps, least=1))
        self._history, self._neighboring = loaded._history, loaded._neighboring

    def _same(self, neighboring: str) -> None:
        if neighboring not in tuple(NEIGHBORING):
            raise ConfigurationError(f"neighboring={neighboring!r}: choose one of {list(NEIGHBORING)}.")
        if self._neighboring not in (None, neighboring):
            raise ConfigurationError(
                f"neighboring={neighboring!r}: this accountant is for {self._neighboring!r}, and an epsilon for both "
                "relations at once is for neither. Choose that relation, or a new accountant (a new PrivacyEngine)."
            )

    def _events(self) -> Counter[Event]:
        events: Counter[Event] = Counter()
        for *values, steps in self._history:
            events[_of_values(values)] += steps
        return events


def _of_values(values: list[Any]) -> Event:
    names = next((names for names in _KINDS if len(names) == len(values)), ())
    return event_of(dict(zip(names, values, strict=False)))


def create_accountant(mechanism: str, neighboring: str | None = None) -> Accountant:
    """A new accountant: "rdp", "prv" or "pld", for neighbours under this relation.

    Raises:
        ConfigurationError: If a name is unknown; names the nearest.
    """
    return Accountant(mechanism, neighboring)


def require_relation(event: Event, neighboring: str) -> None:
    """Refuse a relation that there is no theorem for."""
    if neighboring not in event.neighboring:
        raise ConfigurationError(
            f"neighboring={neighboring!r}: what {event.sampling} batches cost is proved for "
            f"{' and '.join(map(repr, event.neighboring))}. Choose that relation, or Poisson sampling."
        )


def _epsilon(mechanism: str, neighboring: str, events: Mapping[Event, int], delta: float) -> float:
    require_delta(delta)
    spent = {event: steps for event, steps in events.items() if steps > 0}
    if not spent:
        return 0.0
    if any(event.noise_multiplier == 0 for event in spent):
        return math.inf
    rdp = max(0.0, _rdp_epsilon(spent, neighboring, delta))
    # The FFTs of PRV and PLD lose small deltas (seen on plain Gaussians after 20,000 steps: too low below 1e-10, by 1%
    # of delta at 1e-11), the exp of PRV overflows, and larger losses do not fit PLD's grid.
    if not 0 < rdp < 100 or delta < 1e-13 * max(1000, sum(spent.values())):
        return rdp
    return max(0.0, min(rdp, _EPSILON[mechanism](spent, delta)))


def _rdp_epsilon(events: Mapping[Event, int], neighboring: str, delta: float) -> float:
    def spent(order: float) -> float:
        return sum(steps * renyi_divergence(event, order, neighboring) for event, steps in events.items())

    def epsilon(order: float) -> float:
        return converted(spent(order), order, delta)

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
    """The least bound among whole orders between neighbours of the set, few of them, and the same ones at each call."""
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


def converted(divergence: float, order: float, delta: float) -> float:
    """Epsilon at ``delta`` of a mechanism of this Renyi divergence at one order (Balle et al. 2020, theorem 21)."""
    return divergence - (math.log(delta) + math.log(order)) / (order - 1) + math.log1p(-1 / order)


@lru_cache(maxsize=1 << 18)
def renyi_divergence(event: Event, order: float, neighboring: str = "add_remove") -> float:
    """An upper bound of the Renyi divergence of one step under a relation; infinite at worst."""
    plain = order / 2 / event.noise_multiplier / event.noise_multiplier
    if event.sample_rate == 1 or order > _LARGEST_SAMPLED_ORDER:
        return plain  # sampling never increases it (joint quasi-convexity over the choices of a batch)
    sampled = event.renyi_divergence(order, neighboring)
    return min(plain, sampled) if math.isfinite(sampled) else plain


def _prv_epsilon(events: Mapping[Event, int], delta: float) -> float:
    import numpy as np
    from opacus.accountants import PRVAccountant
    from scipy.integrate import IntegrationWarning

    prv = PRVAccountant()
    prv.history = [(event.noise_multiplier, event.sample_rate, steps) for event, steps in events.items()]
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", IntegrationWarning)  # an unreliable mean would be a wrong number
            bound = float(prv.get_epsilon(delta))
    except (RuntimeError, ValueError, ArithmeticError, IndexError, MemoryError, IntegrationWarning):
        return math.inf
    return bound if math.isfinite(bound) else math.inf


def _pld_epsilon(events: Mapping[Event, int], delta: float) -> float:
    from dplip.dp_events import pld_epsilon

    return pld_epsilon(events, delta)


def _no_other(events: Mapping[Event, int], delta: float) -> float:
    return math.inf


# An upper bound beside that of RDP; infinite where there is none.
_EPSILON: dict[str, Callable[[Mapping[Event, int], float], float]] = {
    "rdp": _no_other,
    "prv": _prv_epsilon,
    "pld": _pld_epsilon,
}


def require_delta(delta: float, name: str = "delta") -> None:
    if not is_number(delta) or not 0 < delta < 1:
        raise ConfigurationError(
            f"{name}={delta!r}: a failure probability lies strictly between 0 and 1; "
            "pass one below 1 / (number of examples)"
        )


def require_target(epsilon: float) -> None:
    if not is_number(epsilon) or not epsilon > 0:
        raise ConfigurationError(f"target_epsilon={epsilon!r}: a budget is a number above 0; pass one (inf: no limit)")


def whole(name: str, value: Any, least: int) -> int:
    if not isinstance(value, SupportsIndex) or operator.index(value) < least:
        raise ConfigurationError(f"{name}={value!r}: this is a whole number, at least {least}; pass an int")
    return operator.index(value)
