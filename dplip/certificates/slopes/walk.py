"""The walk of slopes: intervals of cotangents back through a model's graph."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from dplip.certificates.articulation import articulation_points
from dplip.certificates.slopes.registry import INTERVAL_SLACK, SLOPE_RULES, Interval, Slope, SlopeRule, Slopes
from dplip.errors import ConfigurationError
from dplip.norms import Norms, largest
from dplip.propagation import Walk
from dplip.propagation.probe import Operation
from dplip.rules.registry import signature
from dplip.runtime.mode import evaluation

MOST = 1024
"""The most entries of a vector for which the slopes of a segment are computed one by one."""


def slopes(model: nn.Module, features: int, inside: bool = False) -> tuple[Tensor, Tensor]:
    """An interval for every partial derivative of a model, valid at every input, for the present weights.

    Args:
        model: from (batch, features) to (batch, outputs), in evaluation mode.
        inside: leave out the inputs at which a clamp is constant, for slopes inside the public ranges.

    Returns:
        (lower, upper), each float64 of shape (outputs, features).

    Guarantee: certified from above and below. Cotangents are one-hot at the output and go back through the model's
    graph both as norms (by :mod:`dplip.rules`) and as intervals (by :mod:`dplip.certificates.slopes.rules`). Norms are
    tight where intervals are loose, and intervals keep the sign of a linear residual.
    """
    with evaluation(model):
        found = pull(Walk(model, (features,)), inside)
    return found.lower, found.upper


def pull(walk: Walk, inside: bool = False) -> Slopes:
    """:func:`slopes` of a traced model, with the norms of each output's gradient.

    The model is the composition of its segments between articulation points, and cotangents go back through one segment
    after the other. Through a segment of several operations between vectors they also go by the intervals of the
    segment's own slopes, whichever is tighter: a residual that is monotone by itself stays so inside a model.

    Proof: let h(g(x)) have its slopes in h within [l, u], those of g within [A, B]. A Lipschitz function's change
    is a mean of slopes along the way times the step, so ``g(x') - g(x) = J (x' - x)`` with J in [A, B] and
    ``h(g(x')) - h(g(x)) = v J (x' - x)`` with v in [l, u]; entry by entry, v J is in the product of the intervals.
    """
    walk.refuse_chance()
    output = walk.output()
    shape = walk.shape(output) or ()
    values, pullbacks = walk.forward(None, partial(_applied, walk, inside))
    if not isinstance(values[output], Norms):
        raise ConfigurationError("The model's output does not depend on its input, or is not one tensor.")
    order = list(pullbacks)
    points = [walk.start(), *(n for n in articulation_points(walk) if isinstance(values[n], Norms)), output]
    found = _one_hot(shape)
    for low, high in reversed(list(itertools.pairwise(points))):
        first = 0 if low is points[0] else order.index(low) + 1
        segment = {n: pullbacks[n] for n in order[first : order.index(high) + 1]}
        through = _back(walk, segment, found, high, low)
        ends = values[low].shape, values[high].shape
        if len(segment) > 1 and high is not output and all(len(s) == 1 and s[0] <= MOST for s in ends):
            own = _back(walk, segment, _one_hot(ends[1]), high, low)
            through = Slopes.meet(*_product(found, own, (through.lower, through.upper)), through.norms)
        found = through
    return found


def _one_hot(shape: tuple[int, ...]) -> Slopes:
    """The cotangents that single out each entry of a value."""
    n = math.prod(shape)
    one, ones = torch.eye(n, dtype=torch.float64).reshape(n, *shape), torch.ones(n, dtype=torch.float64)
    return Slopes.meet(one, one, Norms(shape, ones, ones, ones))


def _back(walk: Walk, segment: Mapping[fx.Node, Any], v: Slopes, high: fx.Node, low: fx.Node) -> Slopes:
    """The cotangents at the start of a segment, for those at its end."""
    pullbacks = {node: partial(pullback, len(v.lower)) for node, pullback in segment.items()}
    found = walk.backward(pullbacks, {high: v}, of_parameters=False)[0][low]
    return found if isinstance(found, Slopes) else Slopes.within(found, len(v.lower))


def _product(v: Slopes, own: Slopes, known: Interval) -> Interval:
    """The intervals of ``v J`` for J within the slopes ``own``, inside those that are known."""
    rows = []
    for least, most in zip(v.lower, v.upper, strict=True):
        ends = torch.stack([end[:, None] * j for end in (least, most) for j in (own.lower, own.upper)])
        low, high = ends.amin(0), ends.amax(0)
        # A sum is off by a part of the sum of its terms' magnitudes, so one of terms >= 0 stays >= 0.
        slack = [end.abs().sum(0) * INTERVAL_SLACK for end in (low, high)]
        rows.append((low.sum(0) - slack[0], high.sum(0) + slack[1]))
    lower, upper = (torch.stack(side) for side in zip(*rows, strict=True))
    # An infinite slope times 0 is not a number: there the known interval stays.
    return torch.fmax(lower, known[0]), torch.fmin(upper, known[1])


def _applied(walk: Walk, inside: bool, operation: Operation, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """One operation's value, and its pullback of norms and of intervals, given the number of cotangents."""
    value, inner = walk.apply(operation, args, kwargs)
    subject, function = walk.subject(operation)
    rule = SLOPE_RULES.of(function)

    def pullback(outputs: int, v: Any) -> tuple[Any, Any, Any]:
        sources, inputs, named = inner(v.norms if isinstance(v, Slopes) else v)
        intervals = None
        if rule is not None and isinstance(v, Slopes) and all(isinstance(norms, Norms) for norms in inputs):
            ones = Norms(v.norms.shape, linf=1.0)
            shapes = [walk.shape(node) for node in sources]
            slope = Slope(subject, shapes, inside, lambda: largest(inner(ones)[1][0].linf))
            intervals = _intervals(rule, slope, v, args, kwargs)
        if intervals is None:  # norms only, as for tuples of values
            return sources, [Slopes.within(n, outputs) if isinstance(n, Norms) else n for n in inputs], named
        return sources, [Slopes.meet(*ends, norms) for ends, norms in zip(intervals, inputs, strict=True)], named

    return value, pullback


def _intervals(rule: SlopeRule, slope: Slope, v: Slopes, args: Any, kwargs: Any) -> list[Interval] | None:
    """The intervals of an operation's inputs by its slope rule; None where the rule has no bound."""
    if not bool((v.lower.isfinite() & v.upper.isfinite()).all()):
        return None
    try:
        bound = signature(rule).bind(slope, (v.lower, v.upper), *args, **kwargs)
    except TypeError:
        return None
    # Sources are in the order of the norm rule's signature, which is the order of the bound arguments.
    return rule(*bound.args, **bound.kwargs)
