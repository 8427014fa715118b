"""Laws that every rule obeys, and a sample of every rule to hold them against.

A rule claims: whatever the input within given norms, and whatever the cotangent within given norms, the output, the
input's cotangent and every parameter's cotangent stay within stated norms. Here each claim is attacked. The value
that is claimed is maximised over the input and the cotangent by conditional gradients over the balls of the l1, l2
and l-infinity norms (Frank and Wolfe, 1956; with full steps, Boyd's power method for p -> q norms), from one-hot,
constant, sign and random starts, in float64, for several families of weights.
"""

import itertools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import grad, vmap

from dplip import Norms
from dplip import nn as dn
from dplip.propagation import Walk

torch.set_num_threads(1)  # the tensors are tiny: a second thread only costs

inf = math.inf
NAMES = {1.0: "l1", 2.0: "l2", inf: "linf"}
EXPONENTS = tuple(NAMES)

Quantity = tuple[str, float, float, float]
"""What is bounded ("output", "input", or a parameter), the exponents of the input's ball and of the cotangent's ball,
and that of the norm that is bounded."""


# ---------------------------------------------------------------------------------------------------- samples


class Calls(nn.Module):
    """A function of the input and of parameters, as a module: a functional call is walked as it stands in a model."""

    def __init__(self, function: Callable[..., Tensor], **shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.function, self.names = function, tuple(shapes)
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *[getattr(self, name) for name in self.names])


@dataclass(frozen=True)
class Sample:
    """One use of a rule.

    Attributes:
        build: makes the module.
        shape: of one example's input.
        tight: quantities whose l2 bound, for an input and a cotangent bounded in l2, is attained up to half a percent
            for some weights, so that the law fails for a bound that is one percent smaller.
        radius: of the balls of inputs.
        train: whether the module is in training mode.
        linear: whether the backward pass is linear in the cotangent, as a derivative is.
        rounding: relative error of the module itself in float64.
        starts: points that an attack starts from; fewer for further names of one rule.
    """

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    tight: tuple[str, ...] = ()
    radius: float = 3.0
    train: bool = False
    linear: bool = True
    rounding: float = 1e-9
    starts: int = 8

    def __str__(self) -> str:
        return self.name

    def module(self) -> nn.Module:
        torch.manual_seed(0)
        return self.build().double().train(self.train)


IN, BOTH = ("input",), ("output", "input")
VECTOR, TOKENS, MAP = (6,), (3, 4), (2, 4, 4)
T = torch.Tensor


def _name(function: object) -> str:
    name = getattr(function, "__name__", "")
    owner = "Tensor" if getattr(torch.Tensor, name, None) is function else getattr(function, "__module__", None)
    return f"{owner}.{name}"


def called(
    functions: Sequence[Callable[..., Tensor]],
    *arguments: object,
    shape: tuple[int, ...] = VECTOR,
    tight: tuple[str, ...] = (),
    rounding: float = 1e-9,
    then: Callable[..., Tensor] = lambda y: y,
    **named: object,
) -> list[Sample]:
    """One sample for each of the names that one operation has: torch, functional, and Tensor method.

    The first is attacked in earnest; for the others it is enough to see that the name leads to the same rule.
    """

    def build(function: Callable[..., Tensor]) -> Callable[[], nn.Module]:
        name = getattr(function, "__name__", "")
        if getattr(torch.Tensor, name, None) is function:  # a method is recorded as such only on the value itself
            return lambda: Calls(lambda x: then(getattr(x, name)(*arguments, **named)))
        return lambda: Calls(lambda x: then(function(x, *arguments, **named)))

    first, *others = (Sample(_name(f), build(f), shape, tight, rounding=rounding) for f in functions)
    return [first, *(replace(sample, tight=(), starts=2) for sample in others)]


def calls(
    name: str,
    function: Callable[..., Tensor],
    tight: tuple[str, ...] = BOTH,
    shape: tuple[int, ...] = TOKENS,
    **shapes: tuple[int, ...],
) -> Sample:
    return Sample(name, lambda: Calls(function, **shapes), shape, tight)


