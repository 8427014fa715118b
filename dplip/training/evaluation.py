"""The loss, the accuracy and the certified accuracy of a model on held-out data."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from dplip.certificates import predictions
from dplip.losses import Loss
from dplip.runtime.device import device_of
from dplip.runtime.mode import evaluation

RADII = (0.0, 36 / 255, 72 / 255, 108 / 255)
"""The l2 radii, in raw pixels of [0, 1], at which certified accuracy is usually quoted."""

LINF_RADII = (0.0, 2 / 255, 8 / 255, 0.1, 0.3)
"""The l-infinity radii at which certified accuracy is usually quoted."""


@torch.no_grad()
def evaluate(model: nn.Module, loss: Loss, dataset: Dataset[Any]) -> dict[str, float]:
    """The mean loss, the accuracy and that of always naming the most frequent class (or the mean squared error)."""
    regression, device = loss.classes(1) is None, device_of(model)
    total = right = square = 0.0
    count, classes = 0, Counter[float]()
    with evaluation(model):
        for x, y in DataLoader(dataset, batch_size=2048):
            z, y = model(x.to(device)), y.to(device)
            total += float(loss(z, y))
            count += len(x)
            if regression:
                square += float((z - y.reshape(z.shape)).double().square().sum())
            else:
                right += float((predictions(z) == y.reshape(len(y))).sum())
                classes.update(y.flatten().tolist())
    if regression:
        return {"mse": square / count, "loss": total / count}
    return {"accuracy": right / count, "majority": max(classes.values()) / count, "loss": total / count}


def certified(
    accuracy_at: Callable[[Sequence[float], float], list[float]] | None, radii: Sequence[float] | None, norm: float
) -> dict[str, Any]:
    """The report's certified accuracy, by default at the norm's usual radii; empty if ``accuracy_at`` is None."""
    if radii is None:
        radii = LINF_RADII if math.isinf(norm) else RADII
    accuracy = [] if accuracy_at is None else accuracy_at(radii, norm)
    shown = [] if accuracy_at is None else list(radii)
    return {"norm": "inf" if math.isinf(norm) else norm, "radii": shown, "accuracy": accuracy}
