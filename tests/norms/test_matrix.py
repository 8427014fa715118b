"""Norms of matrices: exact, from above."""

import math
from math import inf

import pytest
import torch
import torch.nn.functional as F
from helpers.laws import induced
from helpers.operators import FIELDS, seeded, true_norm
from torch import nn

import dplip
from dplip.norms import convolution_norms, matrix_norms, spectral_norm


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30, 1e-3])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (5, 7), (7, 5), (40, 40), (3, 300)])
@pytest.mark.parametrize("kind", ["random", "orthogonal", "rank one", "equal", "sign", "one entry"])
def test_a_matrix_norm_is_exact_from_above(kind: str, shape: tuple[int, int], scale: float) -> None:
    w = torch.randn(shape, generator=seeded(0))
    if kind == "orthogonal":
        w = nn.init.orthogonal_(w)
    elif kind == "rank one":
        w = w[:, :1] * w[:1]
    elif kind == "equal":
        w = torch.ones_like(w)
    elif kind == "sign":
        w = w.sign()
    elif kind == "one entry":
        w = F.one_hot(torch.tensor(w.numel() - 1), w.numel()).reshape(shape).float()
    w = w * scale
    exact = true_norm(w)
    assert exact <= spectral_norm(w) <= exact * (1 + 1e-5)
    bounds = matrix_norms(w)
    for key, value in induced(w.double()).items():
        assert value <= getattr(bounds, FIELDS[key])
        if 1e-15 < scale < 1e15:  # beyond, squares are no float32
            assert getattr(bounds, FIELDS[key]) <= value * (1 + 1e-4)


def test_weights_that_are_zero_or_empty_or_not_finite() -> None:
    assert spectral_norm(torch.zeros(3, 4)) == 0.0
    assert matrix_norms(torch.zeros(3, 4)).two_two == 0.0
    assert matrix_norms(torch.zeros(0, 4)).two_two == 0.0
    assert convolution_norms(torch.zeros(2, 2, 3), (5,), (1,), [(1, 1)], (1,), 1).two_two == 0.0
    for bad in (math.nan, inf):
        weight = torch.ones(3, 4)
        weight[1, 1] = bad
        kernel = torch.ones(2, 2, 3)
        kernel[0, 1, 0] = bad
        for refused in (
            lambda w=weight: spectral_norm(w),
            lambda w=weight: matrix_norms(w),
            lambda k=kernel: convolution_norms(k, (5,), (1,), [(1, 1)], (1,), 1),
            lambda k=kernel: convolution_norms(k[..., :1], (5,), (1,), [(0, 0)], (1,), 1),
        ):
            with pytest.raises(dplip.ConfigurationError, match="finite"):
                refused()
