"""Attention that bounds its gradients: torch's outputs and gradients, and no example beyond the radius of a use."""

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from helpers.clipped import require_clipped
from helpers.half import HALF, half
from torch import Tensor, nn

import dplip.nn as dn
from dplip.errors import ConfigurationError
from dplip.sensitivities.uses import uses_of
from dplip.separation import Watch

B, T, S, E, H = 3, 4, 5, 8, 2


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def layer(**options: Any) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(E, H, **options, dtype=torch.float64)
    for p in attention.parameters():
        p.data = torch.randn_like(p)
    return attention


PADDING = torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] + [True] * 4])
CAUSAL = torch.ones(T, S, dtype=torch.bool).triu(1)
OPTIONS: list[dict[str, Any]] = [
    {},
    {"bias": False},
    {"add_bias_kv": True},
    {"add_zero_attn": True},
    {"kdim": 6, "vdim": 7, "add_bias_kv": True},
]
MASKS: dict[str, dict[str, Any]] = {
    "none": {},
    "padding": {"key_padding_mask": PADDING},
    "float padding": {"key_padding_mask": torch.where(PADDING, -3.0, 0.5).double()},
    "mask": {"attn_mask": CAUSAL},
    "float mask": {"attn_mask": random(T, S, seed=3)},
    "a mask of each head": {"attn_mask": random(B * H, T, S, seed=4) > 1},
    "both": {"attn_mask": CAUSAL, "key_padding_mask": PADDING, "is_causal": True},
    "causal": {"attn_mask": CAUSAL, "is_causal": True},
}


def inputs(attention: Any, how: str) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = random(B, T, E), random(B, S, attention.kdim, seed=1), random(B, S, attention.vdim, seed=2)
    if how == "self":
        q = k = v = random(B, S, E, seed=1)
    elif how == "cross":
        v = k
    return q, k, v


def turned(attention: nn.MultiheadAttention, *tensors: Tensor) -> list[Tensor]:
    """Tensors of (batch, places, features) in the layer's layout, with the identities that they had."""
    found = {id(t): t if attention.batch_first else t.transpose(0, 1).contiguous() for t in tensors}
    return [found[id(t)] for t in tensors]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("how", ["self", "cross", "each its own"])
def test_outputs_and_inactive_gradients_are_torch_s(options, mask, how):
    if "kdim" in options and how != "each its own":
        how = "each its own"
    for first, need_weights, average in itertools.product((True, False), (True, False), (True, False)):
        stock = layer(**options, batch_first=first)
        bounded = dn.bound_gradients(copy.deepcopy(stock), 1e9)
        assert type(bounded) is dn.BoundedMultiheadAttention and list(bounded.state_dict()) == list(stock.state_dict())
        given = [t.requires_grad_() for t in turned(stock, *inputs(stock, how))]
        masks = dict(MASKS[mask])
        if how == "self" and masks.get("attn_mask") is not None:
            masks["attn_mask"] = torch.cat([masks["attn_mask"], masks["attn_mask"][..., -1:, :]], dim=-2)
        settings = {"need_weights": need_weights, "average_attn_weights": average, **masks}
        y, weights = stock(*given, **settings)
        z, found = bounded(*given, **settings)
        torch.testing.assert_close(z, y)
        assert (found is None) == (weights is None)
        if weights is not None:
            torch.testing.assert_close(found, weights)
        u = random(*y.shape, seed=9)
        wanted = torch.autograd.grad(y, [*given, *stock.parameters()], u)
        for a, b in zip(torch.autograd.grad(z, [*given, *bounded.parameters()], u), wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)
        for m in (stock.eval(), bounded.eval()):
            m.requires_grad_(False)
        assert torch.equal(bounded(*given, **settings)[0], stock(*given, **settings)[0])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_no_use_takes_an_example_beyond_the_radius(options, size):
    """Whatever inputs, masks, weights and cotangents are; all of the radius is reached where it binds."""
    radius = 0.7
    for seed, need_weights in itertools.product(range(4), (True, False)):
        bounded = dn.bound_gradients(layer(**options, batch_first=True), radius)
        for i, p in enumerate(bounded.parameters()):
            p.data = random(*p.shape, seed=10 * seed + i) * (1, 10)[seed % 2]
        q, k, v = (size * t[:1] for t in inputs(bounded, "each its own"))
        names = {id(p): name for name, p in bounded.named_parameters()}
        for given in ((q, k, v), (v, v, v)) if "kdim" not in options else ((q, k, v),):
            masks = {"key_padding_mask": PADDING[1:2]} if seed % 2 else {}
            y = bounded(*given, need_weights=need_weights, **masks)[0]
            v_out = random(*y.shape, seed=seed) * 10.0 ** (3 * seed - 3)
            bounds = {n: use.bound for n, use in uses_of([y], names).items()}
            grads = torch.autograd.grad(y, list(bounded.parameters()), v_out)
            packed = ("in_proj_weight", "in_proj_bias")
            for (name, _), g in zip(bounded.named_parameters(), grads, strict=True):
                parts = 3 if name in packed and given[0] is not given[1] else 1
                assert bounds[name] == pytest.approx(radius * parts**0.5)
                assert float(g.norm()) <= bounds[name] * (1 + 1e-5)
                for part in g.chunk(parts):
                    assert float(part.norm()) <= radius * (1 + 1e-5)


