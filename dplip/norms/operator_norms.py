"""Upper bounds on the induced norms of a map between values."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import astuple, dataclass

from dplip.norms.value_norms import Norms, least, root, times


@dataclass(frozen=True)
class OperatorNorms:
    """Upper bounds on the induced norms of a linear operator, or of every Jacobian of a map.

    ``two_inf`` bounds the l-infinity norm of the output for an input of l2 norm 1; the other names read alike. The
    adjoint exchanges p -> q with q* -> p*. Construction tightens the bounds by monotonicity of the norms and by
    Riesz-Thorin, ``two_two <= sqrt(one_one inf_inf)``.
    """

    one_one: float = math.inf
    one_two: float = math.inf
    one_inf: float = math.inf
    two_two: float = math.inf
    two_inf: float = math.inf
    inf_inf: float = math.inf

    def __post_init__(self) -> None:
        two_two = min(self.two_two, float(root(times(self.one_one, self.inf_inf))))
        one_two = min(self.one_two, self.one_one, two_two)
        two_inf = min(self.two_inf, self.inf_inf, two_two)
        one_inf = min(self.one_inf, one_two, two_inf)
        for name, value in {"two_two": two_two, "one_two": one_two, "two_inf": two_inf, "one_inf": one_inf}.items():
            object.__setattr__(self, name, value)

    @classmethod
    def diagonal(cls, bound: float) -> OperatorNorms:
        """The norms of a diagonal operator (an elementwise map) or a permutation with entries of at most ``bound``."""
        return cls(one_one=bound, inf_inf=bound)

    @classmethod
    def block_diagonal(cls, blocks: Iterable[OperatorNorms]) -> OperatorNorms:
        """The norms of a block-diagonal operator: for p <= q the largest p -> q norm of a block."""
        return cls(*(max(each) for each in zip(*map(astuple, blocks), strict=True)))

    @property
    def T(self) -> OperatorNorms:
        """The norms of the adjoint."""
        return OperatorNorms(self.inf_inf, self.two_inf, self.one_inf, self.two_two, self.one_two, self.one_one)

    def __call__(self, x: Norms, shape: tuple[int, ...]) -> Norms:
        """The norms of the image, of shape ``shape``, of a value with norms ``x``."""
        return Norms(
            shape,
            times(self.one_one, x.l1),
            least(times(self.two_two, x.l2), times(self.one_two, x.l1)),
            least(times(self.inf_inf, x.linf), times(self.two_inf, x.l2), times(self.one_inf, x.l1)),
        )
