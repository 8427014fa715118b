"""The base of the recipes of orthogonal networks: layers, loss, optimizer, schedule."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dplip.errors import ConfigurationError
from dplip.losses import CrossEntropy, Loss
from dplip.models.recipe import ImageRecipe
from dplip.nn import GroupSort, MeanOverViews, Mirror, OrthogonalLinear, bound_gradients
from dplip.training.schedules import Annealing


@dataclass(frozen=True, kw_only=True)
class OrthogonalRecipe(ImageRecipe):
    """Orthogonal layers with sorting between them, 1-Lipschitz in l2, and how they are trained.

    Attributes:
        widths: sizes of the hidden layers.
        temperature: temperature of the cross-entropy.
        momentum: momentum of SGD.
        mean_radius: radius of the ball for values of the private mean, which is subtracted from them; None: no mean.
        gradient_radii: for each layer, the largest norm of one example's gradient of its weight; None: as large as the
            norms of the layer's input and of the gradient that comes back allow.
        first_temperature: temperature of the first step, changed linearly to ``temperature``; None: constant.
        decay: whether the learning rate falls to 0, along half a cosine.
    """

    widths: tuple[int, ...]
    temperature: float
    momentum: float = 0.9
    mean_radius: float | None = None
    gradient_radii: tuple[float, ...] | None = None
    first_temperature: float | None = None
    decay: bool = False

    norm: ClassVar[float] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        layers = len(self.widths) + 1
        if self.gradient_radii is not None and len(self.gradient_radii) != layers:
            raise ConfigurationError(f"gradient_radii={self.gradient_radii}: give one for each of {layers} layers.")
        if self.first_temperature is not None and not self.decay:
            raise ConfigurationError("first_temperature: it goes with a learning rate that falls. Give decay=True.")

    def hidden(self, size: int, views: int = 1) -> list[nn.Module]:
        """The hidden layers for inputs of ``size`` entries, with so many views of every example."""
        layers: list[nn.Module] = []
        for place, pair in enumerate(itertools.pairwise([size, *self.widths])):
            layers += [self.bounded(OrthogonalLinear(*pair), place, views), GroupSort(2)]
        return layers

    def head(self, size: int, classes: int) -> nn.Module:
        """The last layer, behind the hidden layers for inputs of ``size`` entries."""
        return self.bounded(OrthogonalLinear([size, *self.widths][-1], classes), len(self.widths))

    def bounded(self, layer: nn.Linear, place: int, views: int = 1) -> nn.Module:
        """The layer at a place, with its gradients bounded by the radius of that place, if there is one."""
        if self.gradient_radii is None:
            return layer
        return bound_gradients(layer, self.gradient_radii[place] / views)  # the views' gradients add up

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


def mean_over_mirror_images(model: nn.Module) -> MeanOverViews:
    """The mean of a model over an image and its mirror image: two views."""
    return MeanOverViews(model, [nn.Identity(), Mirror()])
