"""Certified accuracy: the fraction of predictions that are right and cannot change within a radius."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from dplip.certificates.radii import Certifier, predictions
from dplip.errors import ConfigurationError
from dplip.runtime.device import device_of
from dplip.runtime.mode import evaluation


def correct_radii(model: nn.Module, data: Dataset[Any], norm: float = 2, batch_size: int = 2048) -> Tensor:
    """The certified radius of each example, or -1 for a wrong prediction; shape (examples,)."""
    found = []
    device = device_of(model)
    with evaluation(model), torch.no_grad():
        certifier = None
        for x, y in DataLoader(data, batch_size):
            if certifier is None:
                certifier = Certifier(model, tuple(x.shape[1:]), norm)
            x = x.to(device)
            scores = model(x)
            right = predictions(scores.cpu()) == y.reshape(len(y))
            found.append(torch.where(right, certifier.radii(x, scores), -1.0))
    if not found:
        raise ConfigurationError("The data set is empty: give at least one example.")
    return torch.cat(found)


def certified_accuracy(radii: Tensor, at: Sequence[float]) -> list[float]:
    """The fraction of examples with a right prediction certified at each radius, from :func:`correct_radii`."""
    return [float((radii > r).double().mean()) if r > 0 else float((radii >= 0).double().mean()) for r in at]


def average_certified_radius(radii: Tensor) -> float:
    """The mean radius, with 0 for wrong predictions, which is the area under the curve of certified accuracy."""
    return float(radii.clamp_min(0).mean())


def certified_curve(radii: Tensor, points: int = 100) -> tuple[list[float], list[float]]:
    """Certified accuracy against radius, at evenly spaced radii up to the largest one."""
    top = float(radii[radii.isfinite()].max()) if bool(radii.isfinite().any()) else 0.0
    at = [max(top, 0.0) * i / points for i in range(points + 1)]
    return at, certified_accuracy(radii, at)
