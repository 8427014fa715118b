"""What the examples of this folder share: their options, one loop for both libraries, and the table that they print.

The loop is the same for dplip and for Opacus. So are the initial weights, Adam, its learning rate, the batch size, the
epochs, epsilon, delta, Poisson sampling and the accountant; each library searches for its own noise. Seeds fix the
initial weights alone: batches and noise differ from run to run. With several learning rates (``--lr 1e-3 3e-3``), both
libraries try each of them on nine tenths of the training data, and take the one that is best on the other tenth: the
same budget of tries. These tries are not in epsilon.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

import dplip
from dplip.losses import Loss

DELTA = 1e-5


def options(
    description: str | None, epochs: int, lr: float, epsilon: float = 3.0, limit: int | None = None
) -> argparse.ArgumentParser:
    """The options that all examples have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument("--epsilon", type=float, default=epsilon)
    parser.add_argument("--limit", type=int, default=limit, help="most examples to train on, and to test on")
    parser.add_argument("--lr", type=float, nargs="+", default=[lr], help="one, or several to choose from")
    return parser


def pair(model: nn.Module, batch: Any) -> tuple[Any, Any]:
    """How a model is called with a batch (inputs, targets): what goes into the loss."""
    x, y = batch
    return model(x), y


@dataclasses.dataclass(frozen=True)
class Task:
    """A model, its data, and how it is trained."""

    model: Callable[[], nn.Module]
    train: Any  # map-style data sets, or lists
    test: Any
    loss: Loss
    batch_size: int
    call: Callable[[nn.Module, Any], tuple[Any, Any]] = pair
    collate: Callable[[list[Any]], Any] | None = None

    def fresh(self) -> nn.Module:
        """The model with its initial weights, which are the same at each time."""
        torch.manual_seed(0)
        model = self.model()
        torch.seed()
        return model

    def loader(self) -> DataLoader[Any]:
        size = min(self.batch_size, len(self.train))
        return DataLoader(self.train, size, collate_fn=self.collate)


def limited(data: Any, limit: int | None) -> Any:
    """The first examples of a data set."""
    return data if limit is None else Subset(data, range(min(limit, len(data))))


def by_dplip(task: Task, lr: float, epsilon: float, epochs: int) -> tuple[nn.Module, float]:
    """A privately trained model, and the epsilon that was spent."""
    model = dplip.nn.bound_gradients(task.fresh())
    engine = dplip.PrivacyEngine(accountant="rdp")
    model, optimizer, loader = engine.make_private_with_epsilon(
        module=model,
        optimizer=torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr),
        data_loader=task.loader(),
        criterion=task.loss,
        target_epsilon=epsilon,
        target_delta=DELTA,
        epochs=epochs,
    )
    loop(task, model, optimizer, loader, epochs, task.loss)
    return model, engine.get_epsilon(DELTA)


def by_opacus(task: Task, lr: float, epsilon: float, epochs: int) -> tuple[nn.Module, float]:
    """The same by Opacus, with the layers that it asks for in place of those that it cannot train."""
    from opacus import PrivacyEngine
    from opacus.validators import ModuleValidator

    model = ModuleValidator.fix(task.fresh())
    engine = PrivacyEngine(accountant="rdp")
    model, optimizer, loader = engine.make_private_with_epsilon(
        module=model,
        optimizer=torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr),
        data_loader=task.loader(),
        target_epsilon=epsilon,
        target_delta=DELTA,
        epochs=epochs,
        max_grad_norm=1.0,
    )
    loop(task, model, optimizer, loader, epochs, lambda outputs, y: task.loss.per_example(outputs, y).mean())
    return model, engine.get_epsilon(DELTA)


def loop(task: Task, model: nn.Module, optimizer: Any, loader: Any, epochs: int, loss: Callable[..., Any]) -> None:
    model.train()
    for _ in range(epochs):
        for batch in loader:
            optimizer.zero_grad()
            loss(*task.call(model, batch)).backward()
            optimizer.step()


LIBRARIES = {"dplip": by_dplip, "Opacus": by_opacus}


@torch.no_grad()
def judged(task: Task, model: nn.Module, data: Dataset[Any]) -> dict[str, float]:
    """The accuracy, where there is one, and the loss; means over examples."""
    model.eval()
    found: dict[str, list[torch.Tensor]] = {}
    for batch in DataLoader(data, 500, collate_fn=task.collate):
        outputs, targets = task.call(model, batch)
        each = {**task.loss.measures(outputs, targets), "loss": task.loss.per_example(outputs, targets)}
        for name, values in each.items():
            found.setdefault(name, []).append(values.double())
    return {name: float(torch.cat(values).mean()) for name, values in found.items()}


def best_rate(task: Task, library: str, rates: list[float], epsilon: float, epochs: int) -> float:
    """The learning rate of the lowest loss on a tenth of the training data, if there are several."""
    if len(rates) == 1:
        return rates[0]
    places = range(len(task.train))
    held_out = Subset(task.train, places[::10])
    tried = dataclasses.replace(task, train=Subset(task.train, [i for i in places if i % 10]))

    def loss_of(rate: float) -> float:
        model, _ = LIBRARIES[library](tried, rate, epsilon, epochs)
        return judged(tried, model, held_out)["loss"]

    return min(rates, key=loss_of)


def beside(task: Task, arguments: argparse.Namespace) -> dict[str, nn.Module]:
    """Train by each library, print the table, and return the models; says why where a library cannot."""
    train, test = (limited(data, arguments.limit) for data in (task.train, task.test))
    task = dataclasses.replace(task, train=train, test=test)
    parameters = sum(p.numel() for p in task.fresh().parameters() if p.requires_grad)
    print(f"{len(train)} examples, {parameters} trained parameters, {arguments.epochs} epochs")
    print("| library | on held-out data | epsilon | learning rate | seconds |\n| --- | --- | --- | --- | --- |")
    trained = {}
    for library in LIBRARIES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Opacus warns of its hooks, and of noise that is not secure
            try:
                trained[library], cells = result(task, library, arguments)
            except Exception as wrong:
                if library == "dplip":
                    raise
                cells = f"does not train it: {reason(wrong)} | | |"
        print(f"| {library} | {cells} |", flush=True)
    return trained


def result(task: Task, library: str, arguments: argparse.Namespace) -> tuple[nn.Module, str]:
    """A trained model, and its cells of the table."""
    rate = best_rate(task, library, arguments.lr, arguments.epsilon, arguments.epochs)
    started = time.perf_counter()
    model, epsilon = LIBRARIES[library](task, rate, arguments.epsilon, arguments.epochs)
    seconds = time.perf_counter() - started
    figures = ", ".join(f"{name} {value:.3f}" for name, value in judged(task, model, task.test).items())
    return model, f"{figures} | {epsilon:.2f} | {rate:g} | {seconds:.1f}"


def reason(wrong: Exception) -> str:
    return f"{type(wrong).__name__}: {' '.join(str(wrong).split())[:160]}"
