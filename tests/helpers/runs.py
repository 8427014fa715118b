"""Small private runs: data, a loader under control, noise that keeps a record, and one private optimizer."""

from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from dplip import DPLipOptimizer, DPLipTrainer
from dplip.accounting import GaussianEvent
from dplip.losses import CrossEntropy, Loss
from dplip.noise import GaussianNoise
from dplip.runtime.group import Group


def examples(count: int = 40, features: int = 6, classes: int = 4, seed: int = 0) -> TensorDataset:
    """Points around one centre per class, the same centres for every seed and count."""
    centres = torch.randn(classes, features, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, classes, (count,), generator=generator)
    return TensorDataset(centres[y] + 0.3 * torch.randn(count, features, generator=generator), y)


X, Y = examples(40).tensors
TRAIN, HELD_OUT = examples(80), examples(40, seed=1)


@dataclass
class Handed:
    """A loader that hands out what a test says: the counts that an optimizer reads, and nothing else."""

    expected_batch_size: float = 10.0
    sample_rate: float = 0.25
    complete: bool = True
    number: int = 0
    handed_out: int = 0
    logical_batches: int = 0

    def give(self, count: int, part: int = 1, complete: bool = True) -> None:
        """Hand out a physical batch."""
        self.handed_out += count
        self.logical_batches += part == 1
        self.number += part == 1
        self.complete = complete

    def event(self, noise_multiplier: float) -> GaussianEvent:
        return GaussianEvent(noise_multiplier, self.sample_rate)

    def join(self, group: Group) -> None:
        assert group.size == 1

    def take(self) -> int:
        handed_out, self.handed_out, self.logical_batches = self.handed_out, 0, 0
        return handed_out


class RecordedNoise(GaussianNoise):
    """Noise that remembers the size and the standard deviation of every draw."""

    def __init__(self, seed: int | None = None) -> None:
        super().__init__(seed)
        self.draws: list[tuple[int, float]] = []

    def add_(self, tensor: Tensor, std: float) -> Tensor:
        self.draws.append((tensor.numel(), std))
        return super().add_(tensor, std)


@dataclass
class Run:
    """A model with its private optimizer, and a record of what it charged and drew."""

    model: nn.Module
    loss: Loss
    optimizer: DPLipOptimizer
    batches: Any
    noise: RecordedNoise
    charged: list[GaussianEvent] = field(default_factory=list)

    def backward(self, x: Tensor, y: Tensor) -> None:
        """A whole batch handed out, and its gradient."""
        self.batches.give(len(x))
        self.optimizer.zero_grad()
        self.loss(self.model(x), y).backward()

    def step(self, x: Tensor, y: Tensor) -> None:
        self.backward(x, y)
        self.optimizer.step()

    def released(self) -> dict[str, Tensor]:
        """The gradients as they are."""
        return {n: p.grad.detach().clone() for n, p in self.model.named_parameters() if p.grad is not None}

    def weights(self) -> dict[str, Tensor]:
        return {n: p.detach().clone() for n, p in self.model.named_parameters()}


def private(
    model: nn.Module,
    *,
    noise_multiplier: float = 1.0,
    input_shape: tuple[int, ...] = (6,),
    loss: Loss | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    batches: Any = None,
    seed: int | None = None,
    **arguments: Any,
) -> Run:
    """The model in a private optimizer (by default SGD that does not move) over a loader under control."""
    loss = CrossEntropy() if loss is None else loss
    batches = Handed() if batches is None else batches
    noise = RecordedNoise(seed)
    charged: list[GaussianEvent] = []
    wrapped = DPLipOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.0) if optimizer is None else optimizer,
        model=model,
        loss=loss,
        input_shape=input_shape,
        noise_multiplier=noise_multiplier,
        batches=batches,
        noise=noise,
        **{"charge": charged.append, **arguments},
    )
    return Run(model, loss, wrapped, batches, noise, charged)


def interrupted(run: DPLipTrainer, after: int) -> DPLipTrainer:
    """A run that was stopped after so many steps; what it had in memory is there still."""
    inner = run.scheduler

    class Interrupting:
        def step(self) -> None:
            if inner is not None:
                inner.step()
            if run.accountant.num_steps == after:
                raise KeyboardInterrupt

    run._scheduler = cast(Any, Interrupting())  # not one that a run would take
    with pytest.raises(KeyboardInterrupt):
        run.fit()
    run._scheduler = inner
    return run