class Self(nn.Module):
    """Attention of a batch to itself, or to another."""

    def __init__(self, attention: nn.MultiheadAttention, **settings: Any) -> None:
        super().__init__()
        self.attention, self.settings = attention, settings

    def forward(self, q: Tensor, k: Tensor | None = None, v: Tensor | None = None) -> Tensor:
        attended: Tensor = self.attention(q, q if k is None else k, q if v is None else v, **self.settings)[0]
        return attended


@pytest.mark.parametrize("size", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("need_weights", [True, False])
def test_each_example_s_gradient_is_scaled_into_the_radius_and_reaches_it(size, need_weights):
    for options in OPTIONS[:4]:
        one = Self(layer(**options, batch_first=True), need_weights=need_weights)
        require_clipped(one, random(B, S, E), radius=0.7, size=size)
    apart = layer(kdim=6, vdim=7, bias=False, batch_first=True)
    require_clipped(Self(apart, need_weights=need_weights), *inputs(apart, "each its own"), radius=0.7, size=size)


def test_one_place_reaches_the_radius_exactly():
    """Keys and values of one place, beside a row of zeros: the norm of each gradient is exact."""
    bounded = dn.bound_gradients(layer(batch_first=True, add_zero_attn=True), 0.7)
    q = random(1, 1, E)
    y = bounded(q, q, q)[0]
    for g in torch.autograd.grad(y, list(bounded.parameters()), 1e4 * random(*y.shape, seed=1)):
        assert 0.99 * 0.7 <= float(g.norm()) <= 0.7 * (1 + 1e-5)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("first", [True, False])
def test_each_example_is_bounded_by_itself(options, first):
    """The gradient of a batch is the sum of what its examples have alone, wherever the batch axis is."""
    bounded = dn.bound_gradients(layer(**options, batch_first=first), 0.7)
    axis = 0 if first else 1
    given = turned(bounded, *inputs(bounded, "each its own"))
    parameters = list(bounded.parameters())
    y = bounded(*given, key_padding_mask=PADDING)[0]
    u = 10 * random(*y.shape, seed=5)
    total = torch.autograd.grad(y, parameters, u)
    alone = [torch.zeros_like(p) for p in parameters]
    for i in range(B):
        one = [t.narrow(axis, i, 1) for t in given]
        y = bounded(*one, key_padding_mask=PADDING[i : i + 1])[0]
        for sums, g in zip(alone, torch.autograd.grad(y, parameters, u.narrow(axis, i, 1)), strict=True):
            sums += g
    for a, b in zip(total, alone, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("windows", [1, 2])
def test_a_watch_finds_the_examples_wherever_the_layer_has_them(first, windows):
    """With two windows an example, both are one example's."""
    bounded = dn.bound_gradients(layer(batch_first=first, add_bias_kv=True), 0.7)
    x = random(B, windows, S, E)
    parameters = list(bounded.parameters())
    with Watch([x], B):
        flat = x.flatten(0, 1)
        flat = flat if first else flat.transpose(0, 1)
        y = bounded(flat, flat, flat)[0]
    u = 100 * random(*y.shape, seed=5)
    total = torch.autograd.grad(y, parameters, u, retain_graph=True)
    axis = 0 if first else 1
    for i in range(B):
        only = torch.zeros_like(u)
        only.narrow(axis, i * windows, windows).copy_(u.narrow(axis, i * windows, windows))
        for g in torch.autograd.grad(y, parameters, only, retain_graph=True):
            assert float(g.norm()) <= 0.7 * (1 + 1e-5)
    assert all(float(g.norm()) > 0 for g in total)


def test_queries_that_are_the_same_for_all_examples_are_bounded_too():
    bounded = dn.bound_gradients(layer(batch_first=True), 0.7)
    queries, memory = nn.Parameter(random(T, E)), random(B, S, E)
    with Watch([memory], B):
        y = bounded(dn.per_example(queries, B, 0.7), memory, memory)[0]
        z = bounded(queries.detach()[None].expand(B, T, E), memory, memory)[0]
    torch.testing.assert_close(y, z)
    only = torch.zeros_like(y)
    only[1] = 1e3
    for g in torch.autograd.grad(z, list(bounded.parameters()), only):
        assert float(g.norm()) <= 0.7 * math.sqrt(2) * (1 + 1e-5)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
def test_transformers_of_torch_compute_what_they_did(first, norm_first):
    torch.manual_seed(0)
    options = {"dim_feedforward": 16, "dropout": 0.0, "batch_first": first, "norm_first": norm_first}
    model = nn.Transformer(E, H, 2, 2, dtype=torch.float64, **options)
    bounded = dn.bound_gradients(copy.deepcopy(model), 1e9)
    assert list(bounded.state_dict()) == list(model.state_dict())
    kinds = {type(m).__name__ for m in bounded.modules() if list(m.parameters(recurse=False))}
    assert kinds == {"BoundedLinear", "BoundedLayerNorm", "BoundedMultiheadAttention"}
    source, target = random(B, S, E), random(B, T, E, seed=1)
    if not first:
        source, target = source.transpose(0, 1), target.transpose(0, 1)
    masks = {
        "tgt_mask": nn.Transformer.generate_square_subsequent_mask(T, dtype=torch.float64),
        "src_key_padding_mask": torch.where(PADDING, -math.inf, 0.0).double(),
        "memory_key_padding_mask": torch.where(PADDING, -math.inf, 0.0).double(),
    }
    y, z = model(source, target, **masks), bounded(source, target, **masks)
    torch.testing.assert_close(y, z)
    u = random(*y.shape, seed=2)
    wanted = torch.autograd.grad(y, list(model.parameters()), u)
    for a, b in zip(torch.autograd.grad(z, list(bounded.parameters()), u), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)
    for grad in (torch.enable_grad(), torch.no_grad()):  # without gradients by the fast path
        with grad:
            assert torch.equal(model.eval()(source, target, **masks), bounded.eval()(source, target, **masks))


def test_an_encoder_takes_its_fast_path_in_evaluation():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(E, H, 16, batch_first=True), 2).eval()
    bounded, x = dn.bound_gradients(copy.deepcopy(model)), random(B, S, E, dtype=torch.float32)
    with torch.no_grad(), torch.profiler.profile() as profile:
        y = bounded(x, src_key_padding_mask=PADDING)
    assert "aten::_transformer_encoder_layer_fwd" in {event.key for event in profile.key_averages()}
    with torch.no_grad():
        assert torch.equal(y, model(x, src_key_padding_mask=PADDING))


def test_dropout_is_drawn_in_training_alone():
    for need_weights in (True, False):
        bounded = dn.bound_gradients(layer(batch_first=True, dropout=0.5))
        x = random(B, S, E)
        assert not torch.equal(bounded(x, x, x, need_weights=need_weights)[0], bounded(x, x, x)[0])
        bounded.eval()
        assert torch.equal(bounded(x, x, x)[0], bounded(x, x, x)[0])


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e200])
def test_an_example_that_is_all_padding_or_not_finite_moves_no_other(bad, need_weights):
    bounded = dn.bound_gradients(layer(batch_first=True), 0.7)
    parameters, x = list(bounded.parameters()), random(B, S, E)
    padding = PADDING.clone()
    padding[0] = True
    odd = torch.cat([x[:1] * bad, x[1:]])
    for given, mask in ((odd, PADDING), (x, padding)):
        both = bounded(given, given, given, key_padding_mask=mask, need_weights=need_weights)[0]
        others = x[1:]
        rest = bounded(others, others, others, key_padding_mask=mask[1:], need_weights=need_weights)[0]
        u = random(*both.shape, seed=2)
        moved = [
            a - b
            for a, b in zip(
                torch.autograd.grad(both, parameters, u), torch.autograd.grad(rest, parameters, u[1:]), strict=True
            )
        ]
        assert all(float(m.norm()) <= 0.7 * (1 + 1e-5) for m in moved)


