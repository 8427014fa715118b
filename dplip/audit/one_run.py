"""The one-run audit: a model is trained once, each canary is in its data by a coin, and the coins are guessed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sized
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import SGD, Optimizer
from torch.utils.data import ConcatDataset, DataLoader, Dataset, TensorDataset

from dplip.accounting import Accountant, Event
from dplip.audit.canary import CanaryAudit
from dplip.audit.statistics import one_run_epsilon
from dplip.losses import Loss
from dplip.noise import GaussianNoise
from dplip.sampling import PoissonLoader
from dplip.training import DPLipOptimizer


def one_run(
    model: nn.Module,
    loss: Loss,
    data: Dataset[Any],
    *,
    input_shape: tuple[int, ...],
    noise_multiplier: float,
    sample_rate: float,
    steps: int,
    delta: float = 1e-5,
    neighboring: str = "add_remove",
    optimizer: Callable[[Any], Optimizer] | None = None,
    canaries: int = 1000,
    guesses: float = 0.1,
    floor: float = 0.0,
    seed: int | None = None,
) -> CanaryAudit:
    """Train a copy of a classifier with canaries among its data, and bound epsilon from below by guessing which.

    A canary is an example with one coordinate far out and one label. The attacker sees the noisy sum of every step.
    The score of a canary is the sum, over the steps, of the inner product of what was released with the gradient that
    the canary would have had, in units of the noise. The highest scores are guessed to be in, the lowest out.

    Args:
        model, loss: not changed.
        data: what the canaries are added to.
        sample_rate, steps: constants of the training that is attacked.
        optimizer: from parameters to the optimizer of the training; by default SGD.
        canaries: at most the coordinates of an input times the classes.
        guesses: the fraction of canaries that are guessed.
        floor: the bound that the audit must reach to mean something.
        seed: seed of the coins, the sampling and the noise; for tests.

    Guarantee: ``lower`` is at most the true epsilon of these steps with 95% confidence.

    Source: Steinke, Nasr, Jagielski 2023 (arXiv 2305.08846).
    """
    optimizer = optimizer or (lambda parameters: SGD(parameters, lr=0.05))
    model, loss = copy.deepcopy(model).train(), copy.deepcopy(loss)
    with torch.no_grad():
        classes = loss.classes(model(torch.zeros(1, *input_shape))[0].numel()) or 1
    size = math.prod(input_shape)
    canaries = min(canaries, size * classes)
    generator = torch.Generator()
    generator.seed() if seed is None else generator.manual_seed(seed)
    chosen = torch.randperm(size * classes, generator=generator)[:canaries]
    x = torch.zeros(canaries, size)
    x[torch.arange(canaries), chosen % size] = 1e4
    x, y = x.reshape(canaries, *input_shape), chosen // size
    present = torch.randint(0, 2, (canaries,), generator=generator).bool()
    inside = TensorDataset(x[present], y[present])
    mixed: Dataset[Any] = ConcatDataset([data, inside])
    loader = PoissonLoader(
        mixed,
        sample_rate=sample_rate,
        public_size=len(cast(Sized, data)) + canaries,
        steps_per_epoch=steps,
        seed=seed,
    )
    accountant = Accountant(neighboring=neighboring)

    def charge(event: Event) -> None:
        accountant.count(event)

    noise = _Listener(None if seed is None else seed + 1)
    private = DPLipOptimizer(
        optimizer([p for p in model.parameters() if p.requires_grad]),
        model=model,
        loss=loss,
        input_shape=input_shape,
        noise_multiplier=noise_multiplier,
        batches=loader,
        neighboring=neighboring,
        charge=charge,
        noise=noise,
    )
    scores = torch.zeros(canaries, dtype=torch.float64)
    everything = [(batch, targets, 1.0) for batch, targets in DataLoader(data, batch_size=2048)] + [(x, y, 0.5)]
    for batch, targets in loader:
        private.zero_grad()
        loss(model(batch), targets).backward()
        before = {n: p.detach().double() for n, p in model.named_parameters()}
        noise.stds = []
        private.step()
        released = {
            n: p.grad.double() * loader.expected_batch_size for n, p in model.named_parameters() if p.grad is not None
        }
        known = _sum(model, loss, before, everything)
        weighted = {
            n: (g - sample_rate * known[n]) / max(s, 1e-30) ** 2
            for (n, g), s in zip(released.items(), noise.stds, strict=True)
        }
        scores += _inner_products(model, loss, before, weighted, x.double(), y)
    count = max(1, round(guesses * canaries / 2))
    order = scores.argsort()
    correct = int(present[order[-count:]].sum() + (~present[order[:count]]).sum())
    lower = one_run_epsilon(correct, 2 * count, canaries, delta)
    return CanaryAudit(
        accounted=accountant.get_epsilon(delta),
        lower=lower,
        floor=floor,
        certain=lower,  # far below epsilon by construction, so that 95% is certain enough
        canaries=canaries,
        most=one_run_epsilon(2 * count, 2 * count, canaries, delta),
    )


class _Listener(GaussianNoise):
    """Noise that records its deviations, which are public."""

    stds: list[float]

    def add_(self, tensor: Tensor, std: float) -> Tensor:
        self.stds.append(std)
        return super().add_(tensor, std)


def _sum(
    model: nn.Module, loss: Loss, weights: dict[str, Tensor], batches: list[tuple[Tensor, Tensor, float]]
) -> dict[str, Tensor]:
    """The sum that the attacker expects: the gradient of the data, and half of that of the canaries."""
    double = copy.deepcopy(model).double()
    leaves = {n: w.clone().requires_grad_() for n, w in weights.items()}
    total = {n: torch.zeros_like(w) for n, w in weights.items()}
    for x, y, share in batches:
        value = loss(functional_call(double, leaves, (x.double(),)), y)
        for t, g in zip(total.values(), torch.autograd.grad(value, list(leaves.values())), strict=True):
            t += share * g
    return total


@torch.no_grad()
def _inner_products(
    model: nn.Module, loss: Loss, weights: dict[str, Tensor], along: dict[str, Tensor], x: Tensor, y: Tensor
) -> Tensor:
    """The inner product of each example's gradient with a direction, by a difference of outputs along it: (batch,)."""
    size = math.sqrt(sum(float(v.square().sum()) for v in along.values()))
    step = 1e-6 * math.sqrt(sum(float(w.square().sum()) for w in weights.values())) / max(size, 1e-30)
    double = copy.deepcopy(model).double()

    def outputs(sign: float) -> Tensor:
        moved = {n: w + sign * step * along[n] if n in along else w for n, w in weights.items()}
        return functional_call(double, moved, (x,))

    slope = (outputs(1.0) - outputs(-1.0)) / (2 * step)
    with torch.enable_grad():
        z = outputs(0.0).requires_grad_()
        (gradient,) = torch.autograd.grad(loss(z, y, reduction="none").sum(), z)
    return (gradient * slope).flatten(1).sum(1)
