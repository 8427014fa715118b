"""Normalisations and PReLU that bound their gradients: exact norms, torch's outputs, no example beyond the radius."""

import copy
import itertools
import math

import pytest
import torch
from helpers.clipped import gradients, require_clipped
from helpers.half import HALF, half
from torch import Tensor, nn

import dplip.nn as dn
from dplip.errors import ConfigurationError

LAYERS = {
    "LayerNorm": (nn.LayerNorm(5), (4, 5)),
    "LayerNorm of a matrix": (nn.LayerNorm((4, 5)), (4, 5)),
    "LayerNorm without shift": (nn.LayerNorm(5, bias=False), (5,)),
    "RMSNorm": (nn.RMSNorm(5), (4, 5)),
    "GroupNorm": (nn.GroupNorm(2, 4), (4, 3, 3)),
    "GroupNorm of a vector": (nn.GroupNorm(2, 6), (6,)),
    "InstanceNorm1d": (nn.InstanceNorm1d(3, affine=True), (3, 6)),
    "InstanceNorm2d": (nn.InstanceNorm2d(3, affine=True), (3, 4, 4)),
    "InstanceNorm3d": (nn.InstanceNorm3d(3, affine=True), (3, 2, 2, 2)),
    "PReLU": (nn.PReLU(), (3, 4)),
    "PReLU of channels": (nn.PReLU(3), (3, 4)),
}
EACH = pytest.mark.parametrize("name", LAYERS)


def made(name: str, examples: int = 6) -> tuple[nn.Module, Tensor]:
    layer, shape = LAYERS[name]
    layer, generator = copy.deepcopy(layer), torch.Generator().manual_seed(0)
    for p in layer.parameters():
        p.data = 1 + torch.randn(p.shape, generator=generator)
    return layer, torch.randn(examples, *shape, generator=generator)


@EACH
@pytest.mark.parametrize("size", [1e-3, 1.0, 100.0])
def test_each_example_s_gradient_is_scaled_into_the_radius_and_reaches_it(name, size):
    layer, x = made(name)
    require_clipped(layer, x, radius=0.7, size=size)


@EACH
def test_a_large_radius_leaves_outputs_and_gradients(name):
    layer, x = made(name)
    layer, x = layer.double(), x.double().requires_grad_()
    bounded = dn.bound_gradients(copy.deepcopy(layer), 1e6)
    assert list(bounded.state_dict()) == list(layer.state_dict()) and type(bounded) is not type(layer)
    y, z = layer(x), bounded(x)
    torch.testing.assert_close(y, z)
    v = torch.randn_like(y)
    own = torch.autograd.grad(y, [x, *layer.parameters()], v)
    for a, b in zip(own, torch.autograd.grad(z, [x, *bounded.parameters()], v), strict=True):
        torch.testing.assert_close(a, b)


@EACH
@pytest.mark.parametrize("how", ["evaluation", "frozen"])
def test_nothing_to_bound_is_torch_s_layer_bit_for_bit(name, how):
    layer, x = made(name)
    if how == "frozen":
        assert type(dn.bound_gradients(copy.deepcopy(layer).requires_grad_(False))) is type(layer)
    bounded = dn.bound_gradients(copy.deepcopy(layer)).eval()
    assert torch.equal(layer(x), bounded(x))


@EACH
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_no_magnitude_takes_an_example_beyond_the_radius(name, dtype):
    layer, x = made(name, 1)
    bounded = dn.bound_gradients(layer, 0.7)
    sizes = [0.0, 1e-45, 1e-30, 1.0, 1e15, 1e30, 3e38, math.inf, math.nan]
    for a, b in itertools.product(sizes, sizes):
        with half(dtype) if dtype else torch.enable_grad():
            y = bounded(a * x)
        for g in torch.autograd.grad(y, list(bounded.parameters()), b * torch.ones_like(y)):
            assert g.dtype == torch.float32 and float(g.double().norm()) <= 0.7


@EACH
def test_an_example_moves_the_sum_by_its_own_gradient_alone(name):
    layer, x = made(name, 40)
    bounded = dn.bound_gradients(layer, 0.7)
    v = torch.randn(bounded(x).shape) * torch.logspace(-6, 6, 40).reshape(-1, *[1] * (x.ndim - 1))
    for bad in (1.0, 1e20, math.nan, math.inf):
        odd = torch.cat([x[:1] * bad, x[1:]])
        whole, rest = gradients(bounded, (odd,), v), gradients(bounded, (x[1:],), v[1:])
        for a, b in zip(whole, rest, strict=True):
            assert float((a.double() - b.double()).norm()) <= 0.7 * (1 + 1e-4)


