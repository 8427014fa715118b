"""Certificates of monotonicity: an interval for every slope of a model, by a pullback that keeps signs."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from dplip.certify import evaluation
from dplip.errors import ConfigurationError
from dplip.nn.monotonic import Directions
from dplip.norms import Norms, largest
from dplip.propagate import Walk, _depends
from dplip.rounding import Rounding
from dplip.rules.registry import Call, module_rule
from dplip.trace import target_of

SLACK = 1e-12
"""Relative slack for float64 sums of intervals."""


@dataclass(frozen=True)
class Slopes:
    """What is known of the gradients of every output in one value: an interval for each entry, and norms of the whole.

    Attributes:
        lower, upper: float64, of shape (outputs, \\*shape).
        norms: bounds with one entry for each output.
    """

    lower: Tensor
    upper: Tensor
    norms: Norms

    @classmethod
    def meet(cls, lower: Tensor, upper: Tensor, norms: Norms) -> Slopes:
        """Both hold, so each tightens the other: entries lie within the l-infinity norm, norms within the entries'."""
        rows = len(lower), *[1] * (lower.ndim - 1)
        peak = torch.as_tensor(norms.linf, dtype=torch.float64).expand(len(lower)).reshape(rows)
        lower, upper = torch.maximum(lower, -peak), torch.minimum(upper, peak)
        size = torch.maximum(lower.abs(), upper.abs()).reshape(len(lower), -1)
        known = [torch.linalg.vector_norm(size, p, 1) * (1 + SLACK) for p in (1, 2, math.inf)]
        return cls(lower, upper, norms & Norms(norms.shape, *(torch.nan_to_num(k, nan=math.inf) for k in known)))

    @classmethod
    def within(cls, norms: Norms, outputs: int) -> Slopes:
        """All that norms alone say."""
        wide = torch.full((outputs, *norms.shape), math.inf, dtype=torch.float64)
        return cls.meet(-wide, wide, norms)

    def __add__(self, other: Slopes) -> Slopes:
        return Slopes.meet(self.lower + other.lower, self.upper + other.upper, self.norms + other.norms)


Interval = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Slope:
    """What a slope rule is told beside the cotangent.

    Attributes:
        subject: the module, or the :class:`Call`.
        shapes: of one example of each input that depends on it.
        inside: slopes are asked for inside the ranges of clamps alone.
        steepest: the largest slope of an elementwise function, from its own rule.
    """

    subject: Any
    shapes: list[tuple[int, ...]]
    inside: bool
    steepest: Callable[[], float]


SlopeRule = Callable[..., list[Interval] | None]

_RULES: dict[Any, SlopeRule] = {}

R = TypeVar("R", bound=SlopeRule)


def slope_rule(*functions: Any) -> Callable[[R], R]:
    """Register how intervals of cotangent entries go back through functions or module classes (their ``forward``).

    The rule is called as ``rule(slope, (lower, upper), *arguments)`` and returns one interval for each input that
    depends on the example, or None where it knows nothing. What has no rule goes through by norms alone.

    Guarantee: none of its own; a rule claims that every cotangent within the interval comes back within its answer.
    """

    def register(function: R) -> R:
        for target in functions:
            cls: Any = target
            _RULES[cls.forward if inspect.isclass(target) else target] = function
        return function

    return register


def slopes(model: nn.Module, features: int, inside: bool = False) -> tuple[Tensor, Tensor]:
    """An interval for every partial derivative of a model, valid at every input, for the present weights.

    Args:
        model: from (batch, features) to (batch, outputs), in evaluation mode.
        inside: leave out the inputs at which a clamp is flat: slopes inside the public ranges.

    Returns:
        (lower, upper), each float64 of shape (outputs, features).

    Guarantee: certified from above and below. Cotangents are one-hot at the output and go back through the model's
    graph twice at once, as norms (by the rules of :mod:`dplip.rules`) and as intervals (by those of this module); the
    norms bound what the intervals lose, and the intervals keep the sign of a linear residual.
    """
    with evaluation(model):
        found = pull(Walk(model, (features,)), inside)
    if found.lower.ndim != 2:
        raise ConfigurationError(f"features={features}: slopes are those of a model of (batch, features).")
    return found.lower, found.upper


