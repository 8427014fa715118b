"""A budget: which steps may still be taken within (epsilon, delta)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from dplip.accounting.accountant import Accountant
from dplip.accounting.events import Event
from dplip.errors import BudgetExceededError, ConfigurationError
from dplip.validate import require_delta, require_target


@dataclass
class Budget:
    """At most ``epsilon`` at ``delta``, over all that an accountant has counted.

    Args:
        epsilon: > 0; inf: no limit.
        delta: in (0, 1).
    """

    epsilon: float
    delta: float
    _known: tuple[list[tuple[Event, int]], Event | None, int] = field(default=([], None, 0), repr=False)
    """What was spent before the last event, that event, and the number of its steps that are known to fit."""

    def __post_init__(self) -> None:
        require_target(self.epsilon)
        require_delta(self.delta, "target_delta")

    def require(self, accountant: Accountant, event: Event) -> None:
        """Raise :class:`BudgetExceededError` if one more step of ``event`` would exceed the budget."""
        before = accountant.events
        steps = before.pop()[1] if before and before[-1][0] == event else 0
        if math.isinf(self.epsilon) or (self._known[:2] == (before, event) and steps < self._known[2]):
            return
        after = accountant.epsilon_after(event, 1, self.delta)
        if after > self.epsilon:
            raise BudgetExceededError(
                f"The next step would spend epsilon={after:.4f} > target_epsilon={self.epsilon:g} at "
                f"delta={self.delta:g} after {accountant.num_steps} steps; it has not been run. Stop here, or plan "
                "with a larger epsilon or more noise."
            )
        ahead = 1
        while ahead < 2**20 and accountant.epsilon_after(event, 2 * ahead, self.delta) <= self.epsilon:
            ahead *= 2
        self._known = (before, event, steps + ahead)


class Fixed:
    """Base class of objects that charges depend on: the attributes named in ``_FIXED`` can be set only once."""

    _FIXED: ClassVar[frozenset[str]] = frozenset()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._FIXED and name in vars(self):
            raise ConfigurationError(
                f"{type(self).__name__}.{name}: what a step is charged for, or its noise, depends on it, so it stays "
                f"what it was. Make another {type(self).__name__}."
            )
        super().__setattr__(name, value)
