"""The rounding errors of one operation, and the registry of rules that bound them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dplip.norms import Bound, Norms
from dplip.propagation import Walk
from dplip.propagation.graph import target_of
from dplip.rules.registry import Registered, Registry

T = torch.Tensor

HUGE = 1e37
"""The largest magnitude with a bound: beyond it products and sums may overflow."""

TINY = 2.0**-120
"""A bound on the underflow of products and quotients, in each entry."""


@dataclass(frozen=True)
class Roundings:
    """A bound on the distance of a call f from the exact f of the same floating-point input, for any order of its sums.

    The error of each entry, in units of one rounding (2^-24 in float32), is at most
    ``terms (|J| |x| + |f(0)|) + output |f(x)| + more``, for any Jacobian J of f. The error of the pullback of a
    cotangent v is at most ``back |J|^T |v|``.

    Attributes:
        apart: an absolute error of each entry that is no rounding, such as a jump of f.
        diagonal: J is diagonal (or a permutation), so that |J| has the norms of J.
        held: the norms that f's rule gives the output hold for the rounded output.
        summed: f's rule includes the roundings of its parameters' gradients.
        one_hot: J has few entries in a row, so that norms in l1 are tighter than in l2.
    """

    terms: float = 0.0
    output: Bound = 0.0
    more: Norms | None = None
    back: float = 0.0
    apart: float = 0.0
    diagonal: bool = False
    held: bool = False
    summed: bool = False
    one_hot: bool = False

    @property
    def none(self) -> bool:
        return not isinstance(self.output, Tensor) and not (self.terms or self.output or self.more or self.apart)


EXACT = Roundings()

RoundingRule = Callable[..., Roundings]

ROUNDINGS: Registry[RoundingRule] = Registry()


def rounding(*functions: Any) -> Callable[[Registered], Registered]:
    """Register a rounding rule for functions, tensor methods or module classes (their ``forward``).

    The rule is called with the module (or a :class:`Call`) and the arguments, with :class:`Norms` of the floating-point
    values in place of each value that depends on the input, and returns :class:`Roundings`.

    Guarantee: none of its own. A model with an operation without such a rule has no certificate.
    """

    return ROUNDINGS.add(*functions)


def summing(n: float, back: float, summed: bool = False) -> Roundings:
    """The roundings of sums of n products, in any order, and of ``back`` products on the way back.

    Proof: a product is off by one unit of itself. Each of n - 1 additions is off by one unit of its result, a partial
    sum. Without earlier errors, a partial sum lies between the sum of the negative terms and that of the positive
    terms, so within half of ``sum |terms| + |sum|``; the factor 1 / (1 - n unit) covers the earlier errors.
    """
    half = n / 2 / (1 - min(n * 2.0**-24, 0.5)) if n < 2.0**23 else math.inf
    back = back / (1 - back * 2.0**-24) if back < 2.0**23 else math.inf
    return Roundings(terms=half + 2, output=half, back=back, summed=summed)


def unit_of(walk: Walk) -> float:
    """The largest relative error of one operation of a model: 2^-53 if all of it is in float64, else 2^-24."""
    tensors = [t for t in (*walk.model.parameters(), *walk.model.buffers()) if t.is_floating_point()]
    retyped = any(target_of(call.node) is T.float for call in walk.calls() if call.node.op != "call_module")
    return 2.0**-53 if tensors and all(t.dtype == torch.float64 for t in tensors) and not retyped else 2.0**-24
