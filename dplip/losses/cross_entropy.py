"""Cross-entropy of classes, for one class of an example or for one at each of its positions (tokens, pixels)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dplip.errors import ConfigurationError
from dplip.losses.base import Loss
from dplip.losses.options import temperature_of, tensor_of, weights_of, within_of
from dplip.norms import Norms

SUM_TO_ONE = 1e-3
"""How far the probabilities of a soft target may be from a sum of 1: the rounding of half precision, and more."""


class CrossEntropy(Loss):
    """``CE(t z) / t`` for logits (batch, classes) and class numbers (batch,), t the temperature.

    Args:
        weight: a public weight for each class.
        label_smoothing: the share of each target that is spread evenly over all classes, as in torch.
        soft: whether targets are probabilities, of the shape of the outputs.
        ignore_index: the class number of positions that do not count; an example that has no other has loss 0.
        within: "mean" or "sum" over an example's own positions that count.
        classes_last: whether outputs are (batch, \\*positions, classes), and not (batch, classes, \\*positions).
            Class numbers are (batch, \\*positions).
        shift: whether position t predicts the class of position t + 1, as causal language models do.

    With q the (smoothed) target, w the weights and ``a = w q``, the gradient at one position is ``W p - a`` with
    p = softmax(t z) and ``W = sum a``: whatever t. It is affine in p and in q, so its norms are largest where p and the
    target are single classes, j and y. There ``l1 = 2 (W - a_j)``, ``linf = W - a_j`` and
    ``l2^2 = |a|^2 + W^2 - 2 W a_j``, which all fall with a_j, at least ``e / K min(w)`` with e the smoothing, and grow
    with w_y. Plain: ``l1 <= 2``, ``l2^2 <= 2``, ``linf <= 1``.
    Positions have entries of their own: over n, the sum has ``n l1``, ``sqrt(n) l2`` and ``linf``, and the mean
    ``l1``, ``l2 / sqrt(n)`` and ``linf / n``, where n may be 1 if positions can be ignored.
    """

    def __init__(
        self,
        temperature: float = 1.0,
        max_gradient: float | None = None,
        normalize: bool = False,
        *,
        weight: Sequence[float] | Tensor | None = None,
        label_smoothing: float = 0.0,
        soft: bool = False,
        ignore_index: int | None = None,
        within: str = "mean",
        classes_last: bool = False,
        shift: bool = False,
    ) -> None:
        super().__init__(max_gradient, normalize)
        if not 0 <= label_smoothing < 1:
            raise ConfigurationError(f"label_smoothing={label_smoothing}: the share that is spread lies in [0, 1).")
        if soft and (ignore_index is not None or shift):
            raise ConfigurationError(
                f"soft=True with ignore_index={ignore_index}, shift={shift}: these are for class numbers. Weigh or "
                "shift the probabilities in a dplip.losses.PerExample."
            )
        if ignore_index is not None and (isinstance(ignore_index, bool) or not isinstance(ignore_index, int)):
            raise ConfigurationError(f"ignore_index={ignore_index!r}: give a class number, such as -100.")
        self.temperature, self.weight = temperature_of(temperature), weights_of("weight", weight)
        self.label_smoothing, self.soft, self.ignore_index = label_smoothing, soft, ignore_index
        self.within, self.classes_last, self.shift = within_of(within), classes_last, shift

    def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
        y = targets.to(outputs.dtype) if self.soft else self._aligned(targets)
        counted = self._counted(y)
        weight = None if self.weight is None else tensor_of(self.weight, outputs)
        if self.classes_last:  # as many examples of one position, without a copy
            outputs, y = outputs.flatten(0, -2), y.flatten(0, -2) if self.soft else y.flatten()
        values = (
            F.cross_entropy(
                outputs * self.temperature,
                y,
                weight,
                ignore_index=self._ignored,
                reduction="none",
                label_smoothing=self.label_smoothing,
            )
            / self.temperature
        )
        values = values.reshape(counted.shape).sum(1)
        return values if self.within == "sum" else values / counted.sum(1).clamp_min(1)

    def logit_gradient(self, shape: tuple[int, ...]) -> Norms:
        classes, counted = self._layout(shape)[0], self._most(shape)
        if self.weight is not None and len(self.weight) != classes:
            raise ConfigurationError(f"{len(self.weight)} weights for {classes} classes: give one per class.")
        w = self.weight or [1.0]
        share = self.label_smoothing / classes
        least, top = share * min(w), max(w)
        total = (1 - self.label_smoothing) * top + self.label_smoothing * sum(w) / len(w)
        squares = share**2 * sum(v * v for v in w) * (classes / len(w))
        squares += ((1 - self.label_smoothing + share) ** 2 - share**2) * top**2
        norms = 2 * (total - least), math.sqrt(squares + total**2 - 2 * total * least), total - least
        if self.within == "sum":
            return Norms(shape, counted * norms[0], math.sqrt(counted) * norms[1], norms[2])
        counted = counted if self.ignore_index is None else 1
        return Norms(shape, norms[0], norms[1] / math.sqrt(counted), norms[2] / counted)

    def direction(self, shape: tuple[int, ...]) -> Norms:
        # The entries of a position sum to 0, so |v_j| is at most the l1 norm of the K - 1 others, and the l2 norm at
        # least |v_j| sqrt(1 + 1 / (K - 1)). One class number: the others have one sign, so l1 = 2 |v_y|; over n
        # positions the l1 norm is at most sqrt(n) times as much, by Cauchy-Schwarz.
        linf = 1 / math.sqrt(1 + 1 / (max(2, self._layout(shape)[0]) - 1))
        one = not self.soft and not self.label_smoothing
        return Norms(shape, l1=2 * linf * math.sqrt(self._most(shape)) if one else math.inf, l2=1.0, linf=linf)

    def classes(self, outputs: Any) -> int | None:
        several = self.classes_last if isinstance(outputs, int) else bool(self._layout(outputs)[1])
        return None if self.soft or several else super().classes(outputs)

    def measures(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        axis = -1 if self.classes_last else 1
        y = targets if self.soft else self._aligned(targets)
        labels, counted = y.argmax(axis) if self.soft else y, self._counted(y)
        right = (outputs.argmax(axis) == labels).reshape(counted.shape) & counted
        return {"accuracy": right.sum(1) / counted.sum(1).clamp_min(1).double()}

    def sample_targets(self, outputs: Tensor) -> Tensor:
        if self.soft:
            return torch.randn_like(outputs).softmax(-1 if self.classes_last else 1)
        classes, positions = self._layout(tuple(outputs.shape[1:]))
        count = len(outputs) * math.prod(positions)
        labels = torch.arange(count, device=outputs.device) % classes
        if self.ignore_index is not None:
            labels[::3] = self.ignore_index
        return labels.reshape(len(outputs), *positions)

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        if outputs.ndim < 2:
            raise ConfigurationError(
                f"outputs of shape {tuple(outputs.shape)}: this loss takes (batch, classes), and positions after or, "
                "with classes_last=True, before the classes."
            )
        classes, positions = self._layout(tuple(outputs.shape[1:]))
        if self.shift and (len(positions) != 1 or positions[0] < 2):
            raise ConfigurationError(
                f"outputs of shape {tuple(outputs.shape)} with shift=True: a position predicts the next one, so give "
                "one axis of two positions or more."
            )
        wanted = tuple(outputs.shape) if self.soft else (len(outputs), *positions)
        if targets.is_floating_point() != self.soft or tuple(targets.shape) != wanted:
            layout = "(batch, *positions, classes)" if self.classes_last else "(batch, classes) and any positions after"
            what = "probabilities (floats)" if self.soft else "class numbers (targets.long()), or soft=True,"
            raise ConfigurationError(
                f"targets of type {targets.dtype} and shape {tuple(targets.shape)}: outputs of shape "
                f"{tuple(outputs.shape)}, read as {layout}, take {what} of shape {wanted}. Give those, or change "
                "classes_last."
            )
        self.logit_gradient(tuple(outputs.shape[1:]))  # refuses weights of another number
        if self.soft:
            check_probabilities(targets, -1 if self.classes_last else 1)
            return
        labels = targets if self.ignore_index is None else targets[targets != self.ignore_index]
        if labels.numel() and not (0 <= int(labels.min()) and int(labels.max()) < classes):
            raise ConfigurationError(
                f"targets from {int(labels.min())} to {int(labels.max())}: with {classes} outputs, labels are 0 to "
                f"{classes - 1}. Renumber the classes, give the model more outputs, or leave a number out by "
                "ignore_index."
            )

    def _layout(self, shape: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
        """The number of classes, and the shape of the positions."""
        if not shape:
            return 1, ()
        return (shape[-1], shape[:-1]) if self.classes_last else (shape[0], shape[1:])

    @property
    def _ignored(self) -> int:
        return -100 if self.ignore_index is None else self.ignore_index

    def _aligned(self, targets: Tensor) -> Tensor:
        """The class numbers that the outputs at their positions are compared with."""
        return F.pad(targets[:, 1:], (0, 1), value=self._ignored) if self.shift else targets

    def _counted(self, targets: Tensor) -> Tensor:
        """Which positions count, (batch, positions)."""
        if self.soft:
            counted = torch.ones_like(targets.select(-1 if self.classes_last else 1, 0), dtype=torch.bool)
        else:
            counted = targets != self._ignored
        return counted.reshape(len(targets), math.prod(counted.shape[1:]))

    def _most(self, shape: tuple[int, ...]) -> int:
        """The most positions that count."""
        positions = self._layout(shape)[1]
        return max(1, positions[0] - 1 if self.shift and positions else math.prod(positions))


def check_probabilities(targets: Tensor, axis: int) -> None:
    """Refuse targets that are no probabilities along an axis."""
    if not targets.numel():
        return
    low, off = float(targets.min()), float((targets.sum(axis, dtype=torch.float64) - 1).abs().max())
    if not (low >= 0 and off <= SUM_TO_ONE):
        raise ConfigurationError(
            f"targets: the smallest is {low:g}, and their sums over the classes are up to {off:g} away from 1, but "
            "soft targets are probabilities. Give softmax(scores) or F.one_hot(labels).float()."
        )
