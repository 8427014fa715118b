"""The noise of a step is the noise that is accounted for, also for an empty batch."""

import math

import pytest
import torch
from helpers.models import built, plain
from helpers.runs import Run, X, Y, private
from torch import Tensor, nn

import dplip
import dplip.nn as dn
from dplip.accounting import GaussianEvent


def wide(width: int = 150) -> nn.Sequential:
    """Tensors of one shape and of very different sensitivity, with many entries."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(dn.BallProjection(2.0), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width), nn.Linear(width, 4))
    )
    with torch.no_grad():
        model[3].weight.mul_(5)
    return model


# ------------------------------------------------------------------------------------------------ the noise itself


def noise_of_steps(run: Run, x: Tensor, y: Tensor, steps: int) -> dict[str, Tensor]:
    """What was added to the summed gradients, step by step, with the weights held still."""
    run.backward(x, y)
    sums = run.released()
    run.batches.take()
    added: dict[str, list[Tensor]] = {n: [] for n in sums}
    for _ in range(steps):
        run.step(x, y)
        for name, gradient in run.released().items():
            added[name].append(gradient.double() * run.optimizer.expected_batch_size - sums[name])
    return {n: torch.stack(v) for n, v in added.items()}


@pytest.mark.parametrize("neighboring, factor", [("add_remove", 1.0), ("replace_one", 2.0)])
def test_the_noise_added_is_that_of_one_gaussian_of_the_accounted_multiplier(neighboring, factor):
    """With std s of each parameter's noise, sum Delta^2 / s^2 is 1 / sigma^2: measured, not read off the code."""
    sigma = 0.8
    model = wide()
    run = private(model, noise_multiplier=sigma, input_shape=(150,), neighboring=neighboring)
    added = noise_of_steps(run, torch.randn(7, 150), torch.randint(0, 4, (7,)), steps=25)
    assert run.charged == [GaussianEvent(sigma, 0.25)] * 25
    declared = dplip.sensitivity(model, run.loss, (150,))
    assert added.keys() == declared.keys()
    stds = {n: float(values.std()) for n, values in added.items()}
    spent = sum((factor * declared[n] / stds[n]) ** 2 for n in declared)
    assert spent == pytest.approx(1 / sigma**2, rel=0.015)
    recorded = dict(zip(declared, (std for _, std in run.noise.draws), strict=False))
    for name, values in added.items():
        expected = recorded[name]
        tolerance = max(0.005, 4.5 / math.sqrt(2 * values.numel()))
        assert stds[name] == pytest.approx(expected, rel=tolerance)
        assert abs(float(values.mean())) < 5 * expected / math.sqrt(values.numel())


def test_the_noise_of_tensors_and_steps_and_halves_of_a_tensor_is_independent():
    run = private(wide(), input_shape=(150,))
    added = noise_of_steps(run, torch.randn(3, 150), torch.randint(0, 4, (3,)), steps=3)
    first, second = added["1.weight"].flatten(1), added["3.weight"].flatten(1)
    half = first.shape[1] // 2
    pairs = [(first[i], second[j]) for i in range(3) for j in range(3)]
    pairs += [(first[0], first[1]), (first[1], first[2]), (second[0], second[1]), (first[0, :half], first[0, half:])]
    for a, b in pairs:
        assert abs(float(torch.corrcoef(torch.stack((a, b)))[0, 1])) < 5 / math.sqrt(len(a))


def test_every_parameter_gets_its_noise_on_every_step_and_once():
    model = wide()
    run = private(model, input_shape=(150,))
    for _ in range(3):
        run.step(torch.randn(5, 150), torch.randint(0, 4, (5,)))
        assert all(bool((g != 0).all()) for g in run.released().values())
    sizes = [p.numel() for p in model.parameters()]
    assert [count for count, _ in run.noise.draws] == 3 * sizes
    assert all(std > 0 for _, std in run.noise.draws)


def test_a_parameter_that_the_loss_does_not_reach_is_noised_as_well():
    """Relu units that are dead for a whole batch have gradient zero: that they are dead is private."""
    model = plain()
    with torch.no_grad():
        model[1].bias.fill_(-100.0)
    run = private(model)
    run.step(X, Y)
    assert all(bool((g != 0).all()) for g in run.released().values())


@pytest.mark.parametrize("size", [1, 10, 33])
def test_the_sum_is_divided_by_the_expected_batch_size_and_never_by_the_batchs_own(size):
    run = private(plain(), noise_multiplier=0.0)
    run.backward(X[:size], Y[:size])
    sums = run.released()
    run.optimizer.step()
    for name, gradient in run.released().items():
        torch.testing.assert_close(gradient, sums[name] / 10.0)


def test_the_noise_does_not_depend_on_the_size_of_the_batch():
    draws = []
    for size in (1, 33):
        run = private(built("plain")[0])
        run.step(X[:size], Y[:size])
        draws.append(run.noise.draws)
    assert draws[0] == draws[1]


def test_manual_seed_does_not_fix_the_noise_and_a_step_does_not_move_torchs_generator():
    released = []
    for _ in range(2):
        run = private(built("plain")[0])
        run.backward(X, Y)
        torch.manual_seed(3)
        before = torch.get_rng_state()
        run.optimizer.step()
        assert torch.equal(torch.get_rng_state(), before)
        released.append(run.released())
    assert all(not torch.equal(released[0][n], released[1][n]) for n in released[0])


def test_a_seed_makes_the_noise_repeatable():
    runs = [private(built("plain")[0], seed=7) for _ in range(2)]
    for run in runs:
        run.step(X, Y)
    assert all(torch.equal(g, runs[1].released()[n]) for n, g in runs[0].released().items())


# -------------------------------------------------------------------------------------------------- empty batches


def test_an_empty_batch_is_a_step_with_noise_whose_gradient_is_dropped():
    run = private(built("plain")[0], noise_multiplier=0.0)
    run.backward(X, Y)
    run.batches.take()
    run.batches.give(0)  # the loader hands out a blank row in its place
    run.optimizer.step()
    assert all(not g.any() for g in run.released().values())
    noisy = private(built("plain")[0])
    noisy.batches.give(0)
    noisy.optimizer.zero_grad()
    noisy.optimizer.step()
    assert noisy.charged == [GaussianEvent(1.0, 0.25)]
    assert noisy.released()
    assert all(bool((g != 0).all()) for g in noisy.released().values())


def test_the_noise_of_an_empty_batch_is_that_of_any_other():
    full, empty = private(built("plain")[0]), private(built("plain")[0])
    full.step(X, Y)
    empty.batches.give(0)
    empty.optimizer.step()
    assert full.noise.draws == empty.noise.draws
