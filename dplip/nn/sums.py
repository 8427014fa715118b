"""Sums over a batch in blocks, and of the blocks in a tree, so that neighbouring batches round nearly alike.

One more example moves every later row of a batch, and so every rounding of a float32 sum over it. A sum of n terms, in
any order, is off by at most n 2^-24 times the sum of their magnitudes: for n examples, by n^2 2^-24 times what one of
them may add. In blocks of g rows that are added up in a tree it is about n g 2^-25, whatever the order within a block.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 128
"""Rows whose sum is left to the machine: more take less time, and leave more to rounding."""

CHAIN = 8
"""Blocks that are added one after the other, in memory that stays in the cache."""

HELD = 1 << 21
"""Numbers that are held at once for the gradients of single examples."""


def of_products(v: Tensor, x: Tensor) -> Tensor:
    """``sum_r v_r x_r^T`` over rows, for v of shape (rows, m) and x of (rows, n)."""

    def chained(start: int, end: int) -> Tensor:
        total = v[start : start + BLOCK].mT @ x[start : min(end, start + BLOCK)]
        spare = torch.empty_like(total) if end - start > BLOCK and _writable(v) else None
        for i in range(start + BLOCK, end, BLOCK):
            rows, columns = v[i : min(end, i + BLOCK)].mT, x[i : min(end, i + BLOCK)]
            total.add_(rows @ columns if spare is None else torch.mm(rows, columns, out=spare))
        return total

    return _tree(chained, 0, len(v), BLOCK * CHAIN)


def of_rows(v: Tensor) -> Tensor:
    """``sum_r v_r`` over rows, for v of shape (rows, n)."""
    whole = len(v) - len(v) % BLOCK
    if not whole:
        return v.sum(0)
    sums = torch.cat([v[:whole].unflatten(0, (-1, BLOCK)).sum(1), v[whole:].sum(0, keepdim=True)])
    return _tree(lambda start, end: sums[start:end].sum(0), 0, len(sums), CHAIN)


def of_convolution(x: Tensor, v: Tensor, taps: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> Tensor:
    """The gradient of a convolution's weight in two dimensions, the sum of those of single examples.

    Each example's is a product of matrices of its own. That its positions are summed alike wherever it stands in the
    batch is assumed, as of every product of rows (docs/guarantees.md, "One example, one row").
    """
    channels, positions = v.shape[1], math.prod(v.shape[2:])
    width = x.shape[1] // groups * math.prod(taps)
    x = F.pad(x, (padding[1], padding[1], padding[0], padding[0])) if any(padding) else x
    step = max(1, min(BLOCK, HELD // (width * (channels + groups * positions))))

    def of_some(start: int, end: int) -> Tensor:
        read = _patches(x[start:end], taps, stride, dilation, v.shape[2:]).reshape(-1, groups, width, positions)
        sent = v[start:end].reshape(-1, groups, channels // groups, positions)
        return (sent @ read.mT).sum(0)

    def chained(start: int, end: int) -> Tensor:
        total = of_some(start, min(end, start + step))
        for i in range(start + step, end, step):
            total.add_(of_some(i, min(end, i + step)))
        return total

    return _tree(chained, 0, len(x), step * CHAIN).reshape(channels, x.shape[1] // groups, *taps)


def _patches(x: Tensor, taps: Any, stride: Any, dilation: Any, size: Any) -> Tensor:
    """What each tap reads at each position, (examples, channels, *taps, *size), for an input that is padded."""
    each, channel, row, column = x.stride()
    steps = (row * dilation[0], column * dilation[1], row * stride[0], column * stride[1])
    return x.as_strided((len(x), x.shape[1], *taps, *size), (each, channel, *steps), x.storage_offset())


def _tree(of: Callable[[int, int], Tensor], start: int, end: int, leaf: int) -> Tensor:
    """The sum over a range, which is halved until a part is a leaf: so many additions deep as it can be halved."""
    leaves = -(-(end - start) // leaf)
    if leaves <= 1:
        return of(start, end)
    middle = start + leaf * (leaves // 2)
    return _tree(of, start, middle, leaf).add_(_tree(of, middle, end, leaf))


def _writable(value: Tensor) -> bool:
    """Whether results may go into given memory, as they may not while they are differentiated or mapped over."""
    return not (torch.is_grad_enabled() or torch._C._functorch.is_functorch_wrapped_tensor(value))


def most_examples(expected: float) -> int:
    """The most examples that a Poisson batch of this expected size has, but for a chance below 2^-80.

    Bernstein: a sum of independent indicators of mean B exceeds B + t with a chance of at most exp(-t^2 / (2B + 2t/3)).
    """
    odds = 80 * math.log(2)
    return math.ceil(expected + odds / 3 + math.sqrt((odds / 3) ** 2 + 2 * odds * expected))


def apart(examples: float, terms: int, blocked: bool, dtype: torch.dtype) -> float:
    """How far two neighbouring sums may round apart, in units of the most that one example adds.

    Args:
        examples: the most that are in a sum.
        terms: the most terms that one example adds to an entry.
        blocked: whether the sum is one of this module, or else one whose order is left to the machine.
        dtype: of the sum.

    Proof, with u the rounding of one operation. The terms of one example have magnitudes that add up to at most one
    unit, since the bounds of gradients are bounds in norms, which do not see signs. A sum of N terms, in any order, is
    off by at most N u times all magnitudes, for n examples n units, products' roundings included (Jeannerod and Rump,
    2013). With one term an example less is true. A term a_t of entry j is rounded d_j(t) times, once for each
    partial sum that it is in, and whatever the order, sum_t d_j(t)^2 is at most that of a chain, n^3 / 3 + n^2 / 2.
    So along any direction c of length 1 the error is, by Cauchy-Schwarz, at most u times sum_t (sum_j c_j^2
    d_j(t)^2)^(1/2) <= (n sum_j c_j^2 sum_t d_j(t)^2)^(1/2) <= n (n / sqrt 3 + 1/2), and n more for the products. In
    blocks the same holds with the size of a block for that of the batch, and each addition of a chain or level of
    the tree adds u times n. Computed partial sums exceed the exact ones by what has been rounded: the factor at the
    end. Both of two neighbours may be off by as much.
    """
    u, n = torch.finfo(dtype).eps / 2, examples + 1  # a neighbour has one more
    rows = min(BLOCK, n * terms) if blocked else n * terms
    depth = rows / math.sqrt(3) + 1.5 if terms == 1 else rows
    if blocked:
        depth += CHAIN + math.ceil(math.log2(n * terms / CHAIN + 1))
    return 2 * n * depth * u * (1 + 2 * depth * u)


def lost(examples: float, terms: int, entries: int, dtype: torch.dtype) -> float:
    """How far apart two sums of products may be for what is below the smallest normal number: it may count as zero."""
    return 4 * (examples + 1) * terms * math.sqrt(entries) * torch.finfo(dtype).tiny


def added(examples: float, times: int, dtype: torch.dtype) -> float:
    """The same for sums that are added or rounded so many times more: each time by at most u of what is in them."""
    return (examples + 1) * times * torch.finfo(dtype).eps
