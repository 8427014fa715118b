"""The input layer of tables: blocks are projected, and wild values stay within the bound."""

import math

import pytest
import torch

import dplip
from dplip import nn as dn
from dplip.nn.tabular_input import capped_simplex


def test_blocks_are_projected_and_one_hot_rows_pass():
    generator = torch.Generator().manual_seed(0)
    eye = torch.eye(5)
    assert torch.equal(capped_simplex(eye), eye)
    rows = torch.rand(500, 5, generator=generator, dtype=torch.float64)
    found = capped_simplex(rows)
    assert float(found.min()) >= 0 and float(found.sum(1).max()) <= 1 + 1e-9
    others = torch.rand(500, 5, generator=generator, dtype=torch.float64)
    others = others / others.sum(1, keepdim=True)
    # A projection onto a convex set: no other point of it lies nearer.
    assert bool(((rows - found).norm(dim=1) <= (rows - others).norm(dim=1) + 1e-9).all())


def test_a_table_with_wild_values_stays_within_its_bound():
    module = dn.TabularInput([0.0, -5.0], [1.0, 5.0], (3, 2), log=[1])
    output, _ = dplip.propagate(module, (7,))
    wild = torch.tensor([[math.inf] * 7, [-math.inf] * 7, [1e30] * 7, [-3.0] * 7, [0.4] * 7])
    y = module(wild)
    assert bool(y.isfinite().all())
    for p in (1, 2, math.inf):
        assert float(torch.linalg.vector_norm(y, p, dim=1).max()) <= output.norm(p)
    corner = module(torch.tensor([[1.0, -5.0, 0, 1, 0, 1, 0]]))
    assert [float(torch.linalg.vector_norm(corner, p)) for p in (1, 2)] == pytest.approx([output.l1, output.l2], 1e-5)
