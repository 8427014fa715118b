"""Samples of the rules of layers: linear, convolutions, normalisation, distances, splines and monotone ones."""

import operator
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import inf
from typing import Any

import torch
import torch.nn.functional as F
from helpers.sample import BOTH, IN, MAP, TOKENS, VECTOR, Sample, _name, calls, module
from torch import Tensor, nn

from dplip import nn as dn

EVERY = (*BOTH, "weight", "bias")
LINEAR = [
    Sample("Linear", lambda: nn.Linear(6, 4), VECTOR, EVERY),
    Sample("Linear without bias", lambda: nn.Linear(4, 6, bias=False), (4,), EVERY[:3]),
    Sample("Linear on tokens", lambda: nn.Linear(4, 5), TOKENS, EVERY),
    Sample("OrthogonalLinear", lambda: dn.OrthogonalLinear(6, 4), VECTOR, EVERY[:3]),
    Sample("SpectralLinear", lambda: dn.SpectralLinear(4, 6, bias=True), (4,), EVERY),
    Sample("BoundedLinear", lambda: dn.BoundedLinear(6, 4), VECTOR, EVERY),
    Sample(
        "BoundedLinear in training", lambda: dn.BoundedLinear(6, 4, radius=0.7), VECTOR, EVERY, train=True, linear=False
    ),
    Sample(
        "BoundedLinear on tokens", lambda: dn.BoundedLinear(4, 5, radius=0.7), TOKENS, EVERY, train=True, linear=False
    ),
    Sample("BoundedPReLU", lambda: dn.BoundedPReLU(), VECTOR, (*BOTH, "weight"), linear=False),
    Sample("BoundedPReLU in training", lambda: dn.BoundedPReLU(6, radius=0.7), VECTOR, train=True, linear=False),
    Sample(
        *("BoundedLinear on many tokens", lambda: dn.BoundedLinear(3, 2, radius=0.7), (8, 3), EVERY),
        train=True,
        linear=False,
    ),
    calls("F.linear", F.linear, (*BOTH, "w", "b"), w=(5, 4), b=(5,)),
    calls("x @ w", operator.matmul, (*BOTH, "w"), w=(4, 5)),
    calls("torch.matmul of tokens", torch.matmul, (*BOTH, "w"), TOKENS, w=(4, 5)),
    calls("Tensor.matmul", lambda x, w: x.matmul(w), (*BOTH, "w"), w=(4, 5)),
    calls("torch.mm", torch.mm, (*BOTH, "w"), VECTOR, w=(6, 5)),
    calls("Tensor.mm", lambda x, w: x.mm(w), (*BOTH, "w"), VECTOR, w=(6, 5)),
]


BATCH_NORMS = [
    (nn.BatchNorm1d(6), VECTOR),
    (nn.BatchNorm1d(3, affine=False), TOKENS),
    (nn.BatchNorm2d(2, eps=0.1), MAP),
    (nn.BatchNorm3d(1), (1, 2, 2, 2)),
]


def frozen(m: Any) -> nn.Module:
    """A batch normalisation with statistics and weights that are not those of a new one, and are not trained."""
    for t in (*m.parameters(), m.running_mean):
        t.data = torch.randn_like(t)
    m.running_var = torch.rand_like(m.running_var) + 0.1
    return m.requires_grad_(False)


def conv(*a: Any, tight: tuple[str, ...] = ("bias",), shape: tuple[int, ...] = (2, 5, 5), **k: Any) -> Sample:
    layer: Any = nn.Conv2d if len(shape) == 3 else nn.Conv1d
    return Sample(f"{layer(*a, **k)} {shape}", lambda: layer(*a, **k), shape, tight)


def conv2d(f: Callable[..., Tensor]) -> Sample:
    return calls(_name(f), lambda x, w, b: f(x, w, b, 2), (*BOTH, "w", "b"), (2, 4, 4), w=(3, 2, 2, 2), b=(3,))


def conv1d(f: Callable[..., Tensor]) -> Sample:
    return calls(_name(f), lambda x, w: f(x, w, stride=(3,), groups=2), (*BOTH, "w"), (2, 6), w=(4, 1, 3))


