"""Embeddings that bound their own gradients: exact norms whatever is repeated, no example beyond the radius."""

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from helpers.clipped import gradients, require_clipped
from helpers.half import HALF, half
from torch import Tensor, nn

import dplip.nn as dn
from dplip.errors import ConfigurationError
from dplip.nn import sums
from dplip.nn.bounded.embedding import of_examples, of_runs

LAYERS = {
    "Embedding": nn.Embedding(7, 3),
    "Embedding with padding": nn.Embedding(7, 3, padding_idx=2),
    "bag of a sum": nn.EmbeddingBag(7, 3, mode="sum"),
    "bag of a mean": nn.EmbeddingBag(7, 3, mode="mean", padding_idx=2),
    "bag of maxima": nn.EmbeddingBag(7, 3, mode="max", padding_idx=2),
}
EACH = pytest.mark.parametrize("name", LAYERS)
KINDS = ("any", "one token", "none", "one repeated", "all padding", "int32", "turned")
CASES = [(name, kind) for name in LAYERS for kind in KINDS if not (kind == "none" and "bag" in name)]  # torch has none


def ids(kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, 7, (9, 12), generator=generator)
    return {
        "any": drawn,
        "one token": drawn[:, :1],
        "none": drawn[:, :0],
        "one repeated": torch.full((9, 12), 4),
        "all padding": torch.full((9, 12), 2),
        "int32": drawn.int(),
        "turned": drawn.T.contiguous().T,
    }[kind]


@pytest.mark.parametrize(("name", "kind"), CASES)
@pytest.mark.parametrize("size", [1e-2, 1.0, 100.0])
def test_each_example_s_gradient_is_scaled_into_the_radius_and_reaches_it(name, kind, size):
    require_clipped(LAYERS[name], ids(kind), radius=0.7, size=size)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_large_radius_leaves_outputs_and_gradients(name, kind):
    layer: Any = copy.deepcopy(LAYERS[name]).double()
    bounded: Any = dn.bound_gradients(copy.deepcopy(layer), 1e6)
    assert list(bounded.state_dict()) == list(layer.state_dict()) and type(bounded) is not type(layer)
    y, z = layer(ids(kind)), bounded(ids(kind))
    torch.testing.assert_close(y, z)
    v = torch.randn_like(y)
    torch.testing.assert_close(*(torch.autograd.grad(o, m.weight, v)[0] for o, m in ((y, layer), (z, bounded))))
    assert torch.equal(bounded.eval()(ids(kind)), y)


def test_ids_of_any_shape():
    for shape in ((9,), (9, 2, 3)):
        require_clipped(nn.Embedding(7, 3), torch.randint(0, 7, shape), radius=0.7, size=10.0)


def test_weights_of_a_bag_get_their_gradient_and_give_the_table_its_own():
    stock, given = nn.EmbeddingBag(7, 3, mode="sum").double(), ids("any")
    weights = torch.randn(given.shape, dtype=torch.float64, requires_grad=True)
    for radius in (1e6, 0.7):
        bounded = dn.bound_gradients(copy.deepcopy(stock), radius)
        y, z = stock(given, None, weights), bounded(given, None, weights)
        torch.testing.assert_close(y, z)
        v = 10 * torch.randn_like(y)
        wanted, of_weights = torch.autograd.grad(y, [stock.weight, weights], v)
        got, below = torch.autograd.grad(z, [bounded.weight, weights], v)
        torch.testing.assert_close(below, of_weights)
        if radius == 0.7:
            wanted = torch.zeros_like(wanted)
            for i in range(len(given)):
                one = torch.autograd.grad(
                    stock(given[i : i + 1], None, weights[i : i + 1]), stock.weight, v[i : i + 1]
                )[0]
                wanted += one * min(1.0, 0.7 / float(one.norm()))
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@EACH
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_no_magnitude_takes_an_example_beyond_the_radius(name, dtype):
    bounded: Any = dn.bound_gradients(copy.deepcopy(LAYERS[name]), 0.7)
    for kind, size in itertools.product(
        ("any", "one repeated"), (0.0, 1e-45, 1e-30, 1.0, 1e15, 1e30, 3e38, math.inf, math.nan)
    ):
        with half(dtype) if dtype else torch.enable_grad():
            y = bounded(ids(kind)[:1])
        (g,) = torch.autograd.grad(y, bounded.weight, torch.randn_like(y) * size)
        assert g.dtype == torch.float32 and float(g.double().norm()) <= 0.7


