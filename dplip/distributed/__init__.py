"""Several processes that train one model together, with the guarantee of one: see docs/distributed.md."""

from __future__ import annotations

import torch

from dplip.runtime.device import own_device
from dplip.runtime.group import TIMEOUT, Group, joined

__all__ = ["Group", "device", "group"]


def group(timeout: float = TIMEOUT) -> Group:
    """The group of all processes that torchrun has started; of this one alone, if there is no other.

    Starts ``torch.distributed``, unless that is done. Every process calls it. ``distributed="auto"`` stands for it.

    Args:
        timeout: the seconds for which a process waits for another before it stops with a ``GroupError``; those of the
            first call hold.

    Raises:
        ConfigurationError: the environment does not say where the other processes are.
    """
    return joined(timeout)


def device() -> torch.device:
    """The device of this process: the CUDA device of its number on this machine, or the CPU if there is none.

    Raises:
        ConfigurationError: there are more processes on this machine than devices.
    """
    return own_device()
