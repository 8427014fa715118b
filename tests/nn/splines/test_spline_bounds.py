"""Splines: their projection, and bounds under attack."""

import math
from math import inf

import pytest
import torch
from helpers.splines import KINDS, scrambled
from torch import Tensor, nn

import dplip
import dplip.nn as dn
from dplip import Norms
from dplip.errors import ConfigurationError, UnboundedOperationError
from dplip.nn.splines.spline import INITS, Spline

# ------------------------------------------------------------------------------------------------ projection


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("slopes", [(-1.0, 1.0), (0.0, 1.0), (-0.25, 2.0), (1.0, 1.0)])
def test_the_projection_keeps_the_mean_and_is_idempotent(kind, slopes):
    spline = scrambled(kind(50, 21, slopes=slopes)).double()
    before = spline.values().detach()
    dplip.project(spline)
    after = spline.values().detach()
    torch.testing.assert_close(after.mean(1), before.mean(1), rtol=1e-12, atol=1e-12)
    found, wanted = after.diff(dim=1) / spline.step, (before.diff(dim=1) / spline.step).clamp(*slopes)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    dplip.project(spline)
    torch.testing.assert_close(spline.values().detach(), after, rtol=1e-12, atol=1e-12)


def test_the_two_coordinates_have_one_projection():
    slopes = scrambled(dn.LinearSpline(8, 11)).double()
    values = dn.CoefficientSpline(8, 11).double()
    values.coefficient.data.copy_(slopes.values())
    dplip.project(nn.ModuleList([slopes, values]))
    torch.testing.assert_close(slopes.values(), values.values())


def test_a_projected_spline_is_1_lipschitz_in_every_norm():
    for kind in KINDS:
        spline = scrambled(kind(6, 21, init="maxmin", min_scale=0.1))
        assert dplip.lipschitz(spline, (6,)) > 1.5
        dplip.project(spline)
        for norm in (1, 2, inf):
            assert 0.9 < dplip.lipschitz(spline, (6,), norm) <= 1 + 1e-5
    spline = scrambled(dn.LinearSpline(6))
    dplip.project(spline)
    assert dplip.lipschitz(spline, (6,)) <= 1 + 1e-12  # in these coordinates the slope itself is clamped


def test_the_floor_of_the_scale_is_kept():
    spline = dn.LinearSpline(3, min_scale=0.25)
    spline.log_scale.data.fill_(-7.0)
    dplip.project(spline)
    assert spline.scale() == pytest.approx(0.25)
    spline.log_scale.data.fill_(2.0)
    dplip.project(spline)
    assert spline.scale() == pytest.approx(math.exp(2.0))


# ------------------------------------------------------------------------------------------------ bounds


def gradients(spline: Spline, x: Tensor, v: Tensor) -> dict[str, Tensor]:
    """For each row, as if it were one example, the l2 norm of each parameter's gradient."""
    names = [name for name, _ in spline.named_parameters()]
    rows = []
    for one, cotangent in zip(x, v, strict=True):
        found = torch.autograd.grad((spline(one[None])[0] * cotangent).sum(), list(spline.parameters()))
        rows.append([float(g.double().norm()) for g in found])
    return dict(zip(names, torch.tensor(rows, dtype=torch.float64).T, strict=True))


def places(spline: Spline) -> Tensor:
    """Every knot, beside it by a rounding on either side, between the knots, and far beyond all of them."""
    grid = (torch.arange(spline.knots) - (spline.knots - 1) / 2) * spline.step / spline.scale()
    beside = [torch.nextafter(grid, torch.full_like(grid, end)) for end in (-inf, inf)]
    far = [s * 10.0**k for s in (-1, 1) for k in (0, 1, 3, 9, 20, 30, 38)]
    return torch.cat((grid, *beside, grid + spline.step / 3, torch.tensor([*far, inf, -inf, math.nan, 0.0])))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("knots", [2, 5, 8, 21])
def test_no_place_of_an_entry_beats_the_bounds_and_some_reach_them(kind, knots):
    """One feature, one entry: the worst place is found by looking at all of them."""
    for seed, scale in enumerate((0.0, math.log(0.05), 1.5)):
        spline = scrambled(kind(1, knots, 0.7, "relu", min_scale=0.05), 2.0, seed)
        spline.log_scale.data.fill_(scale)
        x = places(spline)[:, None]
        found = gradients(spline, x, torch.ones_like(x))
        claimed = dplip.parameter_bounds(spline, (1,), None)
        for name, values in found.items():
            ratio = float(values.max()) / claimed[name]
            assert 0.99999 < ratio <= 1 + 1e-6, (name, ratio)


@pytest.mark.parametrize("kind", KINDS)
def test_positions_that_share_a_spline_add_up(kind):
    """64 positions at the worst place: the bound is sqrt(64) times that of one, and it is reached."""
    spline = scrambled(kind(3, 9, 1.0, "absolute", min_scale=0.5))
    shape = (3, 8, 8)
    claimed = dplip.parameter_bounds(spline, shape, None)
    intercept = spline.pieces()[0].detach()
    peak = intercept.abs().max(1)
    at = torch.tensor([-1.5, *((torch.arange(8) - 3.5) * 0.25).tolist(), 1.5])  # one place in each piece
    candidates = [torch.full(shape, s) for s in (-9.0, 9.0)]
    candidates += [(at[peak.indices] / spline.scale())[:, None, None].expand(shape)]
    x = torch.stack(candidates).float()
    v = torch.ones(len(x), *shape)
    signs = intercept.gather(1, peak.indices[:, None])[:, 0]
    v[-1] = signs.float()[:, None, None].expand(shape)
    v = v / v.flatten(1).norm(dim=1)[:, None, None, None]
    found = gradients(spline, x, v)
    for name, values in found.items():
        assert 0.999 < float(values.max()) / claimed[name] <= 1 + 1e-5, name


