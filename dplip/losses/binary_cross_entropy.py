"""Cross-entropy of labels that are there or not, one or several for an example."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dplip.errors import ConfigurationError
from dplip.losses.base import Loss
from dplip.losses.options import temperature_of, tensor_of, weights_of, within_of
from dplip.losses.structure import entries
from dplip.norms import Norms


class BinaryCrossEntropy(Loss):
    """``BCE(t z) / t`` for scores and targets in [0, 1] of one shape, (batch,), (batch, labels) or more axes.

    Args:
        weight, pos_weight: public weights of a label, and of its positive part: one number, or one for each label.
        within: "mean" or "sum" over an example's labels.

    The gradient of one label, ``w ((1 - y) s - c y (1 - s))`` with s = sigmoid(t z) and c the positive weight, lies
    between ``-w c y`` and ``w (1 - y)``: its size is at most ``w max(1, c)``. Labels have entries of their own.
    """

    def __init__(
        self,
        temperature: float = 1.0,
        max_gradient: float | None = None,
        normalize: bool = False,
        *,
        weight: float | Sequence[float] | Tensor | None = None,
        pos_weight: float | Sequence[float] | Tensor | None = None,
        within: str = "mean",
    ) -> None:
        super().__init__(max_gradient, normalize)
        self.temperature, self.within = temperature_of(temperature), within_of(within)
        self.weight, self.pos_weight = weights_of("weight", weight), weights_of("pos_weight", pos_weight)

    def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
        labels = math.prod(outputs.shape[1:])
        z, y = (t.reshape(len(outputs), labels) for t in (outputs, targets.to(outputs.dtype)))
        weight, positive = (None if w is None else tensor_of(w, z) for w in (self.weight, self.pos_weight))
        values = F.binary_cross_entropy_with_logits(
            z * self.temperature, y, weight, pos_weight=positive, reduction="none"
        )
        values = values.sum(1) / self.temperature
        return values if self.within == "sum" else values / labels

    def logit_gradient(self, shape: tuple[int, ...]) -> Norms:
        labels = math.prod(shape)
        for name, given in {"weight": self.weight, "pos_weight": self.pos_weight}.items():
            if given is not None and len(given) not in (1, labels):
                raise ConfigurationError(f"{len(given)} entries of {name} for {labels} labels: give one for each.")
        weight, positive = self.weight or [1.0], self.pos_weight or [1.0]
        largest = torch.tensor(weight, dtype=torch.float64) * torch.tensor(positive, dtype=torch.float64).clamp_min(1)
        largest = largest.expand(labels) / (1 if self.within == "sum" else labels)
        return Norms(shape, *(float(torch.linalg.vector_norm(largest, p)) for p in (1, 2, math.inf)))

    def classes(self, outputs: Any) -> int | None:
        return 2 if entries(outputs) == 1 else None

    def measures(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        right = (outputs > 0) == (targets.reshape(outputs.shape) > 0.5)
        return {"accuracy": right.reshape(len(outputs), -1).double().mean(1)}

    def sample_targets(self, outputs: Tensor) -> Tensor:
        return (torch.arange(outputs.numel(), device=outputs.device) % 2).reshape(outputs.shape)

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        labels = math.prod(outputs.shape[1:])
        alike = outputs.shape == targets.shape or (labels == 1 and targets.numel() == len(outputs))
        if not alike or labels == 0:
            raise ConfigurationError(
                f"outputs of shape {tuple(outputs.shape)}, targets of shape {tuple(targets.shape)}: this loss takes "
                "one target for each score, in one shape. Class numbers go with CrossEntropy, or F.one_hot(targets)."
            )
        self.logit_gradient(tuple(outputs.shape[1:]))  # refuses weights of another number
        if targets.numel() and not (0 <= float(targets.min()) and float(targets.max()) <= 1):
            raise ConfigurationError(
                f"targets from {float(targets.min()):g} to {float(targets.max()):g}: binary targets are 0 and 1."
            )