def module(m: nn.Module, shape: tuple[int, ...] = VECTOR, tight: tuple[str, ...] = BOTH) -> Sample:
    return Sample(f"{m}", lambda: m, shape, tight)


ELEMENTWISE = [
    *called([F.relu, torch.relu, T.relu], tight=BOTH),
    *called([torch.abs, T.abs, abs], tight=BOTH),
    *called([F.relu6], tight=BOTH),
    *called([F.tanh, torch.tanh, T.tanh], tight=IN),
    *called([F.tanhshrink]),
    *called([F.softsign]),
    *called([torch.sin, T.sin], tight=IN),
    *called([torch.cos, T.cos], tight=BOTH),
    *called([F.sigmoid, torch.sigmoid, T.sigmoid], tight=IN),
    *called([F.hardsigmoid], tight=BOTH, rounding=1e-7),  # torch's own sixth is a float32
    *called([F.hardswish], tight=IN),
    *called([F.logsigmoid]),
    *called([F.silu], tight=IN),
    *called([F.mish], tight=IN),
    *called([F.selu], tight=IN),
    *called([F.gelu], tight=IN),
    *called([F.gelu], approximate="tanh", tight=IN),
    *called([F.leaky_relu], -2.0, tight=BOTH),
    *called([F.elu], 1.5, tight=IN),
    *called([F.softplus], 0.5),
    *called([F.hardtanh], -0.5, 4.0, tight=BOTH),
    *called([torch.clamp, T.clamp, torch.clip, T.clip], -0.5, 1.5, tight=IN),
    *called([torch.clamp], max=-1.0, tight=IN),
    *called([torch.clamp], min=2.0, max=-1.0),
    *called([F.softmax, torch.softmax, T.softmax], dim=-1, shape=TOKENS),
    *(module(m) for m in (nn.ReLU(), nn.ReLU6(), nn.Hardtanh(), nn.ELU(), nn.CELU(0.5), dn.Clamp(-2.0, 1.0))),
    *(module(m) for m in (nn.LeakyReLU(), nn.LeakyReLU(2.0), nn.LeakyReLU(-3.0), nn.PReLU(6))),
    *(module(m, tight=IN) for m in (nn.Tanh(), nn.Softshrink(), nn.Sigmoid(), nn.Hardswish(), nn.SiLU())),
    *(module(m, tight=IN) for m in (nn.Mish(), nn.SELU(), nn.GELU(), nn.GELU("tanh"), nn.ELU(3.0), nn.ELU(-2.0))),
    *(module(m, tight=IN) for m in (nn.Softplus(beta=-2.0), nn.Hardtanh(0.5, 2.0), dn.Clamp(1.0, 4.0))),
    *(module(m, tight=()) for m in (nn.Tanhshrink(), nn.Softsign(), nn.LogSigmoid())),
    *(module(m, tight=()) for m in (nn.Softplus(), nn.Softplus(beta=0.2))),
    module(nn.PReLU(), tight=(*BOTH, "weight")),
    module(nn.Softmax(1), TOKENS, ()),
    Sample("Hardsigmoid", nn.Hardsigmoid, VECTOR, BOTH, rounding=1e-7),
]

DROPOUT = [
    *called([F.dropout], 0.25, tight=BOTH),
    *called([F.dropout], 0.25, training=False, tight=BOTH),
    *called([F.dropout1d], 0.25, shape=(6, 2), tight=BOTH),
    *called([F.dropout2d], 0.25, shape=(6, 2, 2), tight=BOTH),
    *(
        Sample(f"{m} train={train}", lambda m=m: m, shape, BOTH if m.p < 1 or not train else (), train=train)
        for m, shape in (
            *((nn.Dropout(0.25), VECTOR), (nn.Dropout1d(0.25), (6, 2)), (nn.Dropout2d(0.25), (6, 2, 2))),
            *((nn.Dropout(0.0), VECTOR), (nn.Dropout(1.0), VECTOR)),
        )
        for train in (True, False)
    ),
]

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


