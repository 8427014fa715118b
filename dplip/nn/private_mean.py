"""Subtraction of the mean of the training inputs, released with noise."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from dplip.norms import Norms
from dplip.rules import Pullback, rule
from dplip.validate import positive


class PrivateMean(nn.Module):
    """Subtract the mean of the training inputs, which :class:`dplip.DPLipTrainer` releases before its first step.

    Centred inputs have smaller norms, so the ball behind this layer, and with it the noise, may be smaller. Before the
    release, and without a trainer, the layer subtracts 0. Put it into a ``Sequential`` after layers without trainable
    parameters, and a :class:`BallProjection` after it.

    Args:
        shape: shape of one example's value at this layer.
        radius: radius of the l2 ball that each example's value is projected onto before it enters the mean.
        noise_multiplier: std of the noise of the sum, in units of ``radius``. The release costs as much privacy as one
            step on all of the data with this noise.

    Shape: (batch, *shape), unchanged.

    Guarantee: 1-Lipschitz, for every released mean; its output has no bound.
    """

    mean: Tensor

    def __init__(self, shape: tuple[int, ...], radius: float, noise_multiplier: float = 30.0) -> None:
        super().__init__()
        self.radius, self.noise_multiplier = positive(radius), positive(noise_multiplier)
        self.register_buffer("mean", torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x - self.mean

    def extra_repr(self) -> str:
        shape = tuple(self.mean.shape)
        return f"shape={shape}, radius={self.radius:g}, noise_multiplier={self.noise_multiplier:g}"


@rule(PrivateMean)
def private_mean(module: PrivateMean, x: Norms) -> tuple[Norms, Pullback]:
    def pullback(v: Norms) -> Any:
        return (v,), {}

    return Norms(x.shape, l2=math.inf), pullback