# The kernel's bound is tight where windows do not overlap or wrap around; at a border of zeros it is not.
CONVOLUTIONS = [
    conv(2, 3, 3, padding=1),
    conv(1, 1, 3, padding=1, shape=(1, 12, 12), tight=("output", "bias")),
    conv(2, 3, 3, padding=1, padding_mode="circular", tight=EVERY),
    conv(2, 4, 2, stride=2, shape=(2, 4, 4), tight=EVERY),
    conv(2, 4, 3, stride=2, padding=1, groups=2),
    conv(2, 2, 3, padding=2, dilation=2),
    conv(2, 2, 2, stride=3, dilation=2, padding=1, tight=EVERY),
    conv(2, 2, (3, 2), padding="same"),
    conv(2, 2, (2, 3), padding="same", padding_mode="circular", tight=EVERY),
    conv(2, 2, 3, padding="valid", padding_mode="circular"),
    conv(2, 4, 1, bias=False, tight=EVERY[:3]),
    conv(2, 4, 3, stride=2, padding=1, shape=(2, 6)),
    conv(2, 3, 3, stride=2, padding=1, padding_mode="circular", shape=(2, 6), tight=EVERY),
    conv(4, 4, 4, padding="same", groups=2, shape=(4, 7)),
    Sample("BoundedConv2d", lambda: dn.BoundedConv2d(2, 4, 2, stride=2), (2, 4, 4), EVERY),
    Sample(
        "BoundedConv2d in training",
        lambda: dn.BoundedConv2d(2, 4, 2, 2, radius=0.7),
        (2, 4, 4),
        EVERY,
        train=True,
        linear=False,
    ),
    Sample(
        "BoundedConv2d with overlap",
        lambda: dn.BoundedConv2d(2, 2, 3, padding=1, groups=2, radius=0.7),
        (2, 5, 5),
        ("bias",),
        train=True,
        linear=False,
    ),
    Sample("OrthogonalConv2d", lambda: dn.OrthogonalConv2d(3, 4, bias=True), (3, 4, 4), EVERY),
    Sample("OrthogonalConv2d of patches", lambda: dn.OrthogonalConv2d(2, 4, 2), (2, 4, 4), EVERY[:3]),
    Sample("BoundedConv1d", lambda: dn.BoundedConv1d(2, 3, 2, stride=2), (2, 6), EVERY),
    Sample(
        *("BoundedConv1d in training", lambda: dn.BoundedConv1d(2, 3, 2, padding=1, radius=0.7), (2, 5), ("bias",)),
        train=True,
        linear=False,
    ),
    Sample("SpectralConv2d", lambda: dn.SpectralConv2d(2, 3, 3, padding=1), (2, 4, 4)),
    *(conv2d(F.conv2d), replace(conv2d(torch.conv2d), tight=(), starts=2)),
    *(conv1d(F.conv1d), replace(conv1d(torch.conv1d), tight=(), starts=2)),
    calls("F.conv2d same", lambda x, w: F.conv2d(x, w, None, 1, "same", 2), (), (2, 5, 5), w=(2, 2, 2, 3)),
]

