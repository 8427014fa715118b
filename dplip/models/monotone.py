"""Presets of monotone networks for tables: three chains of norms, each between a table's input and its residual."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from dplip.constraints import ColumnL1Ball, Constraint, EntryBall, RowL1Ball, SpectralBall, constrain
from dplip.data import Schema
from dplip.errors import ConfigurationError
from dplip.losses import BinaryCrossEntropy, Huber, Loss
from dplip.nn import Clamp, GroupSort, Monotonic, TabularInput

Ball = Callable[[float], Constraint]

CHAINS: Mapping[str, tuple[Ball, Ball]] = {
    "inf": (EntryBall, RowL1Ball),
    "one": (ColumnL1Ball, ColumnL1Ball),
    "two": (SpectralBall, SpectralBall),
}
"""The constraint of the first layer and that of the others, by the norm in which the layers compose."""


@dataclass(frozen=True)
class TabularPreset:
    """A monotone network and its recipe, chosen on a held-out part of the training data.

    Attributes:
        chain: "inf", "one" or "two".
        widths: sizes of the hidden layers.
        clamp: hidden values are clamped to [-clamp, clamp], which keeps the sensitivity of wide layers small.
        scale: classification: the temperature of the cross-entropy; regression: targets are scaled to [-1/scale,
            1/scale], so that slopes of at most 1 reach them.
        normalize: let each example's gradient keep its size.
        lr: of Adam, annealed to 0 by a cosine.
        batch_size: expected size of a Poisson batch, at most the size of the data.
        epochs: passes over the data.
        delta: regression: residual (in scaled targets) at which the Huber loss turns linear.
        ema_decay: of the average of the weights, or None.
    """

    chain: str
    widths: tuple[int, ...]
    scale: float
    lr: float
    batch_size: int
    epochs: int
    clamp: float = 1.0
    normalize: bool = False
    delta: float = 1.0
    ema_decay: float | None = None

    def __post_init__(self) -> None:
        if self.chain not in CHAINS:
            raise ConfigurationError(f"chain={self.chain!r}: choose one of {list(CHAINS)}.")
        for name in ("scale", "lr", "clamp", "delta"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigurationError(f"{name}={value}: give a finite number > 0.")

    def model(self, schema: Schema) -> nn.Sequential:
        """Raw columns to a score (or a scaled target): monotone where the schema says so, whatever the weights."""
        return monotone_network(
            TabularInput(
                [c.low for c in schema.numeric],
                [c.high for c in schema.numeric],
                [len(block) for block in schema.blocks],
                [i for i, c in enumerate(schema.numeric) if c.log],
            ),
            schema.directions,
            chain=self.chain,
            widths=self.widths,
            clamp=self.clamp,
        )

    def loss(self, schema: Schema) -> Loss:
        if schema.regression:
            return Huber(self.delta, normalize=self.normalize)
        return BinaryCrossEntropy(self.scale, normalize=self.normalize)

    def optimizer(self, model: nn.Module) -> Optimizer:
        return torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=self.lr)

    def scheduler(self, optimizer: Optimizer, model: nn.Module, loss: Loss, steps: int) -> LRScheduler:
        return CosineAnnealingLR(optimizer, steps)


def monotone_network(
    first: TabularInput, directions: list[int], *, chain: str, widths: tuple[int, ...], clamp: float, outputs: int = 1
) -> nn.Sequential:
    """The input's ranges, then a chain of constrained layers beside its residual."""
    if chain not in CHAINS:
        raise ConfigurationError(f"chain={chain!r}: choose one of {list(CHAINS)}.")
    sizes = (len(directions), *widths, outputs)
    layers: list[nn.Module] = []
    for i, (n, m) in enumerate(itertools.pairwise(sizes)):
        linear = nn.Linear(n, m)
        nn.init.orthogonal_(linear.weight)
        layers += [
            constrain(linear, "weight", CHAINS[chain][min(i, 1)](1.0)),
            GroupSort(2 if m % 2 == 0 else m),
            Clamp(-clamp, clamp),
        ]
    model = nn.Sequential(first, Monotonic(nn.Sequential(*layers[:-2]), directions))
    balance(model, first, linear.bias)
    return model


@torch.no_grad()
def balance(model: nn.Sequential, first: TabularInput, bias: torch.Tensor) -> None:
    """Start at 0 for a public row: the middle of each range, but the low end of a long tail, and no level."""
    row = torch.where(first.is_log, first.low, (first.low + first.high) / 2)
    blank = torch.zeros(sum(first.groups))
    bias.sub_(model(torch.cat([row, blank])[None])[0])


PRIVATE: Mapping[str, TabularPreset] = {
    "adult": TabularPreset("two", (16, 16), 4.0, lr=0.03, batch_size=2048, epochs=10),
    "compas": TabularPreset("two", (8,), 8.0, lr=0.03, batch_size=512, epochs=30),
    "heart": TabularPreset("two", (4,), 3.0, lr=0.03, batch_size=242, epochs=40),
    "auto-mpg": TabularPreset("two", (8, 8), 1.0, lr=0.02, batch_size=128, epochs=40),
    "blog": TabularPreset("two", (8,), 0.5, lr=0.02, batch_size=4096, epochs=20, clamp=8.0),
}
"""Recipes for finite epsilons, chosen at epsilon 1 for adult and compas; the others are not tuned."""

WITHOUT_NOISE: Mapping[str, TabularPreset] = {
    "adult": TabularPreset("inf", (16, 16), 16.0, lr=0.01, batch_size=512, epochs=15),
    "compas": TabularPreset("two", (8, 8), 4.0, lr=0.02, batch_size=256, epochs=60),
    "heart": TabularPreset("inf", (4, 4), 3.0, lr=0.03, batch_size=1000, epochs=120),
    "auto-mpg": TabularPreset("inf", (8, 8), 1.0, lr=0.01, batch_size=64, epochs=300, clamp=4.0),
    "blog": TabularPreset("inf", (16,), 0.7, lr=0.02, batch_size=512, epochs=30, clamp=10.0),
}
"""Recipes for epsilon = inf."""


def tabular_preset(name: str, private: bool, regression: bool = False) -> TabularPreset:
    """The recipe of a table by its name, or that of a table of the same kind where none is known for it."""
    presets = PRIVATE if private else WITHOUT_NOISE
    return presets.get(name, presets["auto-mpg" if regression else "adult"])


def settings_of(saved: Mapping[str, Any]) -> TabularPreset:
    """The preset that a report's settings describe."""
    return TabularPreset(**{**saved, "widths": tuple(saved["widths"])})
