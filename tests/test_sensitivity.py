"""Sensitivity: no example's gradient is longer than declared, whatever the example, its label and the weights."""

import math
from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from small_models import MODELS, RADIUS, Flattening, Pooled, built, orthogonal, plain
from torch import Tensor, nn

import dplip
import dplip.nn as dn
from dplip.errors import ConfigurationError, UnboundedInputError, UnboundedOperationError
from dplip.losses import HKR, BinaryCrossEntropy, ClippedMSE, Cosine, CrossEntropy, Hinge, Huber, MulticlassKR

torch.set_num_threads(1)

LOSSES = {
    "cross_entropy": CrossEntropy(),
    "cross_entropy_hot": CrossEntropy(32.0),
    "normalized": CrossEntropy(16.0, normalize=True),
    "max_gradient": CrossEntropy(4.0, max_gradient=0.5),
    "hinge": Hinge(margin=5.0),
    "kr": MulticlassKR(),
    "hkr": HKR(alpha=2.0),
    "cosine": Cosine(floor=0.5),
    "huber": Huber(delta=0.5),
    "clipped_mse": ClippedMSE(delta=0.5),
}
REGRESSIONS = (Huber, ClippedMSE)


def worst_target(loss: dplip.losses.Loss, scores: Tensor) -> Tensor:
    """A target on which these scores are as wrong as can be."""
    if isinstance(loss, REGRESSIONS):
        return scores.detach() + 1e3 * torch.where(scores.detach() > 0, 1.0, -1.0)
    return scores.detach().argmin(1)


def example_gradient(
    model: nn.Module, loss: dplip.losses.Loss, x: Tensor, y: Tensor | None = None, differentiable: bool = False
) -> dict[str, Tensor]:
    """The gradient of the loss of one example, parameter by parameter."""
    scores = model(x[None])
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    value = loss(scores, worst_target(loss, scores) if y is None else y)
    gradients = torch.autograd.grad(value, list(named.values()), create_graph=differentiable)
    return dict(zip(named, gradients, strict=True))


