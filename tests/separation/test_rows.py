"""Where the examples go when a tensor is viewed, against the positions of all its entries."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor

from dplip.separation.rows import Rows, at_step, by_strides, step, viewed_equal

SIZES = [1, 2, 3, 4, 6]


def shape_of(r: random.Random, entries: int) -> list[int]:
    shape: list[int] = []
    while entries > 1 and len(shape) < 3:
        shape.append(r.choice([d for d in range(1, entries + 1) if entries % d == 0]))
        entries //= shape[-1]
    return [*shape, entries]


def examples_of(shape: list[int], rows: Rows, examples: int) -> Tensor:
    """The example of each entry, as a place in a shape says."""
    index = torch.arange(shape[rows.axis]) // rows.inner % examples
    return index.view([-1 if k == rows.axis else 1 for k in range(len(shape))]).expand(shape)


@pytest.mark.parametrize("seed", range(40))
def test_a_view_has_the_examples_where_it_says(seed: int) -> None:
    r = random.Random(seed)
    examples = r.choice([2, 3, 4])
    rows = Rows(r.randrange(3), r.choice([1, 2, 3]), r.choice([1, 2, 3]))
    shape = [r.choice(SIZES) for _ in range(3)]
    shape[rows.axis] = rows.outer * examples * rows.inner
    of = examples_of(shape, rows, examples)
    for _ in range(20):
        new = shape_of(r, math.prod(shape))
        moved = of.reshape(new)
        found = at_step(step(rows, shape), new, examples)
        along = [k for k in range(len(new)) if torch.equal(moved, examples_along(moved, k))]
        if found is None:
            assert not along
        else:
            assert new[found.axis] == found.outer * examples * found.inner
            assert torch.equal(moved, examples_of(new, found, examples))


def examples_along(t: Tensor, k: int) -> Tensor:
    """A tensor as it would be if it depended on the index along one dimension alone."""
    first = t[tuple(slice(None) if j == k else slice(0, 1) for j in range(t.ndim))]
    return first.expand(t.shape)


@pytest.mark.parametrize("seed", range(40))
def test_strides_have_the_examples_where_they_say(seed: int) -> None:
    r = random.Random(seed)
    examples, distance = r.choice([2, 3]), r.choice([1, 2, 4, 6])
    memory = torch.arange(500) // distance % examples
    for _ in range(50):
        shape = [r.choice(SIZES) for _ in range(r.randint(1, 3))]
        strides = [r.choice([0, 1, 2, 4, 6, 12, 18]) for _ in shape]
        offset = r.choice([0, 0, 1, 2, 6])
        found = by_strides(distance, shape, strides, offset, examples)
        if found is not None:
            assert torch.equal(memory.as_strided(shape, strides, offset), examples_of(shape, found, examples))


@pytest.mark.parametrize("seed", range(40))
def test_equal_entries_stay_equal_in_a_view(seed: int) -> None:
    r = random.Random(seed)
    examples = r.choice([2, 3])
    shape = [r.choice(SIZES) for _ in range(3)]
    equal = {k for k in range(3) if r.random() < 0.5}
    of = torch.arange(math.prod(1 if k in equal else n for k, n in enumerate(shape)))
    of = of.view([1 if k in equal else n for k, n in enumerate(shape)]).expand(shape)
    for _ in range(20):
        new = shape_of(r, math.prod(shape))
        moved = of.reshape(new)
        for place in viewed_equal(frozenset(equal), shape, new, examples):
            if isinstance(place, int):
                split = moved.movedim(place, 0)
            else:
                split = moved.unflatten(place.axis, (place.outer, examples, place.inner)).movedim(place.axis + 1, 0)
            assert torch.equal(split, split[:1].expand_as(split))
