"""Splines: total variation, pruning, penalties, and a private run."""

import pytest
import torch
from helpers.splines import KINDS, scrambled
from torch import nn

import dplip
import dplip.nn as dn
from dplip.errors import ConfigurationError
from dplip.nn.splines.regularity import linear_regions, penalize_variation, prune, total_variation

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
    model[2].slope.grad = torch.zeros_like(model.get_parameter("2.slope"))
    handle.remove()
    before = model[2].slope.detach().clone()
    plain._optimizer_step_pre_hooks.clear()  # that it is wrapped no longer matters
    plain.step()
    assert plain.param_groups[0]["lr"] == 0.1 and torch.equal(model.get_parameter("2.slope"), before)


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
