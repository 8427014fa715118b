"""Norms of convolutions against explicit operators: never below, and close where that is promised."""

import itertools
import math
from collections.abc import Sequence
from math import inf

import pytest
import torch
import torch.nn.functional as F
from helpers.laws import NAMES, induced, jacobians
from helpers.operators import FIELDS, bounds_of, explicit, seeded, true_norm
from scipy.sparse.linalg import LinearOperator, svds
from torch import nn

from dplip import Norms
from dplip.propagation import Walk


def random_layer(seed: int) -> tuple[nn.Conv1d | nn.Conv2d, tuple[int, ...]]:
    """Any kernel, stride, padding, dilation, groups and padding mode that a convolution can be walked with."""
    g = seeded(seed)

    def pick(choices: Sequence[int]) -> int:
        return choices[int(torch.randint(len(choices), (), generator=g))]

    axes = pick([1, 2, 2])
    groups = pick([1, 1, 2])
    kernel, stride = tuple(pick([1, 2, 3, 4]) for _ in range(axes)), tuple(pick([1, 1, 2, 3]) for _ in range(axes))
    dilation = tuple(pick([1, 1, 2, 3]) for _ in range(axes))
    size = tuple(pick([3, 4, 5, 6] if axes == 2 else [4, 7, 10, 45, 50]) for _ in range(axes))
    same = pick([0, 0, 0, 1])
    mode = ("zeros", "circular")[pick([0, 0, 1])]
    spans = tuple(d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
    if mode == "circular":
        stride = tuple(s if n % s == 0 else 1 for n, s in zip(size, stride, strict=True))
        padding: str | tuple[int, ...] = tuple(pick(range(span // 2 + 1)) for span in spans)
    else:
        padding = tuple(pick([0, 1, 2, span // 2]) for span in spans)
    if same:
        stride, padding = (1,) * axes, "same"
    reach = (
        spans
        if padding == "same" or mode == "circular"
        else [max(0, s - 2 * p) for s, p in zip(spans, padding, strict=True)]
    )
    size = tuple(max(n, r + 1) for n, r in zip(size, reach, strict=True))
    if mode == "circular":
        size = tuple(-(-n // s) * s for n, s in zip(size, stride, strict=True))
    channels = [groups * pick([1, 2]) for _ in range(2)]
    layer = (nn.Conv1d, nn.Conv2d)[axes - 1](
        *channels,
        kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=False,
        padding_mode=mode,
    )
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=g))
        family = pick(range(4))
        if family == 1:
            layer.weight.copy_(layer.weight.sign())
        elif family == 2:
            layer.weight.fill_(1.0)
        elif family == 3:  # alternating taps: the norm is at the highest frequency
            taps = [torch.arange(k) for k in kernel]
            layer.weight.copy_(
                (-1.0) ** torch.stack(torch.meshgrid(*taps, indexing="ij")).sum(0).expand_as(layer.weight)
            )
    return layer.double(), size


@pytest.mark.parametrize("block", range(8))
def test_no_convolution_exceeds_its_bounds(block: int) -> None:
    """All six induced norms of 240 random convolutions, with the size of the input known and unknown."""
    for seed in range(30 * block, 30 * (block + 1)):
        layer, size = random_layer(seed)
        exact = induced(explicit(layer, size))
        known, unknown = bounds_of(layer, size), bounds_of(layer, None)
        for key, value in exact.items():
            where = (seed, key, layer, size)
            assert value <= getattr(known, FIELDS[key]) * (1 + 1e-9), where
            assert value <= getattr(unknown, FIELDS[key]) * (1 + 1e-9), where
            assert getattr(known, FIELDS[key]) == getattr(known.T, FIELDS[dual(key)])


def dual(key: tuple[float, float]) -> tuple[float, float]:
    other = {1.0: inf, 2.0: 2.0, inf: 1.0}
    return other[key[1]], other[key[0]]


@pytest.mark.parametrize("block", range(4))
def test_no_kernel_gradient_exceeds_its_bounds(block: int) -> None:
    """At one input the gradient is linear in the cotangent, and its induced norms are exact."""
    for seed in range(1000 + 6 * block, 1000 + 6 * (block + 1)):
        layer, size = random_layer(seed)
        layer.bias = nn.Parameter(torch.ones(layer.out_channels, dtype=torch.float64))
        shape = (layer.in_channels, *size)
        walk = Walk(layer, shape)
        noise = torch.randn(shape, generator=seeded(seed), dtype=torch.float64)
        for x in (noise, torch.ones_like(noise), F.one_hot(noise.argmax(), noise.numel()).double().reshape(shape)):
            output, pullback = walk(Norms.of(x))
            for what, jacobian in jacobians(layer, x).items():
                for (q, r), exact in induced(jacobian.T).items():
                    cotangent, parameters = pullback(Norms(output.shape, **{NAMES[q]: 1.0}))
                    assert exact <= {"input": cotangent, **parameters}[what].norm(r) * (1 + 1e-9), (seed, what, q, r)


@pytest.mark.parametrize("seed", range(10))
def test_a_circular_convolution_is_exact(seed: int) -> None:
    layer = nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular", bias=False).double()
    nn.init.normal_(layer.weight, generator=seeded(seed))
    for key, value in induced(explicit(layer, (4, 5))).items():
        assert value <= getattr(bounds_of(layer, (4, 5)), FIELDS[key]) <= value * (1 + 1e-4), key


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_one_bound_holds_at_every_size(stride: int) -> None:
    """The torus bound without a size covers zero padding at any size, and the largest sizes come close to it."""
    for seed, k in itertools.product(range(4), (2, 3, 4, 5)):
        layer = nn.Conv1d(2, 2, k, stride=stride, padding=k // 2, bias=False).double()
        nn.init.normal_(layer.weight, generator=seeded(seed))
        bound = bounds_of(layer, None).two_two
        exact = [true_norm(explicit(layer, (n,))) for n in (*range(1, 12), 64, 120)]
        assert max(exact) <= bound <= 1.03 * max(exact)


def largest_singular_value(layer: nn.Conv2d, size: tuple[int, int]) -> float:
    """By Lanczos iteration, from below, to four digits."""
    shape = (1, layer.in_channels, *size)

    def forward(x: object) -> object:
        return F.conv2d(torch.as_tensor(x).reshape(shape), layer.weight, padding=1).numpy().reshape(-1)

    def backward(y: object) -> object:
        y = torch.as_tensor(y).reshape(1, layer.out_channels, *size)
        return F.conv_transpose2d(y, layer.weight, padding=1).numpy().reshape(-1)

    dimensions = (layer.out_channels * math.prod(size), layer.in_channels * math.prod(size))
    operator = LinearOperator(dimensions, matvec=forward, rmatvec=backward, dtype="float64")
    with torch.no_grad():
        return float(svds(operator, k=1, tol=1e-4, return_singular_vectors=False, random_state=0)[0])


@pytest.mark.parametrize("channels", [8, 16])
@pytest.mark.parametrize("kind", ["random", "nearly orthogonal"])
def test_within_five_percent_at_the_size_of_an_image(kind: str, channels: int) -> None:
    layer = nn.Conv2d(channels, channels, 3, padding=1, bias=False).double()
    noise = torch.randn(layer.weight.shape, generator=seeded(0), dtype=torch.float64)
    with torch.no_grad():
        if kind == "random":
            layer.weight.copy_(noise)
        else:
            nn.init.dirac_(layer.weight)
            layer.weight.add_(0.02 * noise)
    exact = largest_singular_value(layer, (32, 32))
    assert exact <= bounds_of(layer, (32, 32)).two_two <= 1.05 * exact
    assert exact <= bounds_of(layer, None).two_two <= 1.05 * exact


def test_the_circular_norm_of_the_same_size_is_no_bound() -> None:
    """Kernel [-1, 2, -1] on five entries: 3.732 with zeros, 3.618 around a circle (operator-norms, section 4)."""
    layer = nn.Conv1d(1, 1, 3, padding=1, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[[-1.0, 2.0, -1.0]]]))
    around = nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular", bias=False).double()
    around.load_state_dict(layer.state_dict())
    zeros = true_norm(explicit(layer, (5,)))
    assert true_norm(explicit(around, (5,))) < 3.62 < 3.73 < zeros <= bounds_of(layer, (5,)).two_two


def test_groups_take_the_larger_norm_not_the_product() -> None:
    layer = nn.Conv1d(4, 4, 1, groups=4, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.1, 0.2, 0.3, 0.223]).reshape(4, 1, 1))
    assert 0.3 <= bounds_of(layer, (7,)).two_two <= 0.3 * (1 + 1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_kernels_of_any_scale(scale: float) -> None:
    layer = nn.Conv2d(2, 2, 3, padding=1, bias=False)
    nn.init.normal_(layer.weight, generator=seeded(0))
    exact = scale * true_norm(explicit(layer.double(), (4, 4)))
    with torch.no_grad():
        layer.float().weight.mul_(scale)
    assert exact <= bounds_of(layer, (4, 4)).two_two * (1 + 1e-6)
