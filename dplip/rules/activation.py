"""Rules of elementwise functions with a bounded slope, of dropout and of softmax."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dplip.errors import UnboundedOperationError
from dplip.norms import Norms, OperatorNorms, times
from dplip.rules.registry import Call, Pullback, refuse_module, rule, through
from dplip.rules.shape import example_axis


def elementwise(x: Norms, slope: float, at_zero: float = 0.0, bound: float = math.inf) -> tuple[Norms, Pullback]:
    """The rule of a scalar function applied to every entry: ``slope`` and ``bound`` bound |f'| and |f|."""
    offset = Norms(x.shape, linf=abs(at_zero)) if at_zero else None
    output, pullback = through(OperatorNorms.diagonal(slope), x, x.shape, offset)
    return output & Norms(x.shape, linf=bound), pullback


def _register(slope: float, at_zero: float, bound: float, *functions: Any) -> None:
    modules = [f for f in functions if isinstance(f, type)]
    calls = [f for f in functions if not isinstance(f, type)]

    @rule(*modules)
    def module(module: nn.Module, x: Norms) -> tuple[Norms, Pullback]:
        return elementwise(x, slope, at_zero, bound)

    @rule(*calls)
    def function(call: Call, input: Norms, inplace: bool = False) -> tuple[Norms, Pullback]:
        return elementwise(input, slope, at_zero, bound)


# The largest slopes are GELU 1.1290 at sqrt 2, SiLU 1.0999, Mish 1.0885, and SELU scale * alpha = 1.7581 at 0-.
_register(1.0, 0.0, math.inf, nn.ReLU, F.relu, torch.relu, torch.Tensor.relu)
_register(1.0, 0.0, math.inf, torch.abs, torch.Tensor.abs, operator.abs)
_register(1.0, 0.0, math.inf, nn.Tanhshrink, F.tanhshrink, nn.Softshrink)
_register(1.0, 0.0, 6.0, nn.ReLU6, F.relu6)
_register(1.0, 0.0, 1.0, nn.Tanh, F.tanh, torch.tanh, torch.Tensor.tanh)
_register(1.0, 0.0, 1.0, nn.Softsign, F.softsign, torch.sin, torch.Tensor.sin)
_register(1.0, 1.0, 1.0, torch.cos, torch.Tensor.cos)
_register(0.25, 0.5, 1.0, nn.Sigmoid, F.sigmoid, torch.sigmoid, torch.Tensor.sigmoid)
_register(1.0 / 6.0, 0.5, 1.0, nn.Hardsigmoid, F.hardsigmoid)
_register(1.5, 0.0, math.inf, nn.Hardswish, F.hardswish)
_register(1.0, math.log(2.0), math.inf, nn.LogSigmoid, F.logsigmoid)
_register(1.1, 0.0, math.inf, nn.SiLU, F.silu)
_register(1.089, 0.0, math.inf, nn.Mish, F.mish)
_register(1.7582, 0.0, math.inf, nn.SELU, F.selu)


def _leaky(x: Norms, negative_slope: float) -> tuple[Norms, Pullback]:
    return elementwise(x, max(1.0, abs(negative_slope)))


@rule(nn.LeakyReLU)
def leaky_relu(module: nn.LeakyReLU, x: Norms) -> tuple[Norms, Pullback]:
    return _leaky(x, module.negative_slope)


@rule(F.leaky_relu)
def functional_leaky_relu(
    call: Call, input: Norms, negative_slope: float = 0.01, inplace: bool = False
) -> tuple[Norms, Pullback]:
    return _leaky(input, negative_slope)


@rule(nn.PReLU)
def prelu(module: nn.PReLU, x: Norms) -> tuple[Norms, Pullback]:
    slope = Norms.of(module.weight)
    output, inner = elementwise(x, max(1.0, float(slope.linf)))

    def pullback(v: Norms) -> Any:
        # Each slope's gradient sums v x over its entries: its l1 norm is at most |v|_2 |x|_2 (Cauchy-Schwarz).
        gradient = Norms(slope.shape, times(v.l2, x.l2))
        return inner(v)[0], {"weight": gradient}

    return output, pullback


@rule(nn.ELU)
def elu(module: nn.ELU, x: Norms) -> tuple[Norms, Pullback]:
    return _leaky(x, module.alpha)


@rule(F.elu)
def functional_elu(call: Call, input: Norms, alpha: float = 1.0, inplace: bool = False) -> tuple[Norms, Pullback]:
    return _leaky(input, alpha)


