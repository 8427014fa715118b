"""Bounded layers over many positions: each example's gradient is scaled by its exact norm, in every way to it."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dplip.nn as dn
from dplip.errors import ConfigurationError, MixedExamplesError
from dplip.nn import sums
from dplip.nn.bounded import convert
from dplip.nn.bounded.enforcing import CANCELLED
from dplip.nn.bounded.linear import by_itself, norm_of_sum
from dplip.nn.gradient_ball import row_norms
from dplip.propagation import Walk
from dplip.separation import Watch

LAYERS = {
    "one position": (lambda: nn.Linear(5, 7), (5,)),
    "one of one": (lambda: nn.Linear(5, 7), (1, 5)),
    "few positions": (lambda: nn.Linear(9, 8), (3, 9)),
    "few of many numbers": (lambda: nn.Linear(300, 8), (2, 2, 300)),
    "many positions": (lambda: nn.Linear(5, 4), (6, 2, 5)),
    "one output": (lambda: nn.Linear(5, 1, bias=False), (12, 5)),
    "conv1d": (lambda: nn.Conv1d(3, 4, 3, stride=2, padding=1), (3, 9)),
    "conv1d same": (lambda: nn.Conv1d(4, 4, 4, padding="same", groups=2), (4, 7)),
    "conv1d valid": (lambda: nn.Conv1d(2, 4, 3, padding="valid", dilation=2), (2, 7)),
    "conv2d": (lambda: nn.Conv2d(2, 6, (3, 2), stride=(1, 2), padding=(0, 1), groups=2), (2, 6, 5)),
    "conv2d same": (lambda: nn.Conv2d(2, 3, (2, 3), padding="same", dilation=(2, 1)), (2, 5, 5)),
    "conv2d one position": (lambda: nn.Conv2d(2, 3, 4), (2, 4, 4)),
    "reflect": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (2, 4, 5)),
    "replicate": (lambda: nn.Conv2d(2, 3, 3, padding="same", padding_mode="replicate"), (2, 4, 5)),
    "circular": (lambda: nn.Conv1d(2, 3, 3, padding=2, padding_mode="circular", stride=2), (2, 8)),
    "depthwise": (lambda: nn.Conv2d(3, 3, 3, padding=1, groups=3, bias=False), (3, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(2, 4, 2, stride=(1, 2, 1), padding=1, groups=2), (2, 3, 4, 3)),
    "replicate 3d": (lambda: nn.Conv3d(1, 2, 3, padding=1, padding_mode="replicate"), (1, 3, 3, 3)),
    "up1d": (lambda: nn.ConvTranspose1d(3, 2, 3, stride=2, padding=1, output_padding=1), (3, 5)),
    "up2d": (lambda: nn.ConvTranspose2d(4, 6, (3, 2), stride=2, groups=2, padding=(1, 0)), (4, 3, 4)),
    "up2d padded": (lambda: nn.ConvTranspose2d(2, 2, 2, dilation=3, output_padding=2, bias=False), (2, 3, 3)),
    "up3d": (lambda: nn.ConvTranspose3d(2, 3, 2, stride=(2, 1, 1), dilation=(1, 2, 1)), (2, 2, 3, 2)),
}
EVERY = pytest.mark.parametrize("name", LAYERS)


def layers(name: str, radius: float) -> tuple[Any, Any]:
    """A stock layer in float64 and its bounded copy, by the table of conversions."""
    torch.manual_seed(0)
    stock, bounded = LAYERS[name][0]().double(), LAYERS[name][0]().double()
    bounded.load_state_dict(stock.state_dict())
    assert type(bounded) in convert.BOUNDED.values() or dn.bound_gradients(bounded, radius) is bounded
    return stock, bounded


def gradients(layer: Any, x: Tensor, v: Tensor) -> list[Tensor]:
    trained = [p for p in layer.parameters() if p.requires_grad]
    return list(torch.autograd.grad(layer(x), trained, v))


def example(name: str, count: int, seed: int = 0, kind: str = "random") -> tuple[Tensor, Tensor]:
    """Inputs and cotangents; the positions of an example may be alike, or nearly cancel."""
    make, shape = LAYERS[name]
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, *shape, generator=generator, dtype=torch.float64)
    like = make().double()(x)
    v = torch.randn(like.shape, generator=generator, dtype=torch.float64)
    if kind in ("alike", "cancelling"):  # along the last axis of positions
        axis = -2 if isinstance(make(), nn.Linear) and x.ndim > 2 else -1
        x, v = (t.narrow(axis, 0, 1).expand_as(t) + 0.03 * t for t in (x, v))
        if kind == "cancelling":
            signs = (-1.0) ** torch.arange(v.shape[axis]).double()
            v = v * (signs[:, None] if axis == -2 else signs)
    if kind == "one large":
        x[..., 0] *= 1e4
        v[..., -1] *= 1e-3
    return x, v


@EVERY
@pytest.mark.parametrize("kind", ["random", "alike", "cancelling", "one large"])
def test_the_gradient_is_the_sum_of_each_example_s_own_scaled_by_its_own_norm(name, kind):
    stock, bounded = layers(name, 1.0)
    x, v = example(name, 6, kind=kind)
    own = [gradients(stock, a[None], b[None]) for a, b in zip(x, v, strict=True)]
    radius = float(torch.stack([g[0].norm() for g in own]).median())
    bounded.radius = radius
    found = gradients(bounded, x, v)
    wanted = [sum(g * min(1.0, radius / float(g.norm())) for g in each) for each in zip(*own, strict=True)]
    if name.startswith("few") and kind == "cancelling":  # the bound of what the sum rounds by may be the smaller one
        assert all(float(g.norm()) <= 6 * radius for g in found)
        return
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * radius)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_example_exceeds_the_radius_and_where_it_is_active_it_is_reached(name, dtype):
    _, bounded = layers(name, 1.0)
    bounded.to(dtype)
    for kind, size in itertools.product(("random", "alike", "cancelling", "one large"), (1e-6, 1.0, 1e6)):
        for seed, share in itertools.product(range(2), (0.0, 0.7, 2.0)):
            x, v = (t.to(dtype) for t in example(name, 1, seed, kind))
            bounded.radius = 1e30
            true = [float(g.double().norm()) for g in gradients(bounded, size * x, v)]
            bounded.radius = radius = max(share * true[0], 1e-12)
            for g, norm in zip(gradients(bounded, size * x, v), true, strict=True):
                reached = float(g.double().norm())
                assert reached <= radius
                if not (name.startswith("few") and kind == "cancelling"):
                    assert reached >= 0.99 * min(norm, radius)


@EVERY
def test_a_large_radius_leaves_torch_s_own_outputs_and_gradients_in_every_layout(name):
    stock, bounded = layers(name, 1e9)
    x, v = example(name, 5)
    forms = [lambda t: t, lambda t: t.repeat_interleave(2, -1)[..., ::2], lambda t: t.mT.contiguous().mT]
    if x.ndim == 4:
        forms.append(lambda t: t.contiguous(memory_format=torch.channels_last))
    for form in forms:
        given, sent = form(x).requires_grad_(), form(v)
        y, z = stock(given), bounded(given)
        assert torch.equal(y, z) and torch.equal(y, bounded.eval()(given)) and bounded.train()
        wanted = torch.autograd.grad(y, [given, *stock.parameters()], sent)
        found = torch.autograd.grad(z, [given, *bounded.parameters()], sent)
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b)


@EVERY
def test_an_example_that_is_not_finite_or_too_large_adds_nothing(name):
    _, bounded = layers(name, 0.1)
    bounded.float()
    x, v = (t.float() for t in example(name, 4))
    rest = gradients(bounded, x[[0, 2]], v[[0, 2]])
    for bad in (math.nan, math.inf, -math.inf, 3e38):
        y, w = x.clone(), v.clone()
        y[1], w[3] = bad, bad
        both = [gradients(bounded, y[:3], v[:3])[:1], gradients(bounded, x[[0, 2, 3]], w[[0, 2, 3]])]
        for found in both:
            for a, b in zip(found, rest, strict=False):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@EVERY
def test_no_example_no_gradient_and_what_is_frozen_has_none(name):
    _, bounded = layers(name, 0.1)
    x, v = example(name, 3)
    assert all(not g.any() for g in gradients(bounded, x[:0], v[:0]))
    both = dict(zip(dict(bounded.named_parameters()), gradients(bounded, x, v), strict=True))
    for key in both:
        for p in bounded.parameters():
            p.requires_grad_(p is bounded.get_parameter(key))
        (alone,) = gradients(bounded, x, v)
        assert torch.equal(alone, both[key])


def test_a_sequence_without_positions_has_a_gradient_of_zero():
    layer = dn.BoundedLinear(4, 3)
    assert all(not g.any() for g in gradients(layer, torch.zeros(5, 0, 4), torch.zeros(5, 0, 3)))


@EVERY
def test_chunks_of_examples_change_nothing(name, monkeypatch):
    _, bounded = layers(name, 0.1)
    x, v = example(name, 40)
    whole = gradients(bounded, x, v)
    monkeypatch.setattr(sums, "HELD", 1)
    for a, b in zip(gradients(bounded, x, v), whole, strict=True):
        torch.testing.assert_close(a, b)


@EVERY
def test_gradients_of_single_examples_by_vmap(name):
    _, bounded = layers(name, 0.1)
    x, v = example(name, 4)
    bounded.requires_grad_(False)

    def score(weight: Tensor, x: Tensor, v: Tensor) -> Tensor:
        return (torch.func.functional_call(bounded, {"weight": weight}, (x[None],))[0] * v).sum()

    each = torch.vmap(torch.func.grad(score), in_dims=(None, 0, 0))(bounded.weight.detach(), x, v)
    bounded.weight.requires_grad_(True)
    torch.testing.assert_close(each.sum(0), gradients(bounded, x, v)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["few positions", "many positions", "conv2d", "up1d"])
def test_a_compiled_layer_keeps_its_radius(name):
    torch._dynamo.reset()
    _, bounded = layers(name, 0.1)
    x, v = example(name, 4)
    own = gradients(bounded, x, v)
    bounded.compile(backend="aot_eager", dynamic=False)
    for a, b in zip(gradients(bounded, x, v), own, strict=True):
        torch.testing.assert_close(a, b)
    torch._dynamo.reset()


# ------------------------------------------------------------------------------------------------------- the norms


def exact(x: Tensor, v: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(v.double().mT @ x.double())


@pytest.mark.parametrize("size", [1e-30, 1e-21, 1e-12, 1.0, 1e12, 1e18, 1e25])
@pytest.mark.parametrize(("positions", "inputs", "outputs"), [(2, 3, 3), (2, 3000, 40), (7, 64, 64), (30, 16, 16)])
def test_gram_matrices_bound_the_norm_from_above_and_nearly_exactly(positions, inputs, outputs, size):
    generator = torch.Generator().manual_seed(0)
    for common in (0.0, 1.0, 30.0):
        x = torch.randn(200, positions, inputs, generator=generator) + common
        v = torch.randn(200, positions, outputs, generator=generator) + common
        v = v * (1e-9 if common else 1.0)
        x = x * size
        norms = [row_norms(t.flatten(0, 1)).reshape(200, -1) for t in (x, v)]
        found, true = norm_of_sum(x, v, *norms), exact(x, v)
        most = (norms[0] * norms[1]).sum(1)
        assert bool((found >= true).all()) and bool((found >= most / sums.SPREAD).all()) and bool((found <= most).all())
        if 1e-12 <= size <= 1e12:
            assert bool((found <= torch.maximum(true * 1.005, most / sums.SPREAD)).all())


def test_norms_of_many_numbers_are_bounded_nearly_exactly():
    for n in (1, 5, 1023, 1024, 1025, 3000, 2**20 + 1):
        for x in (torch.ones(2, n) / 3, torch.randn(2, n, generator=torch.Generator().manual_seed(0))):
            true = x.double().norm(dim=1)
            assert bool((row_norms(x) >= true).all()) and bool((row_norms(x) <= true * (1 + 2e-4) + 1e-15).all())


def test_what_cancels_within_an_example_rounds_no_further_than_is_said():
    """A sum of rows rounds in proportion to their magnitudes, which may be far larger than the sum of an example."""
    assert not by_itself(4, 64, 64)
    n, layer = 256, dn.BoundedLinear(64, 64, bias=False)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 2, 64, generator=generator)
    v = torch.randn(n, 2, 64, generator=generator) * 1e4
    small = torch.randn(n, 2, 64, generator=generator) * 1e-4
    x, v = torch.cat([x, x], 1), torch.cat([v, -v + small], 1)
    each = torch.cat([gradients(layer, x[i : i + 1], v[i : i + 1])[0][None] for i in range(n)]).double()
    (found,) = gradients(layer, x, v)
    assert float((found.double() - each.sum(0)).norm()) <= sums.apart(n, 4, blocked=True, dtype=torch.float32)
    layer.double()
    own = x.double().mT @ v.double()
    magnitudes = (x.double().norm(dim=2) * v.double().norm(dim=2)).sum(1)
    assert float((magnitudes / own.flatten(1).norm(dim=1)).min()) > 1e3 * sums.SPREAD
    for i in range(20):
        (scaled,) = gradients(layer, x[i : i + 1].double(), v[i : i + 1].double())
        assert float(scaled.norm() / own[i].norm() * magnitudes[i]) <= sums.SPREAD * (1 + 1e-5)


def test_what_cancels_in_a_gradient_by_itself_is_scaled_by_its_magnitudes():
    """So that a product that rounds otherwise in another batch moves no example by more than a small share."""
    linear, conv = dn.BoundedLinear(3, 2, bias=False), dn.BoundedConv1d(3, 2, 1, bias=False)
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(1, 20, 2, generator=generator, dtype=torch.float64)
    v, x = v - v.mean(1, keepdim=True) + 1e-6, torch.full((1, 20, 3), 1e4, dtype=torch.float64)
    magnitudes = float((v.norm(dim=2) * x.norm(dim=2)).sum())
    true = float((v.mT @ x).norm())
    assert by_itself(20, 3, 2) and magnitudes > 1e4 * true
    for layer, given, sent in ((linear, x, v), (conv, x.mT, v.mT)):
        (found,) = gradients(layer.double(), given, sent)
        share = float(found.norm()) / true * magnitudes
        assert CANCELLED / 2 <= share <= CANCELLED * (1 + 1e-5)


def test_several_terms_of_an_example_are_charged_their_magnitudes():
    for n, terms in ((100, 2), (2000, 30)):
        one_block = sums.BLOCK * 2.0**-24 * sums.SPREAD * n  # how far a block of rows rounds, in any order
        assert sums.apart(n, terms, blocked=True, dtype=torch.float32) >= 2 * one_block


@pytest.mark.parametrize("shape", [(3, 16), (40, 16), (16,)])
def test_a_node_says_how_many_terms_it_adds_as_the_walk_does(shape):
    layer = dn.BoundedLinear(16, 8)
    terms = Walk(nn.Sequential(layer), shape).summations
    assert layer(torch.zeros(2, *shape)).grad_fn.terms == terms["0.weight"].terms
    assert terms["0.weight"].terms == (3 if shape[0] == 3 else 1) and terms["0.bias"].terms == 1
    assert layer(torch.zeros(2, *shape)).grad_fn.radius == 1.0


# ------------------------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize("form", ["positions first", "flattened"])
def test_a_linear_layer_finds_its_examples_in_another_place(form):
    layer = dn.BoundedLinear(6, 5, radius=0.1)
    x, v = torch.randn(4, 9, 6), torch.randn(4, 9, 5)
    wanted = gradients(layer, x, v)
    with Watch([x], examples=4):
        y = x.transpose(0, 1) if form == "positions first" else x.flatten(0, 1)
        z = layer(y)
    sent = v.transpose(0, 1) if form == "positions first" else v.flatten(0, 1)
    for a, b in zip(torch.autograd.grad(z, list(layer.parameters()), sent), wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_a_convolution_takes_examples_in_front_alone():
    layer, x = dn.BoundedConv1d(4, 3, 2), torch.randn(4, 4, 5)
    with Watch([x], examples=4):
        layer(x)
        with pytest.raises(MixedExamplesError, match="BoundedConv1d"):
            layer(x.transpose(0, 1))
        with pytest.raises(MixedExamplesError, match="depends on no example"):
            layer(torch.arange(80.0).reshape(4, 4, 5))
    with pytest.raises(ConfigurationError, match=r"x\[None\]"):
        layer(x[0])
    with pytest.raises(ConfigurationError, match="radius"):
        dn.BoundedConv3d(1, 1, 1, radius=0.0)


def test_a_transposed_convolution_takes_an_output_size():
    layer, stock = dn.BoundedConvTranspose2d(2, 3, 3, stride=2), nn.ConvTranspose2d(2, 3, 3, stride=2)
    stock.load_state_dict(layer.state_dict())
    x = torch.randn(2, 2, 3, 3)
    for mode in (True, False):
        assert torch.equal(layer.train(mode)(x, [8, 7]), stock(x, [8, 7]))
