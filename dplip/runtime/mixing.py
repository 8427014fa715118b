"""A probe for mixing: does a row's result or gradient change when the other rows are changed or taken away?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

ROWS = 5
"""Rows of the batches whose gradients are compared: one backward pass for each."""

SAME, ALONE, SUMMED = 1e-4, 1e-2, 1e-2
"""Relative differences that rounding explains: of a row in two batches of one size; of a row in batches of two sizes
(other kernels may run, at worst in ten bits); of gradients (sums over all places of a map)."""

NOISE = 1e-6
"""A gradient is rounding alone below this part of the largest one."""

SIZES = 1.0, 100.0
"""Sizes of the other rows where gradients are compared: larger ones may overflow, which shows nothing."""

Function = Callable[..., Tensor]
"""A function from rows, one or more tensors with the batch first, to as many rows."""


def mixes(
    function: Function,
    rows: Sequence[Tensor],
    weights: Sequence[Tensor] = (),
    alone: bool = True,
    rounding: Sequence[float] = (),
) -> bool:
    """Whether some row of a function's result, or of its gradient, was seen to depend on the other rows.

    Args:
        function: pure, but for random numbers that it may draw.
        rows: its arguments, at least :data:`ROWS` rows of each. Gradients are those of the first tensor.
        weights: other tensors that the function depends on; each row's part in their gradients is compared too.
        alone: whether a row is also compared with itself in a batch of one; not where random numbers are drawn, which
            depend on the place in the batch.
        rounding: of each weight, the size of a gradient that is rounding alone.
    """

    def drawn(*given: Tensor) -> Tensor:
        with seeded(given[0].device):
            return function(*given)

    few = [t[:ROWS] for t in rows]
    with seeded(rows[0].device):
        return _values_mix(drawn, rows, alone) or _gradients_mix(drawn, few, weights, alone, rounding)


@contextmanager
def seeded(device: torch.device) -> Iterator[None]:
    """Draw the same random numbers inside at every call, and leave torch's states as they were."""
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index or 0])
    states = [generator.get_state() for generator in generators]
    for generator in generators:
        generator.manual_seed(0)
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def gradients_in(result: Tensor, wanted: Sequence[Tensor], cotangents: Tensor) -> Sequence[Tensor | None]:
    """As ``torch.autograd.grad``, for parameters of classes of their own too.

    Given such a parameter itself, torch leaves its class aside in all that runs, checkpointed code included.
    """
    edges = [get_gradient_edge(t) for t in wanted]
    return torch.autograd.grad(result, edges, cotangents, allow_unused=True)


def close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """Whether two tensors differ by at most ``tolerance`` of their largest entry, and have NaN and infinity alike."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if torch.equal(a, b):
        return True
    if not a.is_floating_point():
        return False
    finite = a.isfinite()
    if not torch.allclose(a[~finite], b[~finite], equal_nan=True):
        return False
    a, b = a[finite], b[finite]
    return not a.numel() or bool((a - b).abs().max() <= tolerance * torch.maximum(a.abs(), b.abs()).max())


@torch.no_grad()
def _values_mix(function: Function, rows: Sequence[Tensor], alone: bool) -> bool:
    count = len(rows[0])
    kept = sorted({0, count // 2, count - 1})  # the first, the last, and one with rows on both sides
    base = function(*rows)
    for sizes in ((1.0,), (1e4, 0.0, -1e8), (math.nan, math.inf)):
        given = _changed(rows, kept, sizes)
        try:
            changed = function(*given)
        except Exception:  # rows that the function refuses mix with none
            continue
        if not all(close(changed[k], base[k], SAME) for k in kept):
            return True
    return alone and not all(close(function(*_only(rows, k))[0], base[k], ALONE) for k in kept)


def _gradients_mix(
    function: Function, rows: Sequence[Tensor], weights: Sequence[Tensor], alone: bool, rounding: Sequence[float]
) -> bool:
    """Compare the gradient of all rows with the sum of each row's own, the others sending nothing or taken away."""
    count, inputs = len(rows[0]), rows[0].is_floating_point()
    with torch.no_grad():
        sent = _cotangents(function(*rows))

    def gradients(given: Sequence[Tensor], cotangents: Tensor) -> list[Tensor]:
        first = given[0].detach().clone().requires_grad_(inputs)
        wanted = [*weights, first] if inputs else list(weights)
        result = function(first, *given[1:])
        if not (wanted and result.requires_grad):
            return []
        found = gradients_in(result, wanted, cotangents)
        return [torch.zeros_like(t) if g is None else g for t, g in zip(wanted, found, strict=True)]

    def among(k: int, size: float) -> list[Tensor]:
        mine = torch.zeros_like(sent)
        mine[k] = sent[k]
        return gradients(_changed(rows, [k], (size,)), mine)

    def apart(k: int) -> list[Tensor]:
        found = gradients(_only(rows, k), sent[k : k + 1])
        if inputs and found:  # the gradient of the one input, at its place
            found[-1] = torch.cat([found[-1] if i == k else torch.zeros_like(found[-1]) for i in range(count)])
        return found

    whole = gradients(rows, sent)
    ways = [lambda k, size=size: among(k, size) for size in SIZES]
    for way in [*ways, apart] if alone else ways:
        parts = [way(k) for k in range(count)]
        sizes = [float(t.abs().max()) if t.numel() else 0.0 for t in whole]
        least = [max(noise, NOISE * max(sizes)) for noise, _ in zip_longest(rounding, sizes, fillvalue=0.0)]
        for whole_one, size, noise, *each in zip(whole, sizes, least, *parts, strict=True):
            total = torch.stack(each).sum(0)
            if size < noise and float(total.abs().max()) < noise:
                continue  # a gradient that is 0 but for rounding, as of a bias before a softmax over its positions
            if bool(total.isfinite().all()) and not close(total, whole_one, SUMMED):
                return True
    return False


def _changed(rows: Sequence[Tensor], kept: list[int], sizes: Sequence[float]) -> list[Tensor]:
    """The kept rows among random ones of the given sizes in turn; integers and targets only change places."""
    changed = []
    for t in rows:
        if t is rows[0] and t.is_floating_point():
            scale = torch.tensor(sizes, dtype=t.dtype, device=t.device).repeat(len(t))[: len(t)]
            other = torch.randn_like(t) * scale.reshape(-1, *[1] * (t.ndim - 1))
        else:
            other = t.roll(1, 0)
        other[kept] = t[kept]
        changed.append(other)
    return changed


def _only(rows: Sequence[Tensor], k: int) -> list[Tensor]:
    return [t[k : k + 1] for t in rows]


def _cotangents(result: Tensor) -> Tensor:
    """A cotangent for every row, in turn of middle, large and small size."""
    entries = torch.linspace(-1.0, 1.5, result[:1].numel(), dtype=result.dtype, device=result.device)
    sizes = torch.tensor([1.0, 100.0, 0.01], dtype=result.dtype, device=result.device).repeat(len(result))
    return (sizes[: len(result), None] * entries).reshape(result.shape)