@rule(nn.CELU)
def celu(module: nn.CELU, x: Norms) -> tuple[Norms, Pullback]:
    if module.alpha <= 0:
        refuse_module(module, "is not a contraction for a negative alpha.", "Use alpha > 0.")
    return elementwise(x, 1.0)


@rule(nn.GELU)
def gelu(module: nn.GELU, x: Norms) -> tuple[Norms, Pullback]:
    return elementwise(x, 1.13)


@rule(F.gelu)
def functional_gelu(call: Call, input: Norms, approximate: str = "none") -> tuple[Norms, Pullback]:
    return elementwise(input, 1.13)


@rule(nn.Softplus)
def softplus(module: nn.Softplus, x: Norms) -> tuple[Norms, Pullback]:
    return _softplus(x, module.beta, module.threshold)


def _softplus(x: Norms, beta: float, threshold: float) -> tuple[Norms, Pullback]:
    if beta == 0 or threshold < 15:  # at the threshold softplus jumps by log(1 + exp(-threshold)) / beta
        raise UnboundedOperationError(f"Softplus jumps at threshold={threshold}, beta={beta}: use 15 or more.")
    return elementwise(x, 1.0, math.log(2.0) / abs(beta))


@rule(F.softplus)
def functional_softplus(call: Call, input: Norms, beta: float = 1.0, threshold: float = 20.0) -> tuple[Norms, Pullback]:
    return _softplus(input, beta, threshold)


def clamped(x: Norms, low: float, high: float) -> tuple[Norms, Pullback]:
    """The rule of clamping to [low, high]: the slope is at most 1, and every entry lies in the interval."""
    bound = max(abs(low), abs(high))
    return elementwise(x, 1.0, min(max(0.0, low), high), bound)


@rule(nn.Hardtanh)
def hardtanh(module: nn.Hardtanh, x: Norms) -> tuple[Norms, Pullback]:
    return clamped(x, module.min_val, module.max_val)


@rule(F.hardtanh)
def functional_hardtanh(
    call: Call, input: Norms, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> tuple[Norms, Pullback]:
    return clamped(input, min_val, max_val)


@rule(torch.clamp, torch.Tensor.clamp, torch.clip, torch.Tensor.clip)
def clamp(call: Call, input: Norms, min: Any = None, max: Any = None) -> tuple[Norms, Pullback]:
    if any(isinstance(end, (Norms, Tensor)) for end in (min, max)):
        call.refuse("clamps to a tensor.", "Clamp to numbers, or write it with torch.maximum and torch.minimum.")
    return clamped(input, -math.inf if min is None else min, math.inf if max is None else max)


@rule(nn.Dropout, nn.Dropout1d, nn.Dropout2d)
def dropout(module: nn.Dropout, x: Norms) -> tuple[Norms, Pullback]:
    return _dropout(x, module.p, module.training)


@rule(F.dropout, F.dropout1d, F.dropout2d)
def functional_dropout(
    call: Call, input: Norms, p: float = 0.5, training: bool = True, inplace: bool = False
) -> tuple[Norms, Pullback]:
    return _dropout(input, p, training)


def _dropout(x: Norms, p: float, training: bool) -> tuple[Norms, Pullback]:
    # Dropout multiplies the entries it keeps by 1 / (1 - p), which is the slope.
    slope = 1.0 if not training else (0.0 if p == 1.0 else 1.0 / (1.0 - p))
    return through(OperatorNorms.diagonal(slope), x, x.shape)


@rule(nn.Softmax)
def softmax_module(module: nn.Softmax, x: Norms) -> tuple[Norms, Pullback]:
    return _softmax(x, module.dim)


@rule(F.softmax, torch.softmax, torch.Tensor.softmax)
def functional_softmax(
    call: Call, input: Norms, dim: int | None = None, _stacklevel: int = 3, dtype: None = None
) -> tuple[Norms, Pullback]:
    return _softmax(input, dim)


def _softmax(x: Norms, dim: int | None) -> tuple[Norms, Pullback]:
    axis = example_axis(dim, x)
    rows = x.size // x.shape[axis]
    # Rows and columns of diag(p) - p p^T have absolute sums 2 p (1 - p) <= 1/2.
    jacobian = OperatorNorms(one_one=0.5, inf_inf=0.5)
    return Norms(x.shape, l1=rows, linf=1.0), lambda v: ((jacobian.T(v, x.shape),), {})
