"""The device of a model, and the device that an argument names."""

from __future__ import annotations

import torch
from torch import nn

from dplip.errors import ConfigurationError, first_line


def device_of(module: nn.Module) -> torch.device:
    """The device of a module's first parameter or buffer; the CPU for a module of neither."""
    return next((t.device for t in (*module.parameters(), *module.buffers())), torch.device("cpu"))


def resolve_device(device: str | torch.device, module: nn.Module) -> torch.device:
    """The device that an argument names; ``"auto"``: a CUDA device in place of the CPU, if there is one.

    Raises:
        ConfigurationError: no tensor can be made there.
    """
    here = device_of(module)
    if device == "auto":
        return torch.device("cuda") if here.type == "cpu" and torch.cuda.is_available() else here
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ValueError, TypeError) as wrong:
        raise ConfigurationError(
            f"device={device!r}: no tensor can be made there ({first_line(wrong)}). Choose 'auto' or a device of this "
            "machine."
        ) from None
    return torch.device(device)
