"""Splines: their function, projection, bounds under attack, regularity, and what they can represent."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

import dplip
import dplip.nn as dn
from dplip import Norms
from dplip.errors import ConfigurationError, UnboundedOperationError
from dplip.nn.splines.constraints import centred
from dplip.nn.splines.regularity import linear_regions, penalize_variation, prune, total_variation
from dplip.nn.splines.spline import INITS, Spline

torch.set_num_threads(1)
inf = math.inf
KINDS = [dn.LinearSpline, dn.CoefficientSpline]


def scrambled(spline: Spline, size: float = 3.0, seed: int = 0) -> Spline:
    """The spline with every parameter moved far from where a projection would leave it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in spline.parameters():
            p.add_(size * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return spline


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
    values = centred(rises)
    torch.testing.assert_close(values.diff(dim=1), rises)
    torch.testing.assert_close(values.mean(1), torch.zeros(3, dtype=torch.float64))


# ------------------------------------------------------------------------------------------------ regularity


@pytest.mark.parametrize("kind", KINDS)
def test_the_total_variation_is_the_sum_of_the_changes_of_slope(kind):
    model = nn.Sequential(kind(3, 9, init="absolute"), kind(2, 9, init="identity"))
    assert float(total_variation(model).detach()) == pytest.approx(6.0, abs=1e-5)
    spline = scrambled(kind(3, 9, init="relu", min_scale=0.1)).double()
    x = torch.linspace(-4, 4, 200001, dtype=torch.float64)[:, None].expand(-1, 3) / spline.scale()
    slopes = spline(x).detach().diff(dim=0) / (x[1] - x[0])
    assert float(total_variation(spline).detach()) == pytest.approx(float(slopes.diff(dim=0).abs().sum()), rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tolerance", [0.0, 0.05, 0.5, 10.0])
def test_pruning_moves_no_value_by_more_than_it_says(kind, tolerance):
    spline = scrambled(kind(20, 33, 2.0, "absolute", min_scale=0.2), 0.3)
    dplip.project(spline)
    regions = linear_regions(spline)[""]
    x = torch.linspace(-20, 20, 3001)[:, None].expand(-1, 20)
    before = spline(x).detach()
    mean = spline.values().mean(1).detach()
    freed = prune(spline, tolerance)
    moved = float((spline(x).detach() - before).abs().max())
    assert moved <= tolerance * spline.range / spline.scale() + 1e-5
    torch.testing.assert_close(spline.values().mean(1).detach(), mean, rtol=1e-6, atol=1e-6)
    assert dplip.lipschitz(spline, (20,)) <= 1 + 1e-5
    after = linear_regions(spline, 2e-5)[""]
    assert bool((after <= regions).all()) if tolerance > 0 else freed == 0
    assert prune(spline, tolerance / 2) == 0 or tolerance > 0
    if tolerance == 10.0:
        assert int(after.max()) <= 3  # one slope, and the tails


def test_active_regions_are_counted():
    spline = dn.LinearSpline(3, 9)
    spline.slope.data = torch.tensor([[1.0] * 8, [1, 1, 0, 0, 0, 0, -1, 1], [1, 1, 1, 1, 1, 1, 1, 1 - 1e-6]])
    assert linear_regions(spline)[""].tolist() == [1, 4, 1]
    assert linear_regions(spline, 0.0)[""].tolist() == [1, 4, 3]
    assert prune(spline, 1e-2) == 0
    assert linear_regions(nn.Sequential(nn.Identity(), spline))["1"].tolist() == [1, 4, 1]


def test_the_penalty_comes_after_the_noise_and_is_removed_by_its_handle():
    """With the same noise a private step moves by lr * weight * sign more, and spends the same."""
    moved = []
    for weight in (None, 0.5, 0.0):
        torch.manual_seed(0)
        model = nn.Sequential(dn.BallProjection(1.0), dn.OrthogonalLinear(6, 4), dn.LinearSpline(4, 5, init="absolute"))
        model.append(dn.OrthogonalLinear(4, 2))
        plain = torch.optim.SGD(model.parameters(), lr=0.1)
        data = torch.utils.data.TensorDataset(torch.randn(64, 6), torch.randint(2, (64,)))
        trainer = dplip.DPLipTrainer(
            model,
            loss=dplip.losses.CrossEntropy(),
            optimizer=plain,
            train_dataset=data,
            batch_size=64,
            epochs=1,
            noise_multiplier=1.0,
            seed=0,
            progress=False,
        )
        if weight is not None:
            handle = penalize_variation(plain if weight else trainer.optimizer, model, weight)
        model[2].constraints = nn.ModuleDict()  # no clipping: what moves is what the step moved
        start = model[2].slope.detach().clone()
        trainer.fit()
        moved.append((model[2].slope.detach() - start, trainer.get_epsilon()))
    (without, epsilon), (penalised, same), (zero, _) = moved
    assert epsilon == same
    assert torch.equal(without, zero)
    # |x| on two pieces each side: only the two slopes next to 0 meet a change, and it pulls them together.
    pull = torch.tensor([0.0, 0.1 * 0.5, -0.1 * 0.5, 0.0]).expand(4, -1)
    torch.testing.assert_close(penalised - without, pull, rtol=1e-3, atol=1e-6)
    model[2].slope.grad = torch.zeros_like(model[2].slope)
    handle.remove()
    before = model[2].slope.detach().clone()
    plain._optimizer_step_pre_hooks.clear()  # that it is wrapped no longer matters
    plain.step()
    assert plain.param_groups[0]["lr"] == 0.1 and torch.equal(model[2].slope, before)


def test_a_model_without_splines_has_no_variation():
    with pytest.raises(ConfigurationError, match="no splines"):
        total_variation(nn.Sequential(nn.ReLU()))
    with pytest.raises(ConfigurationError, match="weight=-1"):
        penalize_variation(torch.optim.SGD([torch.zeros(1)], 0.1), dn.LinearSpline(1), -1.0)


# ------------------------------------------------------------------------------------------------ training


@pytest.mark.parametrize("kind", KINDS)
def test_a_private_run_trains_splines_and_keeps_them_in_their_interval(kind):
    torch.manual_seed(0)
    x = torch.randn(400, 5)
    y = (x[:, 0].abs() + x[:, 1].abs() > 1.3).long()
    spline = kind(8, 9, init="relu", min_scale=0.5)
    model = nn.Sequential(dn.BallProjection(3.0), dn.OrthogonalLinear(5, 8), spline, dn.OrthogonalLinear(8, 2))
    start = {name: p.detach().clone() for name, p in spline.named_parameters()}
    trainer = dplip.DPLipTrainer(
        model,
        loss=dplip.losses.CrossEntropy(4.0, normalize=True),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.5),
        train_dataset=torch.utils.data.TensorDataset(x, y),
        batch_size=200,
        epochs=5,
        noise_multiplier=1.0,
        seed=0,
        progress=False,
    )
    assert set(trainer.plan().sensitivities) == {name for name, _ in model.named_parameters()}
    trainer.fit()
    assert all(not torch.equal(p, start[name]) for name, p in spline.named_parameters())
    assert dplip.lipschitz(spline, (8,)) <= 1 + 1e-5 and spline.scale() >= 0.5 - 1e-6
    assert dplip.lipschitz(model, (5,)) <= 1 + 1e-3
    assert bool((dplip.certify(model, x[:50]) > 0).any())


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
