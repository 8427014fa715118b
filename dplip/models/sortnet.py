"""Recipes of l-infinity networks: order statistics of distances, trained from a power mean towards the maximum."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dplip.losses import ClippedHinge, Loss
from dplip.models.recipe import ImageRecipe
from dplip.nn import Clamp, LInfDistance, SortNetLinear, relax
from dplip.training.schedules import Annealing


@dataclass(frozen=True)
class SortNetRecipe(ImageRecipe):
    """An l-infinity network and its recipe, chosen on a held-out part of the training data.

    Attributes:
        widths: sizes of the hidden layers; the first is a plain distance, the others and the scores are sorted ones.
        rho: ratio of neighbouring order statistics.
        threshold: margin that the clipped hinge asks for.
        cross_entropy, cross_entropy_end: weight of the cross-entropy, at first and at the end (a geometric schedule).
        temperature: temperature of the cross-entropy.
        relaxed: the part of the steps in which the exponent doubles from 8 on; after it, the maximum itself.
        exponent: the last exponent before the maximum.
    """

    widths: tuple[int, ...]
    rho: float
    threshold: float
    cross_entropy: float
    cross_entropy_end: float
    temperature: float
    relaxed: float = 0.8
    exponent: float = 1024.0

    def model(self, input_shape: tuple[int, ...], classes: int) -> nn.Sequential:
        """Raw pixels to scores: 1-Lipschitz in l-infinity; pixels outside [0, 1] count as 0 or 1."""
        sizes = (math.prod(input_shape), *self.widths, classes)
        layers: list[nn.Module] = [Clamp(0.0, 1.0), nn.Flatten(), LInfDistance(sizes[0], sizes[1])]
        last = len(sizes) - 2
        for i in range(1, last + 1):
            layers.append(SortNetLinear(sizes[i], sizes[i + 1], self.rho, negate=i == last))
        model = nn.Sequential(*layers)
        centre_outputs(model, torch.rand(512, *input_shape).round())
        return model

    def loss(self) -> ClippedHinge:
        return ClippedHinge(self.threshold, self.cross_entropy, self.temperature)

    def optimizer(self, model: nn.Module) -> Optimizer:
        """AdamW, its learning rate annealed to 0 by a cosine."""
        return torch.optim.AdamW(model.parameters(), lr=self.lr, betas=(0.9, 0.99), eps=1e-10, weight_decay=0.0)

    def scheduler(self, optimizer: Optimizer, model: nn.Module, loss: Loss, steps: int) -> LRScheduler:
        """The schedule of the learning rate, the weight of the cross-entropy and the exponent."""

        def anneal(done: float) -> None:
            if isinstance(loss, ClippedHinge):
                ratio = self.cross_entropy_end / self.cross_entropy
                loss.cross_entropy = self.cross_entropy * ratio**done
            relax(model, exponent_at(done, self.relaxed, self.exponent))

        return Annealing(optimizer, steps, anneal)


def exponent_at(done: float, relaxed: float, last: float = 1024.0) -> float:
    """8 at first, doubling to ``last`` over the relaxed part of the steps (powers of two are fast), then inf."""
    return math.inf if done >= relaxed else 2.0 ** round(3 + (math.log2(last) - 3) * done / relaxed)


@torch.no_grad()
def centre_outputs(model: nn.Sequential, x: Tensor) -> None:
    """Shift each bias so that its layer's outputs on public random inputs have mean 0."""
    for layer in model:
        x = layer(x)
        bias = getattr(layer, "bias", None)
        if isinstance(bias, Tensor):
            mean = x.mean(0)
            bias.sub_(mean)
            x = x - mean


SORTNETS: Mapping[str, SortNetRecipe] = {
    "digits": SortNetRecipe((64,), 0.3, 0.6, 1.0, 0.01, 4.0, lr=0.02, batch_size=128, epochs=60),
    "mnist": SortNetRecipe((256, 128), 0.25, 0.9, 1.0, 0.1, 16.0, lr=0.02, batch_size=128, epochs=10, exponent=256.0),
    "fashion-mnist": SortNetRecipe((128, 128), 0.25, 0.4, 1.0, 0.01, 4.0, lr=0.02, batch_size=512, epochs=40),
    "cifar10": SortNetRecipe((256, 256), 0.25, 0.06, 1.0, 0.01, 8.0, lr=0.02, batch_size=512, epochs=40),
}
