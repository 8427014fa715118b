"""Public schedules: functions of the fraction of the steps done, and of nothing else."""

from __future__ import annotations

import copy
import math
import warnings
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dplip.errors import ConfigurationError, first_line


class Annealing(CosineAnnealingLR):
    """A learning rate that falls to 0 along half a cosine, with a callback for further schedules.

    Args:
        optimizer: the optimizer whose learning rates fall.
        steps: number of steps of the whole run.
        also: called with the fraction of the steps done, in [0, 1], before the first step and after every one.
    """

    def __init__(self, optimizer: Optimizer, steps: int, also: Callable[[float], None]) -> None:
        self._steps, self._also = steps, also
        super().__init__(optimizer, steps)

    def __deepcopy__(self, memo: dict[int, Any]) -> Annealing:
        """A copy sets its own learning rates, and nothing else."""
        twin = copy.copy(self)
        twin.optimizer, twin._also = copy.deepcopy(self.optimizer, memo), lambda _: None
        return twin

    def step(self, epoch: int | None = None) -> None:
        super().step(epoch)
        self._also(min(self.last_epoch / self._steps, 1.0))


Schedule = LRScheduler | Callable[[Optimizer, int], LRScheduler | None] | None
"""A scheduler, or a function that makes one of the optimizer and the number of steps, or None."""


def scheduler_of(schedule: Schedule, optimizer: Optimizer, steps: int, done: int = 0) -> LRScheduler | None:
    """The scheduler of a run of so many steps, checked and rehearsed for the remaining ones.

    Raises:
        ConfigurationError: it cannot be stepped after every private step, or fails at one of them.
    """
    made = schedule if isinstance(schedule, LRScheduler) or not callable(schedule) else schedule(optimizer, steps)
    check_scheduler(made, optimizer)
    rehearse(made, steps - done)
    return made


def average_of(model: nn.Module, decay: float | None) -> AveragedModel | None:
    """An exponential moving average of a model's weights; None: there is no decay."""
    return None if decay is None else AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))


def check_scheduler(scheduler: Any, optimizer: Optimizer) -> None:
    """Refuse a scheduler that cannot be stepped after every private step.

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


def rehearse(scheduler: LRScheduler | None, steps: int) -> None:
    """Run a copy of a schedule through so many steps, before anything is spent.

    Raises:
        ConfigurationError: the schedule fails, or sets an invalid learning rate, at one of them.
    """
    if scheduler is None:
        return
    optimizer = scheduler.optimizer
    memo: dict[int, Any] = {id(optimizer.state): defaultdict(dict)}
    memo |= {id(p): nn.Parameter(torch.zeros(1)) for group in optimizer.param_groups for p in group["params"]}
    name, twin = type(scheduler).__name__, copy.deepcopy(scheduler, memo)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns, as no optimizer's step comes before
        for step in range(1, steps + 1):
            try:
                twin.step()
                rates = [float(group["lr"]) for group in twin.optimizer.param_groups]
            except Exception as wrong:
                raise ConfigurationError(
                    f"scheduler={name}: it fails after step {step} of the {steps} that the run takes "
                    f"({first_line(wrong)}). Build it for {steps} steps: it is stepped after every private step, not "
                    "after every epoch."
                ) from None
            for rate in rates:
                if not 0 <= rate < math.inf:
                    raise ConfigurationError(
                        f"scheduler={name}: it sets lr={rate} after step {step} of {steps}; a learning rate is a "
                        "finite number >= 0. Build it for all steps of the run."
                    )
