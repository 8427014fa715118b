"""Every rule against the worst case that a search can find."""

import copy
import functools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers.laws import (
    EXPONENTS,
    FAMILIES,
    NAMES,
    Attack,
    Quantity,
    attack,
    claims,
    induced,
    jacobians,
    norms_of,
    per_example,
    prepared,
    set_weights,
    worst,
)
from helpers.norms import holds
from helpers.sample import Calls, Sample
from helpers.samples import SAMPLES
from torch import Tensor, nn

import dplip
from dplip import Norms
from dplip.propagation import Walk
from dplip.rounding.walk import Rounding
from dplip.rules import registry


def families(module: nn.Module) -> tuple[str, ...]:
    return FAMILIES if any(True for _ in module.parameters()) else FAMILIES[:1]


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
        monkeypatch.setitem(registry.RULES.rules, key, watched(key, function))
    for sample in SAMPLES:
        prepared(sample)[1](Norms(sample.shape, l2=1.0))
    missing = [f"{f.__module__}.{f.__name__} of {key}" for key, f in own.items() if key not in exercised]
    assert not missing, f"add a sample to a list of tests/helpers/samples.py for {missing}"
