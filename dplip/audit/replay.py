"""Replay: the private step on two neighbouring data sets with the same weights, the same sample and the same noise."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sized
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.utils.data import ConcatDataset, Dataset, Subset

from dplip.accounting import NEIGHBORING, Event
from dplip.losses import Loss
from dplip.nn.bounded.slack import adaptive_layers
from dplip.noise import GaussianNoise
from dplip.propagation import Walk
from dplip.runtime.example import Example
from dplip.sampling import PoissonLoader
from dplip.sensitivities import enforced_sensitivity, sensitivity
from dplip.training import DPLipOptimizer
from dplip.training.calls import Calls

_REPLAY_SLACK = 1e-4  # of a comparison of float32 gradients before and after noise, relative to the largest entry


@dataclass(frozen=True)
class ReplayAudit:
    """The differences between private steps on neighbouring data, over many steps.

    Attributes:
        steps: number of steps that were replayed on both data sets.
        differing: number of steps in which the example took part.
        largest: per parameter, the largest move of the sum over the declared sensitivity.
        joint: the largest move of the whole release in units of its noise, times sigma; at most 1 if it is private.
        problems: differences that are never allowed, of events, noise, divisors or numbers of steps.
    """

    steps: int
    differing: int
    largest: Mapping[str, float]
    joint: float
    problems: tuple[str, ...]

    @property
    def violated(self) -> bool:
        """Whether a neighbour changed more than the noise hides, or something that no noise hides."""
        return bool(self.problems) or self.joint > 1 or any(ratio > 1 for ratio in self.largest.values())


def replay(
    model: nn.Module,
    loss: Loss,
    data: Dataset[Any],
    *,
    example: Any = None,
    input_shape: tuple[int, ...] | Example,
    noise_multiplier: float = 1.0,
    neighboring: str = "add_remove",
    optimizer: Callable[[Any], Optimizer] | None = None,
    sample_rates: tuple[float, ...] = (0.5, 0.05, 1.0),
    max_physical_batch_size: int | None = None,
    steps: int = 12,
    seed: int = 0,
) -> ReplayAudit:
    """Take the same private steps with and without one example, and compare their releases.

    At each step both runs start from the same weights, draw the same sample but for the one example, and get the same
    noise. The sums may differ by the declared sensitivity, in all and in each parameter; the noise, the charged event,
    the divisor and the number of steps may not differ.

    Args:
        model: not changed; its forward pass must not draw at random (no dropout).
        data: (input, target) pairs, or other items that :class:`dplip.training.calls.Calls` knows; at least one.
        example: the one that a neighbour lacks; by default the last of ``data``.
        input_shape: shape of one example, or a :class:`dplip.Example`.
        optimizer: from parameters to the optimizer that takes the steps; by default SGD with a small rate.
        max_physical_batch_size: as for the trainer.
        steps: number of steps, spread over ``sample_rates``.

    Source: the recording of queries in Cebere et al. 2026 (arXiv 2602.17454).
    """
    optimizer = optimizer or (lambda parameters: SGD(parameters, lr=1e-3))
    size = len(cast(Sized, data))
    if example is None:
        rest: Dataset[Any] = Subset(data, range(size - 1))
        with_it: Dataset[Any] = Subset(data, range(size))
    else:
        rest, with_it = data, ConcatDataset([data, _One(example)])
    largest: dict[str, float] = {}
    joint, differing, problems = 0.0, 0, set()
    current = copy.deepcopy(model)
    for step in range(steps):
        rate = sample_rates[step % len(sample_rates)]
        adaptive = any(True for _ in adaptive_layers(current))  # a slack coordinate fills what propagation leaves
        if adaptive and not isinstance(input_shape, Example):
            declared = enforced_sensitivity(Walk(current, input_shape))
        else:
            declared = sensitivity(current, loss, input_shape)
        runs = [
            _Step(
                current,
                loss,
                PoissonLoader(
                    each,
                    sample_rate=rate,
                    public_size=size,
                    max_physical_batch_size=max_physical_batch_size,
                    seed=seed + step,
                ),
                input_shape,
                noise_multiplier,
                neighboring,
                optimizer,
                seed + step,
            )
            for each in (with_it, rest)
        ]
        one, other = runs
        differing += one.examples != other.examples
        problems |= set(one.differences(other))
        factor = NEIGHBORING[neighboring]
        moves = 0.0
        for name, bound in declared.items():
            moved = math.hypot(
                float(torch.linalg.vector_norm(one.sums[name] - other.sums[name])),
                *(float(one.slack[path] - other.slack[path]) for path, owner in one.owners.items() if owner == name),
            )
            # One example is there or is not: replacing it moves the sum twice as far.
            ratio = moved / bound if bound else math.inf * (moved > 0)
            largest[name] = max(largest.get(name, 0.0), ratio)
            if noise_multiplier and moved:
                std = one.stds[name]
                moves += (factor * moved / std) ** 2 if std else math.inf
        joint = max(joint, noise_multiplier * math.sqrt(moves))
        current = one.model
    return ReplayAudit(steps, differing, largest, joint, tuple(sorted(problems)))


class _One(Dataset[Any]):
    """A data set of one item."""

    def __init__(self, item: tuple[Any, Any]) -> None:
        self.item = item

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        if index:
            raise IndexError(index)
        return self.item


class _Recorder(GaussianNoise):
    """Noise that records each sum, the noise added to it and its deviation."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.before: list[Tensor] = []
        self.added: list[Tensor] = []
        self.stds: list[float] = []

    @torch.no_grad()
    def add_(self, tensor: Tensor, std: float) -> Tensor:
        before = tensor.detach().clone()
        super().add_(tensor, std)
        self.before.append(before.double())
        self.added.append(tensor.double() - before.double())
        self.stds.append(std)
        return tensor


