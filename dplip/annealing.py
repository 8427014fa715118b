"""Public schedules: what changes depends on the fraction of the steps done alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, ReduceLROnPlateau

from dplip.errors import ConfigurationError


class Annealing(CosineAnnealingLR):
    """A learning rate that falls to 0 along half a cosine, and whatever else is set along with it.

    Args:
        optimizer: its learning rates.
        steps: of the whole run.
        also: called with the fraction of the steps done, in [0, 1], before the first step and after every one.
    """

    def __init__(self, optimizer: Optimizer, steps: int, also: Callable[[float], None]) -> None:
        self._steps, self._also = steps, also
        super().__init__(optimizer, steps)

    def step(self, epoch: int | None = None) -> None:
        super().step(epoch)
        self._also(min(self.last_epoch / self._steps, 1.0))


def check_scheduler(scheduler: Any, optimizer: Optimizer) -> None:
    """Refuse what cannot be stepped after every private step.

    Raises:
        ConfigurationError: it is no torch scheduler, wants a metric, or is of another optimizer.
    """
    if scheduler is None:
        return
    if not isinstance(scheduler, LRScheduler) or isinstance(scheduler, ReduceLROnPlateau):
        raise ConfigurationError(
            f"scheduler={scheduler!r}: give a torch LRScheduler of the optimizer, one that needs no metric (a loss on "
            "private data is not accounted for). It is stepped after every private step."
        )
    if scheduler.optimizer is not optimizer:
        raise ConfigurationError("scheduler: it is of another optimizer. Build it over the one that you give.")
