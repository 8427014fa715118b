"""The algebra of norms: whatever is true of vectors is true of their bounds."""

import math
from math import inf

import pytest
import torch
from helpers.laws import EXPONENTS, NAMES, induced
from helpers.norms import holds, quick, true_norms
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import dplip
from dplip import Norms, OperatorNorms

vectors = st.lists(
    st.floats(-1e6, 1e6, allow_nan=False).map(lambda v: 0.0 if abs(v) < 1e-100 else v), min_size=1, max_size=12
)


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