OTHERS = [
    module(nn.LayerNorm((3, 4), eps=0.5, elementwise_affine=False), TOKENS, IN),
    Sample("LayerNorm of tokens", lambda: nn.LayerNorm(4, elementwise_affine=False), TOKENS, (), 30.0),
    module(nn.GroupNorm(2, 4, eps=0.1, affine=False), (4, 2), IN),
    *(Sample(f"{m} in evaluation", partial(frozen, m), s, IN) for m, s in BATCH_NORMS),
    module(nn.InstanceNorm1d(2, eps=0.1), (2, 4), IN),
    module(nn.InstanceNorm2d(2, eps=0.1), (2, 2, 2), IN),
    module(dn.BallProjection(2.0)),
    Sample("Scattering2d", lambda: dn.Scattering2d(8), (1, 8, 8), starts=2),
    Sample("BallProjection of a large input", lambda: dn.BallProjection(0.5), MAP, ("output",), 100.0),
    module(dn.GradientBall(0.5)),
    Sample("GradientBall in training", lambda: dn.GradientBall(0.2), MAP, ("input",), train=True, linear=False),
    module(dn.Center(), TOKENS),
    module(dn.LowPass(4, 4, 3), MAP, IN),
    module(dn.ChannelLowPass(4, 4, (3, 2)), (2, 4, 4), IN),
    module(dn.Shift(0.5)),
    Sample("LogCompression", lambda: dn.LogCompression(20.0), (6,), BOTH, radius=1e-4),
    Sample("LogCompression of large entries", lambda: dn.LogCompression(20.0), (1,), ("output",), radius=30.0),
    module(dn.OpponentColors(), (3, 2, 2), BOTH),
    module(dn.Mirror(), MAP, BOTH),
    module(dn.RollChannels(), (5, 2, 3), BOTH),
    module(dn.RollChannels(1, 2), (4, 7), BOTH),
    module(dn.DistanceAttention(), (3, 4), BOTH),
    module(dn.DistanceAttention(2, 0.2), (4, 6), BOTH),
    Sample("DistanceAttention of far tokens", lambda: dn.DistanceAttention(1, 0.5), (2, 3), BOTH, radius=30.0),
    module(dn.Whitening(torch.randn(20, 3, 2, 2, generator=torch.Generator().manual_seed(0))), (3, 2, 2), IN),
    module(dn.PrivateMean((4, 3), 1.0), (4, 3), IN),
    Sample("Frozen", lambda: dn.Frozen(nn.Sequential(nn.Linear(4, 5), nn.Tanh())), (4,), ()),
    module(dn.GroupSort(2)),
    module(dn.GroupSort(3, dim=-1), (2, 6)),
    module(dn.MaxMin(dim=-3), MAP),
    module(dn.FullSort()),
    module(dn.Householder(4), (4, 3), (*BOTH, "theta")),
    module(dn.Householder(2), (2,), (*BOTH, "theta")),
]


def distance(name: str, build: Callable[[], nn.Module], shape: tuple[int, ...], train: bool = False) -> Sample:
    return Sample(name, build, shape, train=train, starts=2)  # attacked one example after the other, so with few starts


DISTANCES = [
    *(distance(f"LInfDistance p={p}", partial(dn.LInfDistance, 4, 3, p=p), TOKENS) for p in (2.0, 8.0, inf)),
    distance("LInfDistance negated", lambda: dn.LInfDistance(6, 4, bias=False, negate=True), VECTOR),
    distance("LInfDistance2d", lambda: dn.LInfDistance2d(2, 3, 2, stride=2), MAP),
    distance("LInfDistance2d of overlapping patches", lambda: dn.LInfDistance2d(2, 2, 3, padding=1, p=4.0), MAP),
    *(distance(f"SortNetLinear train={t}", lambda: dn.SortNetLinear(6, 4), VECTOR, t) for t in (False, True)),
]

SPLINES = [
    Sample("LinearSpline wide", lambda: dn.LinearSpline(6, 7, 6.0, "zero"), VECTOR, ("input", "mean")),
    Sample("LinearSpline", lambda: dn.LinearSpline(6, 7), VECTOR, ("input", "mean", "slope")),
    Sample(
        "LinearSpline of channels",
        lambda: dn.LinearSpline(2, 5, 2.0, "maxmin", min_scale=0.5),
        MAP,
        ("input", "mean", "slope", "log_scale"),
        radius=60.0,
    ),
    Sample("LinearSpline bounded", lambda: dn.LinearSpline(4, 6, 0.5, "zero", (0, 1), dim=-1), TOKENS, ("slope",)),
    Sample("CoefficientSpline wide", lambda: dn.CoefficientSpline(6, 7, 6.0), VECTOR, ("input", "coefficient")),
    Sample(
        "CoefficientSpline of channels",
        lambda: dn.CoefficientSpline(2, 8, init="relu", min_scale=1.0),
        MAP,
        ("input", "coefficient", "log_scale"),
    ),
]


MONOTONE = [
    module(dn.TabularInput([0.0] * 4, [1.0, 2.0, 9.0, 1.0], log=[2]), (4,), IN),
    Sample("TabularInput with blocks", lambda: dn.TabularInput([-1.0, 0.0], [1.0, 5.0], (2, 2)), VECTOR),
    Sample("Monotonic", lambda: dn.Monotonic(nn.Linear(6, 2), [1, -1, 0, 1, 0, 0], None), VECTOR, ("module.bias",)),
]
