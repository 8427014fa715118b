"""Certificates of robustness: how far an input must move before the prediction can change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.data import DataLoader, Dataset

from dplip.deviations import Cuts
from dplip.device import device_of
from dplip.errors import ConfigurationError, UnboundedOperationError
from dplip.intervals import Boxes, enlarged
from dplip.norms import Norms, largest
from dplip.precision import full_precision
from dplip.propagate import Walk

DUAL = {1: math.inf, 2: 2, math.inf: 1}
ROUNDING = 4e-6
"""Error of a float32 score, relative to the bound on the example's scores, that margins are reduced by."""


def lipschitz(module: nn.Module, input_shape: tuple[int, ...], norm: float = 2) -> float:
    """A certified Lipschitz constant of a layer or a model, from the lp norm to the lp norm.

    Args:
        module: a layer or a model, in the mode that is meant.
        input_shape: shape of one example.
        norm: 1, 2 or inf, at both ends.

    Guarantee: an upper bound, for the present weights; inf where no bound is known.
    """
    dual = dual_of(norm)
    walk = Walk(module, input_shape)
    walk.refuse_surrogates()
    output, pullback = walk()
    names = {1: "l1", 2: "l2", math.inf: "linf"}
    return largest(pullback(Norms(output.shape, **{names[dual]: 1.0}))[0].norm(dual))


def certify(model: nn.Module, x: Tensor, norm: float = 2, batch_size: int = 2048) -> Tensor:
    """The radius around each input within which the predicted class cannot change.

    Args:
        model: a classifier: scores (batch, classes), or one score per example whose sign decides.
        x: inputs, shape (batch, ...), in the model's own input space (raw pixels, where scaling is part of the model).
        norm: 1, 2 or inf: the norm in which the input moves.

    Returns:
        A float64 tensor of shape (batch,), 0 where the prediction is tied or not finite.

    Guarantee: no input strictly within the radius has another prediction. With L_j the certified bound of the dual
    norm of the gradient of z_y - z_j, the smallest ``(z_y - z_j) / L_j`` is such a radius; L_j is taken through the
    actual rows of the last linear layer where there is one. Evaluation mode. Margins are reduced by the rounding of a
    score, relative to the bound that the norms of this very input give for it, which counts what cancels inside.
    For norm = inf the radius is the larger of this one and the largest one that interval bounds verify (see
    :mod:`dplip.intervals`), where every operation of the model has an interval rule.
    """
    if not isinstance(x, Tensor) or x.ndim < 1 or not x.is_floating_point():
        found = f"of {x.dtype}, shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"is a {type(x).__name__}"
        raise ConfigurationError(f"x {found}: give a batch of inputs, a tensor of floats (batch, ...).")
    weight = next((p for p in model.parameters() if p.is_floating_point()), x)
    if weight.dtype != x.dtype:
        raise ConfigurationError(f"x of {x.dtype}, weights of {weight.dtype}: bring both to one type.")
    with evaluation(model), torch.no_grad():
        certifier = Certifier(model, tuple(x.shape[1:]), norm)
        parts = [certifier.radii(part, model(part)) for part in x.split(batch_size)] if len(x) else []
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)


class Certifier:
    """The radii of many inputs of one model in evaluation mode, with its slopes computed once."""

    def __init__(self, model: nn.Module, input_shape: tuple[int, ...], norm: float = 2) -> None:
        self.walk = Walk(model, input_shape)
        self.slopes = pairwise(model, input_shape, norm)
        self.boxes: Boxes | None = None
        if norm == math.inf:
            try:
                self.boxes = Boxes(self.walk)
            except UnboundedOperationError:  # an operation without an interval rule: the margin alone certifies
                self.boxes = None
        self.cuts = Cuts(self.walk, seeds(self.walk), len(self.slopes)) if self.boxes and len(self.slopes) > 1 else None

    def radii(self, x: Tensor, scores: Tensor) -> Tensor:
        """The radius of each input, from its scores."""
        flat = torch.where(x.isfinite(), x, torch.zeros_like(x)).double().flatten(1)
        size = [torch.linalg.vector_norm(flat, p, 1).cpu() for p in (1, 2, math.inf)]
        bound = self.walk(Norms(tuple(x.shape[1:]), *size))[0].linf
        error = ROUNDING * torch.as_tensor(bound, dtype=torch.float64).expand(len(x))
        finite = x.flatten(1).isfinite().all(1).to(scores.device)
        certified = torch.where(finite, radii(scores, self.slopes, error), 0.0)
        boxes, cuts = self.boxes, self.cuts
        if boxes is None:
            return certified
        gaps, top = margins(*_sound(scores.cpu(), error)[1:]) if cuts else (error, error)

        def verified(rows: Tensor, radius: Tensor) -> Tensor:
            part = x[rows.to(x.device)]
            moved = boxes.around(part, radius.to(x.device))
            proved = boxes.settled(moved).cpu()
            if cuts:
                rows, still = rows.cpu(), boxes.values(part, part)
                proved |= cuts.hold(moved, still, gaps[rows], top[rows])
            return proved

        return enlarged(verified, finite, certified)


def radii(scores: Tensor, slopes: Tensor, error: Tensor | None = None) -> Tensor:
    """The radii of given scores, from the slopes of :func:`pairwise` and the rounding error of each example."""
    sound, z, slack = _sound(scores, error)
    slopes = slopes.to(z.device)
    if z.shape[1] == 1:
        return torch.where(sound, ((z.abs() - slack) / slopes).clamp_min(0)[:, 0], 0.0)
    gaps, top = margins(z, slack)
    ratios = torch.where(gaps > 0, gaps / slopes[top], torch.zeros_like(gaps))
    ratios.scatter_(1, top[:, None], math.inf)
    return torch.where(sound, ratios.min(1).values, 0.0)


