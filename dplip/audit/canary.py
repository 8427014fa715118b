"""Dirac canaries: how well an attacker who sees a noisy sum can tell whether one example is in it."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import SGD

from dplip.accounting import NEIGHBORING, Accountant, Event, GaussianEvent
from dplip.audit.statistics import best_threshold, canary_epsilon, gaussian_epsilon
from dplip.errors import ConfigurationError
from dplip.losses import Loss
from dplip.noise import GaussianNoise
from dplip.runtime.group import Group
from dplip.sensitivities import sensitivity
from dplip.training import DPLipOptimizer

CERTAIN = 0.9999
"""Confidence of a verdict: at 95%, three sound audits of a thousand would be called violations."""


@dataclass(frozen=True)
class CanaryAudit:
    """An empirical lower bound of epsilon beside the accounted one.

    Attributes:
        accounted: the epsilon that the accountant reports for what was attacked.
        lower: lower bound of epsilon, with 95% confidence.
        floor: the value that ``lower`` must reach for the attack to mean something.
        certain: as ``lower``, with 99.99% confidence.
        canaries: number of canaries used.
        most: what so many canaries could show, if every guess were right.
    """

    accounted: float
    lower: float
    floor: float
    certain: float
    canaries: int
    most: float = math.inf

    @property
    def violated(self) -> bool:
        """Whether more was shown than is accounted for."""
        return self.certain > self.accounted

    @property
    def powerful(self) -> bool:
        """Whether the attack reached its floor: below, it has shown nothing."""
        return self.lower >= self.floor


def audit_noise(
    model: nn.Module,
    loss: Loss,
    input_shape: tuple[int, ...],
    *,
    noise_multiplier: float,
    delta: float = 1e-5,
    neighboring: str = "add_remove",
    canaries: int = 10_000,
    noise: GaussianNoise | None = None,
    seed: int = 0,
) -> CanaryAudit:
    """Attack the noise of one full-batch step with Dirac canaries, white box.

    A canary is an example with the largest gradient that is declared possible, in one coordinate of each parameter.
    Half of them, chosen by coins, are in the sum that the private optimizer adds noise to. The attacker scores each
    canary by the likelihood ratio of the noisy sum and guesses; the errors bound epsilon from below.

    Args:
        noise_multiplier: sigma, > 0.
        canaries: number of canaries; steps are taken until all were used.
        noise: the source under test.
        seed: seed of the coins, not of the noise.

    Guarantee: ``lower`` is at most the true epsilon of one step with 95% confidence.

    Source: Nasr et al. 2023 (arXiv 2302.07956).
    """
    if not noise_multiplier > 0:
        raise ConfigurationError(f"noise_multiplier={noise_multiplier}: without noise there is nothing to audit.")
    model, loss = copy.deepcopy(model), copy.deepcopy(loss)
    factor = NEIGHBORING[neighboring]
    declared = {n: b * factor for n, b in sensitivity(model, loss, input_shape).items()}
    attacked = _Attacked(GaussianNoise() if noise is None else noise)
    charged: list[Event] = []
    batches = _Empty()
    private = DPLipOptimizer(
        SGD([p for p in model.parameters() if p.requires_grad], lr=0.0),
        model=model,
        loss=loss,
        input_shape=input_shape,
        noise_multiplier=noise_multiplier,
        batches=batches,
        neighboring=neighboring,
        charge=charged.append,
        noise=attacked,
    )
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    each = min(p.numel() for n, p in parameters.items() if declared[n] > 0)
    generator = torch.Generator().manual_seed(seed)
    scores: list[Tensor] = []
    present: list[Tensor] = []
    while len(scores) * each < canaries:
        coins = torch.randint(0, 2, (each,), generator=generator).bool()
        attacked.plant([declared[n] * coins.double() for n in parameters])
        batches.draw()
        private.step()
        score = torch.zeros(each, dtype=torch.float64)
        for (name, p), std in zip(parameters.items(), attacked.stds, strict=True):
            if declared[name] > 0 and p.grad is not None:
                seen = p.grad.flatten()[:each].double() * private.expected_batch_size
                score += seen * declared[name] / max(std, 1e-30) ** 2
        scores.append(score * noise_multiplier)  # in units of its own deviation, with mean 1 / sigma where present
        present.append(coins)
    return _verdict(torch.cat(scores)[:canaries], torch.cat(present)[:canaries], charged[0], delta)


def _verdict(scores: Tensor, present: Tensor, event: Event, delta: float) -> CanaryAudit:
    accountant = Accountant()
    accountant.count(event)
    mu = 1 / event.noise_multiplier if event.noise_multiplier else math.inf
    threshold, shown = best_threshold(min(mu, 50.0), len(scores) // 2)
    inside, outside = scores[present].numpy(), scores[~present].numpy()
    return CanaryAudit(
        accounted=accountant.get_epsilon(delta),
        lower=canary_epsilon(inside, outside, delta, threshold),
        floor=0.8 * gaussian_epsilon(shown, delta),
        certain=canary_epsilon(inside, outside, delta, threshold, CERTAIN),
        canaries=len(scores),
    )


class _Attacked(GaussianNoise):
    """The noise under attack: canaries join the sum just before it is added."""

    def __init__(self, source: GaussianNoise) -> None:
        super().__init__()
        self.source = source
        self.stds: list[float] = []

    def plant(self, canaries: list[Tensor]) -> None:
        self.canaries, self.stds = iter(canaries), []

    @torch.no_grad()
    def add_(self, tensor: Tensor, std: float) -> Tensor:
        canary = next(self.canaries, None)
        if canary is not None:
            tensor.view(-1)[: len(canary)] += canary.to(tensor.dtype)
        self.stds.append(std)
        return self.source.add_(tensor, std)


@dataclass
class _Empty:
    """A loader of full batches without examples, so that a step releases the noise and the planted canaries."""

    expected_batch_size: float = 100.0
    sample_rate: float = 1.0
    complete: bool = True
    number: int = 0
    handed_out: int = 0
    logical_batches: int = 0

    def draw(self) -> None:
        self.number += 1
        self.logical_batches = 1

    def event(self, noise_multiplier: float) -> GaussianEvent:
        return GaussianEvent(noise_multiplier, self.sample_rate)

    def join(self, group: Group) -> None:
        pass

    def take(self) -> int:
        self.logical_batches = 0
        return 0
