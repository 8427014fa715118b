"""Operator norms of matrices and convolutions, certified from above (never by power iteration)."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from contextvars import ContextVar, Token
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from dplip.errors import ConfigurationError
from dplip.norms import OperatorNorms, require_real

SLACK = 4e-6
"""Relative slack on a float64 eigenvalue: its own rounding, and that of a weight stored in float32 afterwards."""

GRID = 32
"""Frequencies per axis at which the symbol of a convolution is evaluated."""

_active: ContextVar[NormCache | None] = ContextVar("norm_cache", default=None)


class NormCache:
    """Certified norms carried over the steps of a run, so that an exact norm is rarely computed.

    Guarantee: for any W and W0 of one shape, ``||W|| <= ||W0|| + gain ||W - W0||_F`` (triangle inequality), where
    gain bounds the operator norm of a weight by its Frobenius norm (1 for a matrix). An entry is used while the
    drift stays within ``tolerance`` of the bound, so a bound is never looser than by about that factor. No
    assumption is made on how the weight changed. Active inside ``with cache:``.
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

    def norm(self, key: Hashable, weight: Tensor, exact: Callable[[], float], gain: float) -> float:
        """A certified norm of ``weight``: carried from the last exact one, or ``exact()``."""
        entry = self._entries.get(key)
        if entry is not None and entry.fits(weight):
            drift = gain * distance(weight, entry.reference)
            if drift <= self.tolerance * entry.bound:
                return entry.bound + drift
        return self.certify(key, weight, exact())

    def near_projection(self, key: Hashable, weight: Tensor) -> bool:
        """Whether ``weight`` is within the tolerance of a projected value that was certified under this key."""
        entry = self._entries.get(key)
        if entry is None or not entry.projected or not entry.fits(weight):
            return False
        return distance(weight, entry.reference) <= self.tolerance * entry.bound

    def certify(self, key: Hashable, weight: Tensor, bound: float, projected: bool = False) -> float:
        """Record that ``bound`` is certified for the present value of ``weight`` (which a constraint has just set)."""
        entry = self._entries.get(key)
        if entry is not None and entry.fits(weight):
            reference = entry.reference.copy_(weight.detach())
        else:
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
    # Squares below the smallest normal number may vanish: together they are less than n of it.
    lost = math.sqrt(n * torch.finfo(difference.dtype).tiny)
    return float(torch.linalg.vector_norm(difference)) * _sum_slack(difference, n) + lost


def _sum_slack(w: Tensor, terms: int) -> float:
    """One plus the largest relative rounding of a sum of that many nonnegative terms in the dtype of ``w``."""
    return 1 + (terms + 4) * torch.finfo(w.dtype).eps


def spectral_norm(weight: Tensor) -> float:
    """The largest singular value of a matrix, from above: exact in float64, times ``1 + 4e-6``.

    Proof: the largest eigenvalue of the Gram matrix of the smaller side is the square of the norm; the
    eigenvalue's backward error is a small multiple of ``n 2^-53`` relative, far below the slack.

    Raises:
        ConfigurationError: the weight holds NaN or infinity.
    """
    w = weight.detach().double()
    scale = float(w.abs().max()) if w.numel() else 0.0
    if not math.isfinite(scale):
        raise ConfigurationError("A weight is NaN or infinite, so it has no operator norm: restore finite values.")
    if scale == 0.0:
        return 0.0
    w = w / scale
    gram = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
    return scale * math.sqrt(float(torch.linalg.eigvalsh(gram)[-1])) * (1 + SLACK)


def _carried(key: Hashable, weight: Tensor, exact: Callable[[], float], gain: float = 1.0) -> float:
    cache = _active.get()
    return exact() if cache is None else cache.norm(key, weight, exact, gain)


def _greatest(terms: Tensor, dim: int) -> float:
    """The largest sum of nonnegative terms along an axis, from above."""
    return float(terms.sum(dim).max()) * _sum_slack(terms, terms.shape[dim])


def _greatest_root(squares: Tensor, dim: int) -> float:
    # A square that underflows is below the square of the smallest normal number.
    tiny = squares.shape[dim] * torch.finfo(squares.dtype).tiny
    return math.sqrt(_greatest(squares, dim) + tiny)


_FIXED: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # to a copy of the values, and their norms


def of_fixed(tensor: Tensor, norms: Callable[[Tensor], OperatorNorms]) -> OperatorNorms:
    """The norms that a function finds for a fixed matrix or stack of matrices, found again only if it has changed.

    A tensor without values (on the meta device) has the norms of which nothing is known.
    """
    if tensor.is_meta:
        return OperatorNorms()
    values, found = _FIXED.get(tensor, (None, None))
    if found is None or not torch.equal(values, tensor):  # not every edit is counted by torch: one through .data is not
        found = norms(tensor)
        _FIXED[tensor] = tensor.detach().clone(), found
    return found


def matrix(weight: Tensor) -> OperatorNorms:
    """The induced norms of ``x -> weight @ x`` for a weight of shape (out, in).

    Sums of rows and columns are exact: ``||W||_{1->p}`` is the largest lp norm of a column and ``||W||_{p->inf}``
    the largest dual norm of a row.
    """
    require_real(weight)
    w = weight.detach()
    if not w.numel():
        return OperatorNorms.diagonal(0.0)
    if w.is_meta:  # a weight without values: nothing is known
        return OperatorNorms()
    two_two = _carried(id(weight), w, lambda: spectral_norm(w))
    magnitudes, squares = w.abs(), w.square()
    return OperatorNorms(
        one_one=_greatest(magnitudes, 0),
        one_two=_greatest_root(squares, 0),
        one_inf=float(magnitudes.max()),
        two_two=two_two,
        two_inf=_greatest_root(squares, 1),
        inf_inf=_greatest(magnitudes, 1),
    )


