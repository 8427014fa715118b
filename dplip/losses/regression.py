"""Regression losses, each with proved norms of its gradient."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dplip.errors import ConfigurationError
from dplip.losses.base import Loss
from dplip.norms import Norms


class _Regression(Loss):
    """Losses of a residual z - t, for outputs and targets of one shape."""

    def __init__(self, delta: float = 1.0, max_gradient: float | None = None, normalize: bool = False) -> None:
        super().__init__(max_gradient, normalize)
        if not (math.isfinite(delta) and delta > 0):
            raise ConfigurationError(f"delta={delta}: the residual at which the loss turns linear is a number > 0.")
        self.delta = delta

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        if outputs.numel() != targets.numel():
            raise ConfigurationError(
                f"outputs of shape {tuple(outputs.shape)}, targets of shape {tuple(targets.shape)}: give equal shapes."
            )
        if not bool(targets.isfinite().all()):
            raise ConfigurationError("targets hold NaN or infinity: remove or impute them.")

    def classes(self, outputs: Any) -> int | None:
        return None

    def measures(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {"mse": self.residuals(outputs, targets).double().square().sum(1)}

    def residuals(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets.reshape(outputs.shape).to(outputs.dtype)).reshape(len(outputs), outputs[:1].numel())


class Huber(_Regression):
    """The Huber loss of each coordinate, summed: half the square within ``delta``, linear beyond.

    The gradient is the residual with each coordinate clamped to [-delta, delta]: linf <= delta.
    Source: Huber, 1964.
    """

    def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
        residuals = self.residuals(outputs, targets)
        return F.huber_loss(residuals, torch.zeros_like(residuals), reduction="none", delta=self.delta).sum(1)

    def logit_gradient(self, shape: tuple[int, ...]) -> Norms:
        return Norms(shape, linf=self.delta)


class SmoothL1(Huber):
    """:class:`Huber` divided by ``delta``, torch's ``beta``: the absolute residual, rounded within ``delta`` of 0.

    The gradient is the residual over delta with each coordinate clamped to [-1, 1]: linf <= 1.
    """

    def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().per_example(outputs, targets) / self.delta

    def logit_gradient(self, shape: tuple[int, ...]) -> Norms:
        return Norms(shape, linf=1.0)


class ClippedMSE(_Regression):
    """Half the squared l2 norm of the residual, linear beyond ``delta``: its gradient's l2 norm is at most delta."""

    def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
        residuals = self.residuals(outputs, targets)
        square = residuals.square().sum(1)
        norm = square.clamp_min(self.delta**2).sqrt()  # constant inside, so the root is never taken at zero
        return torch.where(square <= self.delta**2, square / 2, self.delta * (norm - self.delta / 2))

    def logit_gradient(self, shape: tuple[int, ...]) -> Norms:
        return Norms(shape, l2=self.delta)
