"""One model that several ranks train together, by the engine or by hand."""

from typing import Any

import torch
from helpers.runs import RecordedNoise, examples
from torch import Tensor, nn
from torch.utils.data import Dataset

import dplip
from dplip import DPLipOptimizer, PoissonLoader
from dplip.accounting import Event

DATA = examples(120)


def network(seed: int = 0, width: int = 8, radius: Any = None) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(dplip.nn.BallProjection(2.0), nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 4))
    return model if radius is None else dplip.nn.bound_gradients(model, radius=radius)


class Joint:
    """A model, its optimizer and its loader in one of several ranks."""

    def __init__(
        self,
        group: dplip.distributed.Group,
        *,
        sigma: float = 0.0,
        data: Dataset = DATA,
        batch_size: int = 30,
        seed: int | None = 5,
        model: nn.Module | None = None,
        loader: Any = None,
        lr: float = 0.5,
        wrap: Any = lambda model: model,
        **arguments: Any,
    ) -> None:
        self.model = network() if model is None else model
        self.called = wrap(self.model)
        self.loss = dplip.losses.CrossEntropy()
        self.loader = PoissonLoader(data, batch_size=batch_size, seed=seed) if loader is None else loader
        self.noise = RecordedNoise(None if seed is None else seed + 1)
        self.charged: list[Event] = []
        self.optimizer = DPLipOptimizer(
            torch.optim.SGD(self.called.parameters(), lr=lr),
            model=self.called,
            loss=self.loss,
            input_shape=(6,),
            noise_multiplier=sigma,
            batches=self.loader,
            noise=arguments.pop("noise", self.noise),
            charge=arguments.pop("charge", self.charged.append),
            distributed=group,
            **arguments,
        )

    def backward(self, x: Tensor, y: Tensor) -> None:
        self.optimizer.zero_grad()
        self.loss(self.called(x), y).backward()

    def epoch(self) -> "Joint":
        for x, y in self.loader:
            self.backward(x, y)
            self.optimizer.step()
        return self

    def weights(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])