def search(
    model: nn.Module, loss: dplip.losses.Loss, shape: tuple[int, ...], starts: int = 4, steps: int = 6
) -> tuple[dict[str, float], float]:
    """The largest gradient norm of each parameter, and of all together, that ascent over inputs finds."""
    attained = dict.fromkeys([n for n, p in model.named_parameters() if p.requires_grad], 0.0)
    largest = 0.0
    generator = torch.Generator().manual_seed(0)
    for start in range(starts):
        x = torch.randn(shape, generator=generator)
        if start == 0:  # a constant image excites every tap of a kernel at every position
            x = torch.ones(shape)
        x = x * RADIUS / x.norm() * (1.0, 1.0, 10.0, 0.1)[start % 4]
        for _ in range(steps):
            x = x.detach().requires_grad_()
            gradients = example_gradient(model, loss, x, differentiable=True)
            norms = {n: g.detach().double().norm() for n, g in gradients.items()}
            attained = {n: max(attained[n], float(norms[n])) for n in attained}
            largest = max(largest, math.sqrt(sum(float(v) ** 2 for v in norms.values())))
            names = list(gradients)
            climbed = names if start % 2 else [names[start // 2 % len(names)]]
            height = sum(gradients[n].square().sum() for n in climbed)
            if not height.requires_grad:  # a loss of constant slope, in a last layer's bias
                break
            (slope,) = torch.autograd.grad(height, x, allow_unused=True)
            if slope is None or not slope.any():
                break
            x = x + 0.3 * max(RADIUS, float(x.detach().norm())) * slope / slope.norm()
    return attained, largest


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("loss, gain", [("cross_entropy_hot", 1.0), ("normalized", 4.0), ("huber", 4.0)])
def test_no_example_found_by_ascent_exceeds_the_declared_sensitivity(name, loss, gain):
    model, shape = built(name, seed=int(gain), gain=gain)
    declared = dplip.sensitivity(model, LOSSES[loss], shape)
    attained, total = search(model, LOSSES[loss], shape)
    for parameter, bound in declared.items():
        assert attained[parameter] <= bound
    assert total <= declared.total


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_obeys_the_declared_sensitivity_of_a_whole_model(loss):
    for name, starts in (("plain", 4), ("convolutional", 2)):
        model, shape = built(name, seed=5, gain=3.0)
        declared = dplip.sensitivity(model, LOSSES[loss], shape)
        attained, total = search(model, LOSSES[loss], shape, starts=starts)
        assert all(attained[parameter] <= bound for parameter, bound in declared.items())
        assert total <= declared.total


@pytest.mark.parametrize("loss", [BinaryCrossEntropy(), BinaryCrossEntropy(8.0, normalize=True), Hinge()])
def test_a_model_with_one_output_obeys_its_declared_sensitivity(loss):
    torch.manual_seed(0)
    model = plain(classes=1)
    declared = dplip.sensitivity(model, loss, (6,))
    for x in torch.randn(100, 6) * 3:
        for label in (0, 1):
            gradients = example_gradient(model, loss, x, torch.tensor([label]))
            assert all(float(g.double().norm()) <= declared[n] for n, g in gradients.items())


@pytest.mark.parametrize("name", MODELS)
def test_inputs_far_outside_the_ball_and_inputs_that_are_not_numbers_stay_within_it(name):
    model, shape = built(name)
    declared = dplip.sensitivity(model, CrossEntropy(16.0), shape)
    values = [1e30, -1e30, 3e38, math.inf, -math.inf] + ([] if name == "clamped" else [math.nan])
    for value in values:
        for x in (torch.full(shape, value), torch.randn(shape).flatten().index_fill(0, torch.tensor(1), value)):
            gradients = example_gradient(model, CrossEntropy(16.0), x.reshape(shape))
            assert all(float(g.double().norm()) <= declared[n] for n, g in gradients.items())


TIGHT = {
    **{"orthogonal": 0.99, "plain": 0.6, "residual": 0.4, "tied": 0.1, "clamped": 0.5},
    **{"convolutional": 0.1, "tokens": 0.4, "dropping": 0.5},
}


@pytest.mark.parametrize("name", TIGHT)
def test_the_declared_sensitivity_is_not_absurdly_loose(name):
    model, shape = built(name)
    declared = dplip.sensitivity(model, CrossEntropy(32.0), shape)
    attained, _ = search(model, CrossEntropy(32.0), shape, starts=10, steps=8)
    assert min(attained[parameter] / bound for parameter, bound in declared.items()) >= TIGHT[name]


@pytest.mark.parametrize("name", [n for n in MODELS if n != "dropping"])
@pytest.mark.parametrize("batch", [1, 60])
def test_one_example_more_or_less_moves_the_summed_gradient_by_at_most_the_sensitivity(name, batch):
    """The same data, weights and randomness with and without one example: what the noise must hide."""
    model, shape = built(name, seed=3, gain=2.0)
    loss = CrossEntropy(16.0)
    declared = dplip.sensitivity(model, loss, shape)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, *shape, generator=generator) * 3
    y = torch.randint(0, 4, (batch,), generator=generator)

    def summed(keep: Tensor) -> dict[str, Tensor]:
        model.zero_grad()
        loss(model(x[keep]), y[keep]).backward()
        return {n: p.grad.double().clone() for n, p in model.named_parameters()}

    whole = summed(torch.arange(batch))
    for left_out in range(min(batch, 8)):
        other = summed(torch.tensor([i for i in range(batch) if i != left_out], dtype=torch.int64))
        moved = {n: float((whole[n] - other[n]).norm()) for n in whole}
        assert all(moved[n] <= declared[n] for n in moved)
        assert math.sqrt(sum(m * m for m in moved.values())) <= declared.total


def test_a_bound_of_a_loss_enters_every_parameter_in_proportion():
    model, shape = built("plain")
    one = dplip.sensitivity(model, CrossEntropy(max_gradient=1.0), shape)
    tenth = dplip.sensitivity(model, CrossEntropy(max_gradient=0.1), shape)
    for parameter in one:
        assert tenth[parameter] == pytest.approx(0.1 * one[parameter])


@pytest.mark.parametrize("name", ["plain", "convolutional"])
def test_the_bound_is_that_of_the_present_weights(name):
    model, shape = built(name)
    before = dplip.sensitivity(model, CrossEntropy(), shape)
    with torch.no_grad():
        list(model.children())[-1].weight.mul_(10)
    after = dplip.sensitivity(model, CrossEntropy(), shape)
    first = next(iter(before))
    assert after[first] == pytest.approx(10 * before[first], rel=1e-4)


def test_the_bound_is_that_of_the_present_mode():
    model, shape = built("dropping")
    training = dplip.sensitivity(model, CrossEntropy(), shape)
    evaluation = dplip.sensitivity(model.eval(), CrossEntropy(), shape)
    assert training["1.weight"] == pytest.approx(2 * evaluation["1.weight"])
    assert training["4.bias"] == pytest.approx(evaluation["4.bias"])


def test_sensitivities_are_a_mapping_from_parameter_names():
    model, shape = built("plain")
    found = dplip.sensitivity(model, CrossEntropy(), shape)
    assert isinstance(found, Mapping)
    assert list(found) == [n for n, _ in model.named_parameters()]
    assert len(found) == 4 and "1.weight" in found and "nothing" not in found
    assert all(isinstance(v, float) and 0 < v < math.inf for v in found.values())
    assert found.total == pytest.approx(math.hypot(*found.values()))
    with pytest.raises(KeyError):
        found["nothing"]


def test_sensitivities_print_as_a_table_with_the_total():
    model, shape = built("plain")
    found = dplip.sensitivity(model, CrossEntropy(), shape)
    rows = dict(line.split() for line in str(found).splitlines()[1:])
    assert rows.keys() == {*found, "total"}
    assert float(rows["3.weight"]) == pytest.approx(found["3.weight"], rel=1e-5)
    assert float(rows["total"]) == pytest.approx(found.total, rel=1e-5)


def test_an_input_that_nothing_bounds_is_refused_by_the_name_of_the_layer():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    with pytest.raises(UnboundedInputError, match=r"'0\.weight'.*BallProjection"):
        dplip.sensitivity(model, CrossEntropy(), (6,))
    bounded = dplip.sensitivity(model, CrossEntropy(), (6,), dplip.Norms((6,), l2=3.0))
    ball = dplip.sensitivity(nn.Sequential(dn.BallProjection(3.0), model), CrossEntropy(), (6,))
    assert list(bounded.values()) == pytest.approx(list(ball.values()))


def test_a_frozen_parameter_has_no_sensitivity_and_does_not_change_the_others():
    model, shape = built("plain")
    every = dplip.sensitivity(model, CrossEntropy(), shape)
    model[1].requires_grad_(False)
    assert dict(dplip.sensitivity(model, CrossEntropy(), shape)) == {n: every[n] for n in ("3.weight", "3.bias")}


def test_a_trainable_parameter_that_the_output_does_not_use_is_refused_by_name():
    class Forgetful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.forgotten = plain(), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    model = Forgetful()
    with pytest.raises(UnboundedOperationError, match=r"forgotten\.weight"):
        dplip.sensitivity(model, CrossEntropy(), (6,))
    model.forgotten.requires_grad_(False)
    assert set(dplip.sensitivity(model, CrossEntropy(), (6,))) == {
        f"used.{n}" for n, _ in model.used.named_parameters()
    }


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), F.cross_entropy, nn.CrossEntropyLoss(reduction="sum"), None])
def test_a_loss_that_declares_no_bound_is_refused(loss):
    with pytest.raises(ConfigurationError, match=r"dplip\.losses"):
        dplip.sensitivity(plain(), loss, (6,))


