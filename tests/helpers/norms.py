"""The norms of certificates, and what true norms are held against."""

import math

import pytest
import torch
from helpers.laws import EXPONENTS
from hypothesis import HealthCheck, settings
from torch import Tensor

from dplip import Norms

NORMS = (1, 2, math.inf)
every_norm = pytest.mark.parametrize("norm", NORMS)

quick = settings(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


def true_norms(x: Tensor) -> dict[float, float]:
    return {p: float(torch.linalg.vector_norm(x.double().reshape(-1), p)) for p in EXPONENTS}


def holds(norms: Norms, x: Tensor, slack: float = 1e-9) -> bool:
    return all(value <= norms.norm(p) * (1 + slack) for p, value in true_norms(x).items())
