"""Every loss with its arguments, the outputs that attack it, and its gradient at them."""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from dplip.losses import (
    ELBO,
    HKR,
    BinaryCrossEntropy,
    ClippedHinge,
    ClippedMSE,
    Cosine,
    CrossEntropy,
    Heads,
    Hinge,
    Huber,
    Loss,
    MulticlassKR,
    PerExample,
    SmoothL1,
)
from dplip.losses.structure import leaves, rebuilt
from dplip.norms import Norms

CLASSES = 5
FREQUENCIES = [0.05, 0.1, 0.15, 0.3, 0.4]
WEIGHTS = [0.5, 2.0, 0.0, 1.5, 1.0]
IGNORED = -100


class Joint:
    """A loss of several outputs as one of a vector that holds them, so that it is held against the same laws.

    Args:
        loss: the loss.
        shape: the shapes of its outputs, in their structure.
        targets_of: its targets, from a matrix of (batch, numbers).
    """

    def __init__(self, loss: Loss, shape: Any, targets_of: Callable[[Tensor], Any]) -> None:
        self.loss, self.shape, self.targets_of = loss, shape, targets_of

    def parts(self, z: Tensor) -> Any:
        sizes = leaves(self.shape)
        split = z.split([math.prod(size) for size in sizes], 1)
        return rebuilt(self.shape, iter([p.reshape(len(z), *size) for p, size in zip(split, sizes, strict=True)]))

    def __call__(self, z: Tensor, y: Tensor, reduction: str = "sum") -> Tensor:
        return self.loss(self.parts(z), self.targets_of(y), reduction)

    def per_example(self, z: Tensor, y: Tensor) -> Tensor:
        return self.loss.per_example(self.parts(z), self.targets_of(y))

    def gradient_norms(self, shape: tuple[int, ...]) -> Norms:
        norms = self.loss.gradient_norms(self.shape)
        assert norms.shape == shape
        return norms


def heads(max_gradient: float | None = None, normalize: bool = False, own: float | None = None) -> Joint:
    """Three classes at weight 2, and two values at weight 0.5."""
    parts = {"class": (CrossEntropy(max_gradient=own), 2.0), "value": (Huber(0.7), 0.5)}
    return Joint(
        Heads(parts, max_gradient, normalize),
        {"class": (3,), "value": (2, 1)},
        lambda y: {"class": y[:, 0].long() % 3, "value": y[:, 1:, None]},
    )


def variational(max_gradient: float = 2.0, normalize: bool = False) -> Joint:
    loss = ELBO(ClippedMSE(0.7), max_gradient, beta=0.5, normalize=normalize)
    return Joint(loss, ((2, 2), (2,), (2,)), lambda y: y.reshape(-1, 2, 2))


def quartic(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).pow(4).sum(1) / 4


def own(max_gradient: float = 2.0, normalize: bool = False) -> PerExample:
    return PerExample(quartic, max_gradient, normalize=normalize)


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
    "clipped_mse_image": (ClippedMSE, {}, (2, 2, 2), "value"),
    "smooth_l1": (SmoothL1, {"delta": 0.2}, (3,), "value"),
    "smoothed": (CrossEntropy, {"label_smoothing": 0.2}, (CLASSES,), "label"),
    "weighed": (CrossEntropy, {"weight": WEIGHTS}, (CLASSES,), "label"),
    "weighed_and_smoothed": (CrossEntropy, {"weight": WEIGHTS, "label_smoothing": 0.4}, (CLASSES,), "label"),
    "ignoring": (CrossEntropy, {"ignore_index": IGNORED}, (CLASSES,), "label"),
    "soft": (CrossEntropy, {"soft": True, "weight": WEIGHTS}, (CLASSES,), "soft"),
    "soft_smoothed": (CrossEntropy, {"soft": True, "label_smoothing": 0.3}, (CLASSES,), "soft"),
    "pixels": (CrossEntropy, {}, (CLASSES, 1, 3), "label"),
    "pixels_summed": (CrossEntropy, {"within": "sum", "weight": WEIGHTS}, (CLASSES, 3), "label"),
    "pixels_ignored": (CrossEntropy, {"ignore_index": 1}, (CLASSES, 3), "label"),
    "tokens": (CrossEntropy, {"classes_last": True, "ignore_index": IGNORED}, (3, CLASSES), "label"),
    "tokens_summed": (
        CrossEntropy,
        {"classes_last": True, "ignore_index": IGNORED, "within": "sum", "temperature": 3.0},
        (3, CLASSES),
        "label",
    ),
    "tokens_shifted": (CrossEntropy, {"classes_last": True, "shift": True}, (3, CLASSES), "label"),
    "tokens_shifted_ignored": (
        CrossEntropy,
        {"classes_last": True, "shift": True, "ignore_index": 0, "label_smoothing": 0.1},
        (3, CLASSES),
        "label",
    ),
    "soft_tokens": (CrossEntropy, {"classes_last": True, "soft": True}, (3, CLASSES), "soft"),
    "labels": (BinaryCrossEntropy, {}, (4,), "binary"),
    "labels_summed": (BinaryCrossEntropy, {"within": "sum", "temperature": 2.0}, (2, 2), "binary"),
    "labels_weighed": (BinaryCrossEntropy, {"weight": [1.0, 0.5, 2.0], "pos_weight": [4.0, 2.0, 0.3]}, (3,), "binary"),
    "positives_weighed": (BinaryCrossEntropy, {"pos_weight": 3.0}, (1,), "binary"),
    "heads": (heads, {}, (5,), "row"),
    "heads_own": (heads, {"own": 0.5}, (5,), "row"),
    "elbo": (variational, {}, (8,), "image"),
    "own": (own, {}, (3,), "value"),
}
"""name: (loss class or what makes one, its own arguments, shape of one output, kind of target)"""

RESCALED = ("heads_own", "elbo", "own")
"""Losses whose gradient is rescaled by design."""

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
    return kind(**{**arguments, **RESCALINGS[rescaling]})


def targets_for(case: str, batch: int, generator: torch.Generator) -> Tensor:
    _, arguments, shape, kind = CASES[case]
    if kind == "label":
        positions = shape[:-1] if arguments.get("classes_last") else shape[1:]
        labels = torch.randint(0, CLASSES, (batch, *positions), generator=generator)
        labels[::2] = labels[::2].flatten(1)[:, :1].reshape(-1, *[1] * len(positions)) if positions else labels[::2]
        if arguments.get("ignore_index") == IGNORED:
            labels[torch.rand(labels.shape, generator=generator) < 0.4] = IGNORED
        return labels
    if kind == "soft":
        sizes = 10.0 ** torch.randint(0, 4, (batch, *[1] * len(shape)), generator=generator)
        scores = sizes * torch.randn(batch, *shape, generator=generator)
        return scores.softmax(-1 if arguments.get("classes_last") else 1)
    if kind == "row":
        return torch.randn(batch, 3, generator=generator) * 3
    if kind == "image":
        return torch.randn(batch, 4, generator=generator)
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
