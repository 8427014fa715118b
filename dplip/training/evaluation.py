"""The loss, the accuracy and the certified accuracy of a model on held-out data."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from dplip.errors import ConfigurationError
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
    """The mean loss, and the means of what the loss measures; beside an accuracy that of the most frequent class."""
    device, totals, classes, count = device_of(model), Counter[str](), Counter[float](), 0
    with evaluation(model):
        for batch in DataLoader(dataset, batch_size=2048, collate_fn=collate):
            call, targets = calls.of(batch)
            outputs, targets = loss.validated(calls.run(model, call, device), moved(targets, device))
            found = {**loss.measures(outputs, targets), "loss": loss(outputs, targets, reduction="none")}
            totals.update({name: float(values.double().sum()) for name, values in found.items()})
            count += len(found["loss"])
            if "accuracy" in found and isinstance(targets, Tensor) and targets.ndim == 1:
                classes.update(targets.tolist())
    majority = {"majority": max(classes.values()) / count} if classes else {}
    return {**{name: total / count for name, total in totals.items()}, **majority}


def held_out(dataset: Dataset[Any] | None, default: Dataset[Any] | None) -> Dataset[Any]:
    """The data set that is given, or else the default."""
    dataset = default if dataset is None else dataset
    if dataset is None:
        raise ConfigurationError("eval_dataset=None: give the trainer held-out data, or pass a data set here.")
    return dataset


def certified(
    accuracy_at: Callable[[Sequence[float], float], list[float]] | None, radii: Sequence[float] | None, norm: float
) -> dict[str, Any]:
    """The report's certified accuracy, by default at the norm's usual radii; empty if ``accuracy_at`` is None."""
    if radii is None:
        radii = LINF_RADII if math.isinf(norm) else RADII
    accuracy = [] if accuracy_at is None else accuracy_at(radii, norm)
    shown = [] if accuracy_at is None else list(radii)
    return {"norm": "inf" if math.isinf(norm) else norm, "radii": shown, "accuracy": accuracy}
