"""What the examples of this folder share: their options, one loop for both libraries, and the table that they print.

The loop is the same for dplip and for Opacus. So are the initial weights, Adam, its learning rate, the batch size, the
epochs, epsilon, delta, Poisson sampling and the accountant; each library searches for its own noise. Seeds
(``--seeds 3``) fix the initial weights alone: batches and noise differ from run to run. With several learning rates
(``--lr 1e-3 3e-3``), both libraries try each of them on nine tenths of the training data, and take the one that is best
on the other tenth: the same budget of tries. These tries are not in epsilon.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
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
    parser.add_argument("--try-epochs", type=int, help="epochs of each try of a learning rate; by default all")
    parser.add_argument("--seeds", type=int, default=1, help="runs, each from other initial weights")
    return parser


def pair(model: nn.Module, batch: Any) -> tuple[Any, Any]:
    """How a model is called with a batch (inputs, targets): what goes into the loss."""
    x, y = batch
    return model(x), y


@dataclasses.dataclass(frozen=True)
class Task:
    """A model, its data, and how it is trained.

    ``radius`` is that of ``bound_gradients``, ``mode`` Opacus's ``grad_sample_mode``, ``seed`` of the initial weights.
    """

    model: Callable[[], nn.Module]
    train: Any  # map-style data sets, or lists
    test: Any
    loss: Loss
    batch_size: int
    call: Callable[[nn.Module, Any], tuple[Any, Any]] = pair
    collate: Callable[[list[Any]], Any] | None = None
    radius: float | str = 1.0
    mode: str = "hooks"
    seed: int = 0

    def fresh(self) -> nn.Module:
        """The model with its initial weights, which are the same at each time."""
        torch.manual_seed(self.seed)
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
    model = dplip.nn.bound_gradients(task.fresh(), task.radius)
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


class Each(nn.Module):
    """A loss as Opacus takes it: the mean, or that of each example once it has set ``reduction`` to "none"."""

    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self.loss, self.reduction = loss, "mean"

    def forward(self, outputs: Any, targets: Any) -> torch.Tensor:
        each = self.loss.per_example(outputs, targets)
        return each.mean() if self.reduction == "mean" else each


def by_opacus(task: Task, lr: float, epsilon: float, epochs: int) -> tuple[nn.Module, float]:
    """The same by Opacus, with the layers that it asks for in place of those that it cannot train."""
    from opacus import PrivacyEngine
    from opacus.validators import ModuleValidator

    model = ModuleValidator.fix(task.fresh())
    engine = PrivacyEngine(accountant="rdp")
    made = engine.make_private_with_epsilon(
        module=model,
        optimizer=torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr),
        data_loader=task.loader(),
        criterion=Each(task.loss),
        target_epsilon=epsilon,
        target_delta=DELTA,
        epochs=epochs,
        max_grad_norm=1.0,
        grad_sample_mode=task.mode,
    )
    model, optimizer, loader = made[0], made[1], made[-1]
    loop(task, model, optimizer, loader, epochs, made[2] if len(made) == 4 else Each(task.loss))
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
    """The best learning rate on a tenth of the training data, if there are several: by accuracy, or else by loss."""
    if len(rates) == 1:
        return rates[0]
    places = range(len(task.train))
    held_out = Subset(task.train, places[::10])
    tried = dataclasses.replace(task, train=Subset(task.train, [i for i in places if i % 10]))

    def worth(rate: float) -> float:
        model, _ = LIBRARIES[library](tried, rate, epsilon, epochs)
        found = judged(tried, model, held_out)
        return found.get("accuracy", -found["loss"])

    return max(rates, key=worth)


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
    """The last trained model, and the library's cells of the table: means over the seeds, and from where to where."""
    epochs = arguments.epochs
    rate = best_rate(task, library, arguments.lr, arguments.epsilon, arguments.try_epochs or epochs)
    runs: dict[str, list[float]] = {}
    for seed in range(arguments.seeds):
        started = time.perf_counter()
        model, epsilon = LIBRARIES[library](dataclasses.replace(task, seed=seed), rate, arguments.epsilon, epochs)
        seconds = time.perf_counter() - started
        for name, value in {**judged(task, model, task.test), "seconds": seconds}.items():
            runs.setdefault(name, []).append(value)
    seconds = statistics.median(runs.pop("seconds"))
    figures = ", ".join(f"{name} {over_seeds(values)}" for name, values in runs.items())
    return model, f"{figures} | {epsilon:.2f} | {rate:g} | {seconds:.1f}"


def over_seeds(values: list[float]) -> str:
    between = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{between}"


def reason(wrong: Exception) -> str:
    return f"{type(wrong).__name__}: {' '.join(str(wrong).split())[:160]}"
