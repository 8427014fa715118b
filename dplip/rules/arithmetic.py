"""Rules of sums, multiples and reductions; a parameter that is added or multiplied is bounded too."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor

from dplip.norms import Norms, OperatorNorms, least, times
from dplip.rules.registry import SUMMATIONS, Call, Pullback, Summation, rule, through
from dplip.rules.shape import example_axis


def hadamard(a: Norms, b: Norms) -> Norms:
    """The norms of the entrywise product, by Hoelder's inequality."""
    return Norms(
        a.shape,
        least(times(a.l2, b.l2), times(a.l1, b.linf), times(a.linf, b.l1)),
        least(times(a.l2, b.linf), times(a.linf, b.l2)),
        times(a.linf, b.linf),
    )


def _constant(call: Call, value: Tensor, shape: tuple[int, ...]) -> Norms:
    """The norms of a tensor without a batch axis, aligned with one example's value of ``shape``."""
    rank = len(shape) + 1
    if value.ndim > rank or (value.ndim == rank and value.shape[0] != 1):
        call.refuse(
            f"meets a tensor of shape {tuple(value.shape)}, one entry per place in the batch.",
            "Give it the shape of one example.",
        )
    sizes = tuple(value.shape[1:] if value.ndim == rank else value.shape)
    return Norms.of(value).reshape((1,) * (len(shape) - len(sizes)) + sizes)


def _aligned(call: Call, x: Norms) -> Norms:
    if len(x.shape) != len(call.shape):
        call.refuse(
            f"joins values of shapes {x.shape} and {call.shape}, so an axis meets the batch axis.",
            "Give both the same number of axes.",
        )
    return x


def _add(call: Call, a: Any, b: Any, factor: float) -> tuple[Norms, Pullback]:
    """``a + factor * b``, where at least one depends on the example."""
    terms = []
    for value, scale in ((a, 1.0), (b, abs(factor))):
        if isinstance(value, Norms):
            norms = _aligned(call, value)
        elif isinstance(value, Tensor):
            norms = _constant(call, value, call.shape)
        else:
            norms = Norms((1,) * len(call.shape), linf=abs(_number(call, value)))
        terms.append((value, norms, scale))
    output = sum((n.repeat(call.shape) * s for _, n, s in terms[1:]), terms[0][1].repeat(call.shape))

    def pullback(v: Norms) -> Any:
        inputs = tuple((v * s).sum_to(n.shape) for value, n, s in terms if isinstance(value, Norms))
        # A parameter's cotangent has the parameter's own shape, however the parameter was broadcast.
        named = {t: (v * s).sum_to(n.shape).reshape(tuple(t.shape)) for t, n, s in terms if isinstance(t, Tensor)}
        return inputs, named

    return output, pullback


