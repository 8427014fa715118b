"""What the animals of the zoo are: a model made of layers and one function, and the data that it is trained on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import dplip
from dplip.losses import CrossEntropy, Loss

Forward = Callable[..., Any]


class Of(nn.Module):
    """A module with some layers, parameters, buffers and other attributes, whose forward is a function of it."""

    def __init__(self, function: Forward, **parts: Any) -> None:
        super().__init__()
        for name, part in copy.deepcopy(parts).items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self, *inputs)


@dataclass(frozen=True)
class Kind:
    """What one example is, and the layers that a model of it has if it names no others."""

    item: Callable[[int], Any]
    parts: Callable[[], dict[str, Any]]


def linear(inputs: int, width: int = 8) -> dict[str, Any]:
    return {"a": nn.Linear(inputs, width), "head": nn.Linear(width, 3)}


def ids(i: int) -> Tensor:
    return torch.arange(6) * (i + 1) % 20


def length(i: int) -> Tensor:
    return torch.tensor(1 + i % 6)


VECTOR = Kind(lambda i: torch.randn(6), lambda: linear(6))
SEQUENCE = Kind(lambda i: torch.randn(5, 8), lambda: linear(8))
SQUARE = Kind(lambda i: torch.randn(40, 8), lambda: linear(8))
IMAGE = Kind(lambda i: torch.randn(3, 8, 8), lambda: {"a": nn.Conv2d(3, 8, 3, padding=1), "head": nn.Linear(8, 3)})
WORDS = Kind(ids, lambda: {"a": nn.Embedding(20, 8), "head": nn.Linear(8, 3)})
LENGTHS = Kind(lambda i: (ids(i) * (torch.arange(6) < length(i)), length(i)), WORDS.parts)
PAIR = Kind(lambda i: (torch.randn(6), torch.randn(6)), lambda: linear(6))
GRAPH = Kind(lambda i: (torch.randn(5, 6), (torch.randn(5, 5) > 0).float()), lambda: linear(6))


@dataclass
class Case:
    """A model and how it is trained: a label is one of three, unless the item has its own."""

    model: Callable[[], nn.Module]
    kind: Kind = VECTOR
    loss: Callable[[], Loss] = CrossEntropy
    size: int = 40
    batch: int = 10
    steps: int = 2
    target: Callable[[Any, int], Any] = field(default=lambda item, i: i % 3)

    def train(self) -> None:
        """Some private steps, of which the first is a matter of luck: its batch has any number of examples."""
        torch.manual_seed(0)
        data = [(item := self.kind.item(i), self.target(item, i)) for i in range(self.size)]
        model = dplip.nn.bound_gradients(self.model().train())
        loss = self.loss()
        model, optimizer, loader = dplip.PrivacyEngine().make_private(
            module=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            data_loader=DataLoader(data, self.batch),  # type: ignore[arg-type]
            criterion=loss,
            noise_multiplier=1.0,
            seed=0,
        )
        steps = 0
        while steps < self.steps:
            for inputs, targets in loader:
                optimizer.zero_grad()
                loss(model(*inputs) if isinstance(inputs, (list, tuple)) else model(inputs), targets).backward()
                optimizer.step()
                steps += 1


def case(into: dict[str, Case], kind: Kind = VECTOR, parts: dict[str, Any] | None = None, **options: Any) -> Any:
    """A decorator that makes a case of a function of a model and its inputs, under the function's name."""

    def register(function: Forward) -> Forward:
        name = function.__name__.strip("_").replace("_", " ")
        assert name not in into, name
        into[name] = Case(lambda: Of(function, **{**kind.parts(), **(parts or {})}), kind, **options)
        return function

    return register
