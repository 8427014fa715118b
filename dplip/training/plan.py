"""The plan of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dplip.accounting import Event
from dplip.sensitivities import Sensitivities


@dataclass(frozen=True)
class Plan:
    """What a run will spend, known before anything is spent; ``str`` gives a table."""

    noise_multiplier: float
    sample_rate: float
    steps: int
    expected_batch_size: float
    public_size: int
    epsilon: float
    delta: float
    accountant: str
    neighboring: str
    sensitivities: Sensitivities
    event: Event
    releases: Sequence[Event] = ()
    """The events before the first step."""
    trusted_optimizer: str | None = None
    """The class of an optimizer that is trusted without a check."""
    begun: str | None = None
    """What a resumed run started from."""

    def __str__(self) -> str:
        return "\n".join(
            [
                f"epsilon           {self.epsilon:.4f} at delta {self.delta:g} ({self.accountant}, {self.neighboring})",
                f"noise multiplier  {self.noise_multiplier:.4f}",
                f"steps             {self.steps}",
                *([f"begun             {self.begun}"] if self.begun else []),
                *(
                    [f"optimizer         {self.trusted_optimizer}, trusted and not checked"]
                    if self.trusted_optimizer
                    else []
                ),
                *(f"before them       the inputs' mean, with noise {r.noise_multiplier:g}" for r in self.releases),
                f"sample rate       {self.sample_rate:.6f} (about {self.expected_batch_size:g} of {self.public_size})",
                "",
                str(self.sensitivities),
            ]
        )
