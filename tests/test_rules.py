"""Every rule against the worst case that a search can find, alone and in random compositions; the algebra of norms."""

import copy
import functools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from laws import (
    ELEMENTWISE,
    EXPONENTS,
    FAMILIES,
    NAMES,
    SAMPLES,
    Attack,
    Calls,
    Quantity,
    Sample,
    attack,
    claims,
    induced,
    inf,
    jacobians,
    norms_of,
    per_example,
    set_weights,
    worst,
)
from torch import Tensor, nn

import dplip
from dplip import Norms, OperatorNorms
from dplip import nn as dn
from dplip.propagation import Walk
from dplip.rounding.walk import Rounding
from dplip.rules import registry

quick = settings(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


@functools.cache
def prepared(sample: Sample) -> tuple[nn.Module, Walk]:
    """The module of a sample and its walk, traced once: a walk reads the weights that are there when it is called."""
    module = sample.module()
    return module, Walk(module, sample.shape)


def families(module: nn.Module) -> tuple[str, ...]:
    return FAMILIES if any(True for _ in module.parameters()) else FAMILIES[:1]


# ------------------------------------------------------------------------------------------------ rule by rule


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_float32_takes_no_operation_further_from_the_exact_one_than_is_claimed(sample: Sample) -> None:
    module = sample.module().float()
    walk = Walk(module, sample.shape)
    generator = torch.Generator().manual_seed(0)
    for family in families(module)[::3]:
        set_weights(module, family)
        with torch.no_grad():
            claimed, exact = Rounding(walk, {}, 1), copy.deepcopy(module).double()
            for size in (1e-3, 1.0, 1e4):
                for x in (
                    torch.randn(8, *sample.shape, generator=generator),
                    torch.rand(8, *[1] * len(sample.shape), generator=generator).expand(8, *sample.shape),
                ):
                    _, sizes = claimed.at(x * size)
                    errors = claimed.errors(sizes, Norms.zero(sample.shape))
                    bound = claimed.of_scores(errors, torch.zeros(8, dtype=torch.int64))  # in l-infinity
                    torch.manual_seed(0)
                    found = module(x * size).double()
                    torch.manual_seed(0)
                    if not walk._probe.draws:
                        assert ((found - exact((x * size).double())).abs().flatten(1).amax(1) <= bound[:, 0]).all()


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_no_input_and_no_cotangent_go_beyond_what_is_claimed(sample: Sample) -> None:
    module, walk = prepared(sample)
    tightest: dict[str, float] = {}
    for i, family in enumerate(families(module)[: sample.starts]):
        set_weights(module, family, seed=i)
        claimed = claims(walk, sample.radius)
        effort = (sample.starts, 12) if i == 0 else (3, 6)
        found = attack(walk, module, sample.radius, *effort)
        ratio, where = worst(claimed, found.value)
        assert ratio <= 1 + sample.rounding, f"{where}: {ratio} times the bound, weights {family}"
        ratio, where = worst(claimed, in_float32(module, found))
        assert ratio <= 1 + 1e-5, f"{where}: {ratio} times the bound in float32, weights {family}"
        for what in sample.tight:
            key = (what, 2.0, 2.0, 2.0)
            tightest[what] = max(tightest.get(what, 0.0), found.value[key] / claimed[key])
    assert all(ratio > 0.995 for ratio in tightest.values()), tightest


def in_float32(module: nn.Module, found: Attack) -> dict[Quantity, float]:
    """The quantities at the worst inputs and cotangents found, by the arithmetic that trains."""
    attained = {}
    module.float()
    for what in dict.fromkeys(key[0] for key in found.value):
        keys = [key for key in found.value if key[0] == what]
        x = torch.stack([found.x[key] for key in keys]).float().requires_grad_()
        v = torch.stack([found.v[key] for key in keys]).float()
        values = norms_of(per_example(module, what, x, v).detach().double(), torch.tensor([key[3] for key in keys]))
        attained.update(zip(keys, values.tolist(), strict=True))
    module.double()
    return attained


@pytest.mark.parametrize("sample", [s for s in SAMPLES if s.linear], ids=str)
def test_exact_jacobians_stay_within_the_pullback(sample: Sample) -> None:
    """At given inputs the cotangent maps are linear, so that their induced norms are exact and need no search."""
    module, walk = prepared(sample)
    set_weights(module, "random")
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(sample.shape, generator=generator, dtype=torch.float64)
    for x in (direction, direction.sign(), torch.ones_like(direction), torch.zeros_like(direction)):
        x = sample.radius * x / max(1.0, float(torch.linalg.vector_norm(x)))
        output, pullback = walk(Norms.of(x))
        for what, jacobian in jacobians(module, x).items():
            for (q, r), exact in induced(jacobian.T).items():
                cotangent, parameters = pullback(Norms(output.shape, **{NAMES[q]: 1.0}))
                stated = {"input": cotangent, **parameters}[what].norm(r)
                assert exact <= stated * (1 + 1e-5) + 1e-12, (what, q, r, exact, stated)


def check_exactly(module: nn.Module, shape: tuple[int, ...], inputs: list[Tensor]) -> None:
    """The output and the exact Jacobians at some inputs, against what a walk states for their norms."""
    walk = Walk(module, shape)
    for x in inputs:
        output, pullback = walk(Norms.of(x))
        assert holds(output, module(x[None])[0].detach())
        for what, jacobian in jacobians(module, x).items():
            for (q, r), exact in induced(jacobian.T).items():
                cotangent, parameters = pullback(Norms(output.shape, **{NAMES[q]: 1.0}))
                assert exact <= {"input": cotangent, **parameters}[what].norm(r) * (1 + 1e-6) + 1e-12, (what, q, r)


@pytest.mark.parametrize("seed", range(40))
def test_pooling_with_any_windows(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)

    def pick(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=g))

    axes, kernel = pick(1, 2), pick(1, 4)
    stride, padding = pick(1, 3), pick(0, kernel // 2)
    shape = (2, *(pick(max(kernel, 2), 7) for _ in range(axes)))
    layers = [(nn.AvgPool1d, nn.AvgPool2d)[axes - 1](kernel, stride, padding)]
    dilation = pick(1, 2)
    if dilation * (kernel - 1) < min(shape[1:]):
        layers.append((nn.MaxPool1d, nn.MaxPool2d)[axes - 1](kernel, stride, padding, dilation))
    noise = torch.randn(shape, generator=g, dtype=torch.float64)
    peak = torch.zeros_like(noise)
    peak[(0, *(n // 2 for n in shape[1:]))] = 1.0
    for layer in layers:
        check_exactly(layer, shape, [noise, noise.sign(), peak, -peak, torch.ones_like(noise)])


OPERATIONS = [lambda x, p: x + p, lambda x, p: p - x, lambda x, p: x * p, lambda x, p: p * x]


@pytest.mark.parametrize("value", [(3,), (1,), (2, 3), (2, 1), (1, 3), (1, 1)], ids=str)
@pytest.mark.parametrize(
    "parameter", [(), (1,), (3,), (2, 1), (2, 3), (1, 3), (1, 2, 3), (1, 1, 1), (2, 2, 3)], ids=str
)
def test_broadcasting_against_a_parameter(value: tuple[int, ...], parameter: tuple[int, ...]) -> None:
    """Whatever shapes meet: the bound holds, or the meeting is refused because an axis would meet the batch."""
    x = torch.randn(value, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for function in OPERATIONS:
        torch.manual_seed(1)
        module = Calls(function, p=parameter).double()
        if len(parameter) > len(value) + 1 or (len(parameter) == len(value) + 1 and parameter[0] != 1):
            with pytest.raises(dplip.DPLipError):
                dplip.propagate(module, value)
        else:
            check_exactly(module, value, [x, x.sign(), torch.ones_like(x)])


HUGE = [1e-30, 1e-3, 1.0, 30.0, 1e6, 1e12]  # beyond, the cube inside GELU is no float32


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_what_is_claimed_of_any_input_holds_for_huge_ones(sample: Sample) -> None:
    module, walk = prepared(sample)
    set_weights(module, "random")
    module.float()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(12, *sample.shape, generator=generator)
    one_hot = (
        F.one_hot(torch.arange(12) % math.prod(sample.shape), math.prod(sample.shape)).float().reshape(noise.shape)
    )
    x = torch.cat([s * part for s in HUGE for part in (noise, noise.sign(), one_hot, -torch.ones_like(one_hot))])
    output, pullback = walk(None)
    x.requires_grad_()
    torch.manual_seed(0)
    y = module(x)
    v = torch.randn(y.shape, generator=generator)
    v = v / torch.linalg.vector_norm(v.reshape(len(v), -1), dim=1).reshape(len(v), *[1] * (v.ndim - 1))
    (y * v).sum().backward()
    module.double()
    cotangent, _ = pullback(Norms(output.shape, l2=1.0))
    for value, norms in ((y.detach(), output), (x.grad, cotangent)):
        for p in EXPONENTS:
            bound = norms.norm(p)
            if math.isfinite(bound):
                rows = value.double().reshape(len(value), -1)
                worst_row = float(torch.linalg.vector_norm(rows, p, dim=1).max())
                assert worst_row <= bound * (1 + 1e-5) + 1e-12, (p, worst_row, bound)


@pytest.mark.parametrize("sample", [s for s in SAMPLES if not s.train and "dropout" not in s.name], ids=str)
def test_one_example_does_not_see_the_others(sample: Sample) -> None:
    module, _ = prepared(sample)
    x = torch.randn(5, *sample.shape, dtype=torch.float64)
    together = module(x)
    alone = torch.cat([module(row) for row in x.split(1)])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_bounds_of_a_batch_are_those_of_its_examples(sample: Sample) -> None:
    _, walk = prepared(sample)
    values = [0.0, 0.3, 0.7, 1e-40, 1e40]
    for p in EXPONENTS:
        many, many_back = walk(Norms(sample.shape, **{NAMES[p]: torch.tensor(values, dtype=torch.float64)}))
        v = torch.tensor([0.7, 1.0, 0.1, 1e-40, 1e40], dtype=torch.float64)
        together = {"output": many, **flattened(many_back(Norms(many.shape, l2=v)))}
        for i, value in enumerate(values):
            one, one_back = walk(Norms(sample.shape, **{NAMES[p]: value}))
            alone = {"output": one, **flattened(one_back(Norms(one.shape, l2=float(v[i]))))}
            for what, norms in alone.items():
                for r in EXPONENTS:
                    whole = torch.as_tensor(together[what].norm(r), dtype=torch.float64).expand(len(values))
                    expected = norms.norm(r)
                    assert math.isclose(float(whole[i]), expected, rel_tol=1e-12), (
                        what,
                        p,
                        r,
                        i,
                        float(whole[i]),
                        expected,
                    )


def flattened(pulled: tuple[Norms, dict[str, Norms]]) -> dict[str, Norms]:
    cotangent, parameters = pulled
    return {"input": cotangent, **parameters}


def test_every_rule_has_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    exercised = set()

    def watched(key: object, function: Callable[..., object]) -> Callable[..., object]:
        @functools.wraps(function)
        def run(*arguments: object, **named: object) -> object:
            exercised.add(key)
            return function(*arguments, **named)

        return run

    own = {key: f for key, f in registry.registered().items() if f.__module__.startswith("dplip.")}
    for only_calls_a_method in (F.tanh, F.sigmoid):
        del own[only_calls_a_method]
    for key, function in own.items():
        monkeypatch.setitem(registry._RULES, key, watched(key, function))
    for sample in SAMPLES:
        prepared(sample)[1](Norms(sample.shape, l2=1.0))
    missing = [f"{f.__module__}.{f.__name__} of {key}" for key, f in own.items() if key not in exercised]
    assert not missing, f"add a sample to tests/laws.py for {missing}"


# ------------------------------------------------------------------------------------------------ compositions


class Residual(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


class Twice(nn.Module):
    """One module used for two purposes: the gradients of its parameters add."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.block(x)) - self.block(x)


class Beside(nn.Module):
    def __init__(self, one: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.one, self.other = one, other

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.one(x), self.other(x)), dim=1)


class Tied(nn.Module):
    """Two layers of one weight, the second as a functional call."""

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        self.layer, self.weight = layer, layer.weight

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.layer(x))
        return F.linear(y, self.weight) if isinstance(self.layer, nn.Linear) else F.conv2d(y, self.weight, padding=1)


class Affine(nn.Module):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.scale, self.shift = (
            nn.Parameter(torch.randn(shape)),
            nn.Parameter(torch.randn(shape[:1] + (1,) * (len(shape) - 1))),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


class Halves(nn.Module):
    """The two halves of the channels change places, one of them through a block."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        return torch.cat((b, self.block(a)), dim=1)


@st.composite
def blocks(draw: st.DrawFn, shape: tuple[int, ...], depth: int) -> nn.Module:
    """A random module that keeps the shape of its input: (channels,) or (channels, height, width)."""
    channels = shape[0]
    layers: list[Callable[[], nn.Module]] = [
        *(nn.ReLU, nn.Tanh, nn.GELU, dn.Center, nn.Identity),
        *(
            lambda: dn.GroupSort(2),
            lambda: dn.Householder(channels),
            lambda: nn.Dropout(0.3),
            lambda: nn.PReLU(channels),
        ),
        *(lambda: Affine(shape), lambda: dn.BallProjection(1.5), lambda: dn.Clamp(-1.0, 0.5)),
    ]
    if len(shape) == 1:
        layers += [lambda: nn.Linear(channels, channels), lambda: Tied(nn.Linear(channels, channels))]
    else:
        layers += [
            lambda: nn.Conv2d(channels, channels, 3, padding=1),
            lambda: nn.Conv2d(channels, channels, 3, padding=1, padding_mode="circular", groups=2),
            lambda: nn.Conv2d(channels, channels, 2, padding="same"),
            lambda: Tied(nn.Conv2d(channels, channels, 3, padding=1)),
            lambda: nn.MaxPool2d(3, 1, 1),
            lambda: nn.AvgPool2d(3, 1, 1),
        ]
    kinds = ["layer", "layer", "sequence", "residual", "twice", "halves"] if depth else ["layer"]
    kind = draw(st.sampled_from(kinds))
    if kind == "layer":
        return draw(st.sampled_from(layers))()
    if kind == "halves":
        half = (channels // 2, *shape[1:])
        return Halves(draw(blocks(half, depth - 1))) if channels % 4 == 0 else Residual(draw(blocks(shape, depth - 1)))
    inner = draw(blocks(shape, depth - 1))
    if kind == "sequence":
        return nn.Sequential(inner, draw(blocks(shape, depth - 1)))
    return Residual(inner) if kind == "residual" else Twice(inner)


@settings(quick, max_examples=25)
@given(st.data())
def test_random_compositions(data: st.DataObject) -> None:
    torch.manual_seed(data.draw(st.integers(0, 2**20)))
    shape = data.draw(st.sampled_from([(4,), (2, 4, 4), (4, 2, 2)]))
    layers: list[nn.Module] = [data.draw(blocks(shape, 2))]
    width = shape[0]
    if data.draw(st.booleans()):
        layers.append(Beside(data.draw(blocks(shape, 1)), data.draw(blocks(shape, 1))))
        width *= 2
    layers += [nn.Flatten(), nn.Linear(width * math.prod(shape[1:]), 3)]
    model = nn.Sequential(*layers).double()
    family = data.draw(st.sampled_from(["as initialised", *FAMILIES]))
    if family in FAMILIES:
        set_weights(model, family, data.draw(st.integers(0, 100)))
    walk = Walk(model, shape)
    claimed = claims(walk, 2.0)
    found = attack(walk, model, 2.0, count=2, steps=5)
    assert {key[0] for key in found.value} == {"output", "input", *dict(model.named_parameters())}
    ratio, where = worst(claimed, found.value)
    assert ratio <= 1 + 1e-9, (where, ratio, model)


def test_the_l1_norm_of_a_ball_projection_is_attained() -> None:
    """Just outside the ball, at the angle atan(sqrt(n - 1)) / 2 to an axis, which no search finds by itself."""
    n = 6
    angle = math.atan(math.sqrt(n - 1)) / 2
    x = torch.full((n,), math.cos(angle) / math.sqrt(n - 1), dtype=torch.float64)
    x[0] = math.sin(angle)
    exact = induced(jacobians(dn.BallProjection(1.0), x * (1 + 1e-9))["input"])[1.0, 1.0]
    output, pullback = dplip.propagate(dn.BallProjection(1.0), (n,))
    for name in ("l1", "linf"):
        stated = pullback(Norms(output.shape, **{name: 1.0}))[0].norm({"l1": 1, "linf": inf}[name])
        assert exact <= stated <= exact * (1 + 1e-4)


def test_a_residual_sum_is_tight() -> None:
    """|x + Wx| = 2 |x| and |v + W'v| = 2 |v| for W the identity: a residual bound has nothing to give away."""
    layer = nn.Linear(4, 4, bias=False)
    nn.init.eye_(layer.weight)
    output, pullback = dplip.propagate(Residual(layer), (4,), Norms((4,), l2=1.0))
    cotangent, parameters = pullback(Norms((4,), l2=1.0))
    for bound, exact in ((output.l2, 2.0), (cotangent.l2, 2.0), (parameters["block.weight"].l2, 1.0)):
        assert exact <= bound <= exact * (1 + 1e-5)


# ------------------------------------------------------------------------------------------------ the algebra of norms

vectors = st.lists(
    st.floats(-1e6, 1e6, allow_nan=False).map(lambda v: 0.0 if abs(v) < 1e-100 else v), min_size=1, max_size=12
)


def true_norms(x: Tensor) -> dict[float, float]:
    return {p: float(torch.linalg.vector_norm(x.double().reshape(-1), p)) for p in EXPONENTS}


def holds(norms: Norms, x: Tensor, slack: float = 1e-9) -> bool:
    return all(value <= norms.norm(p) * (1 + slack) for p, value in true_norms(x).items())


@quick
@given(vectors, st.sampled_from([("l1",), ("l2",), ("linf",), ("l1", "linf"), ("l2", "linf"), ("l1", "l2")]))
def test_tightening_keeps_what_is_true(entries: list[float], given_names: tuple[str, ...]) -> None:
    x = torch.tensor(entries, dtype=torch.float64)
    exact = {NAMES[p]: value for p, value in true_norms(x).items()}
    norms = Norms(tuple(x.shape), **{name: exact[name] for name in given_names})
    assert holds(norms, x)
    assert norms.linf <= norms.l2 <= norms.l1 <= len(entries) ** 0.5 * norms.l2 * (1 + 1e-12)
    again = Norms(norms.shape, norms.l1, norms.l2, norms.linf)
    assert all(math.isclose(again.norm(p), norms.norm(p), rel_tol=1e-12) for p in EXPONENTS)


@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.parametrize("r", EXPONENTS)
def test_tightening_is_as_tight_as_can_be(p: float, r: float) -> None:
    """From one norm, the bound on another is attained: by one entry, or by equal entries."""
    n = 7
    equal, single = torch.ones(n, dtype=torch.float64), torch.eye(n, dtype=torch.float64)[0]
    best = max(true_norms(x)[r] / true_norms(x)[p] for x in (equal, single))
    assert math.isclose(Norms((n,), **{NAMES[p]: 1.0}).norm(r), best, rel_tol=1e-12)


@quick
@given(vectors, st.floats(-1e3, 1e3).map(lambda v: 0.0 if abs(v) < 1e-3 else v))
def test_sums_and_multiples(entries: list[float], factor: float) -> None:
    x = torch.tensor(entries, dtype=torch.float64)
    y = x.flip(0) * factor
    a, b = Norms.of(x), Norms.of(y)
    assert holds(a, x)
    assert holds(a + b, x + y)
    assert holds(a + b, x - y)
    assert holds(a * abs(factor), x * factor)
    assert holds(a & Norms(a.shape, l2=a.l2), x)
    joined = torch.cat((x, y))
    parts = Norms.concatenate([a, b], tuple(joined.shape))
    assert holds(parts, joined)
    assert all(math.isclose(parts.norm(p), v, rel_tol=1e-5, abs_tol=1e-90) for p, v in true_norms(joined).items())


@pytest.mark.parametrize(
    ("small", "large"), [((1, 3), (4, 3)), ((3, 1), (3, 5)), ((), (6,)), ((1, 1), (2, 3)), ((2,), (2,))]
)
def test_repeating_and_summing_are_adjoint(small: tuple[int, ...], large: tuple[int, ...]) -> None:
    """The operators are transposes of one another, so the norms p -> q of one are the norms q* -> p* of the other."""
    dual = {1.0: inf, 2.0: 2.0, inf: 1.0}
    matrix = torch.stack(
        [e.reshape(small).expand(large).reshape(-1) for e in torch.eye(math.prod(small)).double()], dim=1
    )
    for (p, q), exact in induced(matrix).items():
        repeated = Norms(small, **{NAMES[p]: 1.0}).repeat(large).norm(q)
        summed = Norms(large, **{NAMES[dual[q]]: 1.0}).sum_to(small).norm(dual[p])
        assert exact <= repeated * (1 + 1e-12)
        assert exact <= summed * (1 + 1e-12)
    assert math.isclose(Norms(small, l2=1.0).repeat(large).l2, Norms(large, l2=1.0).sum_to(small).l2)


@quick
@given(st.lists(st.floats(0.0, 1e30), min_size=3, max_size=3), st.lists(st.floats(0.0, 1e30), min_size=3, max_size=3))
def test_a_tensor_of_bounds_is_a_float_for_each_example(first: list[float], second: list[float]) -> None:
    def every(a: Norms, b: Norms) -> list[Norms]:
        parts = [
            a + b,
            a & b,
            a * 0.7,
            a.repeat((2, 3)),
            a.sum_to((1, 1)),
            a.reshape((3,)),
            Norms.concatenate([a, b], (2, 3)),
        ]
        return [*parts, OperatorNorms(0.7, two_two=0.3, inf_inf=0.1)(a, (1, 3))]

    pair = [
        Norms((1, 3), *(torch.tensor(v, dtype=torch.float64).expand(1) for v in values)) for values in (first, second)
    ]
    alone = [Norms((1, 3), *values) for values in (first, second)]
    for many, one in zip(every(*pair), every(*alone), strict=True):
        for p in EXPONENTS:
            whole = float(torch.as_tensor(many.norm(p), dtype=torch.float64))
            assert math.isclose(whole, one.norm(p), rel_tol=1e-12)


def test_nothing_known_times_zero_is_nothing_known() -> None:
    assert (Norms((3,)) * 0.0).l2 == inf
    assert torch.equal((Norms((3,), l2=torch.tensor([inf, 1.0])) * 0.0).l2, torch.tensor([inf, 0.0]).double())
    assert Norms((3,), l1=2.0, linf=0.0).l1 == 0.0
    assert Norms((0,)).l1 == 0.0


@pytest.mark.parametrize("bad", [-1.0, float("nan"), torch.tensor([1.0, -1e-9]), torch.tensor([float("nan")])])
def test_no_norm_is_negative_or_nan(bad: float | Tensor) -> None:
    with pytest.raises(dplip.ConfigurationError, match="a norm is a number >= 0"):
        Norms((3,), l2=bad)


def test_of_a_constant_that_is_not_finite() -> None:
    for value in (float("nan"), inf):
        with pytest.raises(dplip.ConfigurationError, match="NaN or infinite"):
            Norms.of(torch.tensor([1.0, value]))


@quick
@given(st.integers(0, 2**20))
def test_operator_norms_bound_every_image(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows, columns = (int(torch.randint(1, 6, (), generator=generator)) for _ in range(2))
    matrix = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    names = {(1.0, 1.0): "one_one", (1.0, 2.0): "one_two", (1.0, inf): "one_inf"}
    names |= {(2.0, 2.0): "two_two", (2.0, inf): "two_inf", (inf, inf): "inf_inf"}
    exact = induced(matrix)
    kept = {k for k in exact if torch.rand((), generator=generator) < 0.6}
    bounds = OperatorNorms(**{names[k]: exact[k] for k in kept})
    for k, value in exact.items():
        assert value <= getattr(bounds, names[k]) * (1 + 1e-12)  # monotonicity and Riesz-Thorin only tighten
        transposed = (1 / k[1] if k[1] != inf else 0.0, 1 / k[0] if k[0] != inf else 0.0)
        dual = tuple(inf if 1 - t == 0 else 1 / (1 - t) for t in transposed)
        assert getattr(bounds.T, names[dual]) == getattr(bounds, names[k])
    x = torch.randn(columns, generator=generator, dtype=torch.float64)
    assert holds(bounds(Norms.of(x), (rows,)), matrix @ x)
    assert holds(bounds.T(Norms.of(matrix @ x), (columns,)), matrix.T @ (matrix @ x))


# ------------------------------------------------------------------------------------------------ particular functions


scalar = [s for s in ELEMENTWISE if "oftmax" not in s.name and s.name != "PReLU(num_parameters=6)"]


@pytest.mark.parametrize("sample", scalar, ids=str)
def test_slopes_and_values_on_a_fine_grid(sample: Sample) -> None:
    """Near zero, where activations bend, and far out: a stated slope such as 1.13 must cover the true one, 1.1290."""
    module = prepared(sample)[0]
    near, far = torch.linspace(-12, 12, 240_001).double(), torch.logspace(-8, 4, 2001).double()
    x = torch.cat((near, far, -far)).reshape(-1, 1).requires_grad_()
    y = module(x)
    slope = float(torch.autograd.grad(y.sum(), x)[0].abs().max())
    walk = Walk(module, (1,))
    assert slope <= walk(None)[1](Norms((1,), linf=1.0))[0].linf * (1 + sample.rounding)
    for radius in (0.1, 1.0, 10.0, inf):
        inside = y[x.abs() <= radius]
        assert float(inside.detach().abs().max()) <= walk(Norms((1,), linf=radius))[0].linf * (1 + sample.rounding)


# ------------------------------------------------------------------------------------------------ float32


@pytest.mark.parametrize("n", [1, 784, 3072, 150_528])
def test_a_ball_is_not_left_by_rounding(n: int) -> None:
    noise = torch.randn(6, n, generator=torch.Generator().manual_seed(0))
    for x in (noise, noise.sign() * 7.3, torch.rand(6, 1).expand(6, n) * 100, noise * 10 ** (3 * noise), noise * 1e18):
        for radius in (1e-3, 1.0, 12.0):
            y = dn.BallProjection(radius)(x).double()
            assert float(torch.linalg.vector_norm(y, dim=1).max()) <= radius


def test_a_ball_takes_whatever_is_not_a_number() -> None:
    x = torch.tensor([[inf, 1.0], [math.nan, -inf], [3e38, 3e38], [-inf, 1e38], [0.0, 0.0]])
    y = dn.BallProjection(2.0)(x)
    assert bool(y.isfinite().all())
    assert float(torch.linalg.vector_norm(y.double(), dim=1).max()) <= 2.0


NORMALISING = [
    (nn.LayerNorm((3, 12), elementwise_affine=False), (3, 12)),
    (nn.LayerNorm(784, elementwise_affine=False), (784,)),
    (nn.GroupNorm(1, 3, affine=False), (3, 12)),
    (nn.InstanceNorm1d(3), (3, 12)),
    (nn.InstanceNorm2d(3), (3, 14, 14)),
]


@pytest.mark.parametrize(("module", "shape"), NORMALISING, ids=lambda v: str(v))
@pytest.mark.parametrize("size", [1.0, 1e3, 1e5, 1e8, 1e20, None])
def test_normalisation_of_large_and_nearly_constant_inputs(
    module: nn.Module, shape: tuple[int, ...], size: float | None
) -> None:
    """An adversary picks a constant image: its mean rounds, and the difference is divided by sqrt(eps)."""
    output, _ = dplip.propagate(module, shape, None if size is None else Norms(shape, linf=size))
    generator = torch.Generator().manual_seed(0)
    level = torch.rand(200, *[1] * len(shape), generator=generator) * (1e30 if size is None else size)
    spread = torch.tensor([0.0, 1e-8, 1e-4, 1e-2])[torch.arange(200) % 4].reshape(level.shape)
    noise = torch.rand(200, *shape, generator=generator) - 1
    y = module(level * (1 + spread * noise)).detach().double().reshape(200, -1)
    for p in EXPONENTS:
        if math.isfinite(output.norm(p)):
            attained = torch.nan_to_num(torch.linalg.vector_norm(y, p, dim=1), nan=inf)
            assert float(attained.max()) <= output.norm(p) * (1 + 1e-5)


def test_sums_over_large_maps_stay_within_the_sensitivity() -> None:
    """One float32 gradient sums 50,176 equal terms: its rounding is part of what one example contributes."""
    conv = nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular")
    with torch.no_grad():
        conv.bias.copy_(torch.tensor([50.0, -50.0]))
    model = nn.Sequential(dn.BallProjection(3.0), conv, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    loss = dplip.losses.CrossEntropy()
    bounds = dplip.sensitivity(model, loss, (1, 224, 224))
    loss(model(torch.full((1, 1, 224, 224), 0.43)), torch.tensor([1])).backward()
    for name, p in model.named_parameters():
        norm = float(torch.linalg.vector_norm(p.grad.double()))
        assert 0.9 * bounds[name] <= norm <= bounds[name], (name, norm, bounds[name])
