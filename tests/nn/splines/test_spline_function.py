"""Splines: their function and derivative, their starts, and what they can represent."""

import copy
import math
from math import inf

import pytest
import torch
from helpers.splines import KINDS, scrambled
from torch import Tensor

import dplip.nn as dn
from dplip.nn.splines.constraints import centred_values
from dplip.nn.splines.spline import INITS, Spline


def by_definition(spline: Spline, x: Tensor) -> Tensor:
    """sigma_f(a x) / a of one row of features, by numpy-like interpolation, in float64."""
    a, values = spline.scale(), spline.values().detach()
    grid = (torch.arange(spline.knots, dtype=torch.float64) - (spline.knots - 1) / 2) * spline.step
    rows = []
    for f, u in enumerate((x.double() * a).tolist()):
        left, right = (float(t) for t in spline.tails[f])
        if u <= grid[0]:
            rows.append(float(values[f, 0]) + left * (u - float(grid[0])))
        elif u >= grid[-1]:
            rows.append(float(values[f, -1]) + right * (u - float(grid[-1])))
        else:
            k = int((grid <= u).sum()) - 1
            t = (u - float(grid[k])) / spline.step
            rows.append((1 - t) * float(values[f, k]) + t * float(values[f, k + 1]))
    return torch.tensor(rows, dtype=torch.float64) / a


# ------------------------------------------------------------------------------------------------ the function


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("knots", [2, 5, 6])
@pytest.mark.parametrize("min_scale", [None, 0.5])
def test_values_and_gradients_are_those_of_the_definition(kind, knots, min_scale):
    spline = scrambled(kind(5, knots, 1.5, "maxmin", min_scale=min_scale), 0.5).double()
    x = torch.cat([torch.randn(40, 5, dtype=torch.float64) * s for s in (0.3, 1.0, 10.0)])
    expected = torch.stack([by_definition(spline, row) for row in x])
    torch.testing.assert_close(spline(x).detach(), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(copy.deepcopy(spline).float()(x.float()).double(), expected, rtol=2e-6, atol=2e-6)
    few = x[::24].clone().requires_grad_()
    parameters = dict(spline.named_parameters())

    def call(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(spline, dict(zip(parameters, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (few, *parameters.values()))
    assert torch.autograd.gradgradcheck(call, (few, *parameters.values()))


@pytest.mark.parametrize("shape, dim", [((4,), 1), ((4, 3, 5), 1), ((3, 4), 2), ((3, 4), -1), ((2, 4, 3), -2)])
def test_features_lie_along_any_axis(shape, dim):
    spline = scrambled(dn.LinearSpline(4, 5, dim=dim)).double()
    x = torch.randn(7, *shape, dtype=torch.float64)
    flat = x.movedim(dim, -1).reshape(-1, 4)
    expected = torch.stack([by_definition(spline, row) for row in flat])
    torch.testing.assert_close(spline(x).movedim(dim, -1).reshape(-1, 4).detach(), expected)
    assert torch.equal(spline(x.mT.contiguous().mT), spline(x))  # whatever the strides


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("init", INITS)
def test_a_start_is_the_named_function_everywhere(kind, init):
    x = torch.cat([torch.linspace(-30, 30, 481), torch.tensor([1e-30, -1e-30, 1e20, -1e20])])[:, None].expand(-1, 4)
    rows = x.T
    expected = {
        "identity": rows,
        "relu": rows.relu(),
        "absolute": rows.abs(),
        "maxmin": torch.stack((rows[0].abs(), rows[1], rows[2].abs(), rows[3])),
        "zero": 0 * rows,
    }
    y = kind(4, 21, 2.0, init)(x).T
    torch.testing.assert_close(y, expected[init], rtol=1e-6, atol=1e-6)


def test_a_start_may_be_any_function_and_is_brought_into_the_interval():
    spline = dn.LinearSpline(2, 41, 2.0, lambda t: 2 * torch.sin(t), slopes=(0.0, 1.0))
    assert bool(((spline.slope >= 0) & (spline.slope <= 1)).all())
    x = torch.linspace(-9, 9, 400)[:, None].expand(-1, 2)
    assert bool((spline(x).diff(dim=0) >= 0).all())


def test_not_a_number_counts_as_zero_and_nothing_else_becomes_one():
    for init in INITS:
        spline = dn.LinearSpline(2, 5, init=init, min_scale=0.1)
        x = torch.tensor([[math.nan, 0.0], [inf, -inf], [3e38, -3e38]], requires_grad=True)
        y = spline(x)
        assert bool(y.isfinite().all())
        assert torch.equal(y[0, 0], dn.LinearSpline(2, 5, init=init)(torch.zeros(1, 2))[0, 0])
        y.sum().backward()
        assert all(bool(t.grad.isfinite().all()) for t in (x, *spline.parameters()))


# ------------------------------------------------------------------------------------------------ what they can do


def test_maxmin_is_a_rotation_then_absolute_and_identity_then_a_rotation():
    r = 1 / math.sqrt(2.0)
    down, up = torch.tensor([[r, -r], [r, r]]), torch.tensor([[-r, r], [r, r]])

    def rotate(x: Tensor, matrix: Tensor) -> Tensor:
        return (x.reshape(len(x), -1, 2) @ matrix.T).reshape(x.shape)

    x = torch.randn(1000, 8).double() * torch.logspace(-3, 3, 1000)[:, None]
    down, up = down.double(), up.double()
    for kind in KINDS:
        spline = kind(8, init="maxmin").double()
        # (a, b) -> (a - b, a + b)/sqrt 2 -> (|a - b|, a + b)/sqrt 2 -> (min, max)
        found = rotate(spline(rotate(x, down)), up)
        torch.testing.assert_close(found.detach(), dn.GroupSort(2)(x), rtol=1e-6, atol=1e-6)


def test_the_absolute_value_is_exact_for_a_spline_and_out_of_reach_of_relu():
    x = torch.linspace(-1, 1, 2001, dtype=torch.float64)[:, None]
    spline = dn.LinearSpline(1, 3, init="absolute").double()
    torch.testing.assert_close(spline(x).detach(), x.abs(), rtol=0, atol=1e-7)  # the mean is rounded to float32
    # One hidden layer of ReLUs, |w|_2 <= 1 and |a|_2 <= 1: f(1) + f(-1) - 2 f(0) is at most the variation of f', which
    # is at most sum |a_i w_i| <= 1; for |x| it is 2, so the largest error is at least 1/4. It is reached.
    best = inf
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        w, a, b = (torch.randn(16, generator=generator, dtype=torch.float64) for _ in range(3))
        w, a = w / w.norm(), a / a.norm()
        f = torch.relu(x * w + b * (seed % 3)) @ a
        gap = x[:, 0].abs() - f
        error = float((gap.max() - gap.min()) / 2)  # after the best shift
        assert error >= 0.25 - 1e-12
        best = min(best, error)
    w = a = torch.tensor([1.0, -1.0], dtype=torch.float64) / math.sqrt(2.0)
    f = torch.relu(x * w) @ a.abs() + 0.25
    assert float((x[:, 0].abs() - f).abs().max()) == pytest.approx(0.25)


def test_centred_values_have_mean_zero_and_the_given_differences():
    rises = torch.randn(3, 7, dtype=torch.float64)
    values = centred_values(rises)
    torch.testing.assert_close(values.diff(dim=1), rises)
    torch.testing.assert_close(values.mean(1), torch.zeros(3, dtype=torch.float64))
