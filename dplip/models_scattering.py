"""Presets for accuracy first: wavelet scattering, normalised, and one linear layer; private, weakly certified."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from dplip.losses import CrossEntropy, Loss
from dplip.nn import BallProjection, Clamp, PrivateMean, Scattering2d
from dplip.recipe import Recipe


@dataclass(frozen=True)
class ScatteringPreset(Recipe):
    """Fixed features of every image, computed once, and one learned linear layer.

    Groups of features are normalised by their own mean and variance, which is worth much accuracy and costs the
    certificate: the normalisation of a nearly constant group is steep.

    Attributes:
        radius: of the ball that the features of one image are projected onto.
        group: feature maps that are normalised together.
        temperature: of the cross-entropy.
        momentum: of SGD.
        mean_radius: of the ball in which features enter the private mean that is subtracted from them; None: no mean.
        decay: whether the learning rate falls to 0, along half a cosine.

    Source: Tramer and Boneh, "Differentially private learning needs better features (or much more data)", 2021.
    """

    radius: float
    group: int = 3
    temperature: float = 1.0
    momentum: float = 0.9
    mean_radius: float | None = None
    decay: bool = False

    norm: ClassVar[float] = 2
    precompute: ClassVar[bool] = True

    def model(self, input_shape: tuple[int, ...], classes: int) -> nn.Sequential:
        """Raw pixels to scores."""
        channels, size = input_shape[0], input_shape[-1]
        fixed = [
            Clamp(0.0, 1.0),
            Scattering2d(size),
            nn.GroupNorm(81 * channels // self.group, 81 * channels, affine=False),
            nn.Flatten(),
        ]
        features = math.prod(nn.Sequential(*fixed)(torch.zeros(1, *input_shape)).shape)
        mean = [] if self.mean_radius is None else [PrivateMean((features,), self.mean_radius)]
        return nn.Sequential(*fixed, *mean, BallProjection(self.radius), nn.Linear(features, classes, bias=False))

    def loss(self) -> CrossEntropy:
        return CrossEntropy(self.temperature, normalize=True)

    def optimizer(self, model: nn.Module) -> Optimizer:
        return torch.optim.SGD(model.parameters(), lr=self.lr, momentum=self.momentum)

    def scheduler(self, optimizer: Optimizer, model: nn.Module, loss: Loss, steps: int) -> LRScheduler | None:
        return CosineAnnealingLR(optimizer, steps) if self.decay else None


SCATTERINGS = {
    "digits": ScatteringPreset(12.0, temperature=4.0, lr=0.02, batch_size=720, epochs=30),
    # Batch, epochs and steps (in units of the features' norm) are the paper's; the temperature is Fashion-MNIST's.
    "mnist": ScatteringPreset(54.0, temperature=3.0, lr=0.03, batch_size=8192, epochs=40, ema_decay=0.95),
    "fashion-mnist": ScatteringPreset(54.0, temperature=3.0, lr=0.03, batch_size=8192, epochs=40, ema_decay=0.95),
    "cifar10": ScatteringPreset(110.0, temperature=3.0, lr=0.0075, batch_size=8192, epochs=60, ema_decay=0.95),
}
