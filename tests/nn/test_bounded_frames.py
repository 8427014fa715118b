"""Convolutions of several images for each example, such as the frames of a film: the radius is for all of them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import dplip.nn as dn
from dplip.errors import MixedExamplesError
from dplip.separation import Rows, Watch

B, FRAMES, RADIUS = 3, 4, 0.5

LAYERS = {
    "conv1d": (lambda: nn.Conv1d(2, 4, 2), (2, 6)),
    "conv2d": (lambda: nn.Conv2d(2, 4, 3, padding=1, stride=2), (2, 6, 5)),
    "groups": (lambda: nn.Conv2d(2, 4, 3, groups=2, padding="same"), (2, 4, 5)),
    "reflected": (lambda: nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"), (2, 4, 5)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), (2, 3, 4, 3)),
    "transposed": (lambda: nn.ConvTranspose2d(2, 3, 3, stride=2, output_padding=1), (2, 3, 4)),
}
ORDERS = {
    "frames of an example in turn": (lambda x: x.flatten(0, 1), lambda y: y.unflatten(0, (-1, FRAMES))),
    "examples in turn": (
        lambda x: x.transpose(0, 1).flatten(0, 1),
        lambda y: y.unflatten(0, (FRAMES, -1)).transpose(0, 1),
    ),
    "both": (
        lambda x: x.unflatten(1, (2, 2)).transpose(0, 1).flatten(0, 2),
        lambda y: y.unflatten(0, (2, -1, 2)).transpose(0, 1).flatten(1, 2),
    ),
}


def run(layer: nn.Module, order: str, x: Tensor) -> Tensor:
    """Results of (examples, frames, ...) for as many."""
    fold, unfold = ORDERS[order]
    with Watch([x], len(x)) as watch:
        y: Tensor = unfold(layer(fold(x)))
        assert watch.rows(y) == Rows(0)
    return y


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_an_example_s_frames_are_scaled_together(name: str, order: str, size: float) -> None:
    make, shape = LAYERS[name]
    stock = make().double()
    layer = dn.bound_gradients(copy.deepcopy(stock), RADIUS)
    x = torch.randn(B, FRAMES, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fold, unfold = ORDERS[order]
    wanted = unfold(stock(fold(x)))
    v = size * torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    given = x.clone().requires_grad_()
    y = run(layer, order, given)
    torch.testing.assert_close(y, wanted)
    found = torch.autograd.grad(y, [given, *layer.parameters()], v)
    true = x.clone().requires_grad_()
    (below,) = torch.autograd.grad(unfold(stock(fold(true))), [true], v)
    torch.testing.assert_close(found[0], below)
    total = [torch.zeros_like(p) for p in stock.parameters()]
    for b in range(B):
        parts = torch.autograd.grad(stock(x[b]), list(stock.parameters()), v[b])
        for sums, g in zip(total, parts, strict=True):
            sums += g * min(1.0, RADIUS / float(g.norm()))
        alone = torch.autograd.grad(run(layer, order, x[b : b + 1]), list(layer.parameters()), v[b : b + 1])
        for g, part in zip(alone, parts, strict=True):
            assert 0.99 * min(RADIUS, float(part.norm())) <= float(g.norm()) <= RADIUS * (1 + 1e-5)
    for g, sums in zip(found[1:], total, strict=True):
        torch.testing.assert_close(g, sums, rtol=1e-3, atol=1e-5)


def test_frames_that_are_not_the_batch_are_refused() -> None:
    layer, x = dn.BoundedConv2d(3, 2, 1), torch.randn(3, FRAMES, 2, 2)
    with Watch([x], 3), pytest.raises(MixedExamplesError, match="BoundedConv2d"):
        layer(x.transpose(0, 1))
