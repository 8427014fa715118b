"""A recipe: it makes a model for a data set, and the trainer of that model."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sized
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar, cast

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Dataset

from dplip.data import Data, Table
from dplip.errors import ConfigurationError
from dplip.losses import Loss
from dplip.training import DPLipTrainer

D = TypeVar("D", Data, Table)


@dataclass(frozen=True, kw_only=True)
class Recipe(ABC, Generic[D]):
    """A model and how to train it, chosen on a held-out part of the training data.

    Attributes:
        lr: the learning rate.
        batch_size: expected size of a Poisson batch; None: the public size, so all of the data in every step.
        epochs: passes over the data.
        ema_decay: decay of the moving average of the weights; None: there is none.
        norm: norm of the certificates.
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
    def model_for(self, data: D) -> nn.Sequential:
        """A new model for a data set."""

    @abstractmethod
    def loss_for(self, data: D) -> Loss:
        """The loss that a model of the data set is trained by."""

    @abstractmethod
    def optimizer(self, model: nn.Module) -> Optimizer:
        """The plain torch optimizer, before it is made private."""

    def scheduler(self, optimizer: Optimizer, model: nn.Module, loss: Loss, steps: int) -> LRScheduler | None:
        """The scheduler stepped after every private step; None: a constant learning rate."""
        return None

    def prepared(self, data: D) -> D:
        """The data set as the model is trained on it."""
        return data

    def batch_size_of(self, public_size: int) -> int:
        """The expected size of a batch of data of a public size."""
        return public_size if self.batch_size is None else self.batch_size

    def trainer(
        self, data: D, model: nn.Module | None = None, optimizer: Optimizer | None = None, **arguments: Any
    ) -> DPLipTrainer:
        """The trainer of this recipe on a data set.

        Args:
            data: the data set for training and evaluation.
            model: None: a new one.
            optimizer: None: that of :meth:`optimizer`.
            arguments: arguments of :class:`DPLipTrainer`, in place of the recipe's or the data's.
        """
        data = self.prepared(data)
        model = self.model_for(data) if model is None else model
        own: dict[str, Any] = {"train_dataset": data.train, "eval_dataset": data.test}
        return self.trainer_of(model, self.loss_for(data), optimizer, **{**own, **arguments})

    def trainer_of(
        self,
        model: nn.Module,
        loss: Loss,
        optimizer: Optimizer | None = None,
        *,
        train_dataset: Dataset[Any],
        make: Callable[..., DPLipTrainer] = DPLipTrainer,
        **arguments: Any,
    ) -> DPLipTrainer:
        """The trainer of this recipe for a model and a loss; ``make`` builds it, other arguments as above."""
        optimizer = self.optimizer(model) if optimizer is None else optimizer
        size = arguments.get("public_size")
        own: dict[str, Any] = {
            "batch_size": self.batch_size_of(len(cast(Sized, train_dataset)) if size is None else size),
            "epochs": self.epochs,
            "ema_decay": self.ema_decay,
            "norm": self.norm,
            "precompute": self.precompute,
            "max_physical_batch_size": self.max_physical_batch_size,
            "scheduler": lambda optimizer, steps: self.scheduler(optimizer, model, loss, steps),
        }
        return make(model, loss=loss, optimizer=optimizer, train_dataset=train_dataset, **{**own, **arguments})


@dataclass(frozen=True, kw_only=True)
class ImageRecipe(Recipe[Data]):
    """A recipe of a classifier of images."""

    @abstractmethod
    def model(self, input_shape: tuple[int, ...], classes: int) -> nn.Sequential:
        """A new model, from raw pixels to scores."""

    @abstractmethod
    def loss(self) -> Loss:
        """The loss that the model is trained by."""

    def model_for(self, data: Data) -> nn.Sequential:
        return self.model(data.input_shape, data.num_classes)

    def loss_for(self, data: Data) -> Loss:
        return self.loss()