def pull(walk: Walk, inside: bool = False) -> Slopes:
    """:func:`slopes` of a model that has been traced before, with the norms of each output's gradient."""
    import dplip.slope_rules  # noqa: F401  (registers the rules)

    walk.refuse_chance()
    values, pullbacks = walk._forward(None)
    output = walk.output()
    if not isinstance(values[output], Norms):
        raise ConfigurationError("The model's output does not depend on its input, or is not one tensor.")
    shape = values[output].shape
    outputs = math.prod(shape)
    one = torch.eye(outputs, dtype=torch.float64).reshape(outputs, *shape)
    ones = torch.ones(outputs, dtype=torch.float64)
    cotangents: dict[fx.Node, Any] = {output: Slopes.meet(one, one, Norms(shape, ones, ones, ones))}
    for node in reversed(list(pullbacks)):
        v = cotangents.pop(node, None)
        if v is None:
            continue
        norms = v.norms if isinstance(v, Slopes) else v
        sources, inputs, _ = pullbacks[node](norms)
        sources = [n for n in sources if _depends(values[n])]
        inputs = (inputs,) if isinstance(inputs, Norms) else tuple(inputs)
        intervals = _intervals(walk, node, v, values, pullbacks, sources, inside) if isinstance(v, Slopes) else None
        for k, (source, back) in enumerate(zip(sources, inputs, strict=True)):
            part: Any = back  # a tuple of values: by norms alone
            if isinstance(back, Norms):
                part = Slopes.within(back, outputs) if intervals is None else Slopes.meet(*intervals[k], back)
            seen = cotangents.get(source)
            if isinstance(part, tuple) and seen is not None:
                part = tuple(a + b for a, b in zip(seen, part, strict=True))
                seen = None
            cotangents[source] = part if seen is None else seen + part
    start = next(n for n in walk._graph.nodes if n.op == "placeholder")
    if start not in cotangents:
        zero = torch.zeros((outputs, *walk.input_shape), dtype=torch.float64)
        return Slopes.meet(zero, zero, Norms.zero(walk.input_shape))
    return cotangents[start]


def _intervals(
    walk: Walk, node: fx.Node, v: Slopes, values: Any, pullbacks: Any, sources: list[fx.Node], inside: bool
) -> list[Interval] | None:
    subject: Any
    if node.op == "call_module":
        subject = walk._modules[str(node.target)]
        function = type(subject).forward if module_rule(subject) is not None else None
    else:
        function = target_of(node)
        subject = Call(function, walk._probe.steps[node].shape, walk._probe.steps[node].path)
    rule = _RULES.get(function)
    known = bool((v.lower.isfinite() & v.upper.isfinite()).all())
    if rule is None or not known or any(not isinstance(values[n], Norms) for n in sources):
        return None

    def steepest() -> float:
        back = pullbacks[node](Norms(v.norms.shape, linf=1.0))[1]
        return largest((back if isinstance(back, Norms) else back[0]).linf)

    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: values[n])
    slope = Slope(subject, [values[n].shape for n in sources], inside, steepest)
    try:
        bound = inspect.signature(rule).bind(slope, (v.lower, v.upper), *args, **kwargs)
    except TypeError:
        return None
    # Sources are in the order of the bounding rule's signature, which is that of the arguments written out.
    return rule(*bound.args, **bound.kwargs)


