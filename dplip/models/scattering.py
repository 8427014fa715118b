"""Recipes for accuracy: normalised wavelet scattering and one linear layer, private, with weak certificates."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dplip.data.dead_leaves import dead_leaves
from dplip.models.orthogonal import OrthogonalRecipe, mean_over_mirror_images
from dplip.nn import (
    BallProjection,
    Clamp,
    LogCompression,
    LowPass,
    OpponentColors,
    PrivateMean,
    Scattering2d,
    Whitening,
)


@dataclass(frozen=True)
class ScatteringPreset(OrthogonalRecipe):
    """Fixed features of every image, computed once, and one learned linear layer, or several orthogonal ones.

    Groups of features are normalised by their own mean and variance, which is worth much accuracy and costs the
    certificate: the normalisation of a nearly constant group is steep.

    Attributes:
        radius: radius of the ball that the features of one image are projected onto.
        group: feature maps that are normalised together.
        mirrored: whether features are those of the image and of its mirror image, averaged.
        compression: argument of :class:`dplip.nn.LogCompression` before the normalisation; None: no compression.
        frequencies: number of low frequencies of the normalised maps kept along each axis; None: all, as pixels.
        whitening: power of :class:`dplip.nn.Whitening` by the features of synthetic images; None: no whitening.

    Source: Tramer and Boneh, "Differentially private learning needs better features (or much more data)", 2021.
    """

    radius: float
    group: int = 3
    mirrored: bool = False
    compression: float | None = None
    frequencies: int | None = None
    whitening: float | None = None
    widths: tuple[int, ...] = field(default=(), kw_only=True)
    temperature: float = field(default=1.0, kw_only=True)

    precompute: ClassVar[bool] = True
    max_physical_batch_size: ClassVar[int | None] = 512  # their features stay in the cache, which halves the time

    def model(self, input_shape: tuple[int, ...], classes: int) -> nn.Sequential:
        """Raw pixels to scores."""
        channels, size = input_shape[0], input_shape[-1]
        settings = (channels, size, self.group, self.mirrored, self.compression, self.frequencies)
        fixed = _fixed_maps(*settings)
        if self.whitening is not None:
            fixed.append(Whitening(_synthetic_features(*settings), self.whitening))
        fixed.append(nn.Flatten())
        features = math.prod(nn.Sequential(*fixed)(torch.zeros(1, *input_shape)).shape)
        mean = [] if self.mean_radius is None else [PrivateMean((features,), self.mean_radius)]
        if self.widths:
            learned = [*self.hidden(features), self.head(features, classes)]
        else:  # a lone layer needs no bound of its norm
            learned = [self.bounded(nn.Linear(features, classes, bias=False), place=0)]
        return nn.Sequential(*fixed, *mean, BallProjection(self.radius), *learned)


def _fixed_maps(
    channels: int, size: int, group: int, mirrored: bool, compression: float | None, frequencies: int | None
) -> list[nn.Module]:
    """Raw pixels to normalised maps."""
    fixed: list[nn.Module] = [Clamp(0.0, 1.0)]
    if channels == 3:
        fixed.append(OpponentColors())
    maps = Scattering2d(size)
    fixed.append(mean_over_mirror_images(maps) if mirrored else maps)
    if compression is not None:
        fixed.append(LogCompression(compression))
    fixed.append(nn.GroupNorm(81 * channels // group, 81 * channels, affine=False))
    if frequencies is not None:
        fixed.append(LowPass(size // 4, size // 4, frequencies))
    return fixed


@functools.cache
def _synthetic_features(channels: int, size: int, *arguments: Any) -> Tensor:
    """The maps of a thousand synthetic images, computed once per process."""
    extractor = nn.Sequential(*_fixed_maps(channels, size, *arguments))
    with torch.no_grad():
        return torch.cat([extractor(images) for images in dead_leaves(1000, size, channels).split(50)])


_WHITENED = ScatteringPreset(
    18.0,
    group=27,
    compression=100.0,
    frequencies=7,
    whitening=0.35,
    temperature=1.5,
    mean_radius=48.0,
    lr=0.16,
    batch_size=None,
    epochs=60,
    ema_decay=0.8,
)
SCATTERINGS = {
    "digits": ScatteringPreset(12.0, temperature=4.0, lr=0.02, batch_size=720, epochs=30),
    "mnist": ScatteringPreset(
        60.0,
        frequencies=4,
        widths=(64,),
        mean_radius=50.0,
        gradient_radii=(15.0, 15.0),
        temperature=4.0,
        decay=True,
        lr=0.1,
        batch_size=6000,
        epochs=30,
        ema_decay=0.95,
    ),
    "fashion-mnist": _WHITENED,
    "cifar10": replace(
        _WHITENED,
        radius=17.5,
        group=243,
        mirrored=True,
        compression=1000.0,
        frequencies=5,
        mean_radius=50.0,
        lr=0.23,
        ema_decay=0.9,
    ),
}