@EACH
def test_an_example_moves_the_sum_by_its_own_gradient_alone(name):
    bounded = dn.bound_gradients(copy.deepcopy(LAYERS[name]), 0.7)
    generator = torch.Generator().manual_seed(1)
    given = torch.randint(0, 7, (500, 12), generator=generator)
    v = torch.randn(bounded(given).shape, generator=generator)
    v[0] *= 1e3
    for bad in (1.0, 1e20, math.nan, math.inf):
        odd = torch.cat([v[:1] * bad, v[1:]])
        moved = gradients(bounded, (given,), odd)[0].double() - gradients(bounded, (given[1:],), v[1:])[0].double()
        assert float(moved.norm()) <= 0.7 * (1 + sums.apart(500, 1, blocked=True, dtype=torch.float32))


def test_terms_that_cancel_within_an_example_hide_no_other():
    """Positions of one row that cancel are far larger than what the others add there."""
    bounded, given = dn.BoundedEmbedding(3, 2, radius=1.0), torch.zeros(5, 4, dtype=torch.int64)
    v = torch.full((5, 4, 2), 0.1)
    v[2] = torch.tensor([1e25, -1e25, 1e25, -1e25])[:, None]
    (got,) = gradients(bounded, (given,), v)
    torch.testing.assert_close(got[0], torch.full((2,), 1.6))


def test_examples_are_summed_in_blocks_that_round_by_less_than_is_charged():
    generator = torch.Generator().manual_seed(0)
    for count in (1, 2, 3, 1000, 4097):
        rows = torch.rand(count, 3, generator=generator)
        rows = rows / rows.norm(dim=1, keepdim=True)
        ids = torch.randint(0, 3, (count,), generator=generator)
        scale = torch.rand(count, generator=generator)
        total, kept = of_examples(rows, torch.arange(count), ids, scale, 3, count)
        assert len(kept) == len(kept.unique())
        wanted = torch.zeros(3, 3, dtype=torch.float64).index_add_(0, ids, rows.double() * scale.double()[:, None])
        assert float((total.double() - wanted[kept]).norm()) <= sums.apart(count, 1, True, torch.float32) / 2


@HALF
def test_the_gradient_under_autocast_is_that_of_the_rounded_cotangent(dtype):
    bounded, linear = dn.BoundedEmbedding(7, 3, radius=0.5), nn.Linear(3, 2)
    with half(dtype):
        y = linear(bounded(ids("any")))
    (g,) = torch.autograd.grad(100 * y.sum(), bounded.weight)
    assert g.dtype == torch.float32 and 0 < float(g.norm()) <= 9 * 0.5


def test_no_dense_gradient_for_each_example():
    bounded = dn.BoundedEmbedding(50_000, 4)
    given = torch.randint(0, 50_000, (64, 3))
    rows, _ = of_runs(torch.ones(192, 4), given.flatten())
    assert rows.numel() <= given.numel() * 4
    (g,) = gradients(bounded, (given,), torch.ones(64, 3, 4))
    assert len(g.abs().sum(1).nonzero()) == len(given.unique())


@pytest.mark.parametrize(
    "settings", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}, {"sparse": True}], ids=lambda s: next(iter(s))
)
@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_settings_that_no_bound_covers_are_refused(kind, settings):
    (name,) = settings
    with pytest.raises(ConfigurationError, match=rf"{name}=.*Set layer.{name} = "):
        dn.bound_gradients(kind(7, 3, **settings))


def test_bags_by_offsets_are_refused():
    bag = dn.BoundedEmbeddingBag(7, 3)
    with pytest.raises(ConfigurationError, match="axis of their own"):
        bag(torch.tensor([1, 2, 3]), torch.tensor([0, 2]))
    with pytest.raises(ConfigurationError, match="mode='mean'"):
        bag(ids("any"), None, torch.ones(9, 12))