@dataclass(frozen=True)
class Monotonicity:
    """A proof that outputs are monotone in features.

    Attributes:
        directions: (features, outputs), of -1, 0, +1.
        lower, upper: (outputs, features): the interval of every slope, at every input.
        margin: how far the least constrained slope, in its direction, lies above 0 inside the ranges of clamps
            (outside them the output does not move at all).
        names: of the features, for the table.
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
        model: any model that the algebra can walk, from (batch, features) to (batch, outputs).
        directions: -1, 0 or +1 for each feature, or a matrix (features, outputs) of them.
        names: of the features, for messages.

    Raises:
        ConfigurationError: it cannot be proved; the worst slope and its interval are named.

    Guarantee: in exact arithmetic, in evaluation mode, no pair of inputs that differ in the direction of one
    constrained feature (or of several) has outputs that move the other way. What float32 makes of the two outputs may
    differ from that by its rounding.
    """
    s = torch.as_tensor(directions, dtype=torch.float64)
    names = tuple(f"feature {i}" for i in range(len(s))) if names is None else names
    lower, upper = slopes(model, len(s))
    s = s[:, None].expand(-1, len(lower)) if s.ndim == 1 else s
    if s.shape != lower.T.shape:
        raise ConfigurationError(
            f"directions of shape {tuple(s.shape)}: the model's slopes are {tuple(lower.T.shape)}."
        )
    ahead = _ahead(s.T, lower, upper)
    if not bool((ahead >= 0).all()):
        j, i = divmod(int(torch.where(ahead.isnan(), -math.inf, ahead).argmin()), lower.shape[1])
        low, high, margin = float(lower[j, i]), float(upper[j, i]), float(ahead[j, i])
        raise ConfigurationError(
            f"{names[i]}: as far as can be proved, the slope of output {j} lies in [{low:.6g}, {high:.6g}], and "
            f"direction {int(s[i, j]):+d} asks for the other sign (margin {margin:.6g}). Add the residual "
            "dplip.nn.Monotonic(module, directions, lipschitz) around a module whose slope bound is at most lipschitz, "
            "and constrain that module's layers."
        )
    inner = _ahead(s.T, *slopes(model, len(s), inside=True))
    return Monotonicity(s, lower, upper, float(inner.min()), names)


def _ahead(s: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """The least slope in the direction asked for; infinite where none is."""
    return torch.where(s > 0, lower, torch.where(s < 0, -upper, math.inf))


def feature_radii(model: nn.Module, x: Tensor) -> Tensor:
    """How far one feature alone may rise, or fall, before a binary prediction can change.

    Args:
        model: one score per example, whose sign decides.
        x: (batch, features).

    Returns:
        float64 (batch, features, 2): the certified distances upwards and downwards, in the units of the feature;
        infinite in the direction in which a monotone score cannot move towards its threshold; 0 for a tie.

    Proof: a score m > 0 whose slope in feature i lies in [l, u] is at least ``m + t min(l, 0)`` after a rise by t, and
    at least ``m - t max(u, 0)`` after a fall; for m < 0 the signs change. m is reduced by the roundings within the
    distance that is left without them, as :func:`dplip.certify` does; an infinite distance, within which they have no
    bound but behind one of the input, by those at x itself: beyond x it is a statement of exact arithmetic.
    """
    lower, upper = slopes(model, x.shape[1])
    if len(lower) != 1:
        raise ConfigurationError(f"outputs={len(lower)}: the radius of one feature is that of a single score.")
    with evaluation(model), torch.no_grad():
        rounding = Rounding(Walk(model, (x.shape[1],)), {}, 1)
        found, sizes = rounding.at(x)
        score = found.double().reshape(len(x), 1, 1).cpu()
        agree = (model(x).reshape(len(x), 1, 1) > 0).cpu() == (score > 0)
    # How fast the score comes nearer to its threshold as a feature rises, and as it falls.
    rise = torch.where(score > 0, -lower[..., None], upper[..., None]).clamp_min(0)
    fall = torch.where(score > 0, upper[..., None], -lower[..., None]).clamp_min(0)
    steep = torch.cat([rise, fall], dim=2).abs()  # no -0, by which a margin would be -inf

    def within(distance: Tensor) -> Tensor:
        """What is left of the margins, one distance for each example."""
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
