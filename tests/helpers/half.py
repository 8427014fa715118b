"""A model in half precision, and the context that computes in it."""

import pytest
import torch
from torch import nn

import dplip.nn as dn

HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


def half(dtype: torch.dtype = torch.bfloat16) -> torch.autocast:
    return torch.autocast("cpu", dtype)


def stock(radius: float = 0.5) -> nn.Sequential:
    torch.manual_seed(1)
    layers = (nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 3, 2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(36, 8))
    return dn.bound_gradients(nn.Sequential(*layers, nn.Tanh(), nn.Linear(8, 4)), radius)


def length(t: torch.Tensor) -> float:
    return float(t.double().norm())
