"""What has to be alike in all processes that train one model: when they begin, and at every step."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from dplip.losses import Loss
from dplip.noise import GaussianNoise
from dplip.records import versions
from dplip.runtime.group import Group, digest
from dplip.sensitivities import Sensitivities

EVERY = 50
"""Steps between two comparisons of all weights."""


def largest(group: Group, bounds: Sensitivities) -> Sensitivities:
    """The largest bounds of all processes; of all parameters together, if every process has such a bound."""
    found = group.largest({**bounds, "": math.inf if bounds.together is None else bounds.together})
    together = found.pop("")
    return Sensitivities(found, together if math.isfinite(together) else None)


def facts(
    model: nn.Module, loss: Loss, optimizer: Optimizer, noise: GaussianNoise, **others: object
) -> dict[str, object]:
    """What processes compare before they begin, by name; their weights need not be alike yet."""
    return {
        **versions(),
        **others,
        "noise": (type(noise).__name__, noise.seed),
        "loss": loss,
        "parameters": [(n, tuple(p.shape), p.dtype, p.requires_grad) for n, p in model.named_parameters()],
        "buffers": [(n, tuple(b.shape), b.dtype) for n, b in model.named_buffers()],
        "model": model,
        "optimizer": (type(optimizer).__name__, *_settings(optimizer)),
    }


def standing(step: int, optimizer: Optimizer, model: nn.Module, *others: object) -> str:
    """What processes compare at every step, as text: the step, settings, further values, and at times the weights."""
    tensors = [*model.parameters(), *model.buffers()] if step % EVERY == 0 else []
    weights = f", weights {digest(tensors)}" if tensors else ""
    return f"step {step}{weights}, {', '.join(map(str, others))}, {_settings(optimizer)}"


def _settings(optimizer: Optimizer) -> list[dict[str, Any]]:
    return [
        {k: float(v) if isinstance(v, Tensor) and v.numel() == 1 else v for k, v in group.items() if k != "params"}
        for group in optimizer.param_groups
    ]
