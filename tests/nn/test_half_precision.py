"""Bounded layers in half precision: no example exceeds the radius."""

import itertools
import math
from typing import Any

import pytest
import torch
from helpers.gated import X
from helpers.half import HALF, half, length
from torch import nn

import dplip.nn as dn
from dplip.losses import CrossEntropy

LAYERS = {
    "vector": (lambda: dn.BoundedLinear(6, 4, radius=0.7), (6,), (4,)),
    "tokens": (lambda: dn.BoundedLinear(6, 4, radius=0.7), (5, 6), (5, 4)),
    "narrow": (lambda: dn.BoundedLinear(3, 40, radius=0.7), (3,), (40,)),
    "image": (lambda: dn.BoundedConv2d(2, 3, 3, padding=1, radius=0.7), (2, 4, 5), (3, 4, 5)),
    "patches": (lambda: dn.BoundedConv2d(2, 4, 2, 2, radius=0.7), (2, 2, 2), (4, 1, 1)),
    "many tokens": (lambda: dn.BoundedLinear(4, 3, radius=0.7), (9, 4), (9, 3)),
    "sequence": (lambda: dn.BoundedConv1d(2, 3, 3, padding="same", radius=0.7), (2, 5), (3, 5)),
    "volume": (lambda: dn.BoundedConv3d(2, 3, 2, radius=0.7), (2, 3, 2, 3), (3, 2, 1, 2)),
    "transposed": (lambda: dn.BoundedConvTranspose2d(2, 3, 2, radius=0.7), (2, 2, 3), (3, 3, 4)),
    "groups": (lambda: dn.BoundedConv2d(2, 4, 2, groups=2, radius=0.7), (2, 4, 4), (4, 3, 3)),
}


@HALF
@pytest.mark.parametrize("backward_inside", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_no_example_exceeds_the_radius_whatever_meets_in_the_layer(name, backward_inside, dtype):
    make, shape, out = LAYERS[name]
    layer, generator = make(), torch.Generator().manual_seed(0)
    sizes = [0.0, 1e-45, 1e-39, 6e-8, 1e-3, 1.0, 300.0, 1e15, 1e30, 3e38, math.inf, math.nan]
    longest = {"weight": 0.0, "bias": 0.0}
    for a, b in itertools.product(sizes, sizes):
        for equal in (True, False):
            x = a * (torch.ones(1, *shape) if equal else torch.randn(1, *shape, generator=generator))
            v = b * (torch.ones(1, *out) if equal else torch.randn(1, *out, generator=generator))
            layer.zero_grad()
            with half(dtype):
                z = layer(x)
                if backward_inside:
                    z.backward(v.to(z.dtype))
            if not backward_inside:
                z.backward(v.to(z.dtype))
            assert z.dtype == dtype
            for key, p in layer.named_parameters():
                assert p.grad.dtype == torch.float32
                assert length(p.grad) <= 0.7  # and NaN is not
                longest[key] = max(longest[key], length(p.grad))
    assert longest["bias"] > 0.99 * 0.7
    assert longest["weight"] > 0.99 * 0.7


@HALF
@pytest.mark.parametrize("name", LAYERS)
def test_the_gradient_is_the_float32_layer_s_of_the_rounded_tensors(name, dtype):
    """Bit for bit, on a batch: so whatever is proved of that layer holds."""
    make, shape, out = LAYERS[name]
    layer, generator = make(), torch.Generator().manual_seed(0)
    x = (9 * torch.randn(64, *shape, generator=generator)).to(dtype)
    v = torch.randn(64, *out, generator=generator).to(dtype)
    found, below = [], []
    for rounded in (True, False):
        layer.zero_grad()
        here = (x if rounded else x.float()).clone().requires_grad_()
        with torch.autocast("cpu", dtype, enabled=rounded):
            z = layer(here)
        z.backward(v.to(z.dtype))
        assert here.grad.dtype == here.dtype
        found.append([p.grad.clone() for p in layer.parameters()])
        below.append(here.grad.float())
    assert all(map(torch.equal, *found))
    # What goes on to the layers below is a product in half precision.
    assert 0 < float((below[0] - below[1]).abs().max()) < 0.05


def test_gradients_of_single_examples_by_vmap_keep_the_radius():
    layer = dn.BoundedLinear(6, 4, radius=0.25)

    def score(weight, x):
        z = torch.func.functional_call(layer, {"weight": weight, "bias": layer.bias}, (x[None],))
        return 100 * z.float().square().sum()

    with half():
        each = torch.vmap(torch.func.grad(score), in_dims=(None, 0))(layer.weight.detach(), X).detach()
    norms = each.double().flatten(1).norm(dim=1)
    assert each.dtype == torch.float32 and bool((norms <= 0.25).all())
    assert bool((norms > 0.99 * 0.25).all())


@HALF
def test_a_compiled_layer_keeps_its_radius(dtype):
    torch._dynamo.reset()
    layer = dn.BoundedLinear(6, 4, radius=0.25)
    layer.compile(backend="aot_eager", dynamic=False)
    for size in (1.0, 1e4, math.inf, math.nan):
        with half(dtype):
            z = layer(X[:1] * size)
        layer.zero_grad()
        z.backward(torch.ones_like(z))
        assert length(layer.weight.grad) <= 0.25 and length(layer.bias.grad) <= 0.25
    torch._dynamo.reset()


@pytest.mark.parametrize("count", [1, 2, 17, 100, 255, 1023])
def test_a_row_does_not_depend_on_the_batch(count):
    """What the bounds assume of torch: a sum changes by one example's share, and not by how the others round."""
    model = dn.bound_gradients(nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10)))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1024, 64, generator=generator)

    def rows(x: torch.Tensor) -> tuple[Any, Any]:
        x = x.clone().requires_grad_()
        with half():
            z = model(x)
            CrossEntropy()(z, torch.zeros(len(x), dtype=torch.int64)).backward()
        return z.detach(), x.grad

    for all_rows, some in zip(rows(x), rows(x[-count:]), strict=True):
        assert torch.equal(all_rows[-count:], some)