def frozen(m: nn.Module) -> nn.Module:
    """A batch normalisation with statistics and weights that are not those of a new one, and are not trained."""
    for t in (*m.parameters(), m.running_mean):
        t.data = torch.randn_like(t)
    m.running_var = torch.rand_like(m.running_var) + 0.1
    return m.requires_grad_(False)


def conv(*a: object, tight: tuple[str, ...] = ("bias",), shape: tuple[int, ...] = (2, 5, 5), **k: object) -> Sample:
    layer = nn.Conv2d if len(shape) == 3 else nn.Conv1d
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
    Sample("SpectralConv2d", lambda: dn.SpectralConv2d(2, 3, 3, padding=1), (2, 4, 4)),
    *(conv2d(F.conv2d), replace(conv2d(torch.conv2d), tight=(), starts=2)),
    *(conv1d(F.conv1d), replace(conv1d(torch.conv1d), tight=(), starts=2)),
    calls("F.conv2d same", lambda x, w: F.conv2d(x, w, None, 1, "same", 2), (), (2, 5, 5), w=(2, 2, 2, 3)),
]

ARITHMETIC = [
    calls("x + x", lambda x: x + x),
    calls("x - relu(-x)", lambda x: x - F.relu(-x)),
    calls("x + p", lambda x, p: x + p, (*BOTH, "p"), p=(3, 4)),
    calls("p - x, p broadcast", lambda x, p: p - x, (*BOTH, "p"), p=(4,)),
    calls("x + p, x broadcast", lambda x, p: x + p, (*BOTH, "p"), (3, 1), p=(1, 3, 4)),
    calls("x + mean", lambda x: x + x.mean(dim=1, keepdim=True)),
    calls("add(other, input)", lambda x: torch.add(other=x, input=x.mean(dim=1, keepdim=True), alpha=2.0)),
    calls("2 - x", lambda x: 2 - x),
    calls("x * p", lambda x, p: x * p, (*BOTH, "p"), p=(3, 4)),
    calls("x * p, p broadcast", lambda x, p: p * x, (*BOTH, "p"), p=(1, 4)),
    calls("x * p, p scalar", lambda x, p: x * p, (*BOTH, "p"), p=()),
    calls("x * p, x broadcast", lambda x, p: x * p, (*BOTH, "p"), (3, 1), p=(3, 4)),
    calls("x / 4", lambda x: x / 4),
    calls("-3 x", lambda x: -3 * x),
    calls("-x", lambda x: -x),
    *called([torch.add, T.add], 1.5, tight=BOTH),
    *called([torch.sub, torch.subtract, T.sub], 1.5, alpha=2.0, tight=BOTH),
    *called([torch.mul, torch.multiply, T.mul], -1.5, tight=BOTH),
    *called([torch.div, torch.divide, torch.true_divide, T.div], -1.5, tight=BOTH),
    *called([torch.neg, T.neg], tight=BOTH),
    *called([torch.sum, T.sum], dim=1, shape=MAP, tight=BOTH),
    *called([torch.sum, T.sum], (1, -1), True, shape=MAP, tight=BOTH),
    *called([torch.mean, T.mean], dim=(2, 3), shape=MAP, tight=BOTH),
    *called([torch.amax, T.amax], dim=(1, 2), shape=MAP, tight=BOTH),
    *called([torch.amin, T.amin], dim=(1, 2), shape=MAP),
    *(calls(_name(f), lambda x, f=f: f(x, x * 0.5), ()) for f in (torch.maximum, torch.minimum)),
    calls("Tensor.maximum", lambda x: x.maximum(-x), ()),
    calls("Tensor.minimum", lambda x: x.minimum(-x), ()),
]


def first(parts: tuple[Tensor, ...]) -> Tensor:
    return parts[0]


def both(parts: tuple[Tensor, ...]) -> Tensor:
    return parts[0] + 2 * parts[1]


