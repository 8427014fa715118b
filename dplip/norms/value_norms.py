"""Upper bounds on the l1, l2 and l-infinity norms of one example's value."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dplip.errors import ConfigurationError, UnboundedOperationError

Bound = float | Tensor
"""A bound: one number for every example, or a float64 tensor of one entry per example."""

REDUCTION_SLACK = 1e-6
"""Relative slack that covers float64 reductions over float32 data."""

FLOATS = torch.float32, torch.float64
_WHOLE = torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64


def is_real(tensor: Tensor) -> bool:
    """Whether the bounds cover a tensor's arithmetic: it is dense, and of integers, float32 or float64."""
    return tensor.dtype in (*FLOATS, *_WHOLE) and tensor.layout == torch.strided and not tensor.is_nested


def require_real(tensor: Tensor) -> None:
    """Refuse a constant whose type the norms do not cover, such as complex numbers."""
    if not is_real(tensor):
        raise UnboundedOperationError(
            f"A constant of the model is of type {tensor.dtype}, {tensor.layout}, and norms are those of dense real "
            "numbers. Keep it in float32: module.float(), or real and imaginary parts apart."
        )


def least(first: Bound, *others: Bound) -> Bound:
    """The entrywise minimum of several bounds, which is valid because each of them is."""
    for other in others:
        if isinstance(first, Tensor) or isinstance(other, Tensor):
            # In float64: a Python number turned into torch's default float32 may be rounded down.
            first = torch.minimum(*(torch.as_tensor(b, dtype=torch.float64) for b in (first, other)))
        else:
            first = min(first, other)
    return first


def times(a: Bound, b: Bound) -> Bound:
    """The product of two bounds; 0 times infinity is infinity, since an infinite bound means that none is known."""
    product = a * b
    if isinstance(product, Tensor):
        return torch.nan_to_num(product, nan=math.inf, posinf=math.inf)
    return math.inf if math.isnan(product) else product


def below(a: Bound, limit: float) -> Bound:
    """The bound where it is less than ``limit``, and infinity elsewhere, where numbers may overflow."""
    if isinstance(a, Tensor):
        return torch.where(a < limit, a, math.inf)
    return a if a < limit else math.inf


def root(a: Bound) -> Bound:
    """The square root of a bound."""
    return a.sqrt() if isinstance(a, Tensor) else math.sqrt(a)


def largest(a: Bound) -> float:
    """The largest bound over the examples, which holds for all of them."""
    return float(a.max()) if isinstance(a, Tensor) else a


def checked(name: str, value: Bound | int) -> Bound:
    if isinstance(value, Tensor):
        value = value.detach().to(torch.float64)
        wrong = bool((value.isnan() | (value < 0)).any())
    else:
        value = float(value)
        wrong = math.isnan(value) or value < 0
    if wrong:
        raise ConfigurationError(f"{name}={value}: a norm is a number >= 0. Give an upper bound, or inf for none.")
    return value


