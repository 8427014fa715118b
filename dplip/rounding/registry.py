"""The roundings of one operation, and the registry of rules that say how large they are."""

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
"""Beyond it products and sums may overflow, and nothing is known."""

TINY = 2.0**-120
"""More than what products and quotients lose below the smallest normal number, in each entry."""


@dataclass(frozen=True)
class Roundings:
    """How far one call f may be from the exact f of the same floating-point input, whatever the order of its sums.

    Entry by entry, in units of one rounding (2^-24 in float32):
    ``terms (|J| |x| + |f(0)|) + output |f(x)| + more``, J being any Jacobian of f; and for a cotangent v that goes
    back, ``back |J|^T |v|``.

    Attributes:
        apart: an error that is no rounding, in each entry, such as a jump of f.
        diagonal: J is diagonal (or a permutation), so that |J| has the norms of J.
        held: what the rule says of the output holds for the rounded output.
        summed: the rule counts the roundings of its parameters' gradients.
        one_hot: J has few entries in a row, so that norms in l1 say more than in l2.
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
    """Register how functions, tensor methods or module classes (their ``forward``) round.

    The rule is called with the module (or a :class:`Call`) and the arguments, :class:`Norms` of the floating-point
    values in place of each value that depends on the input, and returns :class:`Roundings`.

    Guarantee: none of its own; what has no such rule has no certificate.
    """

    return ROUNDINGS.add(*functions)


def summing(n: float, back: float, summed: bool = False) -> Roundings:
    """Sums of n products, in any order, and of so many on the way back.

    Proof: a product is off by one unit of itself. Each of n - 1 additions is off by a unit of what it gives, and any
    partial sum lies between that of the negative and that of the positive terms, so within half of ``sum |terms| +
    |sum|``, but for the errors before it, which n units of that sum up to (1 / (1 - n unit)).
    """
    half = n / 2 / (1 - min(n * 2.0**-24, 0.5)) if n < 2.0**23 else math.inf
    back = back / (1 - back * 2.0**-24) if back < 2.0**23 else math.inf
    return Roundings(terms=half + 2, output=half, back=back, summed=summed)


def unit_of(walk: Walk) -> float:
    """The largest relative error of one operation of a model: 2^-53 where all of it is in float64, else 2^-24."""
    tensors = [t for t in (*walk.model.parameters(), *walk.model.buffers()) if t.is_floating_point()]
    retyped = any(target_of(call.node) is T.float for call in walk.calls() if call.node.op != "call_module")
    return 2.0**-53 if tensors and all(t.dtype == torch.float64 for t in tensors) and not retyped else 2.0**-24
