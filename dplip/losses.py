"""Per-example losses that declare the norms of their logit gradient, and never exceed them.

Every loss is called as ``loss(outputs, targets)`` and returns the **sum** over the batch (``reduction="none"``: one
value per example). A mean is not offered: dividing by the batch's own size leaks it.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dplip.errors import ConfigurationError, first_line
from dplip.mixing import mixes
from dplip.norms import Norms, largest

FLOOR = 0.05
"""With ``normalize=True`` a logit gradient is divided by max(norm, FLOOR): below it, it may shrink."""

INSIDE = 1 - 1e-6
"""Rescaled gradients end this far inside their bound, so that float32 rounding does not take them out."""


PROBED = 7
"""Examples with which a loss is probed for mixing."""


class Witness(Protocol):
    """Who is told which outputs a loss saw, and what gradient its backward pass sent."""

    def made(self, outputs: Tensor) -> bool: ...

    def passed(self, gradient: Tensor, genuine: bool) -> None: ...

    def weighed(self) -> None: ...


class Loss(nn.Module):
    """Base class: a per-example loss with a bound on the norms of its gradient with respect to the outputs.

    Args:
        max_gradient: scale each example's logit gradient down to at most this l2 norm (a K-vector operation).
        normalize: divide each example's logit gradient by max(its l2 norm, 0.05), so that it keeps its size as the
            loss falls. Applied before ``max_gradient``.

    Guarantee: the gradient that one example sends back has norms within :meth:`gradient_norms`, whatever the outputs
    and the targets: the bound is proved for the loss as written, and enforced on every row besides (a row that is
    not finite becomes 0).
    """

    def __init__(self, max_gradient: float | None = None, normalize: bool = False) -> None:
        super().__init__()
        if max_gradient is not None and not (math.isfinite(max_gradient) and max_gradient > 0):
            raise ConfigurationError(f"max_gradient={max_gradient}: a bound on a norm is a finite number > 0.")
        self.max_gradient, self.normalize = max_gradient, normalize
        self.witness: Witness | None = None

    def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each example, shape (batch,)."""
        raise NotImplementedError

    def logit_gradient(self, shape: tuple[int, ...]) -> Norms:
        """Bounds on the gradient of one example's loss in its output of this shape, before any rescaling."""
        raise NotImplementedError

    def direction(self, shape: tuple[int, ...]) -> Norms:
        """Bounds on that gradient divided by its l2 norm."""
        return Norms(shape, l2=1.0)

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Refuse targets that the loss is not defined for."""

    def classes(self, outputs: int) -> int | None:
        """The number of classes that targets tell apart, for a model of so many outputs; None: a regression."""
        return max(2, outputs)

    def sample_targets(self, outputs: Tensor) -> Tensor:
        """Some targets that the loss takes for these outputs, to probe it with: class numbers, or numbers like them."""
        classes = self.classes(outputs[0].numel())
        if classes is None:
            return torch.randn_like(outputs)
        return torch.arange(len(outputs), device=outputs.device) % classes

    def gradient_norms(self, shape: tuple[int, ...]) -> Norms:
        """Bounds on the gradient that one example sends back into its output of this shape."""
        norms = self.direction(shape) if self.normalize else self.logit_gradient(shape)
        return norms if self.max_gradient is None else norms & Norms(shape, l2=self.max_gradient)

    def forward(self, outputs: Tensor, targets: Tensor, reduction: str = "sum") -> Tensor:
        if reduction not in ("sum", "none"):
            raise ConfigurationError(
                f"reduction={reduction!r}: dividing by the batch's own size would leak it. "
                "Use 'sum' (the optimizer divides by the public expected batch size) or 'none'."
            )
        if len(outputs) != len(targets):
            raise ConfigurationError(f"{len(outputs)} outputs but {len(targets)} targets: give one target per example.")
        targets = targets if targets.is_floating_point() else targets.long()
        self.check(outputs, targets)
        values = _Weights.apply(self.per_example(_Gate.apply(outputs, self), targets), self)
        return values.sum() if reduction == "sum" else values

    def extra_repr(self) -> str:
        names = [k for k in vars(self) if not k.startswith("_") and k not in ("training", "witness")]
        return ", ".join(f"{k}={getattr(self, k)}" for k in names)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "witness": None}


class _Gate(torch.autograd.Function):
    """The identity, whose backward pass rescales each example's logit gradient into the declared bounds."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, loss: Loss) -> Tensor:
        ctx.loss = loss
        ctx.genuine = loss.witness is None or loss.witness.made(outputs)
        return outputs.view_as(outputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        loss: Loss = ctx.loss
        gradient = bounded(gradient, loss)
        if loss.witness is not None:
            loss.witness.passed(gradient, ctx.genuine)
        return gradient, None


class _Weights(torch.autograd.Function):
    """The identity on the values of the loss, whose backward pass sees how much each counts: once, or it is told.

    A factor that all examples share may depend on them all, and then one example moves the gradients of the others.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, loss: Loss) -> Tensor:
        ctx.loss = loss
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor, None]:
        witness = ctx.loss.witness
        if witness is not None and not bool((weights == 1).all()):
            witness.weighed()
        return weights, None


def bounded(gradient: Tensor, loss: Loss) -> Tensor:
    """The rows of a logit gradient, normalised as the loss asks and scaled into its declared norms."""
    rows = gradient.flatten(1) if gradient.ndim > 1 else gradient[:, None]
    if not rows.numel():
        return gradient
    rows = torch.where(rows.isfinite().all(1, keepdim=True), rows, torch.zeros_like(rows))
    norms = loss.gradient_norms(tuple(gradient.shape[1:]))
    if loss.normalize:
        rows = rows / torch.linalg.vector_norm(rows, 2, 1, keepdim=True).clamp_min(FLOOR)
    excess = torch.ones_like(rows[:, :1])
    for p in (1, 2, math.inf):
        bound = largest(norms.norm(p))
        excess = torch.maximum(excess, torch.linalg.vector_norm(rows, p, 1, keepdim=True) / (bound * INSIDE))
    return (rows / excess).reshape(gradient.shape)


def require_separate(loss: Loss, shape: tuple[int, ...], like: Tensor) -> None:
    """Refuse a loss that was seen to make of one example's outputs, of a shape, something that depends on the others.

    Args:
        like: of the type and on the device of the outputs.

    Raises:
        ConfigurationError: it was, or it does not run on such outputs.
    """
    what = type(loss).__name__
    if type(loss).forward is not Loss.forward or "forward" in vars(loss):
        raise ConfigurationError(
            f"loss={what}: it has a forward of its own, which may mix the examples of a batch around what is probed. "
            "Define per_example, and leave forward as dplip.losses.Loss has it."
        )
    generator = torch.Generator().manual_seed(0)
    outputs = 3 * torch.randn((PROBED, *shape), generator=generator, dtype=like.dtype).to(like.device)
    targets = loss.sample_targets(outputs)
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(outputs.device.type, enabled=False):
            values = loss.per_example(outputs, targets)
            separate = values.shape[:1] == outputs.shape[:1] and not mixes(loss.per_example, [outputs, targets])
    except Exception as wrong:
        raise ConfigurationError(
            f"loss={what}: it does not run on targets of type {targets.dtype} and shape {tuple(targets.shape)} "
            f"({type(wrong).__name__}: {first_line(wrong)}), so nothing shows whether it mixes examples. Define its "
            "sample_targets(outputs): some targets that it takes."
        ) from None
    if not separate:
        raise ConfigurationError(
            f"loss={what}: the value or the gradient of one example depends on the others of its batch, so that one "
            "example moves more than its own. Let per_example treat each by itself, and give one value for each."
        )


def _check_labels(outputs: Tensor, targets: Tensor) -> None:
    if outputs.ndim != 2:
        raise ConfigurationError(f"outputs of shape {tuple(outputs.shape)}: this loss takes (batch, classes).")
    if targets.is_floating_point() or targets.ndim != 1:
        raise ConfigurationError(
            f"targets of type {targets.dtype} and shape {tuple(targets.shape)}: give class numbers (targets.long()), "
            "shape (batch,)."
        )
    classes = outputs.shape[1]
    if targets.numel() and not (0 <= int(targets.min()) and int(targets.max()) < classes):
        raise ConfigurationError(
            f"targets from {int(targets.min())} to {int(targets.max())}: with {classes} outputs, labels are 0 to "
            f"{classes - 1}. Renumber the classes, or give the model more outputs."
        )


def _temperature(value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ConfigurationError(f"temperature={value}: a temperature is a finite number > 0.")
    return value


class CrossEntropy(Loss):
    """``CE(t z) / t`` for logits (batch, classes) and class numbers (batch,), t the temperature.

    The logit gradient is p - y with p = softmax(t z): ``l1 = 2 (1 - p_y) <= 2``, ``linf <= 1`` and
    ``l2^2 = (1 - p_y)^2 + sum of the other p_j^2 <= 2``, whatever t. A large t sharpens: small margins count as wins.
    """

    def __init__(self, temperature: float = 1.0, max_gradient: float | None = None, normalize: bool = False) -> None:
        super().__init__(max_gradient, normalize)
        self.temperature = _temperature(temperature)

    def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs * self.temperature, targets, reduction="none") / self.temperature

    def logit_gradient(self, shape: tuple[int, ...]) -> Norms:
        return Norms(shape, l1=2.0, l2=math.sqrt(2.0), linf=1.0)

    def direction(self, shape: tuple[int, ...]) -> Norms:
        # With r = 1 - p_y: l1 = 2 r, linf = r, and l2^2 >= r^2 + r^2 / (K - 1), the others being even at best.
        classes = max(2, math.prod(shape))
        linf = 1 / math.sqrt(1 + 1 / (classes - 1))
        return Norms(shape, l1=2 * linf, l2=1.0, linf=linf)

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        _check_labels(outputs, targets)


class BinaryCrossEntropy(Loss):
    """``BCE(t z) / t`` for one score per example, shape (batch,) or (batch, 1), and targets 0 or 1.

    The gradient is sigmoid(t z) - y, of absolute value at most 1.
    """

    def __init__(self, temperature: float = 1.0, max_gradient: float | None = None, normalize: bool = False) -> None:
        super().__init__(max_gradient, normalize)
        self.temperature = _temperature(temperature)

    def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
        z, y = outputs.reshape(len(outputs)), targets.reshape(len(outputs)).to(outputs.dtype)
        return F.binary_cross_entropy_with_logits(z * self.temperature, y, reduction="none") / self.temperature

    def logit_gradient(self, shape: tuple[int, ...]) -> Norms:
        return Norms(shape, l1=1.0)

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        if outputs.numel() != len(outputs) or targets.numel() != len(outputs):
            raise ConfigurationError(
                f"outputs of shape {tuple(outputs.shape)}, targets of shape {tuple(targets.shape)}: this loss takes "
                "one score and one target per example."
            )
        if targets.numel() and not (0 <= float(targets.min()) and float(targets.max()) <= 1):
            raise ConfigurationError(
                f"targets from {float(targets.min()):g} to {float(targets.max()):g}: binary targets are 0 and 1."
            )


class Hinge(Loss):
    """``max(0, margin - (z_y - max of the others))`` for logits (batch, classes); with one output, by its sign.

    The gradient is -1 at y and +1 at the strongest other class, or 0: l1 <= 2, l2 <= sqrt 2, linf <= 1.
    Source: Crammer and Singer, 2001.
    """

    def __init__(self, margin: float = 1.0, max_gradient: float | None = None, normalize: bool = False) -> None:
        super().__init__(max_gradient, normalize)
        if not math.isfinite(margin):
            raise ConfigurationError(f"margin={margin}: a margin is a finite number.")
        self.margin = margin

    def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if _binary(outputs):
            gap = outputs.reshape(len(outputs)) * (2 * targets.reshape(len(outputs)) - 1)
        else:
            own = F.one_hot(targets, outputs.shape[1]).bool()
            # max over one dimension sends its gradient to a single index, ties included.
            gap = outputs.gather(1, targets[:, None])[:, 0] - outputs.masked_fill(own, -math.inf).max(1).values
        return F.relu(self.margin - gap)

    def logit_gradient(self, shape: tuple[int, ...]) -> Norms:
        return Norms(shape, l1=1.0) if math.prod(shape) == 1 else Norms(shape, 2.0, math.sqrt(2.0), 1.0)

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        if not _binary(outputs):
            _check_labels(outputs, targets)
        elif targets.numel() != len(outputs) or not bool(((targets == 0) | (targets == 1)).all()):
            raise ConfigurationError("targets: with one output, give one target of 0 or 1 per example.")


def _binary(outputs: Tensor) -> bool:
    return outputs.ndim == 1 or outputs.shape[1:] == (1,)


class MulticlassKR(Loss):
    """The Kantorovich-Rubinstein loss, one class against the rest, with **public** class frequencies.

    ``-(1/K) sum_k z_k ([y = k] / pi_k - [y != k] / (1 - pi_k))``: the mean of z_k over its class minus that over the
    others, each divided by the declared frequency and not by a count in the batch, which would couple examples.

    Args:
        class_weights: the public frequencies pi, K positive numbers that sum to 1; None: 1/K each.

    The gradient is a fixed vector for each label; its norms are those of the worst label.
    """

    def __init__(
        self,
        class_weights: list[float] | Tensor | None = None,
        max_gradient: float | None = None,
        normalize: bool = False,
    ) -> None:
        super().__init__(max_gradient, normalize)
        weights = None if class_weights is None else [float(w) for w in class_weights]
        if weights is not None and not (min(weights) > 0 and math.isclose(sum(weights), 1, rel_tol=1e-4)):
            raise ConfigurationError(f"class_weights={weights}: give public frequencies, each > 0, that sum to 1.")
        self.class_weights = weights

    def coefficients(self, classes: int) -> Tensor:
        """Row y: the gradient of the loss of an example of class y, float64."""
        weights = [1 / classes] * classes if self.class_weights is None else self.class_weights
        if len(weights) != classes:
            raise ConfigurationError(f"{len(weights)} class_weights for {classes} outputs: give one per class.")
        pi = torch.tensor(weights, dtype=torch.float64)
        other = (1 / (1 - pi)).expand(classes, classes) if classes > 1 else torch.zeros(1, 1, dtype=torch.float64)
        return torch.where(torch.eye(classes, dtype=torch.bool), -1 / pi, other) / classes

    def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (self.coefficients(outputs.shape[1]).to(outputs)[targets] * outputs).sum(1)

    def logit_gradient(self, shape: tuple[int, ...]) -> Norms:
        table = self.coefficients(math.prod(shape))
        return Norms(shape, *(float(torch.linalg.vector_norm(table, p, 1).max()) for p in (1, 2, math.inf)))

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        _check_labels(outputs, targets)


class HKR(MulticlassKR):
    """The hinge-regularised Kantorovich-Rubinstein loss: KR + alpha * hinge, with public class frequencies.

    Its gradient is bounded by the sum of the two bounds.
    Source: Serrurier et al., "Achieving robustness in classification using optimal transport", 2021.
    """

    def __init__(
        self,
        alpha: float = 10.0,
        margin: float = 1.0,
        class_weights: list[float] | Tensor | None = None,
        max_gradient: float | None = None,
        normalize: bool = False,
    ) -> None:
        super().__init__(class_weights, max_gradient, normalize)
        if not (math.isfinite(alpha) and alpha >= 0):
            raise ConfigurationError(f"alpha={alpha}: the weight of the hinge is a finite number >= 0.")
        self.alpha, self.hinge = alpha, Hinge(margin)

    def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().per_example(outputs, targets) + self.alpha * self.hinge.per_example(outputs, targets)

    def logit_gradient(self, shape: tuple[int, ...]) -> Norms:
        return super().logit_gradient(shape) + self.hinge.logit_gradient(shape) * self.alpha


class Cosine(Loss):
    """``1 - z_y / max(|z|_2, floor)`` for logits (batch, classes): the cosine to the label's direction.

    z / max(|z|, floor) is 1/floor-Lipschitz (a projection onto a ball, scaled), so the gradient's l2 norm is at most
    ``1 / floor``.
    """

    def __init__(self, floor: float = 1.0, max_gradient: float | None = None, normalize: bool = False) -> None:
        super().__init__(max_gradient, normalize)
        if not (math.isfinite(floor) and floor > 0):
            raise ConfigurationError(f"floor={floor}: the smallest norm to divide by is a finite number > 0.")
        self.floor = floor

    def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
        norms = torch.linalg.vector_norm(outputs, dim=1).clamp_min(self.floor)
        return 1 - outputs.gather(1, targets[:, None])[:, 0] / norms

    def logit_gradient(self, shape: tuple[int, ...]) -> Norms:
        return Norms(shape, l2=1 / self.floor)

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        _check_labels(outputs, targets)


class _Regression(Loss):
    """Losses of a residual z - t, for outputs and targets of one shape."""

    def __init__(self, delta: float = 1.0, max_gradient: float | None = None, normalize: bool = False) -> None:
        super().__init__(max_gradient, normalize)
        if not (math.isfinite(delta) and delta > 0):
            raise ConfigurationError(f"delta={delta}: the residual at which the loss turns linear is a number > 0.")
        self.delta = delta

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        if outputs.numel() != targets.numel():
            raise ConfigurationError(
                f"outputs of shape {tuple(outputs.shape)}, targets of shape {tuple(targets.shape)}: give equal shapes."
            )
        if not bool(targets.isfinite().all()):
            raise ConfigurationError("targets hold NaN or infinity: remove or impute them.")

    def classes(self, outputs: int) -> int | None:
        return None

    def residuals(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets.reshape(outputs.shape).to(outputs.dtype)).reshape(len(outputs), outputs[:1].numel())


class Huber(_Regression):
    """The Huber loss of each coordinate, summed: half the square within ``delta``, linear beyond.

    The gradient is the residual with each coordinate clamped to [-delta, delta]: linf <= delta.
    Source: Huber, 1964.
    """

    def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
        residuals = self.residuals(outputs, targets)
        return F.huber_loss(residuals, torch.zeros_like(residuals), reduction="none", delta=self.delta).sum(1)

    def logit_gradient(self, shape: tuple[int, ...]) -> Norms:
        return Norms(shape, linf=self.delta)


class ClippedMSE(_Regression):
    """Half the squared l2 norm of the residual, linear beyond ``delta``: its gradient's l2 norm is at most delta."""

    def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
        residuals = self.residuals(outputs, targets)
        square = residuals.square().sum(1)
        norm = square.clamp_min(self.delta**2).sqrt()  # constant inside, so the root is never taken at zero
        return torch.where(square <= self.delta**2, square / 2, self.delta * (norm - self.delta / 2))

    def logit_gradient(self, shape: tuple[int, ...]) -> Norms:
        return Norms(shape, l2=self.delta)


from dplip.losses_linf import ClippedHinge as ClippedHinge  # noqa: E402  (derives from Loss)