@pytest.mark.parametrize("features", [3072, 49_152])
def test_the_rounding_of_a_wide_sum_is_within_the_sensitivity_of_what_follows(features):
    """Regression: with one slack for every width, a float32 activation exceeded its bound by 9e-5 of it."""
    model = nn.Sequential(nn.Linear(features, 1, bias=False), nn.Linear(1, 1, bias=False))
    furthest = 0.0
    for weight in (0.37, 0.9, 0.55):
        with torch.no_grad():
            model[0].weight.fill_(weight)
            model[1].weight.fill_(1.0)
        for grey in torch.linspace(0.5, 0.999, 40):
            x = torch.full((1, features), float(grey))
            exact = float(model[0].weight.detach()[0, 0].double() * x[0, 0].double()) * features
            furthest = max(furthest, float(model(x).detach()) / exact)
        x = torch.full((1, features), 0.7368990182876587)
        declared = dplip.sensitivity(model, Hinge(), (features,), dplip.Norms((features,), l2=float(x.double().norm())))
        model.zero_grad()
        Hinge()(model(x), torch.zeros(1, 1)).backward()
        assert float(model[1].weight.grad.double().norm()) <= declared["1.weight"]
        assert declared["1.weight"] >= weight * float(x[0, 0]) * features * (furthest - 1e-12)
    assert furthest > 1 + (1e-5 if features > 4000 else 1e-6)


