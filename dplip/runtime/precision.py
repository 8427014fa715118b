"""A check that float32 products are computed in float32: slacks do not cover the rounding of TF32 or bfloat16."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from typing import Any

import torch
from torch import nn

from dplip.errors import ConfigurationError


def require_autocast(kind: str, dtype: object) -> None:
    """Refuse a type that ``torch.autocast`` does not support on a kind of device.

    Raises:
        ConfigurationError: the type is not one of two bytes, or the device has no autocast to it.
    """
    if dtype not in (torch.bfloat16, torch.float16):
        raise ConfigurationError(f"autocast={dtype}: choose torch.bfloat16, torch.float16, or None for float32.")
    try:
        with torch.autocast(kind, dtype):
            on = torch.is_autocast_enabled(kind)
    except RuntimeError:
        on = False
    if not on:
        raise ConfigurationError(f"autocast={dtype}: torch cannot do that on {kind!r}. Leave it out.")


# torch's names of the settings; each resolves to what is in force.
_SETTINGS = {
    "cpu": ("mkldnn.matmul", "mkldnn.conv"),
    "cuda": ("cuda.matmul", "cudnn.conv"),
}
_FULL = ("ieee", "none")


def require_full_precision(model: nn.Module) -> None:
    """Refuse a model whose float32 products may be computed in fewer digits.

    TF32 and bfloat16 round each factor by up to 2^-11 and 2^-9 of it; the slack of the sensitivities is for the
    rounding of float32, 2^-24.

    Raises:
        ConfigurationError: torch allows fewer digits on the device of a parameter.
    """
    for kind in {p.device.type for p in model.parameters() if p.dtype == torch.float32}:
        for name in _SETTINGS.get(kind, ()):
            setting = _backend(name).fp32_precision
            if setting not in _FULL:
                raise ConfigurationError(
                    f"torch.backends.{name}.fp32_precision={setting!r}: products of float32 may be rounded to fewer "
                    f"digits than the bounds have slack for. Set torch.backends.{name}.fp32_precision = 'ieee'."
                )


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute float32 products in full precision inside the block, and restore torch's settings after it."""
    names = [name for names in _SETTINGS.values() for name in names]
    before = {name: setting for name in names if (setting := _backend(name).fp32_precision) not in _FULL}
    try:
        for name in before:
            _backend(name).fp32_precision = "ieee"
        yield
    finally:
        for name, setting in before.items():
            _backend(name).fp32_precision = setting


def _backend(name: str) -> Any:
    return reduce(getattr, name.split("."), torch.backends)
