"""An adversarial search for an example whose gradient is longer than the declared sensitivity."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from dplip.losses import Loss
from dplip.nn import BallProjection
from dplip.nn.bounded.joint import measured
from dplip.sensitivities import Sensitivities, sensitivity


@dataclass(frozen=True)
class GradientAudit:
    """The longest gradients that a search found, beside what is declared.

    Attributes:
        declared: the sensitivities.
        attained: per parameter, the largest l2 norm found.
        total: the largest l2 norm of a whole gradient.
        tried: number of gradients computed.
        worst: the example and the target of the largest ratio.
    """

    declared: Sensitivities
    attained: Mapping[str, float]
    total: float
    tried: int
    worst: tuple[Tensor, Tensor]

    @property
    def tightness(self) -> dict[str, float]:
        """Attained over declared, per parameter; above 1 the bound is broken."""
        return {
            n: self.attained[n] / bound if bound else math.inf * (self.attained[n] > 0)
            for n, bound in self.declared.items()
        }

    @property
    def violated(self) -> bool:
        """Whether a gradient was longer than declared."""
        return self.total > self.declared.total or any(self.attained[n] > b for n, b in self.declared.items())


def gradient_search(
    model: nn.Module,
    loss: Loss,
    input_shape: tuple[int, ...],
    data: Dataset[Any] | None = None,
    *,
    starts: int = 24,
    steps: int = 12,
    seed: int = 0,
) -> GradientAudit:
    """Look for an example that breaks the declared sensitivity, by gradient ascent over the input and the target.

    Each start climbs the gradient norm of one parameter, or of all together, from an item of ``data``, or from
    scratch: zeros, constants, single spikes, signs and noise, of sizes from 1e-30 to the largest float, and, behind a
    ``BallProjection``, infinite and NaN. Targets are the ones that the present scores get most wrong.

    Args:
        model: the model, in the mode to be tested; not changed.
        loss: one of :mod:`dplip.losses`.
        input_shape: shape of one example.
        data: (input, target) pairs to start from.
        starts: number of starts from the data, and from scratch.
        steps: number of ascent steps from each start.
        seed: seed of the starts.

    Guarantee: none. A violation proves that the bound is wrong; its absence proves nothing.
    """
    declared = sensitivity(model, loss, input_shape)
    search = _Search(model, loss, declared)
    generator = torch.Generator().manual_seed(seed)
    monitor, loss.monitor = loss.monitor, None
    try:
        goals: list[list[str]] = [[n] for n in declared if declared[n] > 0] or [list(declared)]
        goals.insert(0, list(declared))
        for number, (x, y) in enumerate(_starts(model, input_shape, data, starts, generator)):
            search.climb(x, y, goals[number % len(goals)], steps)
    finally:
        loss.monitor = monitor
    return GradientAudit(declared, search.attained, search.total, search.tried, search.worst)


class _Search:
    def __init__(self, model: nn.Module, loss: Loss, declared: Sensitivities) -> None:
        self.model, self.loss, self.declared = model, loss, declared
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.attained = dict.fromkeys(declared, 0.0)
        self.total, self.tried, self.highest = 0.0, 0, 0.0
        self.worst: tuple[Tensor, Tensor] = (torch.zeros(0), torch.zeros(0))

    def climb(self, x: Tensor, y: Tensor | None, goal: list[str], steps: int) -> None:
        """Ascend from ``x``, in steps that shrink as they fail to gain."""
        stride, best = 0.5, -1.0
        here = x
        for _ in range(steps):
            height, slope = self.look(x, y, goal)
            if height > best:
                best, here, stride = height, x, min(2 * stride, 1e3)
            else:
                stride /= 4
            if slope is None:
                return
            size = float(here.norm())
            x = here + stride * (size if math.isfinite(size) and size > 0 else 1.0) * slope / slope.norm()
            y = None  # from the second step on, the worst target

    def look(self, x: Tensor, y: Tensor | None, goal: list[str]) -> tuple[float, Tensor | None]:
        """The goal's value and gradient at ``x``, for the worst target."""
        best: tuple[float, Tensor | None] = (-1.0, None)
        x = x.detach().requires_grad_()
        with torch.no_grad():
            scores = self.model(x[None])
        for target in [y] if y is not None else worst_targets(self.loss, scores):
            named = list(self.parameters.values())
            value = self.loss(measured(self.model, self.model(x[None])), target)
            found = torch.autograd.grad(value, named, create_graph=True, allow_unused=True)
            gradients = {n: g for n, g in zip(self.parameters, found, strict=True) if g is not None}
            self.record(gradients, x, target)
            height = torch.stack(
                [(gradients[n] / (self.declared[n] or 1.0)).square().sum() for n in goal if n in gradients]
                or [x.new_zeros(())]
            ).sum()
            if float(height.detach()) > best[0]:
                slope = None
                if height.requires_grad:
                    try:
                        (slope,) = torch.autograd.grad(height, x, allow_unused=True)
                    except RuntimeError:  # a kernel without a second derivative: the starts alone are tried
                        slope = None
                usable = slope is not None and bool(slope.isfinite().all()) and bool(slope.any())
                best = (float(height.detach()), slope if usable else None)
        return best

    def record(self, gradients: Mapping[str, Tensor], x: Tensor, y: Tensor) -> None:
        self.tried += 1
        norms = {n: float(torch.linalg.vector_norm(g.detach().double())) for n, g in gradients.items()}
        for name, norm in norms.items():
            if not norm <= self.attained[name]:  # NaN counts as found
                self.attained[name] = norm if math.isfinite(norm) else math.inf
        total = math.sqrt(sum(v * v for v in norms.values()))
        self.total = max(self.total, total) if math.isfinite(total) else math.inf
        ratio = max([norms[n] / b for n, b in self.declared.items() if b and n in norms], default=0.0)
        if ratio > self.highest:
            self.highest, self.worst = ratio, (x.detach().clone(), y.detach()[0].clone())


