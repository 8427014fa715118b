"""Recipes of monotone networks for tables: layers constrained in one of three norms, beside a residual."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from dplip.constraints import ColumnL1Ball, Constraint, EntryBall, RowL1Ball, SpectralBall, constrain
from dplip.data import Schema, Table
from dplip.data.tables import with_scaled_target
from dplip.errors import ConfigurationError
from dplip.losses import BinaryCrossEntropy, Huber, Loss
from dplip.models.recipe import Recipe
from dplip.models.table_trainer import TableTrainer
from dplip.nn import Clamp, GroupSort, Monotonic, TabularInput
from dplip.training import DPLipTrainer

Ball = Callable[[float], Constraint]

CHAINS: Mapping[str, tuple[Ball, Ball]] = {
    "inf": (EntryBall, RowL1Ball),
    "one": (ColumnL1Ball, ColumnL1Ball),
    "two": (SpectralBall, SpectralBall),
}
"""The constraint of the first layer and that of the others, by the norm in which the layers compose."""


@dataclass(frozen=True)
class TabularPreset(Recipe[Table]):
    """A monotone network and its recipe.

    Attributes:
        chain: "inf", "one" or "two".
        widths: sizes of the hidden layers.
        scale: classification: the temperature of the cross-entropy; regression: targets are scaled to [-1/scale,
            1/scale], so that slopes of at most 1 reach them.
        clamp: hidden values are clamped to [-clamp, clamp], which keeps the sensitivity of wide layers small.
        normalize: whether each example's gradient keeps its size as the loss falls.
        delta: regression: residual (in scaled targets) at which the Huber loss turns linear.
        others: those of :class:`Recipe`; the learning rate is Adam's, annealed to 0 by a cosine, and a batch is at most
            the data.
    """

    chain: str
    widths: tuple[int, ...]
    scale: float
    clamp: float = field(default=1.0, kw_only=True)
    normalize: bool = field(default=False, kw_only=True)
    delta: float = field(default=1.0, kw_only=True)

    norm: ClassVar[float] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chain not in CHAINS:
            raise ConfigurationError(f"chain={self.chain!r}: choose one of {list(CHAINS)}.")
        for name in ("scale", "clamp", "delta"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigurationError(f"{name}={value}: give a finite number > 0.")

    def model(self, schema: Schema) -> nn.Sequential:
        """Raw columns to a score (or a scaled target): monotone where the schema says so, whatever the weights."""
        first = TabularInput(
            [c.low for c in schema.numeric],
            [c.high for c in schema.numeric],
            [len(block) for block in schema.blocks],
            [i for i, c in enumerate(schema.numeric) if c.log],
        )
        return self.network(first, schema.directions)

    def network(self, first: TabularInput, directions: list[int]) -> nn.Sequential:
        """The input's ranges, then a chain of constrained layers beside its residual."""
        layers: list[nn.Module] = []
        for i, (n, m) in enumerate(itertools.pairwise((len(directions), *self.widths, 1))):
            linear = nn.Linear(n, m)
            nn.init.orthogonal_(linear.weight)
            layers += [
                constrain(linear, "weight", CHAINS[self.chain][min(i, 1)](1.0)),
                GroupSort(2 if m % 2 == 0 else m),
                Clamp(-self.clamp, self.clamp),
            ]
        model = nn.Sequential(first, Monotonic(nn.Sequential(*layers[:-2]), directions))
        zero_at_public_row(model, first, linear.bias)
        return model

    def loss(self, schema: Schema) -> Loss:
        if schema.regression:
            return Huber(self.delta, normalize=self.normalize)
        return BinaryCrossEntropy(self.scale, normalize=self.normalize)

    def optimizer(self, model: nn.Module) -> Optimizer:
        return torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=self.lr)

    def scheduler(self, optimizer: Optimizer, model: nn.Module, loss: Loss, steps: int) -> LRScheduler:
        return CosineAnnealingLR(optimizer, steps)

    def model_for(self, data: Table) -> nn.Sequential:
        return self.model(data.schema)

    def loss_for(self, data: Table) -> Loss:
        return self.loss(data.schema)

    def prepared(self, data: Table) -> Table:
        """The table, with the target of a regression scaled to [-1/scale, 1/scale]."""
        return with_scaled_target(data, 1 / self.scale) if data.schema.regression else data

    def batch_size_of(self, public_size: int) -> int:
        return min(super().batch_size_of(public_size), public_size)

    def trainer(
        self, data: Table, model: nn.Module | None = None, optimizer: Optimizer | None = None, **arguments: Any
    ) -> DPLipTrainer:
        """The trainer of this recipe, whose scores and certificates are in the units of the table's columns."""
        make = partial(TableTrainer, schema=data.schema, scale=self.scale)
        return super().trainer(data, model, optimizer, make=make, **arguments)


@torch.no_grad()
def zero_at_public_row(model: nn.Sequential, first: TabularInput, bias: torch.Tensor) -> None:
    """Make the output 0 at a public row: the middle of each range (the low end of a long tail), and no level."""
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
    """The recipe of a table by its name; for an unknown name, that of a known table of the same kind."""
    recipes = PRIVATE if private else WITHOUT_NOISE
    return recipes.get(name, recipes["auto-mpg" if regression else "adult"])