def _dilate(kernel: Tensor, dilation: Sequence[int]) -> Tensor:
    """The kernel with its zeros written out: taps at multiples of the dilation."""
    for axis, d in enumerate(dilation, start=3):
        if d > 1:
            size = list(kernel.shape)
            size[axis] = d * (size[axis] - 1) + 1
            wide = kernel.new_zeros(size)
            wide.index_copy_(axis, torch.arange(0, size[axis], d, device=kernel.device), kernel)
            kernel = wide
    return kernel


def _polyphase(kernel: Tensor, stride: Sequence[int]) -> Tensor:
    """The stride-1 kernel on ``prod(stride)`` times as many channels that acts as the strided one.

    With tap t = s a + b, ``y[o] = sum_{a,b} K[s a + b] x[s (o + a) + b]``; the phases ``x_b[j] = x[s j + b]`` are
    disjoint, so the regrouped input has the norms of x.
    """
    for axis, s in enumerate(stride):
        if s > 1:
            g, co, ci, *taps = kernel.shape
            missing = -taps[axis] % s
            pad = [0, 0] * (len(taps) - 1 - axis) + [0, missing]
            kernel = torch.nn.functional.pad(kernel, pad)
            kernel = kernel.unflatten(3 + axis, (-1, s)).movedim(4 + axis, 3)
            kernel = kernel.reshape(g, co, ci * s, *taps[:axis], -1, *taps[axis + 1 :])
    return kernel


def _symbol_norm(kernel: Tensor, grid: Sequence[int]) -> float:
    """The largest spectral norm of the kernel's Fourier symbol over a grid of frequencies, for (g, co, ci, *taps)."""
    k = kernel.detach().double()
    scale = float(k.abs().max())
    if not math.isfinite(scale):
        raise ConfigurationError("A kernel is NaN or infinite, so it has no operator norm: restore finite values.")
    if scale == 0.0:
        return 0.0
    axes = tuple(range(3, k.ndim))
    # A real kernel's symbol at -theta is the conjugate of that at theta: half of the grid suffices.
    symbol = torch.fft.rfftn(k / scale, s=tuple(grid), dim=axes)
    symbol = symbol.movedim((1, 2), (-2, -1)).reshape(-1, k.shape[1], k.shape[2])
    worst = max(float(torch.linalg.svdvals(part)[:, 0].max()) for part in symbol.split(256))
    return scale * worst * (1 + SLACK)


def convolution(
    weight: Tensor,
    input_size: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    groups: int,
    circular: bool = False,
) -> OperatorNorms:
    """The induced norms of a convolution (cross-correlation) with a weight of shape (out, in / groups, \\*taps).

    Args:
        input_size: spatial size of the input, or None for a bound that holds at every size.
        padding: zeros, or wrapped entries if ``circular``, before and after each axis.

    Guarantee: upper bounds. Every zero-padded, cropped or strided convolution is a compression of the one on Z^d,
    whose l2 norm is the supremum of the norm of the Fourier symbol. Two certified ways, the finer one is taken:
    on the torus of N >= n + padding points the operator is an exact submatrix of the circular one (no wrap meets a
    counted output); and for every size ``sup <= max over the N-grid / prod cos(pi (k - 1) / 2N)``, since for unit
    u, v the function Re(e^{i phi} u* K v) is, after a shift, a real trigonometric polynomial of degree (k - 1) / 2,
    which by Riesz's lemma stays above ``||T|| cos(d x)`` at distance x from a maximum.
    """
    require_real(weight)
    w = weight.detach()
    if w.is_meta:
        return OperatorNorms()
    kernel = _polyphase(_dilate(w.unflatten(0, (groups, -1)), dilation), stride)
    taps = kernel.shape[3:]
    dense = w.unflatten(0, (groups, -1)).flatten(2)
    key = (
        id(weight),
        tuple(input_size or ()),
        tuple(stride),
        tuple(padding),
        tuple(dilation),
        groups,
        circular,
    )
    gain = math.sqrt(math.prod(taps))  # a pixel meets one tap of each polyphase kernel per output it reaches

    def spectral() -> float:
        if math.prod(w.shape[2:]) == 1 and groups == 1:
            return spectral_norm(w.flatten(1))
        cosines = 1.0
        grid = []
        for axis, k in enumerate(taps):
            before, after = padding[axis]
            n = None if input_size is None else input_size[axis]
            if circular and n is not None:  # the stride divides n: the rule refuses the rest
                grid.append(n // stride[axis])
                continue
            if not circular and n is not None:
                if stride[axis] == 1 and before == after <= k - 1:
                    points = n + before
                else:
                    points = -(-(n + before + after) // stride[axis])
                if max(points, k) <= GRID + 8:
                    grid.append(max(points, k))
                    continue
            points = max(GRID, 8 * k)
            cosines *= math.cos(math.pi * (k - 1) / (2 * points))
            grid.append(points)
        return _symbol_norm(kernel, grid) / cosines

    two_two = _carried(key, w, spectral, gain)
    read = kernel.transpose(1, 2).flatten(2)
    return OperatorNorms(
        one_one=_greatest(read.abs(), 2),
        one_two=_greatest_root(read.square(), 2),
        one_inf=float(w.abs().max()),
        two_two=two_two,
        two_inf=_greatest_root(dense.square(), 2),
        inf_inf=_greatest(dense.abs(), 2),
    )
