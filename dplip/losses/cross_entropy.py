"""Cross-entropies of classes and of labels, each with proved norms of its logit gradient.

An example may have several positions (tokens, pixels) or several labels; its loss is their mean or their sum, and takes
nothing from the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dplip.errors import ConfigurationError
from dplip.losses.base import Loss
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
        ignored = -100 if self.ignore_index is None else self.ignore_index
        if self.shift:
            targets = F.pad(targets[:, 1:], (0, 1), value=ignored)
        weight = None if self.weight is None else like(self.weight, outputs)
        positions = math.prod(self._layout(tuple(outputs.shape[1:]))[1])
        counted = positions if self.soft else (targets.reshape(len(outputs), positions) != ignored).sum(1).clamp_min(1)
        y = targets.to(outputs.dtype) if self.soft else targets
        if self.classes_last:
            outputs, y = outputs.flatten(0, -2), y.flatten(0, -2) if self.soft else y.flatten()
        values = (
            F.cross_entropy(
                outputs * self.temperature,
                y,
                weight,
                ignore_index=ignored,
                reduction="none",
                label_smoothing=self.label_smoothing,
            )
            / self.temperature
        )
        values = values.reshape(len(targets), positions).sum(1)
        return values if self.within == "sum" else values / counted

    def logit_gradient(self, shape: tuple[int, ...]) -> Norms:
        classes, counted = self._layout(shape)[0], self._counted(shape)
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
        return Norms(shape, l1=2 * linf * math.sqrt(self._counted(shape)) if one else math.inf, l2=1.0, linf=linf)

    def classes(self, outputs: int) -> int | None:
        return None if self.soft else super().classes(outputs)

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

    def _counted(self, shape: tuple[int, ...]) -> int:
        """The most positions that count."""
        positions = self._layout(shape)[1]
        return max(1, positions[0] - 1 if self.shift and positions else math.prod(positions))


class BinaryCrossEntropy(Loss):
    """``BCE(t z) / t`` for scores and targets in [0, 1] of one shape, (batch,), (batch, labels) or more axes.

    Args:
        weight, pos_weight: public weights of a label, and of its positive part: one number, or one for each label.
        within: "mean" or "sum" over an example's labels.

    The gradient of one label, ``w ((1 - y) s - c y (1 - s))`` with s = sigmoid(t z) and c the positive weight, lies
    between ``-w c y`` and ``w (1 - y)``: its size is at most ``w max(1, c)``. Labels have entries of their own.
    """

    def __init__(
        self,
        temperature: float = 1.0,
        max_gradient: float | None = None,
        normalize: bool = False,
        *,
        weight: float | Sequence[float] | Tensor | None = None,
        pos_weight: float | Sequence[float] | Tensor | None = None,
        within: str = "mean",
    ) -> None:
        super().__init__(max_gradient, normalize)
        self.temperature, self.within = temperature_of(temperature), within_of(within)
        self.weight, self.pos_weight = weights_of("weight", weight), weights_of("pos_weight", pos_weight)

    def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
        labels = math.prod(outputs.shape[1:])
        z, y = (t.reshape(len(outputs), labels) for t in (outputs, targets.to(outputs.dtype)))
        weight, positive = (None if w is None else like(w, z) for w in (self.weight, self.pos_weight))
        values = F.binary_cross_entropy_with_logits(
            z * self.temperature, y, weight, pos_weight=positive, reduction="none"
        )
        values = values.sum(1) / self.temperature
        return values if self.within == "sum" else values / labels

    def logit_gradient(self, shape: tuple[int, ...]) -> Norms:
        labels = math.prod(shape)
        for name, given in {"weight": self.weight, "pos_weight": self.pos_weight}.items():
            if given is not None and len(given) not in (1, labels):
                raise ConfigurationError(f"{len(given)} entries of {name} for {labels} labels: give one for each.")
        weight, positive = self.weight or [1.0], self.pos_weight or [1.0]
        largest = torch.tensor(weight, dtype=torch.float64) * torch.tensor(positive, dtype=torch.float64).clamp_min(1)
        largest = largest.expand(labels) / (1 if self.within == "sum" else labels)
        return Norms(shape, *(float(torch.linalg.vector_norm(largest, p)) for p in (1, 2, math.inf)))

    def classes(self, outputs: int) -> int | None:
        return 2 if outputs == 1 else None

    def sample_targets(self, outputs: Tensor) -> Tensor:
        return (torch.arange(outputs.numel(), device=outputs.device) % 2).reshape(outputs.shape)

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        labels = math.prod(outputs.shape[1:])
        alike = outputs.shape == targets.shape or (labels == 1 and targets.numel() == len(outputs))
        if not alike or labels == 0:
            raise ConfigurationError(
                f"outputs of shape {tuple(outputs.shape)}, targets of shape {tuple(targets.shape)}: this loss takes "
                "one target for each score, in one shape. Class numbers go with CrossEntropy, or F.one_hot(targets)."
            )
        self.logit_gradient(tuple(outputs.shape[1:]))  # refuses weights of another number
        if targets.numel() and not (0 <= float(targets.min()) and float(targets.max()) <= 1):
            raise ConfigurationError(
                f"targets from {float(targets.min()):g} to {float(targets.max()):g}: binary targets are 0 and 1."
            )


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


def like(weights: list[float], tensor: Tensor) -> Tensor:
    return torch.tensor(weights, dtype=tensor.dtype, device=tensor.device)


def temperature_of(value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ConfigurationError(f"temperature={value}: a temperature is a finite number > 0.")
    return value


def within_of(value: str) -> str:
    if value not in ("mean", "sum"):
        raise ConfigurationError(f"within={value!r}: an example's own positions have a 'mean' or a 'sum'.")
    return value


def weights_of(name: str, value: float | Sequence[float] | Tensor | None) -> list[float] | None:
    """Public weights as numbers; raises ConfigurationError unless all are finite, none negative, and one is not 0."""
    if value is None:
        return None
    weights = torch.as_tensor(value, dtype=torch.float64).detach().reshape(-1).tolist()
    if not (all(math.isfinite(w) and w >= 0 for w in weights) and any(weights)):
        raise ConfigurationError(f"{name}={weights}: public weights are finite, not negative and not all 0.")
    return weights