SHAPES = [
    *(module(m) for m in (nn.Identity(), nn.Unflatten(1, (2, 3)))),
    *(module(m, MAP) for m in (nn.Flatten(), nn.Flatten(2, -1), nn.PixelUnshuffle(2), nn.ZeroPad2d((1, 2, -1, 0)))),
    *(module(m, (4, 2, 2)) for m in (nn.PixelShuffle(2), nn.ChannelShuffle(2))),
    module(nn.ZeroPad1d(2), TOKENS),
    *called([T.view, T.reshape], -1, 32, shape=MAP, tight=BOTH),
    *called([torch.reshape], (-1, 4, 8), shape=MAP, tight=BOTH),
    *called([torch.flatten, T.flatten], 1, shape=MAP, tight=BOTH),
    *called([torch.unflatten, T.unflatten], 1, (3, 2), tight=BOTH),
    *called([torch.unsqueeze, T.unsqueeze], -1, tight=BOTH),
    *called([T.contiguous, T.clone, torch.clone, T.double], tight=BOTH),
    *called([T.float], then=lambda y: y.double(), tight=BOTH, rounding=1e-7),
    *called([F.pixel_shuffle, torch.pixel_shuffle], 2, shape=(4, 2, 2), tight=BOTH),
    *called([F.pixel_unshuffle, torch.pixel_unshuffle], 2, shape=MAP, tight=BOTH),
    *called([F.pad], (1, 0, -1, 2), shape=MAP, tight=BOTH),
    *called([torch.permute], (0, 2, 3, 1), shape=MAP, tight=BOTH),
    *called([T.permute], 0, 3, 1, 2, shape=MAP, tight=BOTH),
    *called([torch.transpose, T.transpose, torch.swapaxes, T.swapaxes], 1, -1, shape=MAP, tight=BOTH),
    *called([torch.flip, T.flip], (1, -1), shape=MAP, tight=BOTH),
    calls("x.flip(-1)", lambda x: x.flip(-1), BOTH, MAP),
    *called([torch.squeeze, T.squeeze], 1, shape=(1, 4), tight=BOTH),
    *called([T.expand], -1, 3, 4, shape=(1, 4), tight=BOTH),
    *called([torch.narrow, T.narrow], 1, 0, 1, shape=MAP, tight=BOTH),
    *called([torch.select, T.select], 2, -1, shape=MAP, tight=BOTH),
    calls("x[:, 1:, ::2]", lambda x: x[:, 1:, ::2], BOTH, MAP),
    calls("x[..., None, 0]", lambda x: x[..., None, 0], BOTH, MAP),
    *(
        calls(_name(f), lambda x, f=f: f((x, 2 * x, -x), 1), ("output",))
        for f in (torch.cat, torch.concat, torch.concatenate, torch.stack)
    ),
    *called([torch.split, T.split, torch.chunk, T.chunk], 2, 1, shape=(4, 3), tight=BOTH, then=first),
    *called([torch.split, T.split, torch.chunk, T.chunk], 2, 1, shape=(4, 3), tight=IN, then=both),
    *called([torch.unbind, T.unbind], 1, shape=(2, 3), tight=IN, then=both),
]

POOLING = [
    *(module(m, (2, 6)) for m in (nn.MaxPool1d(2), nn.MaxPool1d(3, 1, 1, 1), nn.AvgPool1d(2))),
    *(module(m, (2, 6)) for m in (nn.AdaptiveAvgPool1d(2), nn.AdaptiveMaxPool1d(3))),
    *(module(m, MAP) for m in (nn.MaxPool2d(2), nn.MaxPool2d(3, 1, 1), nn.MaxPool2d(2, 1, dilation=2))),
    *(module(m, MAP) for m in (nn.AvgPool2d(2), nn.AdaptiveAvgPool2d((2, 1)), nn.AdaptiveMaxPool2d(2))),
    module(dn.ScaledL2NormPool2d(2), MAP),
    module(nn.AvgPool1d(3, 1, 1), (2, 6), ()),
    module(nn.AvgPool2d(3, 2, 1), MAP, ()),
    *called([F.max_pool1d, torch.max_pool1d], 2, 2, shape=(2, 6), tight=BOTH),
    *called([F.max_pool2d, torch.max_pool2d], 2, shape=MAP, tight=BOTH),
    *called([F.avg_pool1d], 3, shape=(2, 6), tight=BOTH),
    *called([F.avg_pool2d], (2, 1), shape=MAP, tight=BOTH),
    *called([F.adaptive_avg_pool1d, torch.adaptive_avg_pool1d], 3, shape=(2, 6), tight=BOTH),
    *called([F.adaptive_avg_pool2d], 2, shape=MAP, tight=BOTH),
]

