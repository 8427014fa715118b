"""Going on with a run from what its folder holds."""

from __future__ import annotations

import hashlib
import warnings

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from dplip.errors import CheckpointError
from dplip.records import Checkpoint


def load(checkpoint: Checkpoint, model: nn.Module, optimizer: Optimizer, average: AveragedModel | None) -> None:
    """Put a checkpoint's states into these; the optimizer keeps its groups, and so its learning rates.

    Raises:
        CheckpointError: they do not fit.
    """
    try:
        model.load_state_dict(checkpoint.model)
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": checkpoint.optimizer, "param_groups": groups})
        if (average is None) != (checkpoint.average is None):
            raise ValueError("a moving average of the weights is only in one of the two")
        if average is not None and checkpoint.average is not None:
            average.load_state_dict(checkpoint.average)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as wrong:
        raise CheckpointError(
            f"checkpoint.safetensors of run {checkpoint.run!r}: it does not fit this trainer ({wrong}). Make it as the "
            "run was made."
        ) from None


def another_stream(seed: int, done: int) -> int:
    """The seed of what a seeded run draws after ``done`` steps and a crash: no draw serves two data."""
    return int.from_bytes(hashlib.sha256(f"{seed} after {done}".encode()).digest()[:12], "big")


def advance(scheduler: LRScheduler, steps: int) -> None:
    """Take a schedule, a function of the number of steps, up to the present one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(steps):
            scheduler.step()
