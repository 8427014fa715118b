"""The accountant: it counts the event of every step and composes them into epsilon.

Opacus is imported when an epsilon is first asked for, so that importing this module stays cheap.
"""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import astuple
from typing import Any

from dplip.accounting.events import NEIGHBORING, Event, GaussianEvent, event_of_values, require_relation
from dplip.accounting.fixed_size import FixedSizeEvent
from dplip.accounting.numerical import pld_epsilon, prv_epsilon
from dplip.accounting.rdp import rdp_epsilon
from dplip.errors import ConfigurationError
from dplip.validate import require_delta, whole


class Accountant:
    """Composes the events of a run into epsilon.

    Args:
        mechanism: "rdp" (Renyi divergences), "prv" or "pld" (numerical composition of privacy losses, by Opacus or by
            dp_accounting, which the extra ``accounting`` installs).
        neighboring: "add_remove" or "replace_one"; None: fixed by the first :meth:`relate`, or as "add_remove" by the
            first counted step.

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
        self._events: list[tuple[Event, int]] = []
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
        """Fix the neighbouring relation.

        Raises:
            ConfigurationError: another relation is fixed already, or the name is unknown.
        """
        self._same(neighboring)
        self._neighboring = neighboring

    def require(self, event: Event, neighboring: str) -> None:
        """Refuse another relation than its own, and an event for which it has no theorem under this one.

        Raises:
            ConfigurationError: names the reason.
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
        return [(*astuple(event), steps) for event, steps in self._events]

    @property
    def events(self) -> list[tuple[Event, int]]:
        """Each event and its number of steps, in order of time, equal neighbours merged; a copy."""
        return list(self._events)

    @property
    def num_steps(self) -> int:
        """The number of steps taken so far."""
        return sum(steps for _, steps in self._events)

    def step(self, *, noise_multiplier: float, sample_rate: float) -> None:
        """Count one more step.

        Raises:
            ConfigurationError: the pair is not a valid :class:`GaussianEvent`; nothing is counted then.
        """
        self.count(GaussianEvent(noise_multiplier, sample_rate))

    def count(self, event: Event, steps: int = 1) -> None:
        """Count so many more steps of an event.

        Raises:
            ConfigurationError: this accountant has no theorem for the event; nothing is counted then.
        """
        self.require(event, self.neighboring)
        self._neighboring = self.neighboring
        if self._events and self._events[-1][0] == event:
            steps += self._events.pop()[1]
        self._events.append((event, steps))

    def get_epsilon(self, delta: float) -> float:
        """An upper bound of epsilon at ``delta``: 0 before any step, infinite after one without noise."""
        return _epsilon(self._mechanism, self.neighboring, self._counted(), delta)

    def epsilon_after(self, event: Event, steps: int, delta: float) -> float:
        """What :meth:`get_epsilon` would return after ``steps`` more of ``event``; changes nothing."""
        self.require(event, self.neighboring)
        events = self._counted()
        events[event] += whole("steps", steps, least=0)
        return _epsilon(self._mechanism, self.neighboring, events, delta)

    def state_dict(self) -> dict[str, Any]:
        """The state under Opacus's keys, "history" and "mechanism"; also "neighboring" if not "add_remove"."""
        state = {"history": self.history, "mechanism": self._mechanism}
        return state if self.neighboring == "add_remove" else {**state, "neighboring": self.neighboring}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Replace the state by one that :meth:`state_dict` or an Opacus accountant wrote.

        Raises:
            ConfigurationError: the state is of another mechanism or relation, or invalid; nothing is changed then.
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
            loaded.count(event_of_values(values), whole("num_steps", steps, least=1))
        self._events, self._neighboring = loaded._events, loaded._neighboring

    def _same(self, neighboring: str) -> None:
        if neighboring not in tuple(NEIGHBORING):
            raise ConfigurationError(f"neighboring={neighboring!r}: choose one of {list(NEIGHBORING)}.")
        if self._neighboring not in (None, neighboring):
            raise ConfigurationError(
                f"neighboring={neighboring!r}: this accountant is for {self._neighboring!r}, and an epsilon for both "
                "relations at once is for neither. Choose that relation, or a new accountant (a new PrivacyEngine)."
            )

    def _counted(self) -> Counter[Event]:
        counted: Counter[Event] = Counter()
        for event, steps in self._events:
            counted[event] += steps
        return counted


def create_accountant(mechanism: str, neighboring: str | None = None) -> Accountant:
    """A new accountant: "rdp", "prv" or "pld", for neighbours under this relation.

    Raises:
        ConfigurationError: a name is unknown; names the nearest.
    """
    return Accountant(mechanism, neighboring)


def _epsilon(mechanism: str, neighboring: str, events: Mapping[Event, int], delta: float) -> float:
    require_delta(delta)
    spent = {event: steps for event, steps in events.items() if steps > 0}
    if not spent:
        return 0.0
    if any(event.noise_multiplier == 0 for event in spent):
        return math.inf
    rdp = max(0.0, rdp_epsilon(spent, neighboring, delta))
    # The FFTs of PRV and PLD lose small deltas (seen on plain Gaussians after 20,000 steps: too low below 1e-10, by 1%
    # of delta at 1e-11), the exp of PRV overflows, and larger losses do not fit PLD's grid.
    if not 0 < rdp < 100 or delta < 1e-13 * max(1000, sum(spent.values())):
        return rdp
    return max(0.0, min(rdp, _EPSILON[mechanism](spent, delta)))


# The upper bound of each mechanism beside that of RDP; infinite where there is none.
_EPSILON: dict[str, Callable[[Mapping[Event, int], float], float]] = {
    "rdp": lambda events, delta: math.inf,
    "prv": prv_epsilon,
    "pld": pld_epsilon,
}


def fixed_size_epsilon(*, noise_multiplier: float, batch_size: int, size: int, steps: int, delta: float) -> float:
    """Epsilon of steps whose batches hold exactly ``batch_size`` examples, drawn without replacement.

    The cost is not that of Poisson batches. :class:`dplip.sampling.FixedSizeLoader` draws fixed-size batches.

    Args:
        noise_multiplier: std of the noise per unit of how far *replacing* one example moves the sum, which is twice
            one example's bound.
        batch_size, size: examples in a batch and in the data, both public.
        steps: how many.
        delta: in (0, 1).

    Raises:
        ConfigurationError: an argument is out of range.

    Guarantee: an upper bound, for neighbours that differ in one example (``replace_one``): between data of different
    sizes there is no such sampler.

    Source: Wang, Balle, Kasiviswanathan 2019 (arXiv 1808.00087), theorem 27. The approximation by a central limit
    ("GDP") is not offered: it is too low.
    """
    event = FixedSizeEvent(noise_multiplier, batch_size, size)
    return Accountant(neighboring="replace_one").epsilon_after(event, steps, delta)
