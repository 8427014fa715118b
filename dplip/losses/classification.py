"""Losses of margins and angles, each with proved norms of its logit gradient.

Every loss is called as ``loss(outputs, targets)`` and returns the **sum** over the batch (``reduction="none"``: one
value per example). A mean is not offered: dividing by the batch's own size leaks it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dplip.errors import ConfigurationError
from dplip.losses.base import Loss, check_labels
from dplip.norms import Norms


class Hinge(Loss):
    """``max(0, margin - (z_y - max of the others))`` for logits (batch, classes); with one output, by its sign.

    The gradient is -1 at y and +1 at the strongest other class, or 0: l1 <= 2, l2 <= sqrt 2, linf <= 1.
    Source: Crammer and Singer, 2001.
    """

    def __init__(self, margin: float = 1.0, max_gradient: float | None = None, normalize: bool = False) -> None:
        super().__init__(max_gradient, normalize)
        if not math.isfinite(margin):
            raise ConfigurationError(f"margin={margin}: a margin is a finite number.")
        self.margin = margin

    def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if binary(outputs):
            gap = outputs.reshape(len(outputs)) * (2 * targets.reshape(len(outputs)) - 1)
        else:
            own = F.one_hot(targets, outputs.shape[1]).bool()
            # max over one dimension sends its gradient to a single index, ties included.
            gap = outputs.gather(1, targets[:, None])[:, 0] - outputs.masked_fill(own, -math.inf).max(1).values
        return F.relu(self.margin - gap)

    def logit_gradient(self, shape: tuple[int, ...]) -> Norms:
        return Norms(shape, l1=1.0) if math.prod(shape) == 1 else Norms(shape, 2.0, math.sqrt(2.0), 1.0)

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        if not binary(outputs):
            check_labels(outputs, targets)
        elif targets.numel() != len(outputs) or not bool(((targets == 0) | (targets == 1)).all()):
            raise ConfigurationError("targets: with one output, give one target of 0 or 1 per example.")


def binary(outputs: Tensor) -> bool:
    return outputs.ndim == 1 or outputs.shape[1:] == (1,)


class Cosine(Loss):
    """``1 - z_y / max(|z|_2, floor)`` for logits (batch, classes): the cosine to the label's direction.

    z / max(|z|, floor) is 1/floor-Lipschitz (a projection onto a ball, scaled), so the gradient's l2 norm is at most
    ``1 / floor``.
    """

    def __init__(self, floor: float = 1.0, max_gradient: float | None = None, normalize: bool = False) -> None:
        super().__init__(max_gradient, normalize)
        if not (math.isfinite(floor) and floor > 0):
            raise ConfigurationError(f"floor={floor}: the smallest norm to divide by is a finite number > 0.")
        self.floor = floor

    def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
        norms = torch.linalg.vector_norm(outputs, dim=1).clamp_min(self.floor)
        return 1 - outputs.gather(1, targets[:, None])[:, 0] / norms

    def logit_gradient(self, shape: tuple[int, ...]) -> Norms:
        return Norms(shape, l2=1 / self.floor)

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        check_labels(outputs, targets)