OTHERS = [
    module(nn.LayerNorm((3, 4), eps=0.5, elementwise_affine=False), TOKENS, IN),
    Sample("LayerNorm of tokens", lambda: nn.LayerNorm(4, elementwise_affine=False), TOKENS, (), 30.0),
    module(nn.GroupNorm(2, 4, eps=0.1, affine=False), (4, 2), IN),
    *(Sample(f"{m} in evaluation", lambda m=m: frozen(m), s, IN) for m, s in BATCH_NORMS),
    module(nn.InstanceNorm1d(2, eps=0.1), (2, 4), IN),
    module(nn.InstanceNorm2d(2, eps=0.1), (2, 2, 2), IN),
    module(dn.BallProjection(2.0)),
    Sample("Scattering2d", lambda: dn.Scattering2d(8), (2, 8, 8), starts=2),
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
    *(distance(f"LInfDistance p={p}", lambda p=p: dn.LInfDistance(4, 3, p=p), TOKENS) for p in (2.0, 8.0, inf)),
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


SAMPLES = [
    *ELEMENTWISE,
    *DROPOUT,
    *LINEAR,
    *CONVOLUTIONS,
    *ARITHMETIC,
    *SHAPES,
    *POOLING,
    *OTHERS,
    *DISTANCES,
    *MONOTONE,
    *SPLINES,
]


# ---------------------------------------------------------------------------------------------------- weights

FAMILIES = ("random", "orthogonal", "rank one", "equal", "sign")


@torch.no_grad()
def set_weights(module: nn.Module, family: str, seed: int = 0) -> None:
    """Fill every parameter with one of the families of weights, at a random scale."""
    generator = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        rows = (p.shape[0], -1) if p.ndim > 1 else (1, -1)
        w = torch.randn(p.shape, generator=generator, dtype=torch.float64).reshape(rows)
        if family == "orthogonal":
            u, _, v = torch.linalg.svd(w, full_matrices=False)
            w = u @ v
        elif family == "rank one":
            w = w[:, :1] * w[:1]
        elif family == "equal":
            w = torch.ones_like(w)
        elif family == "sign":
            w = w.sign()
        scale = 10 ** float(torch.randn(1, generator=generator))
        p.copy_((w * scale).reshape(p.shape))


# ---------------------------------------------------------------------------------------------------- claims


def claims(walk: Walk, radius: float | None) -> dict[Quantity, float]:
    """Every bound that a walk states, for inputs in each of the balls (None: anywhere) and cotangents in unit balls."""
    stated: dict[Quantity, float] = {}
    for p in EXPONENTS:
        norms = None if radius is None else Norms(walk.input_shape, **{NAMES[p]: radius})
        output, pullback = walk(norms)
        for q in EXPONENTS:
            cotangent, parameters = pullback(Norms(output.shape, **{NAMES[q]: 1.0}))
            for what, norms in {"output": output, "input": cotangent, **parameters}.items():
                for r in EXPONENTS:
                    stated[what, p, q, r] = float(norms.norm(r))
    return stated


# ---------------------------------------------------------------------------------------------------- attack

GRID = list(itertools.product(EXPONENTS, EXPONENTS, EXPONENTS))


def norms_of(x: Tensor, p: Tensor) -> Tensor:
    """The norm of each row, each with its own exponent."""
    rows = x.reshape(len(x), -1)
    all_three = torch.stack([torch.linalg.vector_norm(rows, e, dim=1) for e in EXPONENTS])
    chosen = all_three.gather(0, ((p == 2.0) + 2 * (p == inf))[None].long())[0]
    return torch.nan_to_num(chosen, nan=inf, posinf=inf)  # a value that is no number is beyond every bound


def extreme(g: Tensor, p: Tensor) -> Tensor:
    """The point of each row's unit lp ball where ``<g, x>`` is largest; the row itself where it is zero."""
    rows = g.reshape(len(g), -1)
    l2 = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(1e-300)
    one_hot = F.one_hot(rows.abs().argmax(1), rows.shape[1]) * rows.sign()
    choice = torch.where((p == 1.0)[:, None], one_hot, torch.where((p == 2.0)[:, None], l2, rows.sign()))
    return choice.reshape(g.shape)


def starts(shape: tuple[int, ...], p: Tensor, radius: float, generator: torch.Generator) -> Tensor:
    """Points on the lp spheres, in turn one-hot, constant and of random signs; and two of eight inside the balls."""
    n, count = math.prod(shape), len(p)
    noise = torch.randn(count, n, generator=generator, dtype=torch.float64)
    one_hot = F.one_hot(torch.randint(n, (count,), generator=generator), n) * noise[:, :1].sign()
    centre = sum((size // 2) * math.prod(shape[i + 1 :]) for i, size in enumerate(shape))
    middle = F.one_hot(torch.full((count,), centre), n).double()
    kinds = [one_hot, torch.ones_like(noise), middle, -torch.ones_like(noise), noise.sign(), noise, noise, one_hot]
    kind = torch.arange(count) % len(kinds)
    rows = torch.stack(kinds)[kind, torch.arange(count)]
    reach = torch.where(interior(count), torch.rand(count, generator=generator, dtype=torch.float64), 1.0)
    return (rows * (radius * reach / norms_of(rows, p))[:, None]).reshape(count, *shape)


def interior(count: int) -> Tensor:
    """Which of the starts lie inside their ball; from there an attack moves by smaller and smaller steps."""
    return torch.arange(count) % 8 >= 6


def per_example(module: nn.Module, what: str, x: Tensor, v: Tensor) -> Tensor:
    """One row per example: the output, the input's cotangent, or a parameter's cotangent, for cotangent v."""
    torch.default_generator.manual_seed(0)  # one dropout mask for every evaluation, so that ascent climbs one function
    if what == "output":
        return module(x)
    if what == "input":
        return torch.autograd.grad((module(x) * v).sum(), x, create_graph=True)[0]

    holders = [(m, k) for m in module.modules() for k, p in m._parameters.items() if p is module.get_parameter(what)]

    def score(p: Tensor, x: Tensor, v: Tensor) -> Tensor:
        with replaced(holders, p):
            return (module(x[None])[0] * v).sum()

    p = module.get_parameter(what)
    try:
        return vmap(grad(score), in_dims=(None, 0, 0), randomness="same")(p, x, v)
    except RuntimeError as unsupported:  # some autograd functions know no vmap: one example after the other then
        if "vmap" not in str(unsupported):
            raise
        rows = (torch.autograd.grad(score(p, a, b), p, create_graph=True)[0] for a, b in zip(x, v, strict=True))
        return torch.stack(list(rows))


@contextmanager
def replaced(holders: list[tuple[nn.Module, str]], value: Tensor) -> Iterator[None]:
    """Put another tensor in place of a parameter, wherever it is held.

    torch.func.functional_call loses the parameter of a module that stands in several places of a model.
    """
    kept = [m._parameters[k] for m, k in holders]
    for m, k in holders:
        m._parameters[k] = value
    try:
        yield
    finally:
        for (m, k), p in zip(holders, kept, strict=True):
            m._parameters[k] = p


@dataclass
class Attack:
    """The worst case found: per quantity the value, the input and the cotangent."""

    value: dict[Quantity, float]
    x: dict[Quantity, Tensor]
    v: dict[Quantity, Tensor]


def attack(walk: Walk, module: nn.Module, radius: float, count: int = 8, steps: int = 12, seed: int = 0) -> Attack:
    """Maximise every quantity over the input and the cotangent."""
    generator = torch.Generator().manual_seed(seed)
    found = Attack({}, {}, {})
    output_shape = walk(None)[0].shape
    parameters = [name for name, p in module.named_parameters() if p.requires_grad]
    for what in ("output", "input", *parameters):
        grid = [case for case in GRID if what != "output" or case[1] == 2.0]  # an output has no cotangent
        cases = [case for case in grid for _ in range(count)]
        p, q, r = (torch.tensor([case[i] for case in cases]) for i in range(3))
        size = (len(cases), *[1] * len(walk.input_shape))
        x = starts(walk.input_shape, p, radius, generator)
        v = starts(output_shape, q, 1.0, generator)
        best = torch.full((len(cases),), -1.0, dtype=torch.float64)
        best_x, best_v = x.clone(), v.clone()
        for step in range(steps):
            x, v = x.detach().requires_grad_(), v.detach().requires_grad_()
            value = norms_of(per_example(module, what, x, v), r)
            better = value.detach() > best
            if not (value.detach() > best * (1 + 1e-6)).any():
                break
            best = torch.where(better, value.detach(), best)
            best_x[better], best_v[better] = x.detach()[better], v.detach()[better]
            if not value.requires_grad:  # a constant output: nothing to climb
                break
            try:
                up_x, up_v = torch.autograd.grad(value.sum(), (x, v), allow_unused=True)
            except RuntimeError as missing:  # a few functions have no second derivative: no climbing then
                if not any(
                    part in str(missing) for part in ("not implemented", "differentiate twice", "does not require")
                ):
                    raise
                break
            with torch.no_grad():
                if up_x is not None:
                    up_x = torch.nan_to_num(up_x)
                    pace = torch.where(interior(len(cases)), 1.0 / (2 + step), 1.0).to(x.dtype).reshape(size)
                    pace = pace * (up_x.flatten(1).abs().amax(1) > 0).reshape(size)
                    x = x + pace * (radius * extreme(up_x, p) - x)
                if up_v is not None:
                    up_v = torch.nan_to_num(up_v)
                    moves = (up_v.flatten(1).abs().amax(1) > 0).reshape(len(cases), *[1] * len(output_shape))
                    v = torch.where(moves, extreme(up_v, q), v)
        top = best.reshape(len(grid), count).max(1)
        for i, case in enumerate(grid):
            key, winner = (what, *case), i * count + int(top.indices[i])
            found.value[key], found.x[key], found.v[key] = float(top.values[i]), best_x[winner], best_v[winner]
    return found


def worst(claimed: dict[Quantity, float], attained: dict[Quantity, float]) -> tuple[float, Quantity]:
    """The largest ratio of attained to claimed, and where; a bound of zero may be missed by rounding alone."""
    ratios = {key: value / max(claimed[key], 1e-12) for key, value in attained.items()}
    key = max(ratios, key=lambda k: ratios[k])
    return ratios[key], key


# ---------------------------------------------------------------------------------------------------- exact Jacobians


def jacobians(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The exact Jacobian of one example's output: of shape (outputs, inputs), and (outputs, entries) per parameter."""
    x = x.detach()[None].requires_grad_()
    torch.manual_seed(0)
    output = module(x)[0].reshape(-1)
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    rows = [torch.autograd.grad(o, (x, *trained.values()), retain_graph=True, allow_unused=True) for o in output]
    found = {}
    for i, (name, value) in enumerate({"input": x, **trained}.items()):
        found[name] = torch.stack(
            [torch.zeros_like(value).reshape(-1) if row[i] is None else row[i].reshape(-1) for row in rows]
        )
    return found


def induced(matrix: Tensor) -> dict[tuple[float, float], float]:
    """The induced norms p -> r of a matrix (outputs x inputs) that have a closed form."""
    if not matrix.numel():
        return dict.fromkeys([(1.0, 1.0), (1.0, 2.0), (1.0, inf), (2.0, 2.0), (2.0, inf), (inf, inf)], 0.0)
    vector_norm = torch.linalg.vector_norm
    return {
        (1.0, 1.0): float(vector_norm(matrix, 1, dim=0).max()),
        (1.0, 2.0): float(vector_norm(matrix, 2, dim=0).max()),
        (1.0, inf): float(matrix.abs().max()),
        (2.0, 2.0): float(torch.linalg.matrix_norm(matrix, 2)),
        (2.0, inf): float(vector_norm(matrix, 2, dim=1).max()),
        (inf, inf): float(vector_norm(matrix, 1, dim=1).max()),
    }