@pytest.mark.parametrize("seed", range(8))
def test_gradients_of_whole_maps_stay_within_the_bounds(seed):
    torch.manual_seed(seed)
    kind = KINDS[seed % 2]
    spline = scrambled(kind(4, 7, 1.0, "maxmin", min_scale=0.3), 2.0, seed)
    x = torch.randn(40, 4, 3, 3) * 10.0 ** torch.randint(-2, 4, (40, 1, 1, 1))
    v = torch.randn_like(x)
    v = torch.where(torch.arange(40)[:, None, None, None] % 2 == 0, v, v.sign())
    v = v / v.flatten(1).norm(dim=1)[:, None, None, None]
    claimed = dplip.parameter_bounds(spline, (4, 3, 3), None)
    for name, values in gradients(spline, x, v).items():
        assert float(values.max()) <= claimed[name] * (1 + 1e-6)


@pytest.mark.parametrize("knots", [2, 5, 21, 101])
def test_outputs_stay_within_the_forward_bound_at_knots_and_far_out(knots):
    for init in INITS:
        spline = scrambled(dn.LinearSpline(1, knots, 0.5, init, min_scale=0.1), 1.0)
        x = places(spline)[:-4]
        x = x[x.abs() <= 1e30][:, None]
        output, _ = dplip.propagate(spline, (1,), Norms((1,), linf=x[:, 0].abs()))
        assert bool((spline(x).detach().abs()[:, 0] <= output.linf * (1 + 1e-6)).all()), init


def test_the_forward_bound_is_reached():
    spline = dn.LinearSpline(6, 7, 6.0)
    spline.mean.data.fill_(2.0)
    output, _ = dplip.propagate(spline, (6,), Norms((6,), l2=3.0))
    y = spline(torch.full((1, 6), 3.0 / math.sqrt(6.0)))
    assert float(y.detach().norm()) >= 0.9999 * output.l2


def test_without_slope_in_the_tails_the_output_is_bounded_whatever_the_input():
    spline = scrambled(dn.LinearSpline(4, 9, init="zero"))
    output, _ = dplip.propagate(spline, (4,))
    y = spline(torch.cat([s * torch.randn(200, 4) for s in (0.3, 1.0, 1e6)])).detach()
    assert float(y.abs().max()) <= output.linf < inf
    assert dplip.propagate(dn.LinearSpline(4), (4,))[0].linf == inf


def test_the_bounds_are_those_of_the_weights_that_are_there():
    """Nothing is taken from the intervals or the start: a loaded state counts, tails and scale included."""
    spline, other = dn.LinearSpline(2, 5, min_scale=0.5), dn.LinearSpline(2, 5, init="zero", min_scale=0.5)
    other.tails.fill_(7.0)
    other.log_scale.data.fill_(math.log(0.01))
    spline.load_state_dict(other.state_dict())
    assert dplip.lipschitz(spline, (2,)) == 7.0
    assert dplip.parameter_bounds(spline, (2,), None)["mean"] == pytest.approx(100.0, rel=1e-5)


@pytest.mark.parametrize("name, value", [("slope", inf), ("mean", math.nan), ("log_scale", 1e4), ("log_scale", -1e4)])
def test_weights_that_are_no_numbers_are_refused(name, value):
    spline = dn.LinearSpline(2, 5, min_scale=0.5)
    spline.get_parameter(name).data.fill_(value)
    with pytest.raises((UnboundedOperationError, ConfigurationError), match="finite"):
        dplip.propagate(spline, (2,))


def test_a_subclass_that_computes_something_else_is_refused():
    class Louder(dn.LinearSpline):
        def values(self) -> Tensor:
            return 3 * super().values()

    with pytest.raises(UnboundedOperationError):
        dplip.propagate(Louder(2), (2,))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_features": 0}, "num_features=0"),
        ({"knots": 1}, "knots=1"),
        ({"range": 0.0}, "range=0.0"),
        ({"range": inf}, "range=inf"),
        ({"slopes": (1.0, -1.0)}, "slopes"),
        ({"slopes": (-inf, 1.0)}, "slopes"),
        ({"min_scale": 0.0}, "min_scale=0.0"),
        ({"init": "swish"}, "init='swish'"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        dn.LinearSpline(**{"num_features": 3, **arguments})


def test_the_wrong_number_of_features_is_refused():
    with pytest.raises(ConfigurationError, match="num_features=3"):
        dn.LinearSpline(3)(torch.zeros(2, 4))
    with pytest.raises(ConfigurationError):
        dplip.propagate(dn.LinearSpline(3), (4,))


def test_the_sensitivity_of_a_model_is_not_beaten_by_real_gradients():
    torch.manual_seed(0)
    x, y = 4 * torch.randn(300, 1, 6, 6), torch.randint(3, (300,))
    model = nn.Sequential(
        dn.BallProjection(2.0),
        dn.SpectralConv2d(1, 4, 3, padding=1),
        scrambled(dn.LinearSpline(4, 9, 0.5, "maxmin", min_scale=0.3), 0.5),
        nn.Flatten(),
        dn.OrthogonalLinear(144, 3),
    )
    loss = dplip.losses.CrossEntropy(8.0)
    claimed = dplip.sensitivity(model, loss, (1, 6, 6))
    for one, target in zip(x.split(1), y.split(1), strict=True):
        model.zero_grad()
        loss(model(one), target).backward()
        for name, p in model.named_parameters():
            assert float(p.grad.double().norm()) <= claimed[name]
