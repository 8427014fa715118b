"""A norm that was guessed and proved is never below the true one, whatever the guess."""

import math
from collections.abc import Iterator

import pytest
import torch
from helpers.operators import true_norm
from torch import Tensor

import dplip.norms.close as close
from dplip.norms import NormCache, matrix_norms, spectral_norm
from dplip.norms.close import close_norm

SHAPES = [(1, 1), (1, 30), (30, 1), (2, 2), (40, 40), (25, 90), (90, 25), (220, 240)]


def matrices(m: int, n: int) -> Iterator[tuple[str, Tensor]]:
    g = torch.Generator().manual_seed(m + n)
    w = torch.randn(m, n, generator=g, dtype=torch.float64)
    u, _, v = torch.linalg.svd(w, full_matrices=False)
    k = min(m, n)
    yield "random", w
    yield "orthogonal", u @ v
    yield "nearly orthogonal", u @ v + 1e-4 * w
    yield "rank one", w[:, :1] * w[:1]
    yield "one sign", torch.ones_like(w)
    yield "identity", torch.eye(m, n, dtype=torch.float64)
    yield "one entry", torch.nn.functional.pad(torch.ones(1, 1, dtype=torch.float64), (n - 1, 0, m - 1, 0))
    for repeated in (1, 2, k):
        values = torch.linspace(1, 1e-3, k, dtype=torch.float64)
        values[:repeated] = 1
        yield f"top repeated {repeated} times", u * values @ v
    yield "two close", u * torch.tensor([1, 1 - 1e-6, *[0.5] * k], dtype=torch.float64)[:k] @ v
    # Lanczos's start has nothing of the largest singular vector, so the first guess is half of the eigenvalue.
    start = torch.cos(torch.arange(k, dtype=torch.float64) ** 2)
    hidden = torch.linalg.qr(torch.stack([start, *torch.randn(k - 1, k, generator=g, dtype=torch.float64)], 1))[0]
    values = torch.full((k,), 0.7, dtype=torch.float64)
    values[-1] = 1
    square = hidden * values @ hidden.mT
    yield "a hidden direction", square @ (u @ v) if m <= n else (u @ v) @ square
    for scale in (1e-40, 1e-13, 1e-5, 1e5, 1e13, 1e30):
        yield f"scale {scale:g}", scale * w


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_a_close_norm_is_never_below_the_true_one(
    m: int, n: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(close, "SMALL", 0)
    found = 0
    for name, w in matrices(m, n):
        stored = w.to(dtype)
        bound, exact = close_norm(stored), true_norm(stored)
        if bound is not None:
            found += 1
            assert exact <= bound <= exact * 1.06, name
            assert bound <= exact * 1.006 or name == "a hidden direction", name
    assert found >= 12


@pytest.mark.parametrize("guess", [0.0, 1e-3, 0.5, 0.9, 0.99, 0.999])
def test_a_guess_that_is_too_small_proves_nothing(guess: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(close, "SMALL", 0)
    lanczos = close._lanczos
    monkeypatch.setattr(close, "_lanczos", lambda s: guess * lanczos(s))
    for m, n in SHAPES:
        for name, w in matrices(m, n):
            bound = close_norm(w.float())
            assert bound is None or true_norm(w.float()) <= bound, name


def test_what_is_no_number_or_too_small_or_large_has_no_close_norm() -> None:
    for bad in (math.nan, math.inf, 0.0, 1e-20, 1e20):
        w = torch.full((300, 300), bad)
        assert close_norm(w) is None
    assert close_norm(torch.eye(10)) is None


def test_only_norms_that_may_be_loose_are_close(monkeypatch: pytest.MonkeyPatch) -> None:
    w = torch.randn(220, 230, generator=torch.Generator().manual_seed(0))
    with NormCache():
        loose = matrix_norms(w).two_two
    with NormCache(tolerance=0.0):
        exact = matrix_norms(w).two_two
    assert exact == matrix_norms(w).two_two == spectral_norm(w)
    assert exact * 1.0001 < loose < exact * 1.005


def test_a_gram_matrix_that_rounds_too_much_is_taken_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    w = torch.linalg.qr(torch.randn(240, 220, generator=torch.Generator().manual_seed(0)))[0]
    loose = close_norm(w)
    monkeypatch.setattr(close, "ROUNDED", 1e-6)
    tight = close_norm(w)
    assert loose is not None and tight is not None and true_norm(w) <= tight < loose - 1e-4