@pytest.mark.parametrize(
    ("layer", "shape"), [(nn.Linear(5, 5), (4, 5)), (nn.LayerNorm(5), (4, 5)), (nn.GroupNorm(2, 4), (4, 3, 3))]
)
def test_positions_that_cancel_are_scaled_by_their_magnitudes(layer, shape):
    """So the order of their sum, which is the machine's, moves an example's share by few roundings of the radius."""
    bounded, x = dn.bound_gradients(copy.deepcopy(layer), 0.7), torch.randn(1, *shape)
    v = torch.zeros(1, *shape)
    entries = v[0].movedim(0, -1) if isinstance(layer, nn.GroupNorm) else v[0]  # positions first
    entries[0], entries[1], entries[2] = 2.0**20, -(2.0**20), 0.25
    whole = v.reshape(1, -1).abs().sum() / math.sqrt(len(bounded.bias))
    given = torch.autograd.grad(bounded(x), bounded.bias, v)[0]
    true = v.reshape(1, *shape).sum(1 if shape == (4, 5) else (2, 3))[0]
    assert 0.9 < float(given.norm() / true.norm()) / float(256 * 0.7 / whole) < 1.1


@HALF
def test_the_gradient_under_autocast_is_in_the_parameter_s_type(dtype):
    bounded, x = dn.BoundedLayerNorm(5, radius=0.5), torch.randn(1, 4, 5)
    with half(dtype):
        y = bounded(x.to(dtype))
    for g in torch.autograd.grad(y, list(bounded.parameters()), 50 * torch.ones_like(y)):
        assert g.dtype == torch.float32 and 0.495 < float(g.norm()) <= 0.5


@EACH
@pytest.mark.parametrize("examples", [0, 1])
def test_batches_of_none_and_of_one(name, examples):
    layer, x = made(name, examples)
    bounded = dn.bound_gradients(layer)
    for g in gradients(bounded, (x,), torch.ones_like(x)):
        assert torch.isfinite(g).all() and (examples or not g.any())


def test_memory_layout_is_no_matter():
    layer, x = made("GroupNorm")
    turned = x.to(memory_format=torch.channels_last)
    require_clipped(layer, turned, radius=0.7)
    require_clipped(layer, x.mT, radius=0.7)


@pytest.mark.parametrize("layer, shape", [(dn.BoundedLayerNorm(5), (5,)), (dn.BoundedPReLU(4), (4,))])
def test_an_input_without_an_axis_of_examples_is_refused(layer, shape):
    with pytest.raises(ConfigurationError, match="axis of examples"):
        layer(torch.ones(shape))


def test_statistics_of_a_batch_are_refused_before_anything_is_changed():
    model = nn.Sequential(nn.Linear(3, 3), nn.InstanceNorm1d(3, affine=True, track_running_stats=True))
    with pytest.raises(ConfigurationError, match=r"^1: .*track_running_stats=True"):
        dn.bound_gradients(model)
    assert type(model[0]) is nn.Linear


def test_what_is_used_by_each_example_is_bounded_whatever_the_use():
    p = torch.randn(3, 2, requires_grad=True)
    for size in (1e-3, 1.0, 1e3):
        rows = dn.per_example(p, 5, 0.5)
        assert rows.shape == (5, 3, 2) and rows.stride(0) == 0
        v = size * torch.randn(5, 3, 2)
        (got,) = torch.autograd.grad(rows, p, v)
        norms = v.flatten(1).norm(dim=1)[:, None, None]
        torch.testing.assert_close(got, (v * (0.5 / norms).clamp(max=1)).sum(0), rtol=1e-4, atol=1e-5)
    scalar = torch.ones((), requires_grad=True)
    (got,) = torch.autograd.grad(dn.per_example(scalar, 4, 0.5).sum(), scalar)
    assert 1.99 < float(got) <= 2
    with pytest.raises(ConfigurationError, match="radius"):
        dn.per_example(p, 5, 0.0)
