"""Sensitivity under ``torch.autocast``, from the bounds that layers enforce on their own gradients.

bfloat16 rounds every value by up to 2^-8 of it, float16 by 2^-11 and to infinity beyond 65504, so propagated norms do
not hold. Here every rule is given infinite norms of all inputs and cotangents; the finite bounds of parameters that
remain are those that the layers enforce.

Proof, for a layer whose rule is in ``ENFORCED`` (``BoundedLinear``, ``BoundedConv1d``, ``BoundedConv2d``). Its
parameters' gradients are functions of its input x and its cotangent v, as autocast has rounded them:

1. bfloat16 and float16 numbers are float32 numbers, so x and v are converted to the parameters' type exactly.
2. From there on (norms, scaling, product, sum; autocast is off inside) the computation is in float32, and its bound
   holds for every x and v. So the rounding of x and v needs no slack.
3. Parameters and ``.grad`` are float32. Any other use of a parameter has an infinite bound, and the model is refused.
   The optimizer's slack for the float32 sum over a batch covers the sum.

A row of x and of v is assumed to depend on no other example, as in float32 (docs/guarantees.md).
"""

from __future__ import annotations

import math
from typing import Any

from torch.fx.node import map_aggregate

from dplip.norms import Norms, largest
from dplip.propagation import Walk
from dplip.propagation.probe import Operation
from dplip.rules import ENFORCED, RULES, refuse
from dplip.sensitivities.propagated import GRADIENT_SLACK, Sensitivities


def enforced_sensitivity(walk: Walk) -> Sensitivities:
    """Per parameter, the bound of one example's gradient that its layers enforce, for all weights and any loss.

    Raises:
        UnboundedOperationError: the layers enforce no bound on the gradient of some trainable parameter.

    Guarantee: that of :func:`dplip.sensitivity`, also for gradients computed under ``torch.autocast``.
    """

    def apply(operation: Operation, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """The layer's rule with infinite norms of values; its parameter bounds count only if it is in ``ENFORCED``."""
        output, inner = walk.apply(operation, _unknown(args), _unknown(kwargs))
        module = walk.module(operation.node)
        believed = module is not None and RULES.of_module(module) in ENFORCED

        def pullback(cotangent: Any) -> tuple[Any, Any, Any]:
            sources, inputs, named = inner(_unknown(cotangent))
            return sources, inputs, named if believed else {key: Norms(n.shape) for key, n in named.items()}

        return output, pullback

    output, pullback = walk(None, apply)
    _, bounds = pullback(Norms(output.shape))
    trainable = [name for name, p in walk.model.named_parameters() if p.requires_grad]
    found = {name: largest(bounds[name].l2) if name in bounds else math.inf for name in trainable}
    for name, bound in found.items():
        if not math.isfinite(bound):
            refuse(
                name,
                "a trainable parameter",
                "whose gradient no layer bounds by itself, and propagated norms do not hold under torch.autocast.",
                "Use dplip.nn.bound_gradients(model) and model.train(), freeze it, or train in float32.",
            )
    return Sensitivities({name: bound * (1 + GRADIENT_SLACK) for name, bound in found.items()})


def _unknown(value: Any) -> Any:
    """The value with every norm in it made infinite."""
    return map_aggregate(value, lambda a: Norms(a.shape) if isinstance(a, Norms) else a)
