"""Every loss with its arguments, the outputs that attack it, and its gradient at them."""

import math
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from dplip.losses import (
    HKR,
    BinaryCrossEntropy,
    ClippedHinge,
    ClippedMSE,
    Cosine,
    CrossEntropy,
    Hinge,
    Huber,
    MulticlassKR,
)

CLASSES = 5
FREQUENCIES = [0.05, 0.1, 0.15, 0.3, 0.4]

CASES: dict[str, tuple[Any, dict[str, Any], tuple[int, ...], str]] = {
    "cross_entropy": (CrossEntropy, {}, (CLASSES,), "label"),
    "cross_entropy_hot": (CrossEntropy, {"temperature": 32.0}, (CLASSES,), "label"),
    "cross_entropy_cold": (CrossEntropy, {"temperature": 0.1}, (CLASSES,), "label"),
    "binary_cross_entropy": (BinaryCrossEntropy, {}, (1,), "binary"),
    "binary_cross_entropy_flat": (BinaryCrossEntropy, {}, (), "binary"),
    "binary_cross_entropy_hot": (BinaryCrossEntropy, {"temperature": 16.0}, (1,), "binary"),
    "hinge": (Hinge, {}, (CLASSES,), "label"),
    "hinge_wide": (Hinge, {"margin": 5.0}, (CLASSES,), "label"),
    "hinge_binary": (Hinge, {}, (1,), "binary"),
    "clipped_hinge": (ClippedHinge, {}, (CLASSES,), "label"),
    "clipped_hinge_alone": (ClippedHinge, {"threshold": 2.0, "cross_entropy": 0.0}, (CLASSES,), "label"),
    "clipped_hinge_hot": (ClippedHinge, {"cross_entropy": 0.5, "temperature": 4.0}, (CLASSES,), "label"),
    "kr": (MulticlassKR, {}, (CLASSES,), "label"),
    "kr_imbalanced": (MulticlassKR, {"class_weights": FREQUENCIES}, (CLASSES,), "label"),
    "hkr": (HKR, {"alpha": 3.0}, (CLASSES,), "label"),
    "hkr_imbalanced": (HKR, {"alpha": 0.5, "class_weights": FREQUENCIES}, (CLASSES,), "label"),
    "cosine": (Cosine, {}, (CLASSES,), "label"),
    "cosine_small_floor": (Cosine, {"floor": 0.2}, (CLASSES,), "label"),
    "huber": (Huber, {"delta": 0.7}, (3,), "value"),
    "huber_image": (Huber, {}, (2, 2, 2), "value"),
    "huber_scalar": (Huber, {}, (), "value"),
    "clipped_mse": (ClippedMSE, {"delta": 0.7}, (3,), "value"),
    "clipped_mse_scalar": (ClippedMSE, {}, (1,), "value"),
}
"""name: (loss class, its own arguments, shape of one output, kind of target)"""

RESCALINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "max_gradient": {"max_gradient": 0.3},
    "normalize": {"normalize": True},
    "normalize_and_max_gradient": {"normalize": True, "max_gradient": 0.3},
}
every_case = pytest.mark.parametrize("case", CASES)
every_rescaling = pytest.mark.parametrize("rescaling", RESCALINGS)


def build(case: str, rescaling: str = "plain"):
    kind, arguments, _, _ = CASES[case]
    return kind(**arguments, **RESCALINGS[rescaling])


def targets_for(case: str, batch: int, generator: torch.Generator) -> Tensor:
    _, _, shape, kind = CASES[case]
    if kind == "label":
        return torch.randint(0, CLASSES, (batch,), generator=generator)
    if kind == "binary":
        return torch.randint(0, 2, (batch, *shape), generator=generator)
    return torch.randn(batch, *shape, generator=generator)


@cache
def worst_outputs(case: str) -> tuple[Tensor, Tensor]:
    """Outputs that reach every corner of a loss: zero, ties, all scales up to overflow, one-sided, NaN, infinity."""
    _, _, shape, kind = CASES[case]
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([0.0, 1e-30, 1e-3, 0.1, 1.0, 10.0, 1e3, 1e6, 1e18, 1e30, 3e38])
    z = torch.randn(200, len(scales), *shape, generator=generator).clamp(-1, 1)
    z = (z * scales.reshape(-1, *[1] * len(shape))).flatten(0, 1)
    ties = z.sign() * z.abs().max()
    corners = torch.randint(-1, 2, (400, *shape), generator=generator).float()
    broken = corners.clone()
    marks = torch.tensor([math.nan, math.inf, -math.inf])
    which = torch.randint(0, 4, broken.shape, generator=generator)
    broken = torch.where(which > 0, marks[(which - 1).clamp_min(0)], broken)
    outputs = torch.cat([z, ties, corners, 50 * corners, 1e5 * corners, broken])
    targets = targets_for(case, len(outputs), generator)
    if kind == "value":  # residuals on both sides of the bend
        targets[: len(z)] = z + torch.randn(z.shape, generator=generator)
        targets = targets.nan_to_num(0.0, 0.0, 0.0)
    return outputs, targets


def logit_gradient(loss, outputs: Tensor, targets: Tensor, factor: float = 1.0) -> Tensor:
    z = outputs.clone().requires_grad_()
    (factor * loss(z, targets)).backward()
    assert z.grad is not None
    return z.grad


def norms_of_rows(gradient: Tensor) -> dict[float, Tensor]:
    rows = gradient.double().reshape(len(gradient), -1)
    return {p: torch.linalg.vector_norm(rows, p, 1) for p in (1, 2, math.inf)}


def ordinary(case: str, batch: int = 64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    _, _, shape, _ = CASES[case]
    return 0.8 * torch.randn(batch, *shape, generator=generator), targets_for(case, batch, generator)
