"""Presets: for each data set a model and a recipe that are good without a flag."""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dplip.annealing import Annealing
from dplip.errors import ConfigurationError
from dplip.losses import CrossEntropy, Loss
from dplip.models_scattering import SCATTERINGS, ScatteringPreset
from dplip.models_sortnet import SORTNETS, SortNetPreset
from dplip.models_windows import WINDOWS, WindowPreset
from dplip.nn import (
    BallProjection,
    ChannelLowPass,
    GroupSort,
    LowPass,
    MeanOverViews,
    Mirror,
    OpponentColors,
    OrthogonalLinear,
    PrivateMean,
    Shift,
    bound_gradients,
)
from dplip.recipe import Recipe


@dataclass(frozen=True)
class Preset(Recipe):
    """A model and its recipe, chosen on a held-out part of the training data.

    Attributes:
        offset: public constant subtracted from every pixel.
        radius: radius of the l2 ball that inputs are projected onto.
        widths: sizes of the hidden layers.
        temperature: of the cross-entropy.
        momentum: of SGD.
        frequencies: kept along each axis of the image, the lowest; two numbers: of light, and of the differences of
            colour; None: all, as pixels.
        decay: whether the learning rate falls to 0, along half a cosine.
        mean_radius: of the ball in which inputs enter the private mean that is subtracted from them; None: no mean.
        gradient_radii: of each layer's weight, the most that one example's gradient counts; None: as much as the norms
            of what enters the layer and of what comes back allow.
        first_temperature: of the first step, from where it goes to ``temperature`` in a line; None: it stays.
        mirrored: whether the network is averaged over an image and its mirror image.
    """

    offset: float
    radius: float
    widths: tuple[int, ...]
    temperature: float
    momentum: float = 0.9
    frequencies: int | tuple[int, int] | None = None
    decay: bool = False
    mean_radius: float | None = None
    gradient_radii: tuple[float, ...] | None = None
    first_temperature: float | None = None
    mirrored: bool = False
    norm: ClassVar[float] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        layers = len(self.widths) + 1
        if self.gradient_radii is not None and len(self.gradient_radii) != layers:
            raise ConfigurationError(f"gradient_radii={self.gradient_radii}: give one for each of {layers} layers.")
        if self.first_temperature is not None and not self.decay:
            raise ConfigurationError(
                "first_temperature: it goes along with a learning rate that falls; set decay=True."
            )

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
        body += [BallProjection(self.radius), nn.Flatten()]
        views = [nn.Identity(), Mirror()] if self.mirrored else []
        sizes = [math.prod(shape), *self.widths]
        for place, (size, width) in enumerate(itertools.pairwise(sizes)):
            body += [self._linear(place, size, width, max(1, len(views))), GroupSort(2)]
        if views:
            body = [MeanOverViews(nn.Sequential(*body), views)]
        return nn.Sequential(*start, *body, self._linear(len(self.widths), sizes[-1], classes, 1))

    def _linear(self, place: int, size: int, width: int, views: int) -> nn.Linear:
        layer = OrthogonalLinear(size, width)
        if self.gradient_radii is None:
            return layer
        return bound_gradients(layer, self.gradient_radii[place] / views)  # which every view may use up

    def loss(self) -> Loss:
        return CrossEntropy(self.temperature, normalize=True)

    def optimizer(self, model: nn.Module) -> Optimizer:
        return torch.optim.SGD(model.parameters(), lr=self.lr, momentum=self.momentum)

    def scheduler(self, optimizer: Optimizer, model: nn.Module, loss: Loss, steps: int) -> LRScheduler | None:
        if not self.decay:
            return None

        def warm(done: float) -> None:
            if self.first_temperature is not None and isinstance(loss, CrossEntropy):
                loss.temperature = self.first_temperature + (self.temperature - self.first_temperature) * done

        return Annealing(optimizer, steps, warm)


PRESETS = {
    "digits": Preset(0.5, 3.5, (32,), 8.0, lr=0.04, batch_size=512, epochs=40),
    "mnist": Preset(
        0.13,
        7.0,
        (128,),
        5.0,
        frequencies=14,
        mean_radius=10.5,
        decay=True,
        lr=0.2,
        batch_size=6000,
        epochs=50,
        ema_decay=0.95,
    ),
    "fashion-mnist": Preset(
        0.28,
        8.0,
        (128,),
        5.0,
        frequencies=14,
        mean_radius=13.0,
        decay=True,
        lr=0.2,
        batch_size=6000,
        epochs=50,
        ema_decay=0.95,
    ),
    "cifar10": Preset(
        0.47,
        12.0,
        (256,),
        3.0,
        frequencies=(12, 6),
        decay=True,
        lr=0.15,
        batch_size=6000,
        epochs=60,
        ema_decay=0.95,
    ),
}


MODELS: Mapping[str, Mapping[str, Recipe]] = {
    "l2": PRESETS,
    "sortnet": SORTNETS,
    "windows": WINDOWS,
    "scattering": SCATTERINGS,
}
"""The presets of each kind of model, by data set."""

KINDS: Mapping[str, Callable[..., Recipe]] = {
    "l2": Preset,
    "sortnet": SortNetPreset,
    "windows": WindowPreset,
    "scattering": ScatteringPreset,
}
"""The presets' classes, which a report's settings are read back into."""


def preset(name: str, model: str = "l2") -> Recipe:
    """The preset of a data set for a kind of model: ``"l2"``, ``"sortnet"``, ``"windows"`` or ``"scattering"``.

    Raises:
        ConfigurationError: there is none of that name; the nearest is named.
    """
    if model not in MODELS:
        raise ConfigurationError(f"model={model!r}: there is no such kind of model. Choose one of {list(MODELS)}.")
    presets = MODELS[model]
    if name not in presets:
        nearest = difflib.get_close_matches(name, presets, n=1, cutoff=0)
        raise ConfigurationError(
            f"name={name!r}: there is no such preset; did you mean {nearest[0]!r}? Known: {list(presets)}."
        )
    return presets[name]
