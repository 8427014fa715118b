"""Random small programs: whatever the watch says of a tensor is so when the inputs change."""

from __future__ import annotations

import math
import random
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dplip.errors import MixedExamplesError
from dplip.separation import Rows, Watch
from dplip.separation.rows import Label

SIZES = [1, 2, 3, 4, 6]


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=1e-4, equal_nan=True)


def constant(r: random.Random, shape) -> Tensor:
    """A public tensor that broadcasts to a shape, or nearly."""
    shape = [1 if r.random() < 0.6 else n for n in shape][r.choice([0, 0, 0, 1]) :]
    whole = (torch.arange(math.prod(shape)).float() * r.choice([0.1, 7.3])).sin().view(shape)
    return whole[:1].expand(shape) if shape and r.random() < 0.3 else whole


def factors(r: random.Random, n: int) -> list[int]:
    """A random shape of n entries."""
    shape: list[int] = []
    while n > 1 and len(shape) < 4:
        divisors = [d for d in range(2, n + 1) if n % d == 0]
        shape.append(r.choice(divisors))
        n //= shape[-1]
    shape = [*shape, n] if n > 1 or not shape else shape
    if r.random() < 0.3:
        shape.insert(r.randrange(len(shape) + 1), 1)
    return shape


def some(r: random.Random, rank: int) -> list[int]:
    return sorted(r.sample(range(rank), r.randint(1, rank)))


def step(r: random.Random, shapes: list[tuple[int, ...]]):
    """A random operator on tensors that were made before, as a function of their list."""
    i, j = r.randrange(len(shapes)), r.randrange(len(shapes))
    shape = shapes[i]
    rank = len(shape)
    d, e, n = (r.randrange(rank), r.randrange(rank), r.choice(SIZES)) if rank else (0, 0, 1)
    dims = some(r, rank) if rank else []
    keep = r.random() < 0.5
    c = constant(r, shape)
    new = factors(r, math.prod(shape))
    order = r.sample(range(rank), rank)
    if rank and r.random() < 0.5:  # a view that splits or joins neighbours, which keeps the examples more often
        k = r.randrange(rank)
        near = factors(r, shape[k]) if r.random() < 0.5 or k + 1 == rank else None
        new = [*shape[:k], *near, *shape[k + 1 :]] if near else [*shape[:k], shape[k] * shape[k + 1], *shape[k + 2 :]]
    table = torch.arange(6.0).sin().view(3, 2)
    numbers = torch.tensor([r.randrange(shape[d]) for _ in range(n)]) if rank and shape[d] else torch.tensor([0])
    own = torch.arange(shape[d]) if rank else torch.arange(1)
    size = r.randint(1, shape[d]) if rank and shape[d] else 1
    steps = [
        lambda p: p[i].tanh(),
        lambda p: p[i] * 0.5 + 1,
        lambda p: p[i] + p[j],
        lambda p: p[i] * p[j],
        lambda p: p[i] + c,
        lambda p: p[i] * c,
        lambda p: torch.where(p[i] > 0, p[i], p[j]),
        lambda p: p[i].sum(dims, keepdim=keep),
        lambda p: p[i].amax(dims, keepdim=keep),
        lambda p: p[i].softmax(d),
        lambda p: p[i].cumsum(d),
        lambda p: p[i].flip(dims),
        lambda p: p[i].sort(d)[0],
        lambda p: p[i].roll(1, d),
        lambda p: p[i].permute(order),
        lambda p: p[i].permute(order),
        lambda p: p[i].reshape(new),
        lambda p: p[i].reshape(new),
        lambda p: p[i].reshape(new),
        lambda p: p[i].transpose(d, e),
        lambda p: p[i].select(d, 0),
        lambda p: p[i].narrow(d, 0, size),
        lambda p: p[i].unbind(d)[-1],
        lambda p: p[i].split(size, d)[0],
        lambda p: torch.cat([p[i], p[j]], d),
        lambda p: torch.stack([p[i], p[i].neg()], d),
        lambda p: p[i].unsqueeze(d),
        lambda p: p[i].squeeze(d),
        lambda p: p[i].unsqueeze(d).expand(*shape[:d], n, *shape[d:]),
        lambda p: p[i].repeat(*[n if k == d else 1 for k in range(rank)]),
        lambda p: p[i] @ p[j],
        lambda p: p[i] @ p[i].transpose(-1, -2),
        lambda p: p[i] @ table[:, :1].expand(3, shape[-1]).T if rank else p[i],
        lambda p: p[i].gather(d, p[i].argsort(d)),
        lambda p: p[i].index_select(d, numbers),
        lambda p: p[i].movedim(d, 0)[numbers],
        lambda p: one_place(p[i], d, own),
        lambda p: F.embedding((p[i] > 0).long(), table),
        lambda p: p[i].movedim(d, 0)[own[:, None], (p[j] > 0).long() % p[i].movedim(d, 0).shape[1]],
        lambda p: p[i].movedim(d, 1)[:, numbers],
        lambda p: F.layer_norm(p[i], shape[d:]),
        lambda p: F.group_norm(p[i], 1),
        lambda p: F.pad(p[i], (1, 0) if keep else (0, 0, 1, 1)),
        lambda p: F.conv1d(p[i], torch.ones(2, shape[1], 1)),
        lambda p: F.avg_pool1d(p[i], 2),
        lambda p: F.interpolate(p[i], scale_factor=2),
        lambda p: p[i].tril(),
        lambda p: p[i].unfold(d, size, 1),
        lambda p: p[i].clone().mul_(c),
        lambda p: p[i].clone().add_(p[j]),
        lambda p: written(p[i], new, d, c),
        lambda p: written(p[i], new, d, None),
        lambda p: partly(p[i], d, e),
        lambda p: p[i].masked_fill(p[j] > 0, 0.5),
        lambda p: masked(p[i], p[j]),
        lambda p: torch.zeros(shape).scatter_add(d, p[i].argsort(d), p[j]),
        lambda p: torch.zeros(shape).index_add(d, own, p[i]),
        lambda p: torch.zeros_like(p[i]),
        lambda p: F.glu(p[i], d),
        lambda p: torch.einsum("ab...,cb...->ac...", p[i], p[j]),
        lambda p: F.scaled_dot_product_attention(p[i], p[j], p[j]),
        lambda p: torch.cdist(p[i], p[j]),
        lambda p: p[i].flatten(min(d, e), max(d, e)),
        lambda p: p[i].movedim(d, e).reshape(new),
        lambda p: p[i].logsumexp(d),
        lambda p: torch.fft.fft(p[i], dim=d).real,
        lambda p: p[i].diagonal(0, d, e),
        lambda p: p[i].topk(size, d)[0],
        lambda p: F.linear(p[i], torch.ones(2, shape[-1])),
        lambda p: p[i].var(dims),
        lambda p: torch.cumprod(p[i], d),
    ]
    return r.choice(steps)


