"""Functions that do not mix examples pass, and their operators are the same for any number of examples."""

from __future__ import annotations

import pytest
import torch
from helpers.separate import RANDOM, SEPARATE
from torch import nn

from dplip.separation import Rows, Template, Watch


def watched(function, x):
    x = x.requires_grad_() if x.is_floating_point() else x
    with Watch([x], len(x), function if isinstance(function, nn.Module) else None) as watch:
        result = function(x)
    assert watch.rows(result) == Rows(0)
    return watch.signature


@pytest.mark.parametrize(("rows", "function"), [pytest.param(r, f, id=n) for n, r, f in SEPARATE])
def test_each_example_is_treated_by_itself(rows, function) -> None:
    template = Template.of([(watched(function, rows(n)), n) for n in (5, 7)])
    for n in (1, 2, 4):
        assert template.fits(watched(function, rows(n)), n)
    with torch.no_grad():
        x = rows(5)
        alone = torch.cat([function(x[b : b + 1]) for b in range(5)])
        assert torch.allclose(function(x), alone, atol=1e-5)


@pytest.mark.parametrize(("rows", "function"), [pytest.param(r, f, id=n) for n, (r, f) in RANDOM.items()])
def test_random_numbers_of_each_example_do_not_mix_them(rows, function) -> None:
    template = Template.of([(watched(function, rows(n)), n) for n in (5, 7)])
    assert template.fits(watched(function, rows(3)), 3)
