"""Sensitivity under ``torch.autocast``, from the bounds alone that layers enforce on their own gradients.

bfloat16 rounds every value by up to 2^-8 of it, float16 by 2^-11 and to infinity beyond 65504. An operator norm, a ball
or a loss says nothing exact of values that are rounded after it, so nothing propagated is used here: to every rule the
norms of all inputs and cotangents are infinite, and what stays finite is what the layer enforces by itself.

Proof, for a layer whose rule is in ``ENFORCED`` (``BoundedLinear``, ``BoundedConv2d``). Its parameters' gradients are
made of the two tensors that meet in it, its input x and its cotangent v, whatever these were rounded to on their way:

1. bfloat16 and float16 numbers are float32 numbers, so x and v are turned into the parameters' type exactly.
2. From there on (norms, scaling, product, sum; autocast is off inside) it is the float32 computation whose bound holds
   for every x and v whatsoever. How they were computed plays no part in it: no slack is needed for that.
3. Parameters are float32, so is ``.grad``, and no other use of a parameter adds to it: its bound would be infinite, and
   the model is refused. The optimizer's slack for the float32 sum over a batch is for the sum that is taken.

That a row of x and of v depends on no other example is assumed, as it is in float32 (docs/guarantees.md).
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
        UnboundedOperationError: a trainable parameter is used where nothing but propagated norms bounds its gradient.

    Guarantee: that of :func:`dplip.sensitivity`, also for gradients computed under ``torch.autocast``.
    """

    def apply(operation: Operation, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """The layer's rule, told no norm of any value, and believed of its parameters where it is in ``ENFORCED``."""
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
    """The same with nothing known of any norm in it."""
    return map_aggregate(value, lambda a: Norms(a.shape) if isinstance(a, Norms) else a)
