"""Recipes for private training with l-infinity certificates: the maximum of every window, then a linear layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from dplip.losses import CrossEntropy
from dplip.models.recipe import ImageRecipe
from dplip.nn import Clamp, Shift


def clamp_about_zero(low: float, high: float) -> tuple[nn.Module, nn.Module]:
    """Layers that cut pixels to [low, high] about its middle, so that half the width bounds an entry."""
    half = (high - low) / 2
    return Shift((low + high) / 2), Clamp(-half, half)


@dataclass(frozen=True)
class WindowRecipe(ImageRecipe):
    """The largest pixel of every window, then one learned linear layer; certified by intervals.

    A window's maximum is an l-infinity distance to a public point: 1-Lipschitz, free of noise. Pixels are cut
    to [low, high] first: a change beyond that range moves nothing, which the interval bounds use.

    Attributes:
        low, high: the range that pixels are cut to; its middle is subtracted, so that entries and gradient are bounded.
        window, stride: size and stride of the windows.
        temperature: temperature of the cross-entropy.
        momentum: momentum of SGD.
    """

    low: float
    high: float
    window: int
    stride: int
    temperature: float
    momentum: float = 0.9

    def model(self, input_shape: tuple[int, ...], classes: int) -> nn.Sequential:
        pool = nn.MaxPool2d(self.window, self.stride, self.window // 2)
        features = math.prod(pool(torch.zeros(1, *input_shape)).shape)
        return nn.Sequential(*clamp_about_zero(self.low, self.high), pool, nn.Flatten(), nn.Linear(features, classes))

    def loss(self) -> CrossEntropy:
        return CrossEntropy(self.temperature, normalize=True)

    def optimizer(self, model: nn.Module) -> Optimizer:
        return torch.optim.SGD(model.parameters(), lr=self.lr, momentum=self.momentum)


WINDOWS = {
    "mnist": WindowRecipe(0.3, 0.7, 3, 2, 5.0, lr=0.3, batch_size=8192, epochs=30, ema_decay=0.95),
}
