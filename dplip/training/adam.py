"""Adam whose second moment does not learn the noise: the known variance of the noise is taken out of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dplip.errors import ConfigurationError
from dplip.validate import is_number


class CorrectedAdam(Optimizer):
    """Adam, or AdamW, for private training.

    The second moment of noisy gradients is that of the gradients plus the variance of the noise, which is often far
    larger: plain Adam then divides every entry by nearly the same number, as SGD does. The private optimizer tells the
    variance of each step; its average, weighed as the squares are, is subtracted before the root is taken.

    Args:
        params, lr, betas, eps, weight_decay: as of ``torch.optim.Adam``.
        floor: what is left of the second moment is at least this share of the noise's variance. A smaller one takes
            larger steps where the gradient is hidden in noise.
        decoupled_weight_decay: weights decay by themselves, as in AdamW, and not by way of the gradient.

    Guarantee: moves weights by ``.grad`` and public numbers alone. Without noise it is Adam.

    Source: DP-AdamBC, Tang, Shpilevskiy, Lécuyer 2023, arXiv 2312.14334.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        floor: float = 0.1,
        decoupled_weight_decay: bool = False,
    ) -> None:
        numbers = {"lr": lr, "eps": eps, "weight_decay": weight_decay, "floor": floor}
        for name, value in numbers.items():
            if not is_number(value) or not 0 <= value < math.inf:
                raise ConfigurationError(f"{name}={value!r}: give a finite number that is at least 0.")
        if not all(is_number(b) and 0 <= b < 1 for b in betas):
            raise ConfigurationError(f"betas={betas}: give two numbers in [0, 1).")
        settings = {**numbers, "betas": betas, "decoupled_weight_decay": decoupled_weight_decay}
        super().__init__(params, settings)
        self._variances: dict[int, float] = {}

    def tell(self, deviations: Mapping[Tensor, float]) -> None:
        """Say with what deviation the noise in each parameter's ``.grad`` was drawn; it counts for one step."""
        self._variances = {id(p): std * std for p, std in deviations.items()}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step with what is in ``.grad``."""
        if closure is not None:
            raise ConfigurationError("closure: this optimizer uses one gradient. Call backward() first, then step().")
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._move(p, p.grad, group)
        self._variances = {}

    def _move(self, p: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state, (first, second) = self.state[p], group["betas"]
        lr, decay = float(group["lr"]), group["weight_decay"]
        if not state:
            state.update(step=0, noise=0.0, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
        if decay and group["decoupled_weight_decay"]:
            p.mul_(1 - lr * decay)
        elif decay:
            gradient = gradient.add(p, alpha=decay)
        state["step"] += 1
        state["exp_avg"].lerp_(gradient, 1 - first)
        state["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        state["noise"] = second * state["noise"] + (1 - second) * self._variances.get(id(p), 0.0)
        rest, noise = 1 - second ** state["step"], state["noise"]
        square = state["exp_avg_sq"].sub(noise).clamp_min_(group["floor"] * noise).div_(rest)
        p.addcdiv_(state["exp_avg"], square.sqrt_().add_(group["eps"]), value=-lr / (1 - first ** state["step"]))
