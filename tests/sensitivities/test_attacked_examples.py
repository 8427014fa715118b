"""No example's gradient is longer than declared, whatever the example, its label and the weights."""

import math

import pytest
import torch
from helpers.models import MODELS, RADIUS, Pooled, built, plain
from torch import Tensor, nn

import dplip
from dplip.losses import HKR, BinaryCrossEntropy, ClippedMSE, Cosine, CrossEntropy, Hinge, Huber, MulticlassKR

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
            height = torch.stack([gradients[n].square().sum() for n in climbed]).sum()
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


def test_the_shape_of_an_example_matters_and_is_the_given_one():
    torch.manual_seed(0)
    model = Pooled()
    small, large = (dplip.sensitivity(model, CrossEntropy(), (1, n, n)) for n in (4, 16))
    assert large["convolution.bias"] == pytest.approx(16 * small["convolution.bias"], rel=1e-4)
    gradients = example_gradient(model, CrossEntropy(), torch.ones(1, 16, 16))
    assert all(float(g.norm()) <= large[n] for n, g in gradients.items())
