"""The loss, the accuracy and the certified accuracy of a model on held-out data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from dplip.certificates import predictions
from dplip.losses import Loss
from dplip.runtime.device import device_of
from dplip.runtime.mode import evaluation
from dplip.training.calls import Calls, moved

RADII = (0.0, 36 / 255, 72 / 255, 108 / 255)
"""The l2 radii, in raw pixels of [0, 1], at which certified accuracy is usually quoted."""

LINF_RADII = (0.0, 2 / 255, 8 / 255, 0.1, 0.3)
"""The l-infinity radii at which certified accuracy is usually quoted."""


@torch.no_grad()
def evaluate(
    model: nn.Module, loss: Loss, dataset: Dataset[Any], calls: Calls, collate: Callable[[list[Any]], Any]
) -> dict[str, float]:
    """The mean loss, and the accuracy (or the mean squared error of a regression)."""
    regression, device = loss.classes(1) is None, device_of(model)
    total = right = square = 0.0
    count = 0
    with evaluation(model):
        for batch in DataLoader(dataset, batch_size=2048, collate_fn=collate):
            call, y = calls.of(batch)
            z, y = calls.run(model, call, device), moved(y, device)
            total += float(loss(z, y))
            count += len(z)
            if regression:
                square += float((z - y.reshape(z.shape)).double().square().sum())
            else:
                right += float((predictions(z) == y.reshape(len(y))).sum())
    scores = {"mse": square / count} if regression else {"accuracy": right / count}
    return {**scores, "loss": total / count}


def certified(
    accuracy_at: Callable[[Sequence[float], float], list[float]] | None, radii: Sequence[float] | None, norm: float
) -> dict[str, Any]:
    """The report's certified accuracy, by default at the norm's usual radii; empty if ``accuracy_at`` is None."""
    if radii is None:
        radii = LINF_RADII if math.isinf(norm) else RADII
    accuracy = [] if accuracy_at is None else accuracy_at(radii, norm)
    shown = [] if accuracy_at is None else list(radii)
    return {"norm": "inf" if math.isinf(norm) else norm, "radii": shown, "accuracy": accuracy}
