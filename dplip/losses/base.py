"""The base class of losses: sums of per-example losses that declare the norms of their logit gradient."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dplip.errors import ConfigurationError, first_line
from dplip.losses.structure import Structure, entries, is_shape, joint, leaves, mapped, rebuilt, shapes, tensors
from dplip.norms import Norms, largest
from dplip.runtime.mixing import mixes

FLOOR = 0.05
"""With ``normalize=True`` a logit gradient is divided by max(norm, FLOOR); shorter ones may shrink."""

INSIDE = 1 - 1e-6
"""Rescaled gradients end this far inside their bound, so that float32 rounding does not take them out."""


PROBED = 7
"""Number of examples with which a loss is probed for mixing."""


class Monitor(Protocol):
    """The watcher of a loss: it tells which outputs are the model's, and receives what the backward pass sends back.

    :class:`dplip.training.gradient_monitor.GradientMonitor` is one; its module gives the order of the calls.
    """

    def is_model_output(self, outputs: Tensor) -> bool: ...

    def on_gradients(self, gradients: list[Tensor], of_model: bool, shape: Any) -> None: ...

    def on_reweighting(self) -> None: ...


class Loss(nn.Module):
    """Base class: a per-example loss with a bound on the norms of its gradient with respect to the outputs.

    Outputs are one tensor, with the examples along its first axis, or a structure of such tensors
    (:mod:`dplip.losses.structure`), whose norms are those of all its entries as one vector. Shapes are those of one
    example's outputs, in the same structure.

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
        self.monitor: Monitor | None = None

    def per_example(self, outputs: Any, targets: Any) -> Tensor:
        """The loss of each example, shape (batch,)."""
        raise NotImplementedError

    def logit_gradient(self, shape: Any) -> Norms:
        """Bounds on the gradient of one example's loss in its output of this shape, before any rescaling."""
        raise NotImplementedError

    def direction(self, shape: Any) -> Norms:
        """Bounds on the logit gradient divided by its l2 norm."""
        return Norms(joint(shape), l2=1.0)

    def check(self, outputs: Any, targets: Any) -> None:
        """Refuse targets that the loss is not defined for."""

    def classes(self, outputs: int | Structure) -> int | None:
        """The number of classes, for outputs of this shape or of so many numbers; None: no example has just one."""
        return max(2, entries(outputs))

    def measures(self, outputs: Any, targets: Any) -> dict[str, Tensor]:
        """What tells how good outputs are, for reports: by its name, one number for each example."""
        if self.classes(shapes(outputs)) is None:
            return {}
        single = outputs.ndim == 1 or outputs.shape[1] == 1
        predicted = (outputs.reshape(len(outputs)) > 0).long() if single else outputs.argmax(1)
        return {"accuracy": (predicted == targets.reshape(len(outputs))).double()}

    def sample_targets(self, outputs: Any) -> Any:
        """Valid targets for these outputs, to probe the loss with: class numbers; random ones for a regression."""
        classes = self.classes(outputs[0].numel())
        if classes is None:
            return torch.randn_like(outputs)
        return torch.arange(len(outputs), device=outputs.device) % classes

    def select(self, outputs: Any) -> Structure:
        """Those of a model's outputs that the loss reads: one tensor, unless a loss says otherwise."""
        if not isinstance(outputs, Tensor):
            raise ConfigurationError(
                f"outputs of type {type(outputs).__name__}: {type(self).__name__} takes one tensor. Give it the one "
                'that it is for (outputs.logits, outputs[0]; output="logits" or output=0, where the model is made '
                "private), or a loss for each: dplip.losses.Heads."
            )
        return outputs

    def select_targets(self, targets: Any) -> Structure:
        """Those of an example's targets that the loss reads."""
        if not isinstance(targets, Tensor):
            raise ConfigurationError(
                f"targets of type {type(targets).__name__}: {type(self).__name__} takes one tensor with a row for "
                "each example. Give that one, or torch.as_tensor(targets)."
            )
        return targets

    def head_gradients(self, gradients: Structure) -> Structure:
        """The gradients with those of each part of the outputs scaled as that part asks, before all are as one."""
        return gradients

    def gradient_norms(self, shape: Any) -> Norms:
        """Bounds on the gradient that one example sends back into its output of this shape."""
        norms = self.direction(shape) if self.normalize else self.logit_gradient(shape)
        return norms if self.max_gradient is None else norms & Norms(norms.shape, l2=self.max_gradient)

    def validated(self, outputs: Any, targets: Any) -> tuple[Structure, Structure]:
        """What the loss reads of outputs and targets; raises ConfigurationError where it is not defined for them."""
        outputs, targets = self.select(outputs), self.select_targets(targets)
        scores, known = tensors(outputs, "outputs"), tensors(targets, "targets")
        for z in scores:
            if not z.is_floating_point():
                raise ConfigurationError(
                    f"outputs of type {z.dtype}: a loss takes floating-point scores. Give the model's own outputs, and "
                    "not the classes that they predict."
                )
        for t in (*scores[1:], *known):
            if len(t) != len(scores[0]):
                raise ConfigurationError(
                    f"{len(scores[0])} outputs but {len(t)} targets: give one target per example."
                    if len(scores) == 1
                    else f"outputs and targets of {len(scores[0])} and of {len(t)} examples: give one of each for each."
                )
        targets = mapped(lambda t: t if t.is_floating_point() else t.long(), targets)
        self.check(outputs, targets)
        return outputs, targets

    def forward(self, outputs: Any, targets: Any, reduction: str = "sum") -> Tensor:
        if reduction not in ("sum", "none"):
            raise ConfigurationError(
                f"reduction={reduction!r}: dividing by the batch's own size would leak it. "
                "Use 'sum' (the optimizer divides by the public expected batch size) or 'none'."
            )
        outputs, targets = self.validated(outputs, targets)
        bound = rebuilt(outputs, iter(_BoundGradient.apply(self, shapes(outputs), *leaves(outputs))))
        values = _UnitWeights.apply(self.per_example(bound, targets), self)
        return values.sum() if reduction == "sum" else values

    def extra_repr(self) -> str:
        names = [k for k in vars(self) if not k.startswith("_") and k not in ("training", "monitor")]
        return ", ".join(f"{k}={getattr(self, k)}" for k in names)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "monitor": None}