@dataclass(frozen=True)
class Norms:
    """Upper bounds on the norms of one example's value (or of its cotangent).

    Construction tightens the three by ``linf <= l2 <= l1 <= sqrt(n) l2``, ``l1 <= n linf`` and
    ``l2 <= sqrt(l1 linf)`` (Hoelder), n the number of entries.

    Args:
        shape: the shape of one example's value, without the batch dimension.
        l1, l2, linf: floats, or tensors with one entry per example; inf where no bound is known.

    Raises:
        ConfigurationError: a bound is negative or NaN.
    """

    shape: tuple[int, ...]
    l1: Bound = math.inf
    l2: Bound = math.inf
    linf: Bound = math.inf

    def __post_init__(self) -> None:
        shape = (self.shape,) if isinstance(self.shape, int) else tuple(int(s) for s in self.shape)
        n = math.prod(shape)
        l1, l2, linf = (checked(k, getattr(self, k)) for k in ("l1", "l2", "linf"))
        if n == 0:
            l1 = l2 = linf = 0.0
        linf = least(linf, l2, l1)
        l1 = least(l1, times(math.sqrt(n), l2), times(n, linf))
        l2 = least(l2, l1, times(math.sqrt(n), linf), root(times(l1, linf)))
        linf = least(linf, l2)
        for name, value in {"shape": shape, "l1": l1, "l2": l2, "linf": linf}.items():
            object.__setattr__(self, name, value)

    @classmethod
    def zero(cls, shape: tuple[int, ...]) -> Norms:
        """The norms of a value that is zero."""
        return cls(shape, 0.0, 0.0, 0.0)

    @classmethod
    def of(cls, value: Tensor) -> Norms:
        """The norms of a constant (a weight, a buffer), with slack for rounding; infinite on the meta device."""
        require_real(value)
        if value.is_meta:
            return cls(tuple(value.shape))
        v = value.detach() if value.is_floating_point() else value.double()
        l1, l2, linf = (
            float(torch.linalg.vector_norm(v, p, dtype=torch.float64)) if v.numel() else 0.0 for p in (1, 2, math.inf)
        )
        if not math.isfinite(l1):
            raise ConfigurationError("A weight or constant of the model is NaN or infinite: restore finite values.")
        return cls(tuple(v.shape), l1 * (1 + REDUCTION_SLACK), l2 * (1 + REDUCTION_SLACK), linf)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def norm(self, p: float) -> Bound:
        """The bound for the lp norm, p in {1, 2, inf}."""
        try:
            return {1: self.l1, 2: self.l2, math.inf: self.linf}[p]
        except KeyError:
            raise ConfigurationError(f"norm={p!r}: the norms are 1, 2 and float('inf').") from None

    def __add__(self, other: Norms) -> Norms:
        """The triangle inequality."""
        if self.shape != other.shape:
            raise ConfigurationError(f"Norms of shapes {self.shape} and {other.shape} do not add.")
        return Norms(self.shape, self.l1 + other.l1, self.l2 + other.l2, self.linf + other.linf)

    def __mul__(self, factor: Bound) -> Norms:
        """The norms of ``c x`` for ``|c| <= factor``."""
        return Norms(self.shape, times(self.l1, factor), times(self.l2, factor), times(self.linf, factor))

    __rmul__ = __mul__

    def __and__(self, other: Norms) -> Norms:
        """The smaller of each bound, for a value that both hold for."""
        return Norms(self.shape, least(self.l1, other.l1), least(self.l2, other.l2), least(self.linf, other.linf))

    def reshape(self, shape: tuple[int, ...]) -> Norms:
        """The norms of the same entries, of some of them, or of all with zeros between them, in another shape."""
        return Norms(shape, self.l1, self.l2, self.linf)

    def repeat(self, shape: tuple[int, ...]) -> Norms:
        """The norms of this value broadcast to ``shape``, where every entry is repeated ``copies`` times."""
        copies = copies_of(shape, self.shape)
        return Norms(shape, times(copies, self.l1), times(math.sqrt(copies), self.l2), self.linf)

    def sum_to(self, shape: tuple[int, ...]) -> Norms:
        """The adjoint of :meth:`repeat`: sums of ``copies`` entries each (Cauchy-Schwarz for l2)."""
        copies = copies_of(self.shape, shape)
        return Norms(shape, self.l1, times(math.sqrt(copies), self.l2), times(copies, self.linf))

    def summed(self, terms: int) -> Norms:
        """The norms of this value as a float32 sum of ``terms`` terms computes it, with one rounding an addition."""
        return self * (1 + (terms - 1) * 2.0**-24)

    @staticmethod
    def concatenate(parts: list[Norms], shape: tuple[int, ...]) -> Norms:
        """The norms of a value made of disjoint parts."""
        l1: Bound = 0.0
        square: Bound = 0.0
        linf: Bound = 0.0
        for part in parts:
            l1 = l1 + part.l1
            square = square + part.l2 * part.l2
            linf = -least(-linf, -part.linf)
        return Norms(shape, l1, root(square), linf)


def copies_of(large: tuple[int, ...], small: tuple[int, ...]) -> int:
    return math.prod(large) // math.prod(small) if math.prod(small) else 1
