"""One training step of each method on the same network: what benchmarks/suite.py times."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from opacus import PrivacyEngine
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import dplip
from dplip.accounting import GaussianEvent
from dplip.runtime.group import Group

SHAPES = {"mlp": (784,), "cnn": (1, 28, 28), "tanh": (1, 28, 28)}
WIDTHS = {"mlp": 512, "cnn": 32, "tanh": 16}
PER_EXAMPLE = 2**30
"""Opacus's gradients of single examples may fill so many bytes; a larger batch goes through in physical batches."""


@dataclass(frozen=True)
class Case:
    """What is timed: a network of stock layers, and the batch.

    Attributes:
        model: ``"mlp"`` (784 - width - ... - 10), ``"cnn"`` (depth convolutions of 3 x 3 and a linear layer) or
            ``"tanh"`` (the network of examples/models/mnist_cnn.py, with its biases; always of depth 2).
        width: of the hidden layers, or of the first convolution's channels; each further one doubles them.
        depth: number of hidden layers or of convolutions.
        physical: most examples at once in memory; None: the batch.
    """

    model: str = "mlp"
    batch: int = 256
    width: int = 512
    depth: int = 2
    physical: int | None = None

    def network(self) -> nn.Sequential:
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        if self.model == "mlp":
            sizes = [784, *[self.width] * self.depth]
            for a, b in itertools.pairwise(sizes):
                layers += [nn.Linear(a, b, bias=False), nn.ReLU()]
            return nn.Sequential(*layers, nn.Linear(sizes[-1], 10, bias=False))
        if self.model == "tanh":
            convolutions = [nn.Conv2d(1, self.width, 8, 2, padding=4), nn.Conv2d(self.width, 2 * self.width, 4, 2)]
            for convolution in convolutions:
                layers += [convolution, nn.Tanh(), nn.MaxPool2d(2, 1)]
            return nn.Sequential(*layers, nn.Flatten(), nn.Linear(50 * self.width, 32), nn.Tanh(), nn.Linear(32, 10))
        channels, side = [1, *(self.width * 2**i for i in range(self.depth))], 28
        for a, b in itertools.pairwise(channels):
            layers += [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.ReLU(), nn.AvgPool2d(2)]
            side //= 2
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels[-1] * side**2, 10, bias=False))

    def data(self) -> tuple[Tensor, Tensor]:
        torch.manual_seed(1)
        return torch.rand(self.batch, *SHAPES[self.model]), torch.randint(10, (self.batch,))


class Fixed:
    """One batch for ever, in physical batches: the loader's own cost is in neither side of a ratio."""

    sample_rate, logical_batches = 0.05, 1

    def __init__(self, batch: int) -> None:
        self.expected_batch_size, self.number = float(batch), 0
        self.complete, self.handed_out = True, 0

    def event(self, noise_multiplier: float) -> GaussianEvent:
        return GaussianEvent(noise_multiplier, self.sample_rate)

    def join(self, group: Group) -> None:
        pass

    def take(self) -> int:
        taken, self.handed_out, self.number = self.handed_out, 0, self.number + 1
        return taken


Step = Callable[[], None]


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


def plain(case: Case, compiled: bool = False) -> Step:
    """Ordinary SGD with torch's mean cross-entropy."""
    model, (x, y), criterion = case.network(), case.data(), nn.CrossEntropyLoss()
    optimizer = sgd(model)
    if compiled:
        model.compile()

    def step() -> None:
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()

    return step


def private(
    case: Case, by_weights: bool = False, orthogonal: bool = False, compiled: bool = False, half: bool = False
) -> Step:
    """The same network with bounded layers; ``orthogonal``: its weights projected after every fourth step besides;
    ``by_weights``: orthogonal stock layers behind a ball, with norms certified from their weights, and a projection
    after every step; ``half``: forward pass and loss in bfloat16."""
    model, (x, y) = case.network(), case.data()
    if by_weights:
        model = nn.Sequential(dplip.nn.BallProjection(9.0), *model)
    else:
        model = dplip.nn.bound_gradients(model, radius=1.0)
    if orthogonal or by_weights:
        for layer in model:
            if isinstance(layer, (nn.Linear, nn.Conv2d)):
                dplip.constrain(layer, "weight", dplip.Orthogonal())
    loss, batches = dplip.losses.CrossEntropy(normalize=True), Fixed(case.batch)
    optimizer = dplip.DPLipOptimizer(
        sgd(model),
        model=model,
        loss=loss,
        input_shape=SHAPES[case.model],
        noise_multiplier=3.0,
        batches=batches,
        project_every=4 if orthogonal else 1,
        half_precision=half,
    )
    if compiled:
        model.compile()
    parts = list(zip(x.split(case.physical or case.batch), y.split(case.physical or case.batch), strict=True))

    def step() -> None:
        for i, (inputs, labels) in enumerate(parts):
            optimizer.zero_grad()
            batches.complete, batches.handed_out = i == len(parts) - 1, batches.handed_out + len(inputs)
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                value = loss(model(inputs), labels)
            value.backward()
            optimizer.step()

    return step


def opacus(case: Case, mode: str) -> Step:
    """Clipped DP-SGD by Opacus, in one of its modes."""
    model, (x, y) = case.network(), case.data()
    physical = case.physical or case.batch
    if mode != "ghost":
        size = 4 * sum(p.numel() for p in model.parameters())
        physical = min(physical, 2 ** int(math.log2(PER_EXAMPLE / size)))
    made = PrivacyEngine(accountant="rdp").make_private(
        module=model,
        optimizer=sgd(model),
        data_loader=DataLoader(TensorDataset(x, y), batch_size=case.batch),
        criterion=nn.CrossEntropyLoss(),
        noise_multiplier=3.0,
        max_grad_norm=1.0,
        poisson_sampling=False,
        grad_sample_mode=mode,
    )
    model, optimizer = made[:2]
    criterion = made[2] if mode == "ghost" else nn.CrossEntropyLoss()
    parts = list(zip(x.split(physical), y.split(physical), strict=True))

    def step() -> None:
        for i, (inputs, labels) in enumerate(parts):
            optimizer.signal_skip_step(do_skip=i < len(parts) - 1)
            optimizer.zero_grad()
            criterion(model(inputs), labels).backward()
            optimizer.step()

    return step


METHODS: dict[str, Callable[[Case], Step]] = {
    "plain": plain,
    "dplip": private,
    "dplip orthogonal": lambda case: private(case, orthogonal=True),
    "dplip by weights": lambda case: private(case, by_weights=True),
    "dplip bfloat16": lambda case: private(case, half=True),
    "ghost": lambda case: opacus(case, "ghost"),
    "hooks": lambda case: opacus(case, "hooks"),
    "functorch": lambda case: opacus(case, "functorch"),
    "plain compiled": lambda case: plain(case, compiled=True),
    "dplip compiled": lambda case: private(case, compiled=True),
}
"""By name, what makes a step of a case."""
