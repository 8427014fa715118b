"""Sums over a batch in blocks that are added up in a tree, so that neighbouring batches round nearly alike.

One more example moves every later row of a batch, and so changes every rounding of a float32 sum over it. A sum of n
terms, in any order, is off by at most n 2^-24 times the sum of their magnitudes: for n examples, by n^2 2^-24 times the
bound of one. A tree of blocks of g rows is off by about n g 2^-25, for any order within a block.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 128
"""Rows in a block, whose order of summation is the machine's: larger blocks are faster and round more."""

CHAIN = 8
"""Blocks that are added one after the other, in memory that fits the cache."""

SPREAD = 4.0
"""The magnitudes of the terms of one example add up to at most this many times the bound of their sum, where there are
several and they are summed in blocks of rows. It is 1 where the bound does not depend on signs."""

HELD = 1 << 20
"""The most numbers in memory for the gradients of single examples: they are read twice, from the cache."""


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


Total = Callable[[Tensor, slice], Tensor]
"""What makes of the gradients of some examples, shape (examples, ...), the sum that they add: it may scale each. The
slice says which examples of the batch they are."""


def of_matrices(v: Tensor, x: Tensor, total: Total) -> Tensor:
    """``sum_b g(v_b^T x_b)`` over examples, for v of shape (examples, positions, m) and x of (examples, positions, n).

    Each example's gradient is a matrix product by itself. Its rounding is assumed not to depend on the example's place
    in the batch, as for every product of rows (docs/guarantees.md, "One example, one row").
    """
    return _of_examples(lambda some: total(v[some].mT @ x[some], some), len(x), v.shape[2] * x.shape[2])


def of_convolution(
    x: Tensor,
    v: Tensor,
    taps: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    total: Total,
    each: int = 1,
) -> Tensor:
    """The same of the gradient of a convolution's weight, in any number of dimensions: of the patches that it reads.

    ``each`` images in turn are one example's, whose gradients are added first.
    """
    channels, positions = v.shape[1], math.prod(v.shape[2:])
    width = x.shape[1] // groups * math.prod(taps)
    x = F.pad(x, [p for p in reversed(padding) for _ in range(2)]) if any(padding) else x

    def of_some(some: slice) -> Tensor:
        images = slice(some.start * each, some.stop * each)
        read = _patches(x[images], taps, stride, dilation, v.shape[2:]).reshape(-1, groups, width, positions)
        sent = v[images].reshape(-1, groups, channels // groups, positions)
        found = sent @ read.mT
        return total(found if each == 1 else found.unflatten(0, (-1, each)).sum(1), some)

    return _of_examples(of_some, len(x) // max(each, 1), each * width * (channels + groups * positions))


def _patches(x: Tensor, taps: Any, stride: Any, dilation: Any, size: Any) -> Tensor:
    """The entry of a padded input that each tap reads at each position, (examples, channels, *taps, *size)."""
    each, channel, *steps = x.stride()
    by_tap = [s * d for s, d in zip(steps, dilation, strict=True)]
    by_position = [s * n for s, n in zip(steps, stride, strict=True)]
    shape = (len(x), x.shape[1], *taps, *size)
    return x.as_strided(shape, (each, channel, *by_tap, *by_position), x.storage_offset())


def _of_examples(part: Callable[[slice], Tensor], examples: int, held: int) -> Tensor:
    """The sum of the parts of a batch, of so many examples that their ``held`` numbers each fit the memory."""
    step = max(1, min(BLOCK, HELD // held))

    def chained(start: int, end: int) -> Tensor:
        total = part(slice(start, min(end, start + step)))
        for i in range(start + step, end, step):
            total.add_(part(slice(i, min(end, i + step))))
        return total

    return _tree(chained, 0, examples, step * CHAIN)


def _tree(of: Callable[[int, int], Tensor], start: int, end: int, leaf: int) -> Tensor:
    """The sum over a range by a tree: the range is halved until a part is a leaf."""
    leaves = -(-(end - start) // leaf)
    if leaves <= 1:
        return of(start, end)
    middle = start + leaf * (leaves // 2)
    return _tree(of, start, middle, leaf).add_(_tree(of, middle, end, leaf))


def _writable(value: Tensor) -> bool:
    """Whether ``out=`` may be used, which autograd and vmap do not allow."""
    return not (torch.is_grad_enabled() or torch._C._functorch.is_functorch_wrapped_tensor(value))


def most_examples(expected: float) -> int:
    """The most examples in a Poisson batch of this expected size, except with a probability below 2^-80.

    Proof (Bernstein): a sum of indicators of mean B exceeds B + t with probability at most exp(-t^2 / (2B + 2t/3)).
    """
    odds = 80 * math.log(2)
    return math.ceil(expected + odds / 3 + math.sqrt((odds / 3) ** 2 + 2 * odds * expected))


def apart(examples: float, terms: int, blocked: bool, dtype: torch.dtype) -> float:
    """How far the roundings of two neighbouring sums may differ, in units of the bound of one example.

    Args:
        examples: the most examples in a sum.
        terms: the most terms that one example adds to an entry.
        blocked: the sum is in the blocks of this module; False: its order is left to the machine.
        dtype: the type of the sum.

    Proof, with u the rounding of one operation. The magnitudes of one example's terms add up to at most one unit, since
    bounds in norms do not depend on signs; in blocks of rows, to ``SPREAD`` units, since layers there bound sums whose
    terms cancel. A sum of N terms, in any order, is off by at most N u times all magnitudes, for n examples n units,
    products' roundings included (Jeannerod and Rump, 2013). With one term an example the error is smaller. A term a_t
    of entry j is rounded d_j(t) times, once for each partial sum that it is in, and in any order, sum_t d_j(t)^2 is at
    most that of a chain, n^3 / 3 + n^2 / 2. So along any direction c of length 1 the error is, by Cauchy-Schwarz, at
    most u times sum_t (sum_j c_j^2 d_j(t)^2)^(1/2) <= (n sum_j c_j^2 sum_t d_j(t)^2)^(1/2) <= n (n / sqrt 3 + 1/2), and
    n more for the products. In blocks the same holds with the size of a block in place of the batch, and each addition
    of a chain or level of the tree adds u times n. Computed partial sums exceed the exact ones by their roundings,
    which the last factor covers. Each of the two neighbours may be off by as much.
    """
    u, n = torch.finfo(dtype).eps / 2, examples + 1  # a neighbour has one more example
    rows = min(BLOCK, n * terms) if blocked else n * terms
    depth = rows / math.sqrt(3) + 1.5 if terms == 1 else rows
    if blocked:
        depth += CHAIN + math.ceil(math.log2(n * terms / CHAIN + 1))
        depth *= SPREAD if terms > 1 else 1
    return 2 * n * depth * u * (1 + 2 * depth * u)


def lost(examples: float, terms: int, entries: int, dtype: torch.dtype) -> float:
    """How far two sums of products may differ by underflow: a number below the smallest normal one may become 0."""
    return 4 * (examples + 1) * terms * math.sqrt(entries) * torch.finfo(dtype).tiny


def added(examples: float, times: int, dtype: torch.dtype) -> float:
    """How far two sums may differ after ``times`` more additions or roundings, each of relative error at most u."""
    return (examples + 1) * times * torch.finfo(dtype).eps