class _BoundGradient(torch.autograd.Function):
    """The identity, whose backward pass rescales each example's logit gradients into the declared bounds."""

    @staticmethod
    def forward(ctx: Any, loss: Loss, shape: Structure, *outputs: Tensor) -> tuple[Tensor, ...]:
        ctx.loss, ctx.shape = loss, shape
        ctx.of_model = loss.monitor is None or all(loss.monitor.is_model_output(z) for z in outputs)
        return tuple(z.view_as(z) for z in outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        loss: Loss = ctx.loss
        sent = leaves(bounded(rebuilt(ctx.shape, iter(gradients)), loss))
        if loss.monitor is not None:
            loss.monitor.on_gradients(sent, ctx.of_model, ctx.shape)
        return None, None, *sent


class _UnitWeights(torch.autograd.Function):
    """The identity on the values of the loss, whose backward pass reports a weight other than 1.

    A factor that all examples share may depend on them all, and then one example moves the gradients of the others.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, loss: Loss) -> Tensor:
        ctx.loss = loss
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor, None]:
        monitor = ctx.loss.monitor
        if monitor is not None and not bool((weights == 1).all()):
            monitor.on_reweighting()
        return weights, None


def bounded(gradients: Structure, loss: Loss) -> Structure:
    """Logit gradients with each example's, as one vector, normalised as the loss asks and scaled into its norms."""
    shape = shapes(gradients)
    parts: list[Tensor] = leaves(loss.head_gradients(gradients))
    flat = [g.flatten(1) if g.ndim > 1 else g[:, None] for g in parts]
    rows = flat[0] if len(flat) == 1 else torch.cat(flat, 1)
    if not rows.numel():
        return gradients
    rows = torch.where(rows.isfinite().all(1, keepdim=True), rows, torch.zeros_like(rows))
    norms = loss.gradient_norms(shape)
    if loss.normalize:
        rows = rows / torch.linalg.vector_norm(rows, 2, 1, keepdim=True).clamp_min(FLOOR)
    excess = torch.ones_like(rows[:, :1])
    for p in (1, 2, math.inf):
        bound = largest(norms.norm(p))
        # fmax: a bound that is 0 in this type makes NaN of a row of zeros, which stays as it is.
        excess = torch.fmax(excess, torch.linalg.vector_norm(rows, p, 1, keepdim=True) / (bound * INSIDE))
    split = (rows / excess).split([f.shape[1] for f in flat], 1)
    return rebuilt(gradients, iter([r.reshape(g.shape).to(g.dtype) for r, g in zip(split, parts, strict=True)]))


def require_separate(loss: Loss, shape: Any, like: Tensor) -> None:
    """Refuse a loss whose value or gradient for one example was seen to depend on the other examples.

    Args:
        shape, like: shape of one example's outputs, and a tensor of their type and device.

    Raises:
        ConfigurationError: the loss mixes examples, or does not run on such outputs.
    """
    what = type(loss).__name__
    if type(loss).forward is not Loss.forward or "forward" in vars(loss):
        raise ConfigurationError(
            f"loss={what}: it has a forward of its own, which may mix the examples of a batch around what is probed. "
            "Define per_example, and leave forward as dplip.losses.Loss has it."
        )
    generator = torch.Generator().manual_seed(0)
    outputs = 3 * torch.randn((PROBED, *joint(shape)), generator=generator, dtype=like.dtype).to(like.device)

    def in_parts(rows: Tensor) -> Structure:
        """The outputs whose entries stand in these rows."""
        sizes = leaves(shape)
        parts = [rows] if is_shape(shape) else rows.split([math.prod(size) for size in sizes], 1)
        return rebuilt(shape, iter([p.reshape(len(rows), *size) for p, size in zip(parts, sizes, strict=True)]))

    targets = loss.sample_targets(in_parts(outputs))
    known = leaves(targets)

    def values_of(rows: Tensor, *of_targets: Tensor) -> Tensor:
        return loss.per_example(in_parts(rows), rebuilt(targets, iter(of_targets)))

    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(outputs.device.type, enabled=False):
            values = values_of(outputs, *known)
            separate = values.shape[:1] == outputs.shape[:1] and not mixes(values_of, [outputs, *known])
    except Exception as wrong:
        kinds = ", ".join(f"{t.dtype} and shape {tuple(t.shape)}" for t in known)
        raise ConfigurationError(
            f"loss={what}: it does not run on targets of type {kinds} "
            f"({type(wrong).__name__}: {first_line(wrong)}), so nothing shows whether it mixes examples. Define its "
            "sample_targets(outputs): some targets that it takes."
        ) from None
    if not separate:
        raise ConfigurationError(
            f"loss={what}: the value or the gradient of one example depends on the others of its batch, so that one "
            "example moves more than its own. Let per_example treat each by itself, and give one value for each."
        )


def check_labels(outputs: Tensor, targets: Tensor) -> None:
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