def worst_targets(loss: Loss, scores: Tensor) -> Iterator[Tensor]:
    """Targets, one at a time, on which these scores of one example are as wrong as can be."""
    outputs = scores[0].numel()
    classes = loss.classes(outputs)
    if classes is None:
        yield scores + 1e3 * (1 + scores.abs())
        yield scores - 1e3 * (1 + scores.abs())
    elif outputs == 1:
        yield torch.zeros(1, dtype=torch.int64)
        yield torch.ones(1, dtype=torch.int64)
    else:
        order = torch.nan_to_num(scores[0]).flatten().argsort()
        yield order[:1]
        yield order[-1:]


def _starts(
    model: nn.Module, shape: tuple[int, ...], data: Dataset[Any] | None, count: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor | None]]:
    if data is not None:
        size = len(cast(Sized, data))
        for index in torch.randperm(size, generator=generator)[:count].tolist():
            x, y = data[index]
            yield torch.as_tensor(x), torch.as_tensor(y)[None]
    radius = max([m.radius for m in model.modules() if isinstance(m, BallProjection)], default=1.0)
    ones = torch.ones(shape)
    spike = torch.zeros(math.prod(shape))
    spike[len(spike) // 2] = 1.0
    for number in range(count):
        noise = torch.randn(shape, generator=generator)
        kind = (noise, ones, noise.sign(), spike.reshape(shape), -ones, noise.abs())[number % 6]
        yield kind * (radius / kind.norm() * (1.0, 1.0, 10.0, 0.1)[number // 6 % 4]), None
    largest = torch.finfo(ones.dtype).max
    sizes = [0.0, 1e-30, 1e30, largest, -largest]
    if any(isinstance(m, BallProjection) for m in model.modules()):
        sizes += [math.inf, -math.inf, math.nan]
    for extreme in sizes:
        yield ones * extreme, None
        yield torch.where(spike.reshape(shape) > 0, extreme, 0.5), None
