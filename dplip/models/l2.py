"""Recipes certified in l2, for the four data sets of images."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import nn

from dplip.models.orthogonal import OrthogonalRecipe, mean_over_mirror_images
from dplip.nn import BallProjection, ChannelLowPass, LowPass, OpponentColors, PrivateMean, Shift


@dataclass(frozen=True)
class Preset(OrthogonalRecipe):
    """An orthogonal network of pixels or of low frequencies, chosen on a held-out part of the training data.

    Attributes:
        offset: public constant subtracted from every pixel.
        radius: radius of the l2 ball that inputs are projected onto.
        frequencies: number of low frequencies kept along each axis; two numbers: for light and for colour differences;
            None: all, as pixels.
        mirrored: whether the network is averaged over an image and its mirror image.
    """

    offset: float
    radius: float
    frequencies: int | tuple[int, int] | None = None
    mirrored: bool = False

    def model(self, input_shape: tuple[int, ...], classes: int) -> nn.Sequential:
        """Raw pixels to scores: shift, ball, then orthogonal layers with sorting between them; 1-Lipschitz in l2."""
        start: list[nn.Module] = [Shift(self.offset)]
        body: list[nn.Module] = []
        shape = input_shape
        if isinstance(self.frequencies, int):
            channels, height, width = input_shape
            body.append(LowPass(height, width, self.frequencies))
            shape = (channels, self.frequencies, self.frequencies)
        elif self.frequencies is not None:
            _, height, width = input_shape
            light, colour = self.frequencies
            start.append(OpponentColors())
            body.append(ChannelLowPass(height, width, (light, colour, colour)))
            shape = (light**2 + 2 * colour**2,)
        if self.mean_radius is not None:
            body.append(PrivateMean(shape, self.mean_radius))
        size = math.prod(shape)
        body += [BallProjection(self.radius), nn.Flatten(), *self.hidden(size, views=2 if self.mirrored else 1)]
        if self.mirrored:
            body = [mean_over_mirror_images(nn.Sequential(*body))]
        return nn.Sequential(*start, *body, self.head(size, classes))


_LARGE = Preset(
    0.13,
    20.0,
    frequencies=20,
    widths=(128,),
    mean_radius=10.5,
    gradient_radii=(2.0, 1.5),
    first_temperature=2.0,
    temperature=8.0,
    decay=True,
    lr=0.7,
    batch_size=6000,
    epochs=50,
    ema_decay=0.95,
)
PRESETS = {
    "digits": Preset(0.5, 3.5, widths=(32,), temperature=8.0, lr=0.04, batch_size=512, epochs=40),
    "mnist": _LARGE,
    "fashion-mnist": replace(_LARGE, offset=0.28, mean_radius=13.0, gradient_radii=(3.0, 2.0), temperature=7.0, lr=0.5),
    "cifar10": replace(
        _LARGE,
        offset=0.47,
        frequencies=(12, 6),
        mirrored=True,
        widths=(256,),
        mean_radius=None,
        gradient_radii=(10.0, 8.0),
        temperature=4.0,
        lr=0.25,
        epochs=60,
    ),
}