def _number(call: Call, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        call.refuse(
            f"is given {value!r}.", "Use a finite number that does not depend on the batch, a parameter or a buffer."
        )
    return float(value)


@rule(operator.add, torch.add, torch.Tensor.add)
def add(call: Call, input: Any, other: Any, alpha: float = 1.0) -> tuple[Norms, Pullback]:
    return _add(call, input, other, _number(call, alpha))


@rule(operator.sub, torch.sub, torch.subtract, torch.Tensor.sub)
def sub(call: Call, input: Any, other: Any, alpha: float = 1.0) -> tuple[Norms, Pullback]:
    return _add(call, input, other, _number(call, alpha))


@rule(operator.neg, torch.neg, torch.Tensor.neg)
def neg(call: Call, input: Norms) -> tuple[Norms, Pullback]:
    return through(OperatorNorms.diagonal(1.0), input, input.shape)


@rule(operator.mul, torch.mul, torch.multiply, torch.Tensor.mul)
def mul(call: Call, input: Any, other: Any) -> tuple[Norms, Pullback]:
    x, factor = (input, other) if isinstance(input, Norms) else (other, input)
    if isinstance(factor, Norms):
        call.refuse(
            "multiplies two values that depend on the example, whose gradient is not bounded by rule.",
            "Use a sum, or write a rule for the product.",
        )
    if not isinstance(factor, Tensor):
        return through(OperatorNorms.diagonal(abs(_number(call, factor))), x, x.shape)
    small = _constant(call, factor, call.shape)
    scale, wide = small.repeat(call.shape), _aligned(call, x).repeat(call.shape)

    def pullback(v: Norms) -> Any:
        gradient = hadamard(v, wide).sum_to(small.shape).reshape(tuple(factor.shape))
        return (hadamard(v, scale).sum_to(x.shape),), {factor: gradient}

    return hadamard(wide, scale), pullback


def by_copies(parameter: tuple[int, ...], output: tuple[int, ...]) -> Summation:
    """The summation of a broadcast parameter: one term for each position that an entry is broadcast to."""
    return Summation(max(1, math.prod(output) // max(1, math.prod(parameter))))


SUMMATIONS[add] = SUMMATIONS[sub] = SUMMATIONS[mul] = by_copies


@rule(operator.truediv, torch.div, torch.divide, torch.true_divide, torch.Tensor.div)
def div(call: Call, input: Any, other: Any) -> tuple[Norms, Pullback]:
    if isinstance(other, Norms) or (isinstance(other, Tensor) and other.requires_grad):
        call.refuse("divides by a value that can come near zero.", "Multiply by a parameter, or divide by a constant.")
    if isinstance(other, Tensor):
        return mul(call, input, 1.0 / other.double())
    divisor = _number(call, other)
    if divisor == 0.0:
        call.refuse("divides by zero.", "Divide by a nonzero constant.")
    return mul(call, input, 1.0 / divisor)


def _reduced(call: Call, input: Norms, dim: Any) -> int:
    if dim is None:
        call.refuse("reduces over the whole batch.", "Name the axes of one example: x.mean(dim=1).")
    axes = dim if isinstance(dim, (tuple, list)) else (dim,)
    return math.prod(input.shape[example_axis(d, input)] for d in axes)


def _sum(input: Norms, shape: tuple[int, ...], n: int, scale: float) -> tuple[Norms, Pullback]:
    spread = scale * math.sqrt(n)
    jacobian = OperatorNorms(scale, scale, scale, spread, spread, scale * n)
    return through(jacobian, input, shape)


@rule(torch.sum, torch.Tensor.sum)
def sum_(call: Call, input: Norms, dim: Any = None, keepdim: bool = False) -> tuple[Norms, Pullback]:
    return _sum(input, call.shape, _reduced(call, input, dim), 1.0)


@rule(torch.mean, torch.Tensor.mean)
def mean(call: Call, input: Norms, dim: Any = None, keepdim: bool = False) -> tuple[Norms, Pullback]:
    n = _reduced(call, input, dim)
    return _sum(input, call.shape, n, 1.0 / n)


@rule(torch.amax, torch.Tensor.amax, torch.amin, torch.Tensor.amin)
def extreme(call: Call, input: Norms, dim: Any = None, keepdim: bool = False) -> tuple[Norms, Pullback]:
    _reduced(call, input, dim)
    # Each output is one input entry (at ties, a mean of equal ones), and no input entry goes to two outputs.
    return through(OperatorNorms.diagonal(1.0), input, call.shape)


@rule(torch.maximum, torch.minimum, torch.Tensor.maximum, torch.Tensor.minimum)
def maximum(call: Call, input: Any, other: Any) -> tuple[Norms, Pullback]:
    if not (isinstance(input, Norms) and isinstance(other, Norms) and input.shape == other.shape):
        call.refuse("compares with a constant or a value of another shape.", "Use torch.clamp, or equal shapes.")
    both = Norms.concatenate([input, other], (2, *call.shape))
    # Every output is an entry of one of the two inputs, so their cotangents are parts of v, or halves at ties.
    return both.reshape(call.shape), lambda v: ((v, v), {})
