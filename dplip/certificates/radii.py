"""Certificates of robustness: radii within which the prediction cannot change."""

from __future__ import annotations

import math

import torch
from torch import Tensor, fx, nn

from dplip.certificates.hybrid import HybridBound
from dplip.certificates.intervals.walk import Boxes, enlarged
from dplip.certificates.refusals import certifying
from dplip.certificates.slopes.walk import pull
from dplip.errors import ConfigurationError, DPLipError, UnboundedOperationError, first_line
from dplip.norms import REDUCTION_SLACK, NormCache, Norms, largest
from dplip.propagation import Walk
from dplip.rounding import Rounding
from dplip.rounding.walk import by_pair, rows_of
from dplip.runtime.mode import evaluation

DUAL = {1: math.inf, 2: 2, math.inf: 1}
NAMES = {1: "l1", 2: "l2", math.inf: "linf"}


def lipschitz(module: nn.Module, input_shape: tuple[int, ...], norm: float = 2) -> float:
    """A certified Lipschitz constant of a layer or a model, from the lp norm to the lp norm.

    Args:
        module: a layer or a model, in the mode (train or eval) that the constant is for.
        input_shape: shape of one example.
        norm: 1, 2 or inf, of both the input and the output.

    Guarantee: an upper bound, for the present weights; inf where no bound is known.
    """
    dual = dual_of(norm)
    with certifying(module):
        walk = Walk(module, input_shape)
        walk.refuse_surrogates()
        output, pullback = walk()
    return largest(pullback(Norms(output.shape, **{NAMES[dual]: 1.0}))[0].norm(dual))


def certify(model: nn.Module, x: Tensor, norm: float = 2, batch_size: int = 2048) -> Tensor:
    """The radius around each input within which the predicted class cannot change.

    Args:
        model: a classifier with scores (batch, classes), or with one score per example, whose sign is the prediction.
        x: inputs, shape (batch, ...), in the model's own input space (raw pixels, where scaling is part of the model).
        norm: 1, 2 or inf, the norm of the radius.

    Returns:
        A float64 tensor of shape (batch,), 0 where the prediction is tied or not finite.

    Raises:
        ConfigurationError: x or the weights are not float32 or float64, both of one type; or autocast is on.
        UnboundedOperationError: an operation has no rule, or no rounding rule.

    Guarantee: in evaluation mode, no input strictly within the radius has another prediction, as the model computes it
    in floating point, without autocast and in full precision. Let L_j be the certified bound of the dual norm of the
    gradient of z_y - z_j, through the rows of a last linear layer, and E_j the bound of the rounding error of z_y - z_j
    within the radius (:class:`dplip.rounding.Rounding`); the smallest ``(z_y - z_j - E_j) / L_j`` is such a radius.
    For norm = inf, if every operation has an interval rule, the radius is the larger of this one and the largest one
    that interval bounds verify (see :mod:`dplip.certificates.intervals.walk`).
    """
    if not isinstance(x, Tensor) or x.ndim < 1 or x.dtype not in (torch.float32, torch.float64):
        found = f"of {x.dtype}, shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"is a {type(x).__name__}"
        raise ConfigurationError(f"x {found}: give a batch of inputs, a tensor of float32 or float64 (batch, ...).")
    if torch.is_autocast_enabled(x.device.type):
        raise ConfigurationError(
            "torch.autocast is on, and a certificate is for the model's predictions without it: those within it are "
            "rounded to half precision, and may change inside a radius. Call certify outside of it, and predict so."
        )
    weight = next((p for p in model.parameters() if p.is_floating_point()), x)
    if weight.dtype != x.dtype:
        raise ConfigurationError(f"x of {x.dtype}, weights of {weight.dtype}: bring both to one type.")
    with evaluation(model), torch.no_grad():
        _try(model, x[:1])
        certifier = Certifier(model, tuple(x.shape[1:]), norm)
        parts = [certifier(part) for part in x.split(batch_size)] if len(x) else []
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)


def _try(model: nn.Module, one: Tensor) -> None:
    """Refuse a batch that the model does not run on, such as an input without the axis of the batch."""
    try:
        model(one)
    except DPLipError:
        raise
    except Exception as wrong:
        raise ConfigurationError(
            f"x: the model does not run on its first row, x[:1] of shape {tuple(one.shape)} ({type(wrong).__name__}: "
            f"{first_line(wrong)}). Give a batch of inputs, (batch, ...), a single one as x[None]; a "
            "certificate is for a model of one tensor."
        ) from None


