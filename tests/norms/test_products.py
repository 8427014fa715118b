"""Products in float32 are off by no more than is proved, whatever is multiplied and whatever torch is allowed to do."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from dplip.norms.products import frobenius, gram, lost, magnitude, product, unit_of

SHAPES = [(1, 1), (1, 700), (3, 65), (64, 64), (130, 257), (300, 40), (256, 1000)]


def factors(rows: int, terms: int, columns: int) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Products whose sums round much: random, of one sign, growing, shrinking, and cancelling."""
    g = torch.Generator().manual_seed(rows + terms)
    a, b = torch.randn(2, rows, terms, generator=g), torch.randn(2, terms, columns, generator=g)
    yield "random", a, b
    yield "one sign", a.abs() + 1, b.abs() + 1
    yield "equal", torch.full_like(a, 1 + 2.0**-12), torch.full_like(b, 1 + 2.0**-12)
    growing = torch.linspace(-8, 8, terms).exp()
    yield "growing", a.abs() * growing, b.abs()
    yield "shrinking", a.abs() * growing.flip(0), b.abs()
    turns = (-1.0) ** torch.arange(terms)
    yield "cancelling", (a.abs() + 1) * turns, torch.ones_like(b)


@pytest.mark.parametrize(("rows", "terms"), SHAPES)
def test_a_product_is_off_by_no_more_than_is_proved(rows: int, terms: int) -> None:
    for name, a, b in factors(rows, terms, rows + 5):
        exact = a.double() @ b.double()
        off = torch.linalg.matrix_norm(product(a, b).double() - exact)
        sums = [a[..., :k].double() @ b[:, :k].double() for k in (*range(1, terms, 7), terms)]
        partial = torch.stack([torch.linalg.matrix_norm(one) for one in sums]).amax(0)
        bound = lost(terms, unit_of(a), partial * 1.2, frobenius(a.double().abs() @ b.double().abs()))
        assert bool((off <= bound).all()), name


@pytest.mark.parametrize(("rows", "terms"), SHAPES)
def test_a_gram_matrix_is_off_by_no_more_than_is_proved(rows: int, terms: int) -> None:
    for name, a, _ in factors(rows, terms, 1):
        found, exact = gram(a), a.double() @ a.double().mT
        off = torch.linalg.matrix_norm(found.double() - exact)
        bound = lost(terms, unit_of(a), frobenius(found), frobenius(a) * magnitude(a))
        assert bool((off <= bound).all()), name
        assert bool((bound <= 1e-3 * torch.linalg.matrix_norm(exact)).all()) or name in ("random", "cancelling"), name


@pytest.mark.parametrize(("rows", "terms"), SHAPES)
def test_norms_are_from_above(rows: int, terms: int) -> None:
    for _, a, b in factors(rows, terms, rows):
        for one in (a, b, 1e12 * a):
            exact = torch.linalg.matrix_norm(one.double())
            assert bool((exact <= frobenius(one)).all()) and bool((frobenius(one) <= exact * 1.001).all())
            assert bool((torch.linalg.matrix_norm(one.double().abs(), 2) <= magnitude(one) * (1 + 1e-12)).all())


def test_neither_autocast_nor_tf32_takes_digits_away() -> None:
    a = torch.randn(1, 70, 90, generator=torch.Generator().manual_seed(0))
    expected = product(a, a.mT), gram(a), magnitude(a)
    with torch.autocast("cpu", torch.bfloat16):
        found = product(a, a.mT), gram(a), magnitude(a)
    backends: Any = torch.backends
    settings = backends.mkldnn.matmul
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        again = product(a, a.mT), gram(a), magnitude(a)
    finally:
        settings.fp32_precision = before
    for one in (found, again):
        for x, y in zip(expected, one, strict=True):
            assert x.dtype == y.dtype and torch.equal(x, y)


def test_float64_is_exact_to_its_own_unit() -> None:
    a = torch.randn(1, 30, 200, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert gram(a).dtype == torch.float64
    assert float(lost(200, unit_of(a), frobenius(gram(a)), frobenius(a) * magnitude(a))) < 1e-10
