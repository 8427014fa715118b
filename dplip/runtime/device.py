"""The device of a model, and the device that an argument names."""

from __future__ import annotations

import os

import torch
from torch import nn

from dplip.errors import ConfigurationError, first_line


def device_of(module: nn.Module) -> torch.device:
    """The device of a module's first parameter or buffer; the CPU for a module of neither."""
    return next((t.device for t in (*module.parameters(), *module.buffers())), torch.device("cpu"))


def own_device() -> torch.device:
    """The CUDA device of this process, the one of its number on this machine; the CPU, if there is none.

    Raises:
        ConfigurationError: there are more processes on this machine than devices.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    number = os.environ.get("LOCAL_RANK")
    if number is None:
        return torch.device("cuda")
    count = torch.cuda.device_count()
    if int(number) >= count:
        raise ConfigurationError(
            f"LOCAL_RANK={number}: this machine has {count} CUDA devices, and each process needs its own. Start as "
            "many processes: torchrun --nproc-per-node=gpu."
        )
    found = torch.device("cuda", int(number))
    torch.cuda.set_device(found)
    return found


def resolve_device(device: str | torch.device, module: nn.Module) -> torch.device:
    """The device that an argument names; ``"auto"``: a CUDA device in place of the CPU, if there is one.

    Raises:
        ConfigurationError: no tensor can be made there.
    """
    here = device_of(module)
    if device == "auto":
        return own_device() if here.type == "cpu" else here
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ValueError, TypeError) as wrong:
        raise ConfigurationError(
            f"device={device!r}: no tensor can be made there ({first_line(wrong)}). Choose 'auto' or a device of this "
            "machine."
        ) from None
    return torch.device(device)
