"""Presets: for each data set a model and a recipe that are good without a flag."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from dplip.errors import ConfigurationError
from dplip.losses import CrossEntropy, Loss
from dplip.nn import BallProjection, GroupSort, OrthogonalLinear, Shift


@dataclass(frozen=True)
class Preset:
    """A model and its recipe, chosen on a held-out part of the training data.

    Attributes:
        offset: public constant subtracted from every pixel.
        radius: radius of the l2 ball that inputs are projected onto.
        widths: sizes of the hidden layers.
        temperature: of the cross-entropy.
        lr, momentum: of SGD.
        batch_size: expected size of a Poisson batch.
        epochs: passes over the data.
        ema_decay: of the average of the weights, or None.
    """

    offset: float
    radius: float
    widths: tuple[int, ...]
    temperature: float
    lr: float
    batch_size: int
    epochs: int
    momentum: float = 0.9
    ema_decay: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ConfigurationError(f"lr={self.lr}: a learning rate is a finite number > 0.")

    def model(self, input_shape: tuple[int, ...], classes: int) -> nn.Sequential:
        """Raw pixels to scores: shift, ball, then orthogonal layers with sorting between them; 1-Lipschitz in l2."""
        layers: list[nn.Module] = [Shift(self.offset), BallProjection(self.radius), nn.Flatten()]
        size = math.prod(input_shape)
        for width in self.widths:
            layers += [OrthogonalLinear(size, width), GroupSort(2)]
            size = width
        return nn.Sequential(*layers, OrthogonalLinear(size, classes))

    def loss(self) -> Loss:
        return CrossEntropy(self.temperature, normalize=True)

    def optimizer(self, model: nn.Module) -> Optimizer:
        return torch.optim.SGD(model.parameters(), lr=self.lr, momentum=self.momentum)


PRESETS = {
    "digits": Preset(0.5, 3.5, (32,), 8.0, lr=0.04, batch_size=512, epochs=40),
    "mnist": Preset(0.5, 12.0, (128,), 5.0, lr=0.05, batch_size=8192, epochs=40),
    "fashion-mnist": Preset(0.5, 12.0, (128,), 4.5, lr=0.05, batch_size=8192, epochs=40),
    "cifar10": Preset(0.5, 12.0, (256,), 5.0, lr=0.05, batch_size=8192, epochs=60),
}


def preset(name: str) -> Preset:
    """The preset of a data set.

    Raises:
        ConfigurationError: there is none of that name; the nearest is named.
    """
    if name not in PRESETS:
        nearest = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0)
        raise ConfigurationError(
            f"name={name!r}: there is no such preset; did you mean {nearest[0]!r}? Known: {list(PRESETS)}."
        )
    return PRESETS[name]