class _Step:
    """One private step on a copy of a model, with its parts recorded."""

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        loader: PoissonLoader,
        input_shape: tuple[int, ...] | Example,
        noise_multiplier: float,
        neighboring: str,
        optimizer: Callable[[Any], Optimizer],
        seed: int,
    ) -> None:
        self.model = copy.deepcopy(model)
        loss = copy.deepcopy(loss)
        self.charged: list[Event] = []
        recorder = _Recorder(seed)
        private = DPLipOptimizer(
            optimizer([p for p in self.model.parameters() if p.requires_grad]),
            model=self.model,
            loss=loss,
            input_shape=input_shape,
            noise_multiplier=noise_multiplier,
            batches=loader,
            neighboring=neighboring,
            charge=self.charged.append,
            noise=recorder,
        )
        self.constants = (loader.sample_rate, loader.steps_per_epoch, private.expected_batch_size)
        self.examples, calls = 0, Calls(self.model)
        for batch in loader:
            private.zero_grad()
            (args, kwargs), targets = calls.of(batch)
            loss(calls.select(self.model(*args, **kwargs)), targets).backward()
            self.examples = loader.handed_out
            whole = loader.complete
            private.step()
            if whole:
                break
        names = [n for n, p in self.model.named_parameters() if p.requires_grad]
        self.draws = len(recorder.before)
        self.owners = {path: owner for path, _, owner in adaptive_layers(self.model)}
        self.sums = dict(zip(names, recorder.before, strict=False))
        self.slack = dict(zip(self.owners, recorder.before[len(names) :], strict=False))
        self.stds = dict(zip([*names, *self.owners], recorder.stds, strict=False))
        self.noise = recorder.added[: len(names)]
        divisor = loader.expected_batch_size
        grads = {n: p.grad.double() * divisor for n, p in self.model.named_parameters() if p.grad is not None}
        self.extra = {n: grads[n] - self.sums[n] - added for n, added in zip(self.sums, self.noise, strict=True)}
        self.scale = {n: float(grads[n].abs().max()) for n in self.sums}

    def differences(self, other: _Step) -> list[str]:
        """The differences that no noise hides."""
        found = []
        if self.constants != other.constants:
            found.append(f"sample rate, steps per epoch and divisor: {self.constants} and {other.constants}")
        if self.charged != other.charged or len(self.charged) != 1:
            found.append(f"events charged: {self.charged} and {other.charged}")
        due = len(self.sums) + len(self.slack)
        if self.draws != due or self.draws != other.draws:
            found.append(f"{due} parameters and slacks, but {self.draws} and {other.draws} draws of noise")
        if any(self.stds[path] != self.stds[owner] for path, owner in self.owners.items()):
            found.append("a slack has other noise than the gradient that it is a coordinate of")
        if self.stds != other.stds:
            found.append("the size of the noise depends on the data")
        for name in self.sums:
            scale = max(self.scale[name], other.scale[name])
            for run in (self, other):
                if float(run.extra[name].abs().max()) > _REPLAY_SLACK * scale:
                    found.append(f"{name}: what was released is not the noisy sum over the public divisor")
        for one, two in zip(self.noise, other.noise, strict=False):
            if one.shape == two.shape and float((one - two).abs().max()) > _REPLAY_SLACK * float(one.abs().max() + 1):
                found.append("the noise depends on the data")
        return found
