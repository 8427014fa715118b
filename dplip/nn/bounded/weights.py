"""Linear maps and convolutions whose weight is a function of parameters: ``W + B @ A``, ``g * v / |v|``.

Each example's gradient G of the weight is formed, and pulled back through the function: a parameter gets
``J^T G`` of its own Jacobian J at the present parameters. That is the example's gradient of the parameter, which is
scaled into the radius by its own norm.

Proof of the bound: what an example adds to a parameter's gradient is a row of numbers that has been computed already,
times a factor that takes its norm into the radius, whatever the function, the weight, the input and the cotangent are.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dplip.nn.bounded.convolution import below_convolution, convolved, kernels
from dplip.nn.bounded.enforcing import Enforcing, Radius, Within, checked_radius, require_in_front, sent, some_of
from dplip.nn.bounded.use import Function, pulled, sum_of_examples
from dplip.nn.sums import Total, of_matrices


class Affine:
    """A linear map of the last axis: ``x @ weight.mT``, or with ``transposed`` ``x @ weight``."""

    def __init__(self, transposed: bool = False) -> None:
        self.transposed = transposed

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight.mT if self.transposed else weight)

    def below(self, v: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """The cotangent of x."""
        return v @ (weight.mT if self.transposed else weight).to(v.dtype)

    def summed(self, x: Tensor, v: Tensor, weight: Tensor, total: Total) -> Tensor:
        """The sum over examples of what ``total`` makes of each one's gradient of the weight."""
        positions = math.prod(v.shape[1:-1])
        given, sent = (t.reshape(len(t), positions, t.shape[-1]) for t in (x, v))
        return of_matrices(given, sent, total) if self.transposed else of_matrices(sent, given, total)


class Convolved:
    """A convolution.

    Args:
        settings: stride, padding, dilation, whether it is transposed, the padding of its output, groups.
    """

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        return convolved(x, weight, None, self.settings)

    def below(self, v: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return below_convolution(v, x, weight, self.settings)

    def summed(self, x: Tensor, v: Tensor, weight: Tensor, total: Total) -> Tensor:
        return kernels(x, v, weight, self.settings, total)


class WeightGradients(Enforcing):
    """A layer's map with a weight of parameters, whose node bounds each example's gradient of each of them."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, layer: Affine | Convolved, function: Function, radius: Radius, *parameters: Tensor
    ) -> Tensor:
        return layer(x, weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        x, weight, ctx.layer, ctx.function, radius, *parameters = inputs
        require_in_front(x)
        ctx.radius, ctx.terms = checked_radius(radius), 1
        ctx.save_for_backward(x, weight, *parameters)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Any:
        x, weight, *parameters = ctx.saved_tensors
        below, needed = None, ctx.needs_input_grad[5:]

        def of_parameter(i: int, radius: Within, told: list[Tensor] | None) -> Tensor:
            def total(each: Tensor, some: slice) -> Tensor:
                gradients = pulled(ctx.function, parameters, each.reshape(len(each), *weight.shape))[i]
                return sum_of_examples(gradients, None, some_of(radius, some), told).flatten()

            found: Tensor = ctx.layer.summed(given, back, weight, total)
            return found.reshape(parameters[i].shape)

        with torch.autocast(v.device.type, enabled=False), torch._C.DisableTorchFunctionSubclass():
            given, back = (t.to(parameters[0].dtype) for t in (x, v))
            gradients = [
                sent(ctx, 2 + i, partial(of_parameter, i)) if needed[i] else None for i in range(len(parameters))
            ]
            if ctx.needs_input_grad[0]:
                below = ctx.layer.below(v, x, weight)
        return below, None, None, None, None, *gradients