def one_place(x: Tensor, d: int, own: Tensor) -> Tensor:
    """For each slice the entry where its sums are largest."""
    x = x.movedim(d, 0)
    return x[own, x.flatten(2).sum(2).argmax(1)]


def written(x: Tensor, new: list[int], d: int, c: Tensor | None) -> Tensor:
    """Rows written into a view of a new tensor."""
    out = torch.zeros(new)
    other = out.flatten()
    view = out.view(x.shape)
    view.copy_(x if c is None else x + c)
    return out + other.view(new)


def partly(x: Tensor, d: int, e: int) -> Tensor:
    """A part of a new tensor written, another read."""
    out = x.new_zeros(x.shape)
    read = out.transpose(d, e)
    out.select(e, 0).copy_(x.select(e, 0))
    return read + 0


def masked(x: Tensor, y: Tensor) -> Tensor:
    out = x.clone()
    out[y > 0] = 0.25
    return out


def by_example(t: Tensor, rows: Rows, examples: int) -> Tensor:
    """The examples at the front."""
    return t.unflatten(rows.axis, (rows.outer, examples, rows.inner)).movedim(rows.axis + 1, 0)


@pytest.mark.parametrize("seed", range(40))
def test_what_the_watch_says_is_so(seed: int) -> None:
    warnings.simplefilter("ignore")
    kept = 0
    for n in range(10):
        kept += _program(random.Random(100 * seed + n))
    assert kept > 20  # programs of some length, not of refusals alone


def _program(r: random.Random) -> int:
    examples = r.choice([2, 3, 4])
    shape = [examples, *(r.choice(SIZES) for _ in range(r.randint(1, 3)))]
    generator = torch.Generator().manual_seed(r.randrange(10**6))
    x = torch.randn(shape, generator=generator)
    pool, steps = [x], []
    labels: list[Label] = [Rows(0)]
    with Watch([x], examples) as watch:
        for _ in range(14):
            run = step(r, [tuple(t.shape) for t in pool])
            try:
                result = run(pool)
                if result.numel() > 3000 or not result.is_floating_point():
                    continue
                labels.append(watch._marks.of(result).label)
            except (MixedExamplesError, RuntimeError, IndexError, ValueError, TypeError):
                continue
            steps.append(run)
            pool.append(result)

    def again(given: Tensor) -> list[Tensor]:
        found = [given]
        for run in steps:
            found.append(run(found))
        return found

    order = torch.randperm(examples, generator=generator)
    permuted = again(x[order])
    for b in range(examples):
        other = torch.randn(shape, generator=generator)
        other[b] = x[b]
        changed = again(other)
        for at, (label, was, now, moved) in enumerate(zip(labels, pool, changed, permuted, strict=True)):
            if isinstance(label, Rows):
                was, now, moved = (by_example(t, label, examples) for t in (was, now, moved))
                assert close(was[b], now[b]), (at, label)
                assert close(was[order], moved), (at, label)
            else:
                assert close(was, now), (at, label)
                for place in label.equal:
                    if isinstance(place, Rows):
                        parts = by_example(was, place, examples)
                    else:
                        parts = was.movedim(place, 0)
                    assert close(parts, parts[:1].expand_as(parts)), (at, place)
    return len(steps)
