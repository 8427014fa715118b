"""A check that a run trains in one process, as each of several would spend the whole budget."""

from __future__ import annotations

import os

import torch.distributed

from dplip.errors import ConfigurationError
from dplip.runtime.group import Group, group_of

AUTO = "auto"
INDEPENDENT = "independent"

_COUNTS = (
    *("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "HOROVOD_SIZE"),
    *("SLURM_STEP_NUM_TASKS", "MV2_COMM_WORLD_SIZE"),
)
"""Environment variables by which launchers give the number of their processes."""


class OwnProcess:
    """The process in which a private object was made, the only one in which it may release anything.

    Args:
        distributed: ``None``: refuse to be one of several; ``"independent"``: each process makes a release of its own,
            and nothing is made of several releases, such as their average or the best; ``"auto"``, or a group of
            :func:`dplip.distributed.group`: all processes make one release together.

    Attributes:
        group: those that release together: this process alone, unless told otherwise.

    Raises:
        ConfigurationError: there are other processes, and ``distributed`` does not say what they are for.
    """

    def __init__(self, distributed: str | Group | None) -> None:
        if distributed not in (None, INDEPENDENT, AUTO) and not isinstance(distributed, Group):
            raise ConfigurationError(
                f"distributed={distributed!r}: choose None, {AUTO!r}, {INDEPENDENT!r} or dplip.distributed.group()."
            )
        self.group = group_of(distributed)
        self._alone, self._process = distributed != INDEPENDENT and self.group.size == 1, os.getpid()
        self.require()

    def require(self) -> None:
        """Refuse a forked process, and, unless told otherwise, one of several; cheap enough for every step."""
        if self._process != os.getpid():
            raise ConfigurationError(
                f"os.getpid()={os.getpid()}: this process was forked from {self._process}, which made the trainer or "
                "the optimizer, and may train with it, too: steps that no budget of the other counts. Make it in the "
                "process that trains."
            )
        if self._alone and (others := _others()):
            raise ConfigurationError(
                f"{others}: each process would train a model of its own on all of the data and spend the whole "
                "budget; an average of the models, or the best of them, costs up to as many times that. Train in "
                f"one process; or one model in all of them, started by torchrun: distributed={AUTO!r}; or, if each "
                f"process's model is a release of its own, pass distributed={INDEPENDENT!r}."
            )


def _others() -> str | None:
    """A setting that shows several training processes, as text; None: there is none."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        size = torch.distributed.get_world_size()
        if size > 1:
            return f"torch.distributed.get_world_size()={size}"
    for name in _COUNTS:
        count = os.environ.get(name, "1").strip()
        if count.isdigit() and int(count) > 1:
            return f"{name}={count}"
    return None
