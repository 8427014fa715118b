"""The walk of slopes: intervals of cotangents back through a model's graph."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from dplip.certificates.slopes.registry import SLOPE_RULES, Interval, Slope, SlopeRule, Slopes
from dplip.errors import ConfigurationError
from dplip.norms import Norms, largest
from dplip.propagation import Walk
from dplip.propagation.probe import Operation
from dplip.rules.registry import signature
from dplip.runtime.mode import evaluation


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
    """:func:`slopes` of a traced model, with the norms of each output's gradient."""
    walk.refuse_chance()
    output = walk.output()
    shape = walk.shape(output) or ()
    outputs = math.prod(shape)

    def apply(operation: Operation, args: Any, kwargs: Any) -> tuple[Any, Any]:
        value, inner = walk.apply(operation, args, kwargs)
        subject, function = walk.subject(operation)
        rule = SLOPE_RULES.of(function)

        def pullback(v: Any) -> tuple[Any, Any, Any]:
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

    values, pullbacks = walk.forward(None, apply)
    if not isinstance(values[output], Norms):
        raise ConfigurationError("The model's output does not depend on its input, or is not one tensor.")
    one = torch.eye(outputs, dtype=torch.float64).reshape(outputs, *shape)
    ones = torch.ones(outputs, dtype=torch.float64)
    seed = Slopes.meet(one, one, Norms(shape, ones, ones, ones))
    found = walk.backward(pullbacks, {output: seed}, of_parameters=False)[0][walk.start()]
    return found if isinstance(found, Slopes) else Slopes.within(found, outputs)


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
