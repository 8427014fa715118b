"""Kantorovich-Rubinstein losses, plain and with a hinge."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dplip.errors import ConfigurationError
from dplip.losses.base import Loss, check_labels
from dplip.losses.classification import Hinge
from dplip.norms import Norms


class MulticlassKR(Loss):
    """The Kantorovich-Rubinstein loss, one class against the rest, with **public** class frequencies.

    ``-(1/K) sum_k z_k ([y = k] / pi_k - [y != k] / (1 - pi_k))``: the mean of z_k over its class minus that over the
    others, each divided by the declared frequency and not by a count in the batch, which would couple examples.

    Args:
        class_weights: the public frequencies pi, K positive numbers that sum to 1; None: 1/K each.

    The gradient is a fixed vector for each label; its norms are those of the worst label.
    """

    def __init__(
        self,
        class_weights: list[float] | Tensor | None = None,
        max_gradient: float | None = None,
        normalize: bool = False,
    ) -> None:
        super().__init__(max_gradient, normalize)
        weights = None if class_weights is None else [float(w) for w in class_weights]
        if weights is not None and not (min(weights) > 0 and math.isclose(sum(weights), 1, rel_tol=1e-4)):
            raise ConfigurationError(f"class_weights={weights}: give public frequencies, each > 0, that sum to 1.")
        self.class_weights = weights

    def coefficients(self, classes: int) -> Tensor:
        """The gradient of the loss of an example of class y in row y: (classes, classes), float64."""
        weights = [1 / classes] * classes if self.class_weights is None else self.class_weights
        if len(weights) != classes:
            raise ConfigurationError(f"{len(weights)} class_weights for {classes} outputs: give one per class.")
        pi = torch.tensor(weights, dtype=torch.float64)
        other = (1 / (1 - pi)).expand(classes, classes) if classes > 1 else torch.zeros(1, 1, dtype=torch.float64)
        return torch.where(torch.eye(classes, dtype=torch.bool), -1 / pi, other) / classes

    def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (self.coefficients(outputs.shape[1]).to(outputs)[targets] * outputs).sum(1)

    def logit_gradient(self, shape: tuple[int, ...]) -> Norms:
        table = self.coefficients(math.prod(shape))
        return Norms(shape, *(float(torch.linalg.vector_norm(table, p, 1).max()) for p in (1, 2, math.inf)))

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        check_labels(outputs, targets)


class HKR(MulticlassKR):
    """The hinge-regularised Kantorovich-Rubinstein loss: KR + alpha * hinge, with public class frequencies.

    Its gradient is bounded by the sum of the two bounds.
    Source: Serrurier et al., "Achieving robustness in classification using optimal transport", 2021.
    """

    def __init__(
        self,
        alpha: float = 10.0,
        margin: float = 1.0,
        class_weights: list[float] | Tensor | None = None,
        max_gradient: float | None = None,
        normalize: bool = False,
    ) -> None:
        super().__init__(class_weights, max_gradient, normalize)
        if not (math.isfinite(alpha) and alpha >= 0):
            raise ConfigurationError(f"alpha={alpha}: the weight of the hinge is a finite number >= 0.")
        self.alpha, self.hinge = alpha, Hinge(margin)

    def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().per_example(outputs, targets) + self.alpha * self.hinge.per_example(outputs, targets)

    def logit_gradient(self, shape: tuple[int, ...]) -> Norms:
        return super().logit_gradient(shape) + self.hinge.logit_gradient(shape) * self.alpha
