"""The loss of l-infinity networks: a clipped hinge on what is not yet certified, and a fading cross-entropy."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from dplip.errors import ConfigurationError
from dplip.losses.base import Loss, check_labels
from dplip.norms import Norms


class ClippedHinge(Loss):
    """``max_{j != y} clip((z_j - z_y) / threshold + 1, 0, 1) + cross_entropy * CE(temperature z)``.

    Args:
        threshold: the wanted margin: ``2 eps`` certifies the l-infinity radius eps of a 1-Lipschitz net.
        cross_entropy: its weight lambda, which a training recipe lowers step by step (a public schedule).
        temperature: s, a fixed number: a learnable one would have an unbounded gradient.

    The hinge sends -1 / threshold to z_y and +1 / threshold to its strongest rival, or nothing; the cross-entropy sends
    ``lambda s (p - y)``. So ``l1 <= 2 c``, ``l2 <= sqrt(2) c`` and ``linf <= c`` with ``c = 1 / threshold + lambda s``.
    Source: Zhang, Jiang, He and Wang, 2022 (arXiv 2210.01787), section 5.
    """

    def __init__(
        self,
        threshold: float = 0.6,
        cross_entropy: float = 0.1,
        temperature: float = 1.0,
        max_gradient: float | None = None,
        normalize: bool = False,
    ) -> None:
        super().__init__(max_gradient, normalize)
        for name, value in {"threshold": threshold, "temperature": temperature}.items():
            if not (math.isfinite(value) and value > 0):
                raise ConfigurationError(f"{name}={value}: give a finite number > 0.")
        if not (math.isfinite(cross_entropy) and cross_entropy >= 0):
            raise ConfigurationError(f"cross_entropy={cross_entropy}: its weight is a finite number >= 0.")
        self.threshold, self.cross_entropy, self.temperature = threshold, cross_entropy, temperature

    def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
        own = F.one_hot(targets, outputs.shape[1]).bool()
        # max over one dimension sends its gradient to a single index, ties included.
        rival = outputs.masked_fill(own, -math.inf).max(1).values
        gap = (rival - outputs.gather(1, targets[:, None])[:, 0]) / self.threshold + 1
        entropy = F.cross_entropy(outputs * self.temperature, targets, reduction="none")
        return gap.clamp(0, 1) + self.cross_entropy * entropy

    def logit_gradient(self, shape: tuple[int, ...]) -> Norms:
        c = 1 / self.threshold + self.cross_entropy * self.temperature
        return Norms(shape, l1=2 * c, l2=math.sqrt(2) * c, linf=c)

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        check_labels(outputs, targets)
        if outputs.shape[1] < 2:
            raise ConfigurationError(f"outputs of shape {tuple(outputs.shape)}: a rival takes two classes or more.")