@HALF
def test_gradients_under_autocast_are_in_the_parameters_type(dtype):
    bounded = dn.BoundedMultiheadAttention(E, H, batch_first=True, radius=0.7)
    x = random(1, S, E, dtype=torch.float32)
    with half(dtype):
        y = bounded(x, x, x, key_padding_mask=PADDING[:1])[0]
    for g in torch.autograd.grad(y, list(bounded.parameters()), 1e3 * torch.ones_like(y)):
        assert g.dtype == torch.float32 and float(g.double().norm()) <= 0.7 * (1 + 1e-5)


@pytest.mark.parametrize("batch, places", [(0, 3), (2, 1), (1, 3)])
def test_batches_of_none_and_single_places(batch, places):
    bounded = dn.bound_gradients(layer(batch_first=True))
    x = random(batch, places, E)
    y, weights = bounded(x, x, x)
    assert y.shape == x.shape and weights.shape == (batch, places, places)
    for g in torch.autograd.grad(y.sum(), list(bounded.parameters())):
        assert torch.isfinite(g).all()


def test_frozen_projections_get_no_gradient():
    bounded = dn.bound_gradients(layer(batch_first=True))
    bounded.in_proj_weight.requires_grad_(False)
    x = random(B, S, E)
    bounded(x, x, x)[0].sum().backward()
    assert bounded.in_proj_weight.grad is None and bounded.in_proj_bias.grad is not None


def test_what_is_not_a_batch_or_has_masks_of_other_shapes_is_refused():
    bounded, x = dn.bound_gradients(layer(batch_first=True)), random(B, S, E)
    with pytest.raises(ConfigurationError, match="without an axis of examples"):
        bounded(x[0], x[0], x[0])
    with pytest.raises(ConfigurationError, match="key_padding_mask has shape"):
        bounded(x, x, x, key_padding_mask=PADDING.mT)
    with pytest.raises(ConfigurationError, match="attn_mask has shape"):
        bounded(x, x, x, attn_mask=torch.zeros(B, S, S))
    with pytest.raises(ConfigurationError, match="Give the mask too"):
        bounded(x, x, x, is_causal=True)
    with pytest.raises(ConfigurationError, match="radius"):
        dn.BoundedMultiheadAttention(E, H, radius=0.0)
