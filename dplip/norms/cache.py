"""A cache of the norms of weights over the steps of a run; each norm is widened by how far its weight has moved."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from contextvars import ContextVar, Token
from dataclasses import dataclass

import torch
from torch import Tensor

_active: ContextVar[NormCache | None] = ContextVar("norm_cache", default=None)


class NormCache:
    """Certified norms that are kept over the steps of a run, so that an exact norm is rarely computed.

    Guarantee: for any W and W0 of one shape, ``||W|| <= ||W0|| + gain ||W - W0||_F`` (triangle inequality), where
    gain bounds the operator norm of a weight by its Frobenius norm (1 for a matrix), however the weight changed. An
    entry is used while the drift is at most ``tolerance`` times the bound, and a new one may be half a percent loose
    (:mod:`dplip.norms.close`); with a tolerance of 0 all are exact. The cache is active inside ``with cache:``.
    """

    def __init__(self, tolerance: float = 0.01) -> None:
        self.tolerance = tolerance
        self._entries: dict[Hashable, _Entry] = {}
        self._tokens: list[Token[NormCache | None]] = []

    def __enter__(self) -> NormCache:
        self._tokens.append(_active.set(self))
        return self

    def __exit__(self, *_: object) -> None:
        _active.reset(self._tokens.pop())

    def norm(
        self, key: Hashable, weight: Tensor, exact: Callable[[], float], gain: float, close: Callable[[], float | None]
    ) -> float:
        """A certified norm of ``weight``: the last one plus the drift since, or ``close()``, or ``exact()``."""
        entry = self._entries.get(key)
        if entry is not None and entry.fits(weight):
            drift = gain * distance(weight, entry.reference)
            if drift <= self.tolerance * entry.bound:
                return entry.bound + drift
        bound = close() if self.tolerance else None
        return self.certify(key, weight, exact() if bound is None else bound)

    def near_projection(self, key: Hashable, weight: Tensor) -> bool:
        """Whether ``weight`` is within the tolerance of a projected value that was certified under this key."""
        entry = self._entries.get(key)
        if entry is None or not entry.projected or not entry.fits(weight):
            return False
        return distance(weight, entry.reference) <= self.tolerance * entry.bound

    def certify(self, key: Hashable, weight: Tensor, bound: float, projected: bool = False) -> float:
        """Record ``bound`` as certified for the present value of ``weight``."""
        entry = self._entries.get(key)
        if entry is not None and entry.fits(weight):
            reference = entry.reference.copy_(weight.detach())
        else:
            with torch.inference_mode(False):  # a copy of later values is written into it, in whatever mode
                reference = weight.detach().clone()
        self._entries[key] = _Entry(reference, bound, projected)
        return bound


@dataclass(frozen=True)
class _Entry:
    """A weight's value, and a bound that is certified for it."""

    reference: Tensor
    bound: float
    projected: bool

    def fits(self, weight: Tensor) -> bool:
        reference = self.reference
        return (reference.shape, reference.dtype, reference.device) == (weight.shape, weight.dtype, weight.device)


def active_cache() -> NormCache | None:
    """The cache of the surrounding ``with cache:``, if any."""
    return _active.get()


def distance(a: Tensor, b: Tensor) -> float:
    """The Frobenius norm of ``a - b``, from above."""
    difference = a.detach() - b.detach()
    n = difference.numel()
    # Squares below the smallest normal number may underflow: n of them lose less than n times that number.
    lost = math.sqrt(n * torch.finfo(difference.dtype).tiny)
    return float(torch.linalg.vector_norm(difference)) * sum_slack(difference, n) + lost


def sum_slack(w: Tensor, terms: int) -> float:
    """One plus the largest relative rounding of a sum of ``terms`` nonnegative terms in the dtype of ``w``."""
    return 1 + (terms + 4) * torch.finfo(w.dtype).eps


def carried(
    key: Hashable,
    weight: Tensor,
    exact: Callable[[], float],
    gain: float = 1.0,
    close: Callable[[], float | None] = lambda: None,
) -> float:
    """The norm of ``weight`` by the surrounding cache, if there is one; ``close`` may be loose by half a percent."""
    cache = _active.get()
    return exact() if cache is None else cache.norm(key, weight, exact, gain, close)
