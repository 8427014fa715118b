"""What every preset is: a model with the recipe that trains it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sized
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dplip.data import Data
from dplip.errors import ConfigurationError
from dplip.losses import Loss
from dplip.training import DPLipTrainer


@dataclass(frozen=True, kw_only=True)
class Recipe(ABC):
    """A model and how to train it, chosen on a held-out part of the training data.

    Attributes:
        lr: the learning rate.
        batch_size: expected size of a Poisson batch; None: the public size, so all of the data in every step.
        epochs: passes over the data.
        ema_decay: of the average of the weights, or None.
        norm: of the certificates.
        precompute: whether the model has a fixed front end, to be run once per example.
        max_physical_batch_size: most examples at once in memory; None: any number.
    """

    norm: ClassVar[float] = math.inf
    precompute: ClassVar[bool] = False
    max_physical_batch_size: ClassVar[int | None] = None

    lr: float
    batch_size: int | None
    epochs: int
    ema_decay: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ConfigurationError(f"lr={self.lr}: a learning rate is a finite number > 0.")

    @abstractmethod
    def model(self, input_shape: tuple[int, ...], classes: int) -> nn.Sequential:
        """A new model, from raw pixels to scores."""

    @abstractmethod
    def loss(self) -> Loss:
        """The loss that the model is trained by."""

    @abstractmethod
    def optimizer(self, model: nn.Module) -> Optimizer:
        """The plain torch optimizer, before it is made private."""

    def scheduler(self, optimizer: Optimizer, model: nn.Module, loss: Loss, steps: int) -> LRScheduler | None:
        """What is stepped after every private step; None: the learning rate stays."""
        return None

    def trainer(
        self, data: Data, model: nn.Module | None = None, optimizer: Optimizer | None = None, **arguments: Any
    ) -> DPLipTrainer:
        """The trainer of this recipe on a data set.

        Args:
            data: what is trained on, and evaluated on.
            model: None: a new one.
            optimizer: None: that of :meth:`optimizer`.
            arguments: of :class:`DPLipTrainer`, in place of the recipe's or the data's.
        """
        model = self.model(data.input_shape, data.num_classes) if model is None else model
        loss, optimizer = self.loss(), self.optimizer(model) if optimizer is None else optimizer
        size = arguments.get("public_size")
        if size is None:
            size = len(cast(Sized, arguments.get("train_dataset", data.train)))
        own: dict[str, Any] = {
            "train_dataset": data.train,
            "eval_dataset": data.test,
            "batch_size": size if self.batch_size is None else self.batch_size,
            "epochs": self.epochs,
            "ema_decay": self.ema_decay,
            "norm": self.norm,
            "precompute": self.precompute,
            "max_physical_batch_size": self.max_physical_batch_size,
        }
        trainer = DPLipTrainer(model, loss=loss, optimizer=optimizer, **{**own, **arguments})
        trainer.scheduler = self.scheduler(optimizer, model, loss, trainer.steps)
        return trainer
