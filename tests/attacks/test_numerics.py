"""Bounds hold in floating point: extreme weights, inputs, temperatures and batches, in float32 and float64."""

import itertools
import math

import pytest
import torch
from helpers.models import MODELS, built
from helpers.runs import Handed, private
from torch import nn

import dplip
import dplip.nn as dn
from dplip.accounting import NEIGHBORING
from dplip.errors import DPLipError
from dplip.losses import CrossEntropy


@pytest.mark.parametrize("batch", [1024, 65_536])
def test_the_rounding_of_a_large_sum_is_covered(batch):
    """The declared bound grows by 4 B 2^-24 for the rounding of two float32 sums of B terms."""
    model, shape = built("orthogonal")
    for relation, factor in NEIGHBORING.items():
        run = private(model, batches=Handed(expected_batch_size=float(batch)), neighboring=relation)
        alone = dplip.sensitivity(model, run.loss, shape)
        for name, bound in run.optimizer.sensitivities().items():
            assert bound >= factor * alone[name] * (1 + 3.99 * batch * 2.0**-24)


def test_two_sums_round_apart_by_more_than_one_rounding_for_each_example_but_not_by_four():
    batch, furthest = 65_536, 0.0
    for seed, width in itertools.product(range(25), (1, 4, 32)):
        generator = torch.Generator().manual_seed(seed)
        for x in (
            torch.rand(batch, width, generator=generator),
            torch.rand(width, generator=generator) + 0.05 * torch.rand(batch, width, generator=generator),
        ):
            x = x / x.norm(dim=1, keepdim=True)
            for moved in (x.sum(0) - x[1:].sum(0).double(), x.mT @ x[:, :1] - (x[1:].mT @ x[1:, :1]).double()):
                furthest = max(furthest, float(moved.norm()) - 1)
    assert 1.0 < furthest / (batch * 2.0**-24) < 3.0


def test_neighbouring_sums_at_batch_65536_lie_within_the_sensitivity():
    batch = 65_536
    model = nn.Sequential(dn.BallProjection(1.0), nn.Linear(4, 3, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[50.0] * 4, [-50.0] * 4, [-100.0] * 4]))
    run = private(model, input_shape=(4,), batches=Handed(expected_batch_size=float(batch)))
    generator = torch.Generator().manual_seed(0)
    for x in (torch.ones(batch, 4), torch.rand(batch, 4, generator=generator)):
        y = torch.ones(batch, dtype=torch.int64)

        def summed(rows: slice, x: torch.Tensor = x, y: torch.Tensor = y) -> torch.Tensor:
            model.zero_grad()
            run.loss(model(x[rows]), y[rows]).backward()
            return model.get_parameter("1.weight").grad.double()

        moved = float((summed(slice(0, batch)) - summed(slice(1, batch))).norm())
        assert moved <= run.optimizer.sensitivities().total


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1.0, 1e8, 1e30])
@pytest.mark.parametrize("name", ["plain", "convolutional", "residual", "tokens"])
def test_no_bound_is_below_what_is_attained_whatever_the_size_of_the_weights(name, scale, dtype):
    model, shape = built(name)
    model = model.to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(scale)
    try:
        declared = dplip.sensitivity(model, CrossEntropy(), shape)
    except DPLipError:  # a bound that overflows is refused
        assert scale == 1e30
        return
    generator = torch.Generator().manual_seed(0)
    sizes = [0.0, 1e-40, 1e-30, 1.0, 1e6, 1e30]
    for size in sizes:
        x = torch.randn(3, *shape, generator=generator).sign().to(dtype) * size
        for label in range(3):
            model.zero_grad()
            for one in x:
                model.zero_grad()
                CrossEntropy()(model(one[None]), torch.tensor([label])).backward()
                for n, p in model.named_parameters():
                    norm = float(torch.linalg.vector_norm(p.grad.double()))
                    assert norm <= declared[n] or math.isnan(norm)  # a step with NaN is refused


@pytest.mark.parametrize("temperature", [1e-30, 1e-8, 1e8, 1e30])
@pytest.mark.parametrize("normalize", [False, True])
def test_extreme_temperatures_stay_within_the_declared_norms(temperature, normalize):
    loss = CrossEntropy(temperature, normalize=normalize)
    generator = torch.Generator().manual_seed(0)
    for size in (0.0, 1e-40, 1.0, 1e30):
        z = (torch.randn(8, 5, generator=generator) * size).requires_grad_()
        loss(z, torch.arange(8) % 5).backward()
        norms = z.grad.double().norm(dim=1)
        assert bool((norms <= float(loss.gradient_norms((5,)).l2)).all())


@pytest.mark.parametrize("name", MODELS)
def test_half_precision_is_refused_and_double_has_the_bounds_of_single(name):
    model, shape = built(name)
    single = dplip.sensitivity(model, CrossEntropy(), shape)
    double = dplip.sensitivity(model.double(), CrossEntropy(), shape)
    assert dict(double) == pytest.approx(dict(single), rel=5e-5)
    assert all(double[n] <= single[n] * (1 + 1e-9) for n in single)  # their roundings are fewer
    with pytest.raises(DPLipError):
        dplip.sensitivity(model.bfloat16(), CrossEntropy(), shape)


@pytest.mark.parametrize("size", [2.0**-149, 2.0**-140, 1e-30, 1.0, 1e30])
def test_the_gradient_of_a_window_is_of_length_one_down_to_the_smallest_numbers(size):
    x = torch.full((1, 1, 2, 2), size, requires_grad=True)
    dplip.nn.ScaledL2NormPool2d(2)(x).sum().backward()
    assert x.grad is not None and float(x.grad.norm()) == pytest.approx(1.0, abs=1e-5)
    assert float(x.grad.norm()) <= 1 + 1e-6
