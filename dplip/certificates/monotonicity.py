"""Certificates of monotonicity, from an interval for every slope of a model, by a pullback that keeps signs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dplip.certificates.refusals import certifying
from dplip.certificates.slopes.walk import pull
from dplip.errors import ConfigurationError
from dplip.nn.monotonic import Directions, signs
from dplip.norms import Norms
from dplip.propagation import Walk
from dplip.rounding import Rounding
from dplip.runtime.mode import evaluation


@dataclass(frozen=True)
class Monotonicity:
    """A proof that outputs are monotone in features.

    Attributes:
        directions: -1, 0 or +1, shape (features, outputs).
        lower, upper: the interval of every slope, at every input, shape (outputs, features).
        margin: the least slope in its required direction, inside the ranges of clamps (outside of them the output is
            constant).
        names: names of the features, for the table.
    """

    directions: Tensor
    lower: Tensor
    upper: Tensor
    margin: float
    names: tuple[str, ...]

    def __str__(self) -> str:
        width = max(map(len, self.names))
        rows = [f"monotone, margin {self.margin:.6g}"]
        for i, name in enumerate(self.names):
            for j in range(len(self.lower)):
                sign = {-1: "-", 0: " ", 1: "+"}[int(self.directions[i, j])]
                rows.append(
                    f"{name:<{width}}  output {j}  {sign}  slope in [{self.lower[j, i]:.6g}, {self.upper[j, i]:.6g}]"
                )
        return "\n".join(rows)


def certify_monotonic(model: nn.Module, directions: Directions, names: tuple[str, ...] | None = None) -> Monotonicity:
    """Prove that a model's outputs are monotone in its features, for its present weights.

    Args:
        model: a model whose operations have rules, from (batch, features) to (batch, outputs).
        directions: -1, 0 or +1 for each feature, or a matrix (features, outputs) of them.
        names: names of the features, for messages.

    Raises:
        ConfigurationError: there is no proof; the message names the worst slope and its interval.

    Guarantee: in exact arithmetic, in evaluation mode, no pair of inputs that differ in the direction of one
    constrained feature (or of several) has outputs that move the other way. In float32 the two outputs are off by their
    rounding.
    """
    s = signs(directions).double()
    names = tuple(f"feature {i}" for i in range(len(s))) if names is None else names
    with certifying(model), evaluation(model):
        walk = Walk(model, (len(s),))
        found, inside = pull(walk), pull(walk, inside=True)
    lower, upper = found.lower, found.upper
    s = s[:, None].expand(-1, len(lower)) if s.ndim == 1 else s
    if s.shape != lower.T.shape:
        raise ConfigurationError(
            f"directions of shape {tuple(s.shape)}: the model's slopes are {tuple(lower.T.shape)}."
        )
    ahead = _ahead(s.T, lower, upper)
    if not bool((ahead >= 0).all()):
        j, i = divmod(int(torch.where(ahead.isnan(), -math.inf, ahead).argmin()), lower.shape[1])
        low, high = float(lower[j, i]), float(upper[j, i])
        raise ConfigurationError(
            f"{names[i]}: as far as can be proved, the slope of output {j} lies in [{low:.6g}, {high:.6g}], and "
            f"direction {int(s[i, j]):+d} asks for the other sign (margin {float(ahead[j, i]):.6g}). Add the residual "
            "dplip.nn.Monotonic(module, directions, lipschitz) around a module whose slope bound is at most lipschitz, "
            "and constrain that module's layers."
        )
    margin = float(_ahead(s.T, inside.lower, inside.upper).min()) + 0.0  # turns -0 into 0
    return Monotonicity(s, lower, upper, margin, names)


def _ahead(s: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """The least slope in the required direction; infinite where no direction is required."""
    return torch.where(s > 0, lower, torch.where(s < 0, -upper, math.inf))


def feature_radii(model: nn.Module, x: Tensor) -> Tensor:
    """The certified distances by which one feature alone may rise, or fall, without a change of a binary prediction.

    Args:
        model: a model with one score per example, whose sign is the prediction.
        x: inputs, shape (batch, features).

    Returns:
        float64 (batch, features, 2): the distances upwards and downwards, in the units of the feature; infinite in a
        direction in which a monotone score cannot move towards its threshold; 0 for a tie.

    Proof: a score m > 0 whose slope in feature i lies in [l, u] is at least ``m + t min(l, 0)`` after a rise by t, and
    at least ``m - t max(u, 0)`` after a fall; for m < 0 the signs change. As in :func:`dplip.certify`, m is reduced by
    the roundings within the distance that m alone allows. For an infinite distance, within which roundings have no
    bound unless a layer bounds the input, m is reduced by the roundings at x: that distance is for exact arithmetic.
    """
    with certifying(model), evaluation(model), torch.no_grad():
        walk = Walk(model, (x.shape[1],))
        slopes = pull(walk)
        lower, upper = slopes.lower, slopes.upper
        if len(lower) != 1:
            raise ConfigurationError(f"outputs={len(lower)}: the radius of one feature is that of a single score.")
        rounding = Rounding(walk, {}, 1)
        found, sizes = rounding.at(x)
        score = found.double().reshape(len(x), 1, 1).cpu()
        agree = (model(x).reshape(len(x), 1, 1) > 0).cpu() == (score > 0)
    # The rates at which the score approaches its threshold as a feature rises, and as it falls.
    rise = torch.where(score > 0, -lower[..., None], upper[..., None]).clamp_min(0)
    fall = torch.where(score > 0, upper[..., None], -lower[..., None]).clamp_min(0)
    steep = torch.cat([rise, fall], dim=2).abs()  # turns -0 into 0, since a margin over -0 is -inf

    def within(distance: Tensor) -> Tensor:
        """The margins minus the roundings within a distance, one for each example."""
        moved = Norms((x.shape[1],), *[torch.nan_to_num(distance, nan=math.inf, posinf=math.inf)] * 3)
        return (
            score[:, 0, 0].abs() - rounding.of_scores(rounding.errors(sizes, moved), torch.zeros(len(x)).long())[:, 0]
        )

    still = within(torch.zeros(len(x), dtype=torch.float64))
    distances = score.abs() / steep
    parts = [within(d) for d in distances.flatten(1).unbind(1)]
    left = torch.stack(parts, 1).reshape(distances.shape)
    left = torch.where(distances.isinf(), still[:, None, None], left)
    return torch.where(agree & (left > 0), left / steep, 0.0)
