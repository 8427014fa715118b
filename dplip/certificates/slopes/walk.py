"""The slopes of a model: intervals of cotangents, walked back through its graph."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor, fx, nn

from dplip.certificates.slopes.registry import SLOPE_RULES, Interval, Slope, Slopes
from dplip.errors import ConfigurationError
from dplip.norms import Norms
from dplip.norms.value_norms import largest
from dplip.propagation import Walk
from dplip.propagation.graph import target_of
from dplip.propagation.walk import _depends
from dplip.rules import Call
from dplip.rules.registry import module_rule
from dplip.runtime.mode import evaluation


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
    rule = SLOPE_RULES.get(function)
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