@pytest.mark.parametrize("features", [3072, 49_152])
def test_the_rounding_of_a_wide_sum_on_the_way_back_is_within_the_sensitivity_of_what_precedes(features):
    model = nn.Sequential(
        dn.BallProjection(1.0), nn.Linear(1, 1, bias=False), nn.Linear(1, features), nn.Linear(features, 1)
    )
    furthest = 0.0
    for weight in (0.37, 0.9, 0.813):
        with torch.no_grad():
            model[1].weight.fill_(1.0)
            model[2].weight.fill_(weight)
            model[2].bias.zero_()
        for last in torch.linspace(0.5, 0.999, 40):
            with torch.no_grad():
                model[3].weight.fill_(float(last))
            model.zero_grad()
            Hinge()(model(torch.ones(1, 1)), torch.zeros(1, 1)).backward()
            first, second = (layer.weight.detach()[0, 0].double() for layer in model[2:])
            exact = float(first * second) * features
            furthest = max(furthest, float(model[1].weight.grad.double().abs()) / exact)
        declared = dplip.sensitivity(model, Hinge(), (1,))["1.weight"]
        assert declared >= exact * furthest * (1 - 1e-9)
        assert declared >= exact * (1 + 0.2 * features * 2.0**-24)


def test_parameter_bounds_hold_for_an_output_cotangent_of_norm_one():
    torch.manual_seed(0)
    for layer, shape, norms in [
        (nn.Linear(6, 4), (6,), dplip.Norms((6,), l2=2.0)),
        (nn.Conv2d(2, 3, 3, padding=1), (2, 5, 5), dplip.Norms((2, 5, 5), linf=1.0)),
        (nn.Conv2d(2, 3, 3, stride=2), (2, 7, 7), dplip.Norms((2, 7, 7), l2=2.0)),
        (orthogonal(), (6,), None),
    ]:
        claimed = dplip.parameter_bounds(layer, shape, norms)
        assert claimed.keys() == dict(layer.named_parameters()).keys()
        for trial in range(50):
            x = torch.ones(shape) if trial == 0 else torch.randn(shape)
            if norms is not None and norms.linf == 1.0:
                x = x.sign()
            else:
                x = 2.0 * x / x.norm()
            layer.zero_grad()
            y = layer(x[None])
            v = torch.ones_like(y) if trial == 0 else torch.randn_like(y)
            y.backward(v / v.norm())
            for parameter, p in layer.named_parameters():
                assert float(p.grad.double().norm()) <= claimed[parameter] * (1 + 1e-6)


def test_parameter_bounds_of_a_linear_layer_are_the_size_of_its_input_and_one():
    claimed = dplip.parameter_bounds(nn.Linear(6, 4), (6,), dplip.Norms((6,), l2=2.5))
    assert claimed == {"weight": pytest.approx(2.5), "bias": pytest.approx(1.0)}


def test_a_bias_on_a_feature_map_collects_every_position():
    """Regression of a published bound that forgot the sum over positions: here it is 8 x 8 positions, factor 8."""
    claimed = dplip.parameter_bounds(nn.Conv2d(1, 1, 3, padding=1), (1, 8, 8), dplip.Norms((1, 8, 8), l2=1.0))
    assert claimed["bias"] == pytest.approx(8.0, rel=1e-5)  # and the rounding of a sum over positions


def test_the_shape_of_an_example_matters_and_is_the_given_one():
    torch.manual_seed(0)
    model = Pooled()
    small, large = (dplip.sensitivity(model, CrossEntropy(), (1, n, n)) for n in (4, 16))
    assert large["convolution.bias"] == pytest.approx(16 * small["convolution.bias"], rel=1e-4)
    gradients = example_gradient(model, CrossEntropy(), torch.ones(1, 16, 16))
    assert all(float(g.norm()) <= large[n] for n, g in gradients.items())


def test_a_model_that_reshapes_by_the_batch_is_walked():
    assert set(dplip.sensitivity(Flattening(), CrossEntropy(), (2, 4))) == {"linear.weight", "linear.bias"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_is_refused_as_its_rounding_exceeds_the_slack(dtype):
    model, shape = built("plain")
    with pytest.raises((ConfigurationError, UnboundedOperationError), match="float32"):
        dplip.sensitivity(model.to(dtype), CrossEntropy(), shape)


def test_a_model_in_double_precision_has_the_same_bounds():
    model, shape = built("plain")
    single = dplip.sensitivity(model, CrossEntropy(), shape)
    assert dict(dplip.sensitivity(model.double(), CrossEntropy(), shape)) == pytest.approx(dict(single), rel=1e-5)


def test_weights_that_are_not_numbers_are_refused():
    model, shape = built("plain")
    with torch.no_grad():
        model[1].weight[0, 0] = math.nan
    with pytest.raises(ConfigurationError, match="NaN"):
        dplip.sensitivity(model, CrossEntropy(), shape)
