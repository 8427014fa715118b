"""Laws that every rule obeys, and a sample of every rule to hold them against.

A rule claims: whatever the input within given norms, and whatever the cotangent within given norms, the output, the
input's cotangent and every parameter's cotangent stay within stated norms. Here each claim is attacked. The value
that is claimed is maximised over the input and the cotangent by conditional gradients over the balls of the l1, l2
and l-infinity norms (Frank and Wolfe, 1956; with full steps, Boyd's power method for p -> q norms), from one-hot,
constant, sign and random starts, in float64, for several families of weights.
"""

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from dplip import Norms
from dplip import nn as dn
from dplip.propagate import Walk

torch.set_num_threads(1)  # the tensors are tiny: a second thread only costs

inf = math.inf
NAMES = {1.0: "l1", 2.0: "l2", inf: "linf"}
EXPONENTS = tuple(NAMES)
RADIUS = 3.0

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
        rounding: relative error of the module itself in float64.
        starts: points that an attack starts from; fewer for further names of one rule.
    """

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    tight: tuple[str, ...] = ()
    radius: float = RADIUS
    train: bool = False
    rounding: float = 1e-9
    starts: int = 8

    def __str__(self) -> str:
        return self.name

    def module(self) -> nn.Module:
        torch.manual_seed(0)
        return self.build().double().train(self.train)


BOTH = ("output", "input")
VECTOR, TOKENS, MAP = (6,), (3, 4), (2, 4, 4)


def _name(function: object) -> str:
    owner = getattr(function, "__objclass__", None) or getattr(function, "__module__", None)
    owner = "Tensor" if getattr(torch.Tensor, getattr(function, "__name__", "?"), None) is function else owner
    return f"{owner}.{getattr(function, '__name__', function)}"


def called(
    functions: Iterable[Callable[..., Tensor]],
    *arguments: object,
    shape: tuple[int, ...] = VECTOR,
    tight: tuple[str, ...] = (),
    then: Callable[..., Tensor] = lambda y: y,
    **named: object,
) -> list[Sample]:
    """One sample for each of the names that one operation has: torch, functional, and Tensor method."""

    def build(function: Callable[..., Tensor]) -> Callable[[], nn.Module]:
        name = getattr(function, "__name__", "")
        if getattr(torch.Tensor, name, None) is function:  # a method is recorded as such only on the value itself
            return lambda: Calls(lambda x: then(getattr(x, name)(*arguments, **named)))
        return lambda: Calls(lambda x: then(function(x, *arguments, **named)))

    return [Sample(_name(f), build(f), shape, tight, starts=2 if i else 8) for i, f in enumerate(functions)]


def _elementwise() -> list[Sample]:
    T = torch.Tensor
    smooth = [F.tanh, torch.tanh, T.tanh, F.softsign, torch.sin, T.sin, torch.cos, T.cos]
    sloped = [F.sigmoid, torch.sigmoid, T.sigmoid, F.hardsigmoid, F.hardswish, F.logsigmoid, F.silu, F.mish]
    exact = [F.relu, torch.relu, T.relu, torch.abs, T.abs, abs, F.relu6]
    modules: list[nn.Module] = [
        *(nn.Tanh(), nn.Tanhshrink(), nn.Softshrink(), nn.Softsign(), nn.Sigmoid(), nn.Hardsigmoid(), nn.Hardswish()),
        *(nn.LogSigmoid(), nn.SiLU(), nn.Mish(), nn.SELU(), nn.ELU(), nn.ELU(3.0), nn.ELU(-2.0), nn.CELU(0.5)),
        *(nn.GELU(), nn.GELU("tanh"), nn.Softplus(), nn.Softplus(beta=0.2), nn.Softplus(beta=-2.0)),
        *(nn.ReLU(), nn.ReLU6(), nn.Hardtanh(), nn.Hardtanh(0.5, 2.0), nn.LeakyReLU(), nn.LeakyReLU(2.0), nn.PReLU()),
        *(nn.LeakyReLU(-3.0), nn.PReLU(6)),
    ]
    kept = (nn.ReLU, nn.ReLU6, nn.LeakyReLU)  # on one side of zero an input keeps its norm
    leaky = {F.leaky_relu: (-2.0,), F.elu: (1.5,), F.softplus: (0.5,), F.hardtanh: (-0.5, 4.0)}
    return [
        *called([*smooth, *sloped, F.tanhshrink, F.selu, F.gelu]),
        *called(exact, tight=BOTH),
        *called([F.gelu], approximate="tanh"),
        *(s for f, arguments in leaky.items() for s in called([f], *arguments)),
        *called([torch.clamp, T.clamp, torch.clip, T.clip], min=-0.5, max=1.5),
        *called([torch.clamp], max=-1.0),
        *called([torch.clamp], min=2.0, max=-1.0),
        *called([F.softmax, torch.softmax, T.softmax], dim=-1, shape=TOKENS),
        *(
            Sample(
                f"{m}", lambda m=m: m, VECTOR, (*BOTH, "weight") * isinstance(m, nn.PReLU) or BOTH * isinstance(m, kept)
            )
            for m in modules
        ),
        Sample("Softmax", lambda: nn.Softmax(1), TOKENS),
        Sample("Clamp", lambda: dn.Clamp(-2.0, 1.0), VECTOR, ("input",)),
        Sample("Clamp off zero", lambda: dn.Clamp(1.0, 4.0), VECTOR, ("input",)),
    ]


def _dropout() -> list[Sample]:
    functions = [(F.dropout, VECTOR), (F.dropout1d, (6, 2)), (F.dropout2d, (6, 2, 2))]
    modules: list[tuple[nn.Module, tuple[int, ...]]] = [
        *((nn.Dropout(0.25), VECTOR), (nn.Dropout1d(0.25), (6, 2)), (nn.Dropout2d(0.25), (6, 2, 2))),
        *((nn.Dropout(0.0), VECTOR), (nn.Dropout(1.0), VECTOR)),
    ]
    return [
        *(Sample(f"{m} {t}", lambda m=m: m, s, BOTH * (m.p < 1), train=t) for m, s in modules for t in (True, False)),
        *(s for f, shape in functions for s in called([f], 0.25, shape=shape, tight=BOTH)),
        *called([F.dropout], 0.25, training=False, tight=BOTH),
    ]


def _linear() -> list[Sample]:
    all_of = (*BOTH, "weight")
    return [
        Sample("Linear", lambda: nn.Linear(6, 4), VECTOR, ("input", "weight", "bias")),
        Sample("Linear without bias", lambda: nn.Linear(4, 6, bias=False), (4,), all_of),
        Sample("Linear on tokens", lambda: nn.Linear(4, 5), TOKENS, ("input", "weight", "bias")),
        Sample("F.linear", lambda: Calls(F.linear, w=(5, 4), b=(5,)), TOKENS, ("input", "w", "b")),
        Sample("OrthogonalLinear", lambda: dn.OrthogonalLinear(6, 4), VECTOR, all_of),
        Sample("SpectralLinear", lambda: dn.SpectralLinear(4, 6, bias=True), (4,), ("input", "weight", "bias")),
    ]


def _convolutions() -> list[Sample]:
    def conv(*a: object, tight: tuple[str, ...] = (), shape: tuple[int, ...] = (2, 5, 5), **k: object) -> Sample:
        layer = nn.Conv2d if len(shape) == 3 else nn.Conv1d
        return Sample(f"{layer(*a, **k)} {shape}", lambda: layer(*a, **k), shape, tight)

    some, every = ("weight", "bias"), ("input", "weight", "bias")
    return [
        conv(2, 3, 3, padding=1, tight=("bias",)),
        conv(1, 1, 3, padding=1, shape=(1, 12, 12), tight=("bias",)),
        conv(2, 3, 3, padding=1, padding_mode="circular", tight=every),
        conv(2, 4, 2, stride=2, shape=(2, 4, 4), tight=every),
        conv(2, 4, 3, stride=2, padding=1, groups=2, tight=("bias",)),
        conv(2, 2, 3, padding=2, dilation=2, tight=("bias",)),
        conv(2, 2, 2, stride=3, dilation=2, padding=1, tight=some),
        conv(2, 2, (3, 2), padding="same", tight=("bias",)),
        conv(2, 2, (2, 3), padding="same", padding_mode="circular", tight=every),
        conv(2, 2, 3, padding="valid", padding_mode="circular", tight=("bias",)),
        conv(2, 4, 1, bias=False, tight=("output", "input", "weight")),
        conv(2, 4, 3, stride=2, padding=1, shape=(2, 6), tight=("bias",)),
        conv(2, 3, 3, stride=2, padding=1, padding_mode="circular", shape=(2, 6), tight=("bias",)),
        conv(4, 4, 4, padding="same", groups=2, shape=(4, 7), tight=("bias",)),
        Sample("SpectralConv2d", lambda: dn.SpectralConv2d(2, 3, 3, padding=1), (2, 4, 4)),
        *(
            Sample(
                _name(f),
                lambda f=f: Calls(lambda x, w, b: f(x, w, b, 2), w=(3, 2, 2, 2), b=(3,)),
                (2, 4, 4),
                ("input", "w", "b"),
            )
            for f in (F.conv2d, torch.conv2d)
        ),
        *(
            Sample(
                _name(f),
                lambda f=f: Calls(lambda x, w: f(x, w, stride=(3,), groups=2), w=(4, 1, 3)),
                (2, 6),
                (*BOTH, "w"),
            )
            for f in (F.conv1d, torch.conv1d)
        ),
        Sample(
            "F.conv2d same", lambda: Calls(lambda x, w: F.conv2d(x, w, None, 1, "same", 2), w=(2, 2, 2, 3)), (2, 5, 5)
        ),
    ]


def _arithmetic() -> list[Sample]:
    T = torch.Tensor
    adds, subs = [torch.add, T.add], [torch.sub, torch.subtract, T.sub]
    muls = [torch.mul, torch.multiply, T.mul]
    divs = [torch.div, torch.divide, torch.true_divide, T.div]
    sums, means = [torch.sum, T.sum], [torch.mean, T.mean]
    extremes = [torch.amax, T.amax, torch.amin, T.amin]
    pairs = [torch.maximum, torch.minimum, T.maximum, T.minimum]

    def calls(name: str, function: Callable[..., Tensor], tight: tuple[str, ...], shape: tuple[int, ...] = TOKENS, **shapes: tuple[int, ...]) -> Sample:  # fmt: skip
        return Sample(name, lambda: Calls(function, **shapes), shape, tight)

    return [
        calls("x + x", lambda x: x + x, BOTH),
        calls("x - relu(-x)", lambda x: x - F.relu(-x), ("input",)),
        calls("x + p", lambda x, p: x + p, ("input", "p"), p=(3, 4)),
        calls("p - x, p broadcast", lambda x, p: p - x, ("input", "p"), p=(4,)),
        calls("x + p, x broadcast", lambda x, p: x + p, ("input", "p"), shape=(3, 1), p=(1, 3, 4)),
        calls("x + mean", lambda x: x + x.mean(dim=1, keepdim=True), BOTH),
        calls("2 - x", lambda x: 2 - x, ("input",)),
        calls("x * p", lambda x, p: x * p, ("p", *BOTH), p=(3, 4)),
        calls("x * p, p broadcast", lambda x, p: p * x, (*BOTH,), p=(1, 4)),
        calls("x * p, p scalar", lambda x, p: x * p, (*BOTH, "p"), p=()),
        calls("x * p, x broadcast", lambda x, p: x * p, (), shape=(3, 1), p=(3, 4)),
        calls("x / 4", lambda x: x / 4, BOTH),
        calls("-3 x", lambda x: -3 * x, BOTH),
        *(calls(_name(f), lambda x, f=f: f(x, alpha=-2.0, other=x), BOTH) for f in [torch.add, torch.sub][:1]),
        *called(adds, 1.5, tight=("input",)),
        *called(subs, 1.5, alpha=2.0, tight=("input",)),
        *called(muls, -1.5, tight=BOTH),
        *called(divs, -1.5, tight=BOTH),
        *called([torch.neg, T.neg], tight=BOTH),
        *called(sums, dim=1, shape=MAP, tight=BOTH),
        *called(sums, (1, -1), True, shape=MAP, tight=BOTH),
        *called(means, dim=(2, 3), shape=MAP, tight=BOTH),
        *called(extremes, dim=(1, 2), shape=MAP, tight=BOTH),
        *(s for f in pairs for s in _pair(f)),
    ]


def _pair(function: Callable[..., Tensor]) -> list[Sample]:
    if getattr(torch.Tensor, function.__name__, None) is function:
        return [
            Sample(_name(function), lambda: Calls(lambda x: getattr(x, function.__name__)(-x)), VECTOR, ("output",))
        ]
    return [Sample(_name(function), lambda: Calls(lambda x: function(x, x * 0.5)), VECTOR)]


def _shapes() -> list[Sample]:
    T = torch.Tensor

    def moved(
        functions: list[Callable[..., Tensor]], *a: object, shape: tuple[int, ...] = MAP, **k: object
    ) -> list[Sample]:
        return called(functions, *a, shape=shape, tight=BOTH, **k)

    modules: list[tuple[nn.Module, tuple[int, ...]]] = [
        *((nn.Identity(), VECTOR), (nn.Flatten(), MAP), (nn.Flatten(2, -1), MAP), (nn.Unflatten(1, (2, 3)), VECTOR)),
        *((nn.PixelShuffle(2), (4, 2, 2)), (nn.PixelUnshuffle(2), MAP), (nn.ChannelShuffle(2), (4, 2, 2))),
        *((nn.ZeroPad1d(2), TOKENS), (nn.ZeroPad2d((1, 2, -1, 0)), MAP)),
    ]

    def first(parts: tuple[Tensor, ...]) -> Tensor:
        return parts[0]

    def both(parts: tuple[Tensor, ...]) -> Tensor:
        return parts[0] + 2 * parts[1]

    parts = [(torch.split, 2), (T.split, 2), (torch.chunk, 2), (T.chunk, 2)]
    return [
        *(Sample(f"{m}", lambda m=m: m, s, BOTH) for m, s in modules),
        *moved([T.view, T.reshape], -1, 32),
        *moved([torch.reshape], (-1, 4, 8)),
        *moved([torch.flatten, T.flatten], 1),
        *moved([torch.unflatten, T.unflatten], 1, (3, 2), shape=VECTOR),
        *moved([torch.unsqueeze, T.unsqueeze], -1),
        *moved([T.contiguous, T.clone, torch.clone, T.double]),
        *called([T.float], then=lambda y: y.double(), shape=MAP),
        *moved([F.pixel_shuffle, torch.pixel_shuffle], 2, shape=(4, 2, 2)),
        *moved([F.pixel_unshuffle, torch.pixel_unshuffle], 2),
        *moved([F.pad], (1, 0, -1, 2)),
        *moved([torch.permute], (0, 2, 3, 1)),
        *moved([T.permute], 0, 3, 1, 2),
        *moved([torch.transpose, T.transpose, torch.swapaxes, T.swapaxes], 1, -1),
        *moved([torch.squeeze, T.squeeze], 1, shape=(1, 4)),
        *called([T.expand], -1, 3, 4, shape=(1, 4), tight=BOTH),
        *moved([torch.narrow, T.narrow], 1, 0, 1),
        *moved([torch.select, T.select], 2, -1),
        Sample("x[:, 1:, ::2]", lambda: Calls(lambda x: x[:, 1:, ::2]), MAP, BOTH),
        Sample("x[..., None, 0]", lambda: Calls(lambda x: x[..., None, 0]), MAP, BOTH),
        *(
            Sample(_name(f), lambda f=f: Calls(lambda x: f((x, F.relu(x), -x), 1)), TOKENS, ("input",))
            for f in (torch.cat, torch.concat, torch.concatenate, torch.stack)
        ),
        *(s for f, n in parts for s in called([f], n, 1, shape=(4, 3), tight=BOTH, then=first)),
        *(s for f, n in parts for s in called([f], n, 1, shape=(4, 3), tight=("input",), then=both)),
        *called([torch.unbind, T.unbind], 1, shape=(2, 3), tight=("input",), then=both),
    ]


def _pooling() -> list[Sample]:
    def module(m: nn.Module, shape: tuple[int, ...] = MAP, tight: tuple[str, ...] = BOTH) -> Sample:
        return Sample(f"{m}", lambda: m, shape, tight)

    return [
        module(nn.MaxPool1d(2), (2, 6)),
        module(nn.MaxPool1d(3, 1, 1, 1), (2, 6)),
        module(nn.MaxPool2d(2)),
        module(nn.MaxPool2d(3, stride=1, padding=1)),
        module(nn.MaxPool2d(2, stride=1, dilation=2)),
        module(nn.AvgPool1d(2), (2, 6)),
        module(nn.AvgPool1d(3, 1, 1), (2, 6), ()),
        module(nn.AvgPool2d(2)),
        module(nn.AvgPool2d(3, stride=2, padding=1), tight=()),
        module(nn.AdaptiveAvgPool1d(2), (2, 6)),
        module(nn.AdaptiveAvgPool2d((2, 1))),
        module(nn.AdaptiveMaxPool1d(3), (2, 6)),
        module(nn.AdaptiveMaxPool2d(2)),
        module(dn.ScaledL2NormPool2d(2)),
        *called([F.max_pool1d, torch.max_pool1d], 2, 1, shape=(2, 6), tight=BOTH),
        *called([F.max_pool2d, torch.max_pool2d], 2, shape=MAP, tight=BOTH),
        *called([F.avg_pool1d], 3, shape=(2, 6), tight=BOTH),
        *called([F.avg_pool2d], (2, 1), shape=MAP, tight=BOTH),
        *called([F.adaptive_avg_pool1d, torch.adaptive_avg_pool1d], 3, shape=(2, 6), tight=BOTH),
        *called([F.adaptive_avg_pool2d], 2, shape=MAP, tight=BOTH),
    ]


def _others() -> list[Sample]:
    return [
        Sample("LayerNorm", lambda: nn.LayerNorm((3, 4), eps=0.5, elementwise_affine=False), TOKENS),
        Sample("LayerNorm on tokens", lambda: nn.LayerNorm(4, elementwise_affine=False), TOKENS, radius=30.0),
        Sample("GroupNorm", lambda: nn.GroupNorm(2, 4, eps=0.1, affine=False), (4, 2)),
        Sample("InstanceNorm1d", lambda: nn.InstanceNorm1d(2, eps=0.1), (2, 4)),
        Sample("InstanceNorm2d", lambda: nn.InstanceNorm2d(2, eps=0.1), (2, 2, 2)),
        Sample("BallProjection", lambda: dn.BallProjection(2.0), VECTOR, BOTH),
        Sample("BallProjection of a large input", lambda: dn.BallProjection(0.5), MAP, ("output", "input"), 100.0),
        Sample("Center", lambda: dn.Center(), TOKENS, BOTH),
        Sample("Shift", lambda: dn.Shift(0.5), VECTOR, ("input",)),
        Sample("GroupSort", lambda: dn.GroupSort(2), VECTOR, BOTH),
        Sample("GroupSort of three", lambda: dn.GroupSort(3, dim=-1), (2, 6), BOTH),
        Sample("MaxMin of channels", lambda: dn.MaxMin(dim=-3), MAP, BOTH),
        Sample("FullSort", lambda: dn.FullSort(), VECTOR, BOTH),
        Sample("Householder", lambda: dn.Householder(4), (4, 3), BOTH),
        Sample("Householder of one pair", lambda: dn.Householder(2), (2,), (*BOTH, "theta")),
    ]


SAMPLES = [
    *_elementwise(),
    *_dropout(),
    *_linear(),
    *_convolutions(),
    *_arithmetic(),
    *_shapes(),
    *_pooling(),
    *_others(),
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
    torch.manual_seed(0)  # one dropout mask for every evaluation, so that ascent climbs one function
    if what == "output":
        return module(x)
    if what == "input":
        return torch.autograd.grad((module(x) * v).sum(), x, create_graph=True)[0]
    weights = dict(module.named_parameters())

    def score(p: Tensor, x: Tensor, v: Tensor) -> Tensor:
        return (functional_call(module, {**weights, what: p}, (x[None],))[0] * v).sum()

    return vmap(grad(score), in_dims=(None, 0, 0), randomness="same")(weights[what], x, v)


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
            except RuntimeError as missing:  # torch has no second derivative of a few functions: no climbing then
                if "not implemented" not in str(missing):
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
        for i, case in enumerate(cases):
            key = (what, *case)
            if float(best[i]) > found.value.get(key, -1.0):
                found.value[key], found.x[key], found.v[key] = float(best[i]), best_x[i], best_v[i]
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
