"""The loss of variational autoencoders."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from dplip.errors import ConfigurationError
from dplip.losses.base import Loss, bounded
from dplip.losses.structure import Structure, joint
from dplip.norms import Norms


class ELBO(Loss):
    """The negative evidence lower bound, ``reconstruction(r, x) + beta KL(N(m, exp v) | N(0, 1))``.

    Args:
        reconstruction: a loss of (r, x), of any shape, such as :class:`ClippedMSE` or :class:`BinaryCrossEntropy`.
        max_gradient: the l2 bound of one example's gradient with respect to r, m and v as one vector.
        beta: the public weight of the divergence.

    Outputs are the tuple (r, m, v) of reconstruction, mean and log-variance, and targets are the inputs x. The
    divergence, ``sum (m^2 + exp v - 1 - v) / 2``, has no bound on its gradient ``beta (m, (exp v - 1) / 2)``: that of
    all three together is scaled down to ``max_gradient``.
    Source: Kingma and Welling, 2014 (arXiv 1312.6114); beta: Higgins et al., 2017.
    """

    def __init__(self, reconstruction: Loss, max_gradient: float, beta: float = 1.0, normalize: bool = False) -> None:
        if max_gradient is None:
            raise ConfigurationError("max_gradient=None: the divergence has no other bound. Give one, such as 1.0.")
        super().__init__(max_gradient, normalize)
        if not isinstance(reconstruction, Loss):
            raise ConfigurationError(
                f"reconstruction={reconstruction!r}: give a loss of dplip.losses, such as ClippedMSE()."
            )
        if not (math.isfinite(beta) and beta >= 0):
            raise ConfigurationError(f"beta={beta}: the weight of the divergence is a finite number >= 0.")
        self.reconstruction, self.beta = reconstruction, beta

    def per_example(self, outputs: Any, targets: Any) -> Tensor:
        r, m, v = outputs
        divergence = (m.square() + v.exp() - 1 - v).flatten(1).sum(1) / 2
        return self.reconstruction.per_example(r, targets) + self.beta * divergence

    def logit_gradient(self, shape: Any) -> Norms:
        return Norms(joint(shape))

    def head_gradients(self, gradients: Structure) -> Structure:
        r, m, v = gradients
        return bounded(r, self.reconstruction), m, v

    def classes(self, outputs: Any) -> int | None:
        return None

    def sample_targets(self, outputs: Any) -> Any:
        return self.reconstruction.sample_targets(outputs[0])

    def select(self, outputs: Any) -> Structure:
        if not isinstance(outputs, (tuple, list)) or len(outputs) != 3:
            raise ConfigurationError(
                f"outputs of type {type(outputs).__name__}: this loss takes the tuple (reconstruction, mean, "
                "log-variance). Let the model return it."
            )
        r, m, v = outputs
        return self.reconstruction.select(r), m, v

    def check(self, outputs: Any, targets: Any) -> None:
        r, m, v = outputs
        if m.shape != v.shape or m.ndim < 2:
            raise ConfigurationError(
                f"mean of shape {tuple(m.shape)}, log-variance of shape {tuple(v.shape)}: give equal shapes, (batch, "
                "...)."
            )
        self.reconstruction.check(r, targets)