class Certifier:
    """:func:`certify` for many batches: ``certifier(x)`` returns radii, and the slopes are computed once.

    Args:
        model: a classifier, whose weights must not change while the certifier is in use.
        input_shape: shape of one example.
        norm: 1, 2 or inf.
    """

    def __init__(self, model: nn.Module, input_shape: tuple[int, ...], norm: float = 2) -> None:
        self.model, self.norm = model, norm
        with certifying(model), evaluation(model), torch.no_grad(), NormCache(tolerance=0.0):
            self.walk = Walk(model, input_shape)
            self.slopes = pairwise(self.walk, norm)
            self.rounding = Rounding(self.walk, seeds(self.walk), len(self.slopes))
            self.boxes: Boxes | None = None
            if norm == math.inf:
                try:
                    self.boxes = Boxes(self.walk)
                except UnboundedOperationError:  # an operation without an interval rule: the margin alone certifies
                    self.boxes = None
            hybrid = self.boxes is not None and len(self.slopes) > 1
            self.hybrid = HybridBound(self.walk, seeds(self.walk), len(self.slopes)) if hybrid else None

    def __call__(self, x: Tensor) -> Tensor:
        """The radius of each input."""
        with evaluation(self.model), torch.no_grad():
            return self.radii(x, self.model(x))

    def radii(self, x: Tensor, scores: Tensor) -> Tensor:
        """The radius of each input, from its scores.

        Proof: let r be the smallest ``(z_y - z_j) / L_j`` of the exact scores at x, and E_j the bound of the roundings
        for inputs within r of x. The radius ``(z_y - z_j - E_j) / L_j`` is at most r, and E_j holds within it, so the
        computed z_y stays above the computed z_j.
        """
        finite = x.flatten(1).isfinite().all(1).cpu()
        exact, sizes = self.rounding.at(torch.where(x.isfinite(), x, torch.zeros_like(x)))
        z = _rows(exact)
        gaps, top = margins(z)
        known = finite & _rows(scores).isfinite().all(1) & z.isfinite().all(1)
        known &= predictions(_rows(scores)) == predictions(z)

        def errors(rows: Tensor, radius: Tensor) -> Tensor:
            moved = Norms(tuple(x.shape[1:]), **{NAMES[self.norm]: radius.cpu()})
            return self.rounding.of_scores(self.rounding.errors(rows_of(sizes, rows), moved), top[rows])

        every = torch.arange(len(x))
        farthest = _smallest(gaps, self.slopes, top)
        certified = _smallest(gaps - errors(every, farthest), self.slopes, top)
        certified = torch.where(known, torch.nan_to_num(certified, nan=0.0, posinf=math.inf), 0.0)
        boxes, hybrid = self.boxes, self.hybrid
        if boxes is None:
            return certified

        def verified(rows: Tensor, radius: Tensor) -> Tensor:
            part = x[rows.to(x.device)]
            perturbed = boxes.around(part, radius.to(x.device))
            proved = boxes.settled(perturbed).cpu()
            if hybrid:
                rows, nominal = rows.cpu(), boxes.values(part, part)
                proved |= hybrid.holds(perturbed, nominal, gaps[rows] - errors(rows, radius), top[rows])
            return proved

        return enlarged(verified, known, certified)


def _rows(scores: Tensor) -> Tensor:
    """Scores in float64, shape (batch, classes)."""
    z = scores.detach().double().cpu()
    return z.flatten(1) if z.ndim > 1 else z[:, None]


def margins(z: Tensor) -> tuple[Tensor, Tensor]:
    """``z_y - z_j``, shape (batch, classes), and the predicted class y, (batch,); |z| and 0 for a single score z."""
    if z.shape[1] == 1:
        return z.abs(), torch.zeros(len(z), dtype=torch.int64)
    top = z.argmax(1)
    return z.gather(1, top[:, None]) - z, top


def _smallest(gaps: Tensor, slopes: Tensor, top: Tensor) -> Tensor:
    """The smallest distance at which a margin can become 0; 0 if a margin is not positive."""
    ratios = torch.where(gaps > 0, gaps / slopes[top], torch.zeros_like(gaps))
    if gaps.shape[1] > 1:
        ratios.scatter_(1, top[:, None], math.inf)
    return ratios.min(1).values


def pairwise(walk: Walk, norm: float = 2) -> Tensor:
    """Bounds of the dual norm of the gradient of ``z_y - z_j`` at entry (y, j), float64 (classes, classes).

    For a single output, the bound of its gradient, shape (1, 1). Roundings are not included (see :class:`Certifier`).
    """
    dual = dual_of(norm)
    walk.refuse_surrogates()
    walk.refuse_chance()
    output, _ = walk()
    classes = math.prod(output.shape)
    if len(output.shape) > 1 or classes < 1:
        raise ConfigurationError(f"output of shape {output.shape}: certify takes scores of shape (batch, classes).")
    if classes == 1:
        return torch.tensor([[largest(pull(walk).norms.norm(dual))]], dtype=torch.float64)
    bound = walk.cotangents(seeds(walk))[walk.start()].norm(dual)
    return by_pair(bound, classes)


def seeds(walk: Walk) -> dict[fx.Node, Norms]:
    """The cotangent norms of the differences of scores, K^2 entries or one for all pairs, by node."""
    head = walk.head()
    if head is None:
        # e_y - e_j has l1 norm 2, l2 norm sqrt 2, linf norm 1 for every pair.
        end = walk.output()
        return {end: Norms(walk.shape(end), l1=2.0, l2=math.sqrt(2), linf=1.0)}
    rows = head[0].weight.detach().double().cpu()
    differences = (rows[:, None] - rows[None]).flatten(0, 1)
    norms = (torch.linalg.vector_norm(differences, p, 1) * (1 + REDUCTION_SLACK) for p in (1, 2, math.inf))
    return {head[1]: Norms((rows.shape[1],), *norms)}


def predictions(scores: Tensor) -> Tensor:
    """The predicted class of each example: that of the largest score, or 1 if a single score is positive."""
    if scores.ndim == 1 or scores.shape[1] == 1:
        return (scores.reshape(len(scores)) > 0).long()
    return scores.argmax(1)


def dual_of(norm: float) -> float:
    """The dual of the norm of a radius; raises for a norm other than 1, 2 and inf."""
    if norm not in DUAL:
        raise ConfigurationError(f"norm={norm!r}: certificates are in the norms 1, 2 and float('inf').")
    return DUAL[norm]