def _sound(scores: Tensor, error: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Which rows of scores are finite, the scores in float64 with zeros in the other rows, and their rounding."""
    z = scores.detach().double().flatten(1) if scores.ndim > 1 else scores.detach().double()[:, None]
    sound = z.isfinite().all(1)
    z = torch.where(sound[:, None], z, torch.zeros_like(z))
    slack = ROUNDING * z.abs().amax(1, keepdim=True)
    if error is not None:
        slack = torch.maximum(slack, error.to(z.device)[:, None])
    return sound, z, slack


def margins(z: Tensor, slack: Tensor) -> tuple[Tensor, Tensor]:
    """``z_y - z_j`` less the rounding of both scores, shape (batch, classes), and the predicted class y, (batch,)."""
    top = z.argmax(1)
    return z.gather(1, top[:, None]) - z - 2 * slack, top


def pairwise(model: nn.Module, input_shape: tuple[int, ...], norm: float = 2) -> Tensor:
    """Entry (y, j): a bound of the dual norm of the gradient of ``z_y - z_j``, shape (classes, classes), float64.

    With a single output, the bound of that score's gradient, shape (1, 1).
    """
    dual = dual_of(norm)
    walk = Walk(model, input_shape)
    walk.refuse_surrogates()
    walk.refuse_chance()
    output, _ = walk()
    classes = math.prod(output.shape)
    if len(output.shape) > 1 or classes < 1:
        raise ConfigurationError(f"output of shape {output.shape}: certify takes scores of shape (batch, classes).")
    if classes == 1:
        from dplip.monotonicity import pull  # which needs this module

        return torch.tensor([[largest(pull(walk).norms.norm(dual))]], dtype=torch.float64)
    bound = walk.cotangents(seeds(walk))[walk.start()].norm(dual)
    return torch.as_tensor(bound, dtype=torch.float64).flatten().expand(classes**2).reshape(classes, classes)


def seeds(walk: Walk) -> dict[fx.Node, Norms]:
    """The norms of the cotangents of the differences of scores, K^2 entries, or one for all pairs."""
    head = walk.head()
    if head is None:
        # e_y - e_j has l1 norm 2, l2 norm sqrt 2, linf norm 1, whatever the pair.
        end = walk.output()
        return {end: Norms(walk.shape(end), l1=2.0, l2=math.sqrt(2), linf=1.0)}
    rows = head[0].weight.detach().double().cpu()
    differences = (rows[:, None] - rows[None]).flatten(0, 1)
    norms = (torch.linalg.vector_norm(differences, p, 1) * (1 + 1e-6) for p in (1, 2, math.inf))
    return {head[1]: Norms((rows.shape[1],), *norms)}


def correct_radii(model: nn.Module, data: Dataset[Any], norm: float = 2, batch_size: int = 2048) -> Tensor:
    """The radius of each example that is classified correctly, and -1 where it is not; shape (examples,)."""
    found = []
    device = device_of(model)
    with evaluation(model), torch.no_grad():
        certifier = None
        for x, y in DataLoader(data, batch_size):
            if certifier is None:
                certifier = Certifier(model, tuple(x.shape[1:]), norm)
            scores = model(x.to(device)).cpu()
            right = predictions(scores) == y.reshape(len(y))
            found.append(torch.where(right, certifier.radii(x, scores), -1.0))
    if not found:
        raise ConfigurationError("The data set is empty: give at least one example.")
    return torch.cat(found)


def predictions(scores: Tensor) -> Tensor:
    """The predicted class of each example: the largest score, or the sign of a single one."""
    if scores.ndim == 1 or scores.shape[1] == 1:
        return (scores.reshape(len(scores)) > 0).long()
    return scores.argmax(1)


def certified_accuracy(radii: Tensor, at: Sequence[float]) -> list[float]:
    """The fraction of examples that are right, and stay right at each radius, from :func:`correct_radii`."""
    return [float((radii > r).double().mean()) if r > 0 else float((radii >= 0).double().mean()) for r in at]


def average_certified_radius(radii: Tensor) -> float:
    """The mean radius, 0 for wrong predictions: the area under the curve of certified accuracy."""
    return float(radii.clamp_min(0).mean())


def certified_curve(radii: Tensor, points: int = 100) -> tuple[list[float], list[float]]:
    """Certified accuracy against radius, at evenly spaced radii up to the largest one."""
    top = float(radii[radii.isfinite()].max()) if bool(radii.isfinite().any()) else 0.0
    at = [max(top, 0.0) * i / points for i in range(points + 1)]
    return at, certified_accuracy(radii, at)


def dual_of(norm: float) -> float:
    """The dual of the norm in which an input moves, or an error."""
    if norm not in DUAL:
        raise ConfigurationError(f"norm={norm!r}: certificates are in the norms 1, 2 and float('inf').")
    return DUAL[norm]


class evaluation:
    """Evaluation mode and full precision inside the block, and each module's own mode again after it."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.precision = model, full_precision()

    def __enter__(self) -> None:
        self.precision.__enter__()
        self.modes = [(m, m.training) for m in self.model.modules()]
        self.model.eval()

    def __exit__(self, *_: object) -> None:
        for module, mode in self.modes:
            module.training = mode
        self.precision.__exit__(None, None, None)
