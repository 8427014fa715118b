"""Rules of linear layers, ``y = W x + b`` on the last axis, and of products with a matrix."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dplip.norms import Norms, OperatorNorms, least, matrix_norms, times
from dplip.rules.registry import SUMMATIONS, Call, Pullback, Summation, rule


def outer(x: Norms, v: Norms, shape: tuple[int, ...], reuse: float = 1.0) -> Norms:
    """The norms of ``sum_p v_p x_p^T``, where each entry of x is read for at most ``reuse**2`` positions p.

    Proof: in l1 each pair of entries meets at most once. In l2 the bound is ``reuse |v|_2 |x|_2`` by Cauchy-Schwarz
    over the reads, and ``|v|_1 |x|_2`` and ``|v|_2 |x|_1`` by Young's inequality. In linf it is Hoelder's inequality.
    """
    return Norms(
        shape,
        times(v.l1, x.l1),
        least(times(reuse, times(v.l2, x.l2)), times(v.l1, x.l2), times(v.l2, x.l1)),
        least(times(v.l2, x.l2), times(v.l1, x.linf), times(v.linf, x.l1)),
    )


def _linear(x: Norms, weight: Tensor, bias: Tensor | None) -> tuple[Norms, Pullback]:
    return _mapped(x, matrix_norms(weight), weight.shape[0], weight, bias)


def _mapped(
    x: Norms, jacobian: OperatorNorms, width: int, weight: Tensor, bias: Tensor | None
) -> tuple[Norms, Pullback]:
    """The rule of a weight or its transpose, with norms ``jacobian`` and ``width`` rows, on the last axis."""
    shape = (*x.shape[:-1], width)
    output = jacobian(x, shape)
    if bias is not None:
        output = output + Norms.of(bias).repeat(shape)

    def pullback(v: Norms) -> Any:
        # Tokens share the weight: |sum_t v_t x_t^T|_F <= |V|_F |X|_op <= |v|_2 |x|_2 for any number of tokens.
        tokens = math.prod(x.shape[:-1])
        gradients = {"weight": outer(x, v, tuple(weight.shape)).summed(tokens)}
        if bias is not None:
            gradients["bias"] = v.sum_to(tuple(bias.shape)).summed(tokens)
        return (jacobian.T(v, x.shape),), gradients

    return output, pullback


@rule(nn.Linear)
def linear(module: nn.Linear, x: Norms) -> tuple[Norms, Pullback]:
    return _linear(x, module.weight, module.bias)


AFFINE: set[Any] = {linear}
"""The rules of modules that compute ``nn.Linear``'s map: their weight has a row for each output."""


@rule(F.linear)
def functional_linear(call: Call, input: Norms, weight: Tensor, bias: Tensor | None = None) -> tuple[Norms, Pullback]:
    if not isinstance(input, Norms) or isinstance(weight, Norms) or isinstance(bias, Norms):
        call.refuse("multiplies two values that depend on the example.", "Use a parameter or buffer as the weight.")
    return by_tensor(_linear(input, weight, bias), weight, bias)


def by_position(parameter: tuple[int, ...], output: tuple[int, ...]) -> Summation:
    """The summation of a weight over positions: one term for each position of an example."""
    return Summation(math.prod(output[:-1]))


SUMMATIONS[functional_linear] = by_position


@rule(operator.matmul, torch.matmul, torch.Tensor.matmul, torch.mm, torch.Tensor.mm)
def product(call: Call, input: Norms, other: Tensor) -> tuple[Norms, Pullback]:
    """``x @ W``: the linear layer with the weight W^T."""
    if not isinstance(input, Norms) or not isinstance(other, Tensor):
        call.refuse(
            "is not of a value on the left and a matrix on the right.", "Use x @ w with a parameter or buffer w."
        )
    if other.ndim != 2 or not input.shape:
        call.refuse("is not of an example's last axis and a matrix.", "Use x @ w with w of shape (inputs, outputs).")
    return by_tensor(_mapped(input, matrix_norms(other).T, other.shape[1], other, None), other, None)


SUMMATIONS[product] = by_position


def by_tensor(bounded: tuple[Norms, Pullback], weight: Tensor, bias: Tensor | None) -> tuple[Norms, Pullback]:
    """A layer's output and pullback, with the parameters keyed by their tensors, as in a function's rule."""
    output, inner = bounded

    def pullback(v: Norms) -> Any:
        inputs, named = inner(v)
        gradients = {weight: named["weight"]}
        return inputs, gradients if bias is None else {**gradients, bias: named["bias"]}

    return output, pullback
