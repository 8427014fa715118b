"""Options that several losses have, checked."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dplip.errors import ConfigurationError


def temperature_of(value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ConfigurationError(f"temperature={value}: a temperature is a finite number > 0.")
    return value


def within_of(value: str) -> str:
    if value not in ("mean", "sum"):
        raise ConfigurationError(f"within={value!r}: an example's own positions have a 'mean' or a 'sum'.")
    return value


def weights_of(name: str, value: float | Sequence[float] | Tensor | None) -> list[float] | None:
    """Public weights as numbers; raises ConfigurationError unless all are finite, none negative, and one is not 0."""
    if value is None:
        return None
    weights = torch.as_tensor(value, dtype=torch.float64).detach().reshape(-1).tolist()
    if not (all(math.isfinite(w) and w >= 0 for w in weights) and any(weights)):
        raise ConfigurationError(f"{name}={weights}: public weights are finite, not negative and not all 0.")
    return weights


def tensor_of(weights: list[float], like: Tensor) -> Tensor:
    """Weights in the type and on the device of a tensor."""
    return torch.tensor(weights, dtype=like.dtype, device=like.device)
