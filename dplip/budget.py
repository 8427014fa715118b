"""A budget: which steps may still be taken within (epsilon, delta)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from dplip.accounting import Accountant, GaussianEvent
from dplip.errors import BudgetExceededError, ConfigurationError


@dataclass
class Budget:
    """At most ``epsilon`` at ``delta``, over all that an accountant has counted.

    Args:
        epsilon: > 0; inf: no limit.
        delta: in (0, 1).
    """

    epsilon: float
    delta: float
    _checked: dict[GaussianEvent, int] = field(default_factory=dict, repr=False)  # steps known to fit in all

    def __post_init__(self) -> None:
        if not self.epsilon > 0:
            raise ConfigurationError(f"target_epsilon={self.epsilon}: a budget is a number > 0 (inf: no limit).")
        if not 0 < self.delta < 1:
            raise ConfigurationError(f"target_delta={self.delta}: delta lies in (0, 1), and well below 1 / examples.")

    def require(self, accountant: Accountant, event: GaussianEvent) -> None:
        """Raise :class:`BudgetExceededError` if one more step of ``event`` would exceed the budget."""
        taken = accountant.num_steps
        if math.isinf(self.epsilon) or taken < self._checked.get(event, 0):
            return
        if accountant.epsilon_after(event, 1, self.delta) > self.epsilon:
            raise BudgetExceededError(
                f"The next step would spend epsilon={accountant.epsilon_after(event, 1, self.delta):.4f} > "
                f"target_epsilon={self.epsilon:g} at delta={self.delta:g} after {taken} steps; it has not been run. "
                "Stop here, or plan with a larger epsilon or more noise."
            )
        ahead = 1
        while ahead < 2**20 and accountant.epsilon_after(event, 2 * ahead, self.delta) <= self.epsilon:
            ahead *= 2
        self._checked = {event: taken + ahead}
