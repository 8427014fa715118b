"""A public schedule for more than the learning rate: what changes depends on the fraction of the steps done alone."""

from __future__ import annotations

from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR


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
