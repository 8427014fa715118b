"""The loss, the accuracy and the certified accuracy of a model on held-out data."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from dplip.certificates import certified_accuracy, certified_curve, predictions
from dplip.errors import ConfigurationError
from dplip.losses import Loss
from dplip.runtime.device import device_of
from dplip.runtime.mode import evaluation
from dplip.training.calls import Calls, moved

RADII = (0.0, 36 / 255, 72 / 255, 108 / 255)
"""The l2 radii, in raw pixels of [0, 1], at which certified accuracy is usually quoted."""

LINF_RADII = (0.0, 2 / 255, 8 / 255, 0.1, 0.3)
"""The l-infinity radii at which certified accuracy is usually quoted."""


MOST_CLASSES = 100
"""The largest number of classes of which a confusion matrix is kept."""

Confusion = list[list[int]]
"""How many examples of each class (row) were predicted to be of each (column)."""


@torch.no_grad()
def evaluate(
    model: nn.Module, loss: Loss, dataset: Dataset[Any], calls: Calls, collate: Callable[[list[Any]], Any]
) -> tuple[dict[str, float], Confusion | None]:
    """The mean loss, and the means of what the loss measures; beside an accuracy that of the most frequent class.

    The confusion matrix is that of a classifier of single labels with few classes; None for others.
    """
    device, totals, pairs, count = device_of(model), Counter[str](), Counter[tuple[float, int]](), 0
    classes = 0
    with evaluation(model):
        for batch in DataLoader(dataset, batch_size=2048, collate_fn=collate):
            call, targets = calls.of(batch)
            outputs, targets = loss.validated(calls.run(model, call, device), moved(targets, device))
            found = {**loss.measures(outputs, targets), "loss": loss(outputs, targets, reduction="none")}
            totals.update({name: float(values.double().sum()) for name, values in found.items()})
            count += len(found["loss"])
            if "accuracy" in found and isinstance(targets, Tensor) and targets.ndim == 1:
                scores = outputs.reshape(len(targets), -1)
                classes = max(2, scores.shape[1])
                pairs.update(zip(targets.tolist(), predictions(scores).tolist(), strict=True))
    labels = Counter[float]()
    for (target, _), times in pairs.items():
        labels[target] += times
    majority = {"majority": max(labels.values()) / count} if labels else {}
    few = 0 < classes <= MOST_CLASSES and all(label in range(classes) for label in labels)
    confusion = [[pairs[t, p] for p in range(classes)] for t in range(classes)] if few else None
    return {**{name: total / count for name, total in totals.items()}, **majority}, confusion


def held_out(dataset: Dataset[Any] | None, default: Dataset[Any] | None) -> Dataset[Any]:
    """The data set that is given, or else the default."""
    dataset = default if dataset is None else dataset
    if dataset is None:
        raise ConfigurationError("eval_dataset=None: give the trainer held-out data, or pass a data set here.")
    return dataset


def certified(
    radii_in: Callable[[float], Tensor], radii: Sequence[float] | None, norm: float, why: str | None
) -> dict[str, Any]:
    """The report's certified accuracy, by default at the norm's usual radii, and its curve.

    Args:
        radii_in: from a norm to the radius of each held-out example, -1 where it is wrong.
        why: why there are none; None: there are.
    """
    shown: dict[str, Any] = {"norm": "inf" if math.isinf(norm) else norm, "radii": [], "accuracy": []}
    if why is not None:
        return {**shown, "why": why}
    if radii is None:
        radii = LINF_RADII if math.isinf(norm) else RADII
    found = radii_in(norm)
    at, accuracy = certified_curve(found, points=40)
    curve = {"radii": at, "accuracy": accuracy}
    return {**shown, "radii": list(radii), "accuracy": certified_accuracy(found, radii), "curve": curve}


def without_certificate(regression: bool, dataset: Dataset[Any] | None, enforced: bool) -> str | None:
    """Why a report has no certified accuracy; None: it has one."""
    if regression:
        return "a regression has no class that could be certified"
    if dataset is None:
        return "there was no held-out data"
    return "the layers bound the gradients of this model, and nothing bounds its slopes" if enforced else None
