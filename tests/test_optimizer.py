"""The private step: the noise that is accounted for is the noise that is added, or the step is refused and nothing
has happened."""

import copy
import io
import math
import os
import pickle
import warnings
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_models import MODELS, Pooled, built, dropping, orthogonal, plain
from small_runs import Handed, Run, examples, private
from torch import Tensor, nn

import dplip
import dplip.nn as dn
from dplip.accounting import GaussianEvent
from dplip.errors import BudgetExceededError, ConfigurationError, DPLipError, UnboundedOperationError
from dplip.losses import CrossEntropy, Huber
from dplip.propagation.guards import fingerprint
from dplip.sampling import PoissonLoader
from dplip.training import DPLipOptimizer

torch.set_num_threads(1)

X, Y = examples(40).tensors


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


def test_without_noise_a_step_is_that_of_the_wrapped_optimizer_on_the_divided_sum():
    def optimizers(parameters):
        yield torch.optim.SGD(parameters(), lr=0.1)
        yield torch.optim.SGD(parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
        yield torch.optim.Adam(parameters(), lr=0.05)
        yield torch.optim.AdamW(parameters(), lr=0.05, weight_decay=0.1)
        yield torch.optim.RMSprop(parameters(), lr=0.01)

    start = built("plain")[0]
    for index in range(5):
        model, twin = copy.deepcopy(start), copy.deepcopy(start)
        inner = list(optimizers(model.parameters))[index]
        vanilla = list(optimizers(twin.parameters))[index]
        run = private(model, noise_multiplier=0.0, optimizer=inner)
        for batch in range(4):
            x, y = X[batch::4], Y[batch::4]
            run.step(x, y)
            vanilla.zero_grad()
            (F.cross_entropy(twin(x), y, reduction="sum") / 10.0).backward()
            vanilla.step()
        for name, weight in run.weights().items():
            torch.testing.assert_close(weight, twin.get_parameter(name), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "NAdam"])
def test_every_torch_optimizer_takes_private_steps(optimizer):
    model = orthogonal()
    run = private(model, optimizer=getattr(torch.optim, optimizer)(model.parameters(), lr=0.1))
    before = run.weights()
    for _ in range(3):
        run.step(X, Y)
    assert all(not torch.equal(before[n], w) and w.isfinite().all() for n, w in run.weights().items())
    assert len(run.charged) == 3
    assert dplip.lipschitz(model, (6,)) < 1.001  # the constraints hold again after the step


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
    assert all(bool((g != 0).all()) for g in noisy.released().values())


def test_the_noise_of_an_empty_batch_is_that_of_any_other():
    full, empty = private(built("plain")[0]), private(built("plain")[0])
    full.step(X, Y)
    empty.batches.give(0)
    empty.optimizer.step()
    assert full.noise.draws == empty.noise.draws


# ------------------------------------------------------------------------------------------------ physical batches


def train_in_parts(limit: int | None, order: str, seed: int | None = 5) -> tuple[Run, int]:
    """Two epochs over the same Poisson batches, handed out in parts of at most ``limit``."""
    model = built("plain")[0]
    data = examples(40)
    loader = PoissonLoader(data, batch_size=10, max_physical_batch_size=limit, seed=1)
    inner = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.5)
    # So little noise that its scale, which grows with the rounding of the parts' sums, does not show.
    run = private(model, noise_multiplier=1e-4, optimizer=inner, batches=loader, seed=seed)
    parts = 0
    for _ in range(2):
        for x, y in loader:
            parts += 1
            if order == "zero first":
                run.optimizer.zero_grad()
            run.loss(model(x), y).backward()
            run.optimizer.step()
            if order == "zero last":
                run.optimizer.zero_grad()
    return run, parts


@pytest.mark.parametrize("limit", [1, 3, 64])
@pytest.mark.parametrize("order", ["zero first", "zero last"])
def test_physical_batches_give_the_step_of_the_whole_batch_with_one_draw_of_noise(limit, order):
    whole, logical = train_in_parts(None, order)
    split, physical = train_in_parts(limit, order)
    assert physical > logical == 8 or limit == 64
    assert len(split.charged) == len(whole.charged) == 8
    assert len(split.noise.draws) == len(whole.noise.draws) == 8 * 4
    for name, weight in split.weights().items():
        torch.testing.assert_close(weight, whole.weights()[name], rtol=1e-5, atol=1e-6)


def test_nothing_is_spent_or_moved_before_the_last_part_of_a_batch():
    run = private(built("plain")[0], optimizer=None)
    before = run.weights()
    run.batches.give(5, complete=False)
    run.loss(run.model(X[:5]), Y[:5]).backward()
    run.optimizer.step()
    assert not run.charged and not run.noise.draws
    assert all(torch.equal(before[n], w) for n, w in run.weights().items())


def test_a_new_pass_over_the_data_drops_the_parts_of_an_abandoned_batch():
    model = built("plain")[0]
    loader = PoissonLoader(examples(40), batch_size=20, max_physical_batch_size=4, seed=1)
    run = private(model, noise_multiplier=0.0, batches=loader)
    for x, y in loader:
        run.optimizer.zero_grad()
        run.loss(model(x), y).backward()
        run.optimizer.step()
        assert not loader.complete
        break
    held: list[Tensor] = []
    for x, y in loader:
        run.optimizer.zero_grad()
        run.loss(model(x), y).backward()
        held.append(x)
        run.optimizer.step()
        if loader.complete:
            break
    assert len(run.charged) == 1
    released = run.released()
    rows = torch.cat(held)
    labels = torch.cat([Y[(X == row).all(1)] for row in rows])
    model.zero_grad()
    CrossEntropy()(model(rows), labels).backward()
    for name, gradient in released.items():
        torch.testing.assert_close(gradient, model.get_parameter(name).grad / 20.0, rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------------------------------------------------- refusals


def right(run: Run) -> Tensor:
    return run.loss(run.model(X), Y)


def other_loss(run: Run) -> None:
    F.cross_entropy(run.model(X), Y, reduction="sum").backward()


def other_loss_beside_the_declared_one(run: Run) -> None:
    other_loss(run)
    right(run).backward()


def declared_loss_and_then_another(run: Run) -> None:
    right(run).backward()
    other_loss(run)


def other_loss_of_the_same_gradient_added(run: Run) -> None:
    """The gradient that reaches the first output is equal to the one that the declared loss sends to the second."""
    (F.cross_entropy(run.model(X), Y, reduction="sum") + right(run)).backward()


def penalty_on_the_output(run: Run) -> None:
    z = run.model(X)
    (run.loss(z, Y) + 100 * z.square().sum()).backward()


def scaled_output(run: Run) -> None:
    run.loss(10 * run.model(X), Y).backward()


def permuted_output(run: Run) -> None:
    run.loss(run.model(X).flip(0), Y.flip(0)).backward()


def output_of_another_model(run: Run) -> None:
    run.loss(plain()(X), Y).backward()


def output_of_a_copy(run: Run) -> None:
    run.loss(copy.deepcopy(run.model)(X), Y).backward()


def two_backward_passes(run: Run) -> None:
    right(run).backward()
    right(run).backward()


def one_graph_twice(run: Run) -> None:
    value = right(run)
    value.backward(retain_graph=True)
    value.backward()


def two_losses_on_one_output(run: Run) -> None:
    z = run.model(X)
    (run.loss(z, Y) + run.loss(z, Y)).backward()


def every_example_twice(run: Run) -> None:
    run.loss(run.model(torch.cat((X, X))), torch.cat((Y, Y))).backward()


def a_part_of_the_batch(run: Run) -> None:
    run.loss(run.model(X[:-1]), Y[:-1]).backward()


def no_backward_pass(run: Run) -> None:
    right(run)


def two_batches_in_one_step(run: Run) -> None:
    right(run).backward()
    run.batches.give(len(X))
    right(run).backward()


def hook_on_a_layer(run: Run) -> None:
    run.model[1].register_forward_hook(lambda module, args, output: 100 * output)
    right(run).backward()


def hook_before_a_layer(run: Run) -> None:
    run.model[1].register_forward_pre_hook(lambda module, args: (100 * args[0],))
    right(run).backward()


def hook_on_a_weight(run: Run) -> None:
    run.model[1].weight.register_hook(lambda gradient: 100 * gradient)
    right(run).backward()


def replaced_forward(run: Run) -> None:
    run.model[2].forward = lambda x: 100 * x
    right(run).backward()


def batch_norm_put_in(run: Run) -> None:
    run.model[2] = nn.BatchNorm1d(8, affine=False)
    right(run).backward()


def autocast(run: Run) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        right(run).backward()


def half_precision(run: Run) -> None:
    run.model.bfloat16()
    run.loss(run.model(X.bfloat16()), Y).backward()


def infinite_gradient(run: Run) -> None:
    right(run).backward()
    run.model[1].weight.grad[0, 0] = math.inf


def nan_gradient(run: Run) -> None:
    right(run).backward()
    run.model[3].bias.grad[0] = math.nan


def nan_weight(run: Run) -> None:
    right(run).backward()
    run.model[3].bias.data[0] = math.nan


def weights_shrunk_after_the_backward_pass(run: Run) -> None:
    right(run).backward()
    with torch.no_grad():
        run.model[3].weight.mul_(0.01)


def ball_shrunk_after_the_backward_pass(run: Run) -> None:
    right(run).backward()
    run.model[0].radius = 0.01


def bound_of_the_loss_lowered_after_the_backward_pass(run: Run) -> None:
    right(run).backward()
    run.loss.max_gradient = 0.01


def mode_changed_after_the_backward_pass(run: Run) -> None:
    right(run).backward()
    run.model.eval()


def a_layer_called_by_itself(run: Run) -> None:
    (right(run) + run.model[1](X).sum()).backward()


def clipped_gradient(run: Run) -> None:
    right(run).backward()
    nn.utils.clip_grad_norm_(run.model.parameters(), 1e-3)


def assigned_gradient(run: Run) -> None:
    right(run).backward()
    run.model[1].weight.grad = 100 * run.model[1].weight.grad


def gradient_edited_between_the_parts_of_a_batch(run: Run) -> None:
    run.loss(run.model(X[:3]), Y[:3]).backward()
    run.model[1].weight.grad.mul_(100)
    run.loss(run.model(X[3:]), Y[3:]).backward()


def hook_on_the_output(run: Run) -> None:
    z = run.model(X)
    z.register_hook(lambda gradient: 100 * gradient)
    run.loss(z, Y).backward()


def penalty_on_a_hidden_value(run: Run) -> None:
    hidden: list[Tensor] = []
    hook = run.model[1].register_forward_hook(lambda layer, given, made: hidden.append(made))
    z = run.model(X)
    hook.remove()
    (run.loss(z, Y) + 1000 * hidden[0].square().sum()).backward()


def inner_node(z: Tensor) -> torch.autograd.graph.Node:
    """The activation's."""
    node = z.grad_fn
    while node.name() != "ReluBackward0":
        node = next(n for n, _ in node.next_functions if n is not None and n.name() not in SKIPPED)
    return node


SKIPPED = ("torch::autograd::AccumulateGrad", "TBackward0")


def hook_before_an_inner_node(run: Run) -> None:
    z = run.model(X)
    inner_node(z).register_prehook(lambda given: (100 * given[0],))
    run.loss(z, Y).backward()


def hook_after_an_inner_node(run: Run) -> None:
    z = run.model(X)
    inner_node(z).register_hook(lambda made, given: (100 * made[0],))
    run.loss(z, Y).backward()


def hook_that_edits_in_place_what_a_weight_is_sent(run: Run) -> None:
    def edit(made, given) -> None:
        for gradient in made:
            if gradient is not None and gradient.ndim == 1:  # of the bias
                gradient.mul_(100)

    z = run.model(X)
    z.grad_fn.register_hook(edit)
    run.loss(z, Y).backward()


def in_place_before_an_inner_node(run: Run) -> None:
    def edit(given: tuple[Tensor, ...]) -> None:
        given[0].mul_(100)

    z = run.model(X)
    inner_node(z).register_prehook(edit)
    run.loss(z, Y).backward()


def output_centred_over_the_batch_in_place(run: Run) -> None:
    z = run.model(X)
    z.sub_(200 * z.detach().mean(0))
    run.loss(z, Y).backward()


def values_divided_by_the_largest(run: Run) -> None:
    values = run.loss(run.model(X), Y, reduction="none")
    (values / values.detach().max()).sum().backward()


def values_weighed_over_the_batch(run: Run) -> None:
    values = run.loss(run.model(X), Y, reduction="none")
    (values * values.detach().softmax(0)).sum().backward()


def a_multiple_of_the_loss(run: Run) -> None:
    (1e4 * right(run)).backward()


def the_mean(run: Run) -> None:
    (right(run) / len(X)).backward()


def gradient_edited_through_data(run: Run) -> None:
    right(run).backward()
    run.model[1].weight.grad.data.mul_(100)


def gradient_edited_through_numpy(run: Run) -> None:
    right(run).backward()
    run.model[1].weight.grad.numpy()[...] *= 100


def weights_shrunk_through_data(run: Run) -> None:
    right(run).backward()
    run.model[3].weight.data.mul_(0.01)


def weights_replaced_through_data(run: Run) -> None:
    right(run).backward()
    run.model[3].weight.data = 0.01 * run.model[3].weight.data


def bound_of_the_loss_raised_around_the_backward_pass(run: Run) -> None:
    value, before = right(run), run.loss.max_gradient
    run.loss.max_gradient = 100.0
    value.backward()
    run.loss.max_gradient = before


def parameter_group_added_to_the_wrapped_optimizer(run: Run) -> None:
    right(run).backward()
    run.optimizer.original.add_param_group({"params": [nn.Parameter(torch.ones(3))]})


REFUSED: list[Callable[[Run], None]] = [
    *(penalty_on_a_hidden_value, in_place_before_an_inner_node, hook_before_an_inner_node, hook_after_an_inner_node),
    hook_that_edits_in_place_what_a_weight_is_sent,
    *(a_layer_called_by_itself, clipped_gradient, assigned_gradient, gradient_edited_between_the_parts_of_a_batch),
    parameter_group_added_to_the_wrapped_optimizer,
    *(hook_on_the_output, output_centred_over_the_batch_in_place, values_divided_by_the_largest),
    *(values_weighed_over_the_batch, a_multiple_of_the_loss, the_mean),
    *(gradient_edited_through_data, gradient_edited_through_numpy),
    *(weights_shrunk_through_data, weights_replaced_through_data, bound_of_the_loss_raised_around_the_backward_pass),
    *(other_loss, other_loss_beside_the_declared_one, declared_loss_and_then_another, penalty_on_the_output),
    *(scaled_output, permuted_output, output_of_another_model, output_of_a_copy, two_backward_passes, one_graph_twice),
    *(two_losses_on_one_output, every_example_twice, a_part_of_the_batch, no_backward_pass, two_batches_in_one_step),
    *(hook_on_a_layer, hook_before_a_layer, hook_on_a_weight, replaced_forward),
    *(
        other_loss_of_the_same_gradient_added,
        batch_norm_put_in,
        autocast,
        half_precision,
        infinite_gradient,
        nan_gradient,
        nan_weight,
    ),
    *(weights_shrunk_after_the_backward_pass, ball_shrunk_after_the_backward_pass),
    *(bound_of_the_loss_lowered_after_the_backward_pass, mode_changed_after_the_backward_pass),
]


@pytest.mark.parametrize("misuse", REFUSED, ids=lambda f: f.__name__)
def test_a_gradient_that_the_bounds_do_not_cover_is_refused_and_nothing_is_spent_or_changed(misuse):
    model = built("plain")[0]
    run = private(model, optimizer=torch.optim.Adam(model.parameters(), lr=0.1))
    run.batches.give(len(X))
    before, released = run.weights(), run.released()
    with pytest.raises(DPLipError) as refusal:
        misuse(run)
        before, released = run.weights(), run.released()
        run.optimizer.step()
    assert len(str(refusal.value)) > 40
    assert not run.charged and not run.noise.draws and not run.optimizer.state
    for name, weight in run.weights().items():
        assert torch.equal(weight.nan_to_num(0.5), before[name].nan_to_num(0.5))
    for name, gradient in run.released().items():
        assert torch.equal(gradient.nan_to_num(0.5), released[name].nan_to_num(0.5))


def test_after_a_refusal_the_same_batch_can_be_done_right():
    run = private(built("plain")[0])
    run.batches.give(len(X))
    other_loss(run)
    with pytest.raises(ConfigurationError, match="declared loss"):
        run.optimizer.step()
    run.optimizer.zero_grad()
    right(run).backward()
    run.optimizer.step()
    assert len(run.charged) == 1


def test_a_sum_of_the_values_is_the_loss():
    model = built("plain")[0]
    run = private(model, noise_multiplier=0.0)
    run.batches.give(len(X))
    run.loss(model(X), Y, reduction="none").sum().backward()
    run.optimizer.step()
    assert len(run.charged) == 1


def test_gradients_left_from_before_the_model_was_made_private_are_not_released():
    model = built("plain")[0]
    (1e3 * F.cross_entropy(model(X), Y, reduction="sum")).backward()
    run = private(model, noise_multiplier=0.0)
    run.batches.give(len(X))
    right(run).backward()  # without zero_grad() first
    run.optimizer.step()
    released = run.released()
    model.zero_grad()
    CrossEntropy()(model(X), Y).backward()
    for name, gradient in released.items():
        torch.testing.assert_close(gradient, model.get_parameter(name).grad / 10.0)


def test_examples_of_another_shape_than_the_declared_one_are_refused():
    """A convolution takes images of every size, but its bounds are those of one size."""
    run = private(Pooled(), input_shape=(1, 4, 4))
    run.batches.give(3)
    with pytest.raises(ConfigurationError, match="shape"):
        run.loss(run.model(torch.randn(3, 1, 16, 16)), torch.tensor([0, 1, 2])).backward()
        run.optimizer.step()
    assert not run.charged


def test_a_closure_is_refused():
    run = private(built("plain")[0])
    run.backward(X, Y)
    with pytest.raises(ConfigurationError, match="closure"):
        run.optimizer.step(lambda: right(run))
    assert not run.charged


def test_an_input_that_is_not_a_number_is_refused_unless_the_model_neutralises_it():
    broken = X.clone()
    broken[0, 0] = math.nan
    run = private(nn.Sequential(dn.Clamp(-1.0, 1.0), nn.Linear(6, 4)))
    run.backward(broken, Y)
    with pytest.raises(ConfigurationError, match="BallProjection"):
        run.optimizer.step()
    assert not run.charged
    neutral = private(nn.Sequential(dn.BallProjection(1.0), nn.Linear(6, 4)))
    neutral.step(broken, Y)
    assert all(g.isfinite().all() for g in neutral.released().values())


def test_an_optimizer_over_other_parameters_than_the_models_is_refused():
    model, stranger = plain(), nn.Parameter(torch.zeros(3))
    with pytest.raises(ConfigurationError, match=r"3\.weight"):
        private(model, optimizer=torch.optim.SGD(model[1].parameters(), lr=0.1))
    with pytest.raises(ConfigurationError, match="not the model's"):
        private(model, optimizer=torch.optim.SGD([*model.parameters(), stranger], lr=0.1))
    run = private(model)
    with pytest.raises(ConfigurationError, match="already private"):
        private(model, optimizer=run.optimizer)
    with pytest.raises(ConfigurationError, match="add_param_group"):
        run.optimizer.add_param_group({"params": [stranger]})


@pytest.mark.parametrize(
    "arguments, error",
    [
        ({"neighboring": "swap"}, ConfigurationError),
        ({"noise_multiplier": -1.0}, ConfigurationError),
        ({"noise_multiplier": math.nan}, ConfigurationError),
        ({"loss": nn.CrossEntropyLoss()}, ConfigurationError),
        ({"input_shape": (5,)}, ConfigurationError),
    ],
)
def test_what_cannot_be_bounded_or_accounted_is_refused_before_training(arguments, error):
    with pytest.raises(error):
        private(plain(), **arguments)


def test_a_model_without_a_bound_is_refused_before_training_and_left_untouched():
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 4))
    with pytest.raises(UnboundedOperationError, match="BatchNorm"):
        private(model)
    assert not model._forward_hooks


def test_frozen_parameters_are_neither_noised_nor_moved():
    model = plain()
    model[1].requires_grad_(False)
    run = private(model, optimizer=torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1))
    before = run.weights()
    run.step(X, Y)
    moved = {n for n, w in run.weights().items() if not torch.equal(w, before[n])}
    assert moved == {"3.weight", "3.bias"}
    assert list(run.optimizer.sensitivities()) == ["3.weight", "3.bias"]


# ---------------------------------------------------------------------------------- the bounds are those of this step


def grow_data(model: nn.Module) -> None:
    model[3].weight.data.mul_(3.0)


def grow_in_place(model: nn.Module) -> None:
    with torch.no_grad():
        model[3].weight.mul_(3.0)


def grow_by_loading(model: nn.Module) -> None:
    model.load_state_dict({n: 3 * w for n, w in model.state_dict().items()})


def grow_by_assignment(model: nn.Module) -> None:
    model[3].weight.data = 3 * model[3].weight.data


def grow_the_ball(model: nn.Module) -> None:
    model[0].radius = 6.0


def grow_by_another_layer(model: nn.Module) -> None:
    model[2] = nn.Hardswish()


@pytest.mark.parametrize(
    "grow",
    [grow_data, grow_in_place, grow_by_loading, grow_by_assignment, grow_the_ball, grow_by_another_layer],
    ids=lambda f: f.__name__,
)
def test_the_noise_follows_every_change_of_the_model_between_steps(grow):
    model = built("plain")[0]
    run = private(model)
    run.step(X, Y)
    before = dplip.sensitivity(model, run.loss, (6,))
    grow(model)
    present = dplip.sensitivity(model, run.loss, (6,))
    assert present["1.weight"] > 1.2 * before["1.weight"]
    held = run.optimizer.sensitivities()
    for name, bound in present.items():
        assert bound <= held[name] <= 1.03 * bound
    run.noise.draws.clear()
    run.step(X, Y)
    stds = dict(zip(present, (std for _, std in run.noise.draws), strict=True))
    assert sum((present[n] / stds[n]) ** 2 for n in present) <= 1.0 * (1 + 1e-6)


class Scaled(nn.Module):
    """Factors wherever a module may keep a number that its forward reads; tracing makes constants of most of them."""

    shared = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.ball, self.linear = dn.BallProjection(1.0), nn.Linear(6, 4)
        self.scale = self._hidden = 1.0
        self.listed, self.named = [1.0], {"scale": 1.0}
        self.settings, self.number = SimpleNamespace(scale=1.0), np.float32(1.0)
        self.array, self.plain = np.ones(3), torch.ones(3)
        self.register_buffer("width", torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        factor = self.scale * self._hidden * self.listed[0] * self.named["scale"] * self.shared
        factor = factor * self.settings.scale * float(self.number) * float(self.array[0]) * self.plain[0].item()
        return self.linear(self.ball(x) * factor * (1.0 / self.width))


def attribute(model: Scaled) -> None:
    model.scale = 10.0


def underscored_attribute(model: Scaled) -> None:
    model._hidden = 10.0


def entry_of_a_list(model: Scaled) -> None:
    model.listed[0] = 10.0


def entry_of_a_dictionary(model: Scaled) -> None:
    model.named["scale"] = 10.0


def buffer_in_place(model: Scaled) -> None:
    model.width.fill_(0.1)


def buffer_replaced(model: Scaled) -> None:
    model.width = torch.tensor(0.1)


def attribute_of_an_object(model: Scaled) -> None:
    model.settings.scale = 10.0


def number_of_numpy(model: Scaled) -> None:
    model.number = np.float32(10.0)


def entry_of_an_array(model: Scaled) -> None:
    model.array[0] = 10.0


def entry_of_a_tensor(model: Scaled) -> None:
    model.plain[0] = 10.0


def attribute_of_the_class(model: Scaled) -> None:
    type(model).shared = 10.0


@pytest.mark.parametrize(
    "change",
    [
        *(attribute, underscored_attribute, entry_of_a_list, entry_of_a_dictionary, buffer_in_place, buffer_replaced),
        *(attribute_of_an_object, number_of_numpy, entry_of_an_array, entry_of_a_tensor, attribute_of_the_class),
    ],
    ids=lambda f: f.__name__,
)
def test_the_bounds_follow_a_number_that_the_models_forward_reads(change, monkeypatch):
    monkeypatch.setattr(Scaled, "shared", 1.0)  # and back after the test
    model = Scaled()
    run = private(model)
    before, state = run.optimizer.sensitivities()["linear.weight"], fingerprint(model)
    change(model)
    if change not in (buffer_in_place, buffer_replaced):  # which rules read anew
        assert fingerprint(model) != state  # seen by itself, before any value is compared
    assert run.optimizer.sensitivities()["linear.weight"] == pytest.approx(10 * before, rel=1e-3)


def test_a_hook_on_the_output_is_named_even_if_it_does_nothing():
    run = private(built("plain")[0])
    run.batches.give(len(X))
    z = run.model(X)
    z.register_hook(lambda gradient: None)
    run.loss(z, Y).backward()
    with pytest.raises(ConfigurationError, match="a hook is registered on the model's output"):
        run.optimizer.step()


def test_two_batches_in_one_step_are_named():
    run = private(built("plain")[0])
    run.batches.give(len(X))
    two_batches_in_one_step(run)
    with pytest.raises(ConfigurationError, match="handed out 2 batches since the last step"):
        run.optimizer.step()


def test_a_part_that_was_called_by_itself_is_named():
    run = private(built("plain")[0])
    run.batches.give(len(X))
    a_layer_called_by_itself(run)
    with pytest.raises(ConfigurationError, match="a part of the model, Linear, was called by itself"):
        run.optimizer.step()


def test_the_bounds_follow_a_layer_that_takes_anothers_place():
    layers = [nn.Linear(6, 6, bias=False) for _ in range(2)]
    with torch.no_grad():
        layers[1].weight.mul_(100)
    model = nn.Sequential(dn.BallProjection(1.0), *layers, nn.Linear(6, 4))
    run = private(model)
    model[1] = model[2]  # which is in the model already
    held, present = run.optimizer.sensitivities(), dplip.sensitivity(model, run.loss, (6,))
    assert all(bound <= held[name] <= 1.03 * bound for name, bound in present.items())


class Repeated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ball, self.block, self.head = dn.BallProjection(0.01), dn.LogCompression(3.0), nn.Linear(6, 4)
        self.blocks = nn.Sequential(self.block)

    def forward(self, x: Tensor) -> Tensor:
        x = self.ball(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def repeated() -> nn.Module:
    """The same of known layers alone, which are not run to see what they read."""
    block = dn.LogCompression(3.0)
    return nn.Sequential(dn.BallProjection(0.01), nn.Sequential(block, nn.Sequential()), nn.Linear(6, 4))


@pytest.mark.parametrize("made", [Repeated, repeated])
def test_the_bounds_follow_a_block_that_is_called_once_more(made):
    model = made()
    run = private(model)
    before = next(iter(run.optimizer.sensitivities().values()))
    (model.blocks if made is Repeated else model[1][1]).append(model.block if made is Repeated else model[1][0])
    held, present = run.optimizer.sensitivities(), dplip.sensitivity(model, run.loss, (6,))
    assert next(iter(present.values())) > 2 * before
    assert all(bound <= held[name] <= 1.03 * bound for name, bound in present.items())


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_model_is_traced_once_and_not_at_every_step(name, monkeypatch):
    model, shape = built(name)[:2]
    run = private(model, input_shape=shape, optimizer=torch.optim.SGD(model.parameters(), lr=0.01))
    traced = []
    monkeypatch.setattr("dplip.training.optimizer.Walk", lambda *arguments: traced.append(arguments))
    for _ in range(3):
        run.step(torch.rand(5, *shape), torch.zeros(5, dtype=torch.long))
    assert not traced and len(run.charged) == 3


def test_a_forward_that_counts_its_calls_is_refused():
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ball, self.linear, self.calls = dn.BallProjection(1.0), nn.Linear(6, 4), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.linear(self.ball(x) * (100.0 if self.calls < 1000 else 1.0))

    with pytest.raises(UnboundedOperationError, match="changes the model's attributes"):
        private(Counting())


def test_a_buffer_that_changes_between_the_gradient_and_the_step_is_seen():
    model = Scaled()
    run = private(model)
    run.backward(X, Y)
    with torch.no_grad():
        model.width.fill_(10.0)
    with pytest.raises(ConfigurationError, match="has changed since its gradient"):
        run.optimizer.step()


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_copy_is_refused_and_breaks_nothing(copied):
    run = private(plain())
    with pytest.raises(ConfigurationError, match="a copy would take steps that no budget counts"):
        copied(run.optimizer)
    run.step(X, Y)
    private(plain()).step(X, Y)


def test_hooks_of_steps_work_as_on_any_optimizer():
    run, seen = private(plain()), []
    run.optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    run.optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    run.step(X, Y)
    assert seen == ["before", "after"]


def test_an_optimizer_of_several_evaluations_and_a_model_of_frozen_weights_are_refused():
    model = plain()
    with pytest.raises(ConfigurationError, match="LBFGS"):
        private(model, optimizer=torch.optim.LBFGS(model.parameters()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ConfigurationError, match="nothing to train"):
        private(model.requires_grad_(False), optimizer=optimizer)


def test_a_sensitivity_that_grows_tenfold_is_said_once():
    model = plain()
    run = private(model)
    with torch.no_grad():
        model[3].weight.mul_(100)
    with pytest.warns(UserWarning, match="the sensitivity has grown from"):
        run.step(X, Y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.step(X, Y)


def test_the_bounds_follow_the_mode_of_the_model():
    model = dropping().train()
    run = private(model)
    training = run.optimizer.sensitivities()
    model.eval()
    evaluation = run.optimizer.sensitivities()
    assert training["1.weight"] == pytest.approx(2 * evaluation["1.weight"], rel=1e-3)
    model[3].train()
    assert run.optimizer.sensitivities()["1.weight"] == pytest.approx(training["1.weight"], rel=1e-3)


def test_bounds_carried_over_many_steps_stay_above_those_of_the_present_weights():
    """Norms are carried along by the triangle inequality, and only sometimes computed anew."""
    model = built("convolutional")[0]
    data = torch.randn(20, 2, 8, 8), torch.randint(0, 4, (20,))
    run = private(model, input_shape=(2, 8, 8), optimizer=torch.optim.SGD(model.parameters(), lr=0.002))
    for _ in range(12):
        present = dplip.sensitivity(model, run.loss, (2, 8, 8))
        held = run.optimizer.sensitivities()
        assert all(present[n] <= held[n] * (1 + 1e-9) for n in present)
        assert held.total <= 1.1 * present.total
        run.step(*data)


def test_replacing_one_example_counts_twice():
    model = built("plain")[0]
    one = private(model).optimizer.sensitivities()
    two = private(model, neighboring="replace_one").optimizer.sensitivities()
    assert dict(two) == pytest.approx({n: 2 * bound for n, bound in one.items()})


@pytest.mark.parametrize("batch", [1024, 8192])
def test_neighbouring_float32_sums_of_a_large_batch_lie_within_the_sensitivity(batch):
    """Every example is the worst one, so the sum is as large, and its rounding as coarse, as can be."""
    model = nn.Sequential(dn.BallProjection(1.0), nn.Linear(8, 3, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[50.0] * 8, [-50.0] * 8, [-100.0] * 8]))
    run = private(model, input_shape=(8,), batches=Handed(expected_batch_size=float(batch)))
    x, y = torch.full((batch, 8), 1.0), torch.ones(batch, dtype=torch.int64)

    def summed(rows: slice) -> Tensor:
        model.zero_grad()
        run.loss(model(x[rows]), y[rows]).backward()
        return model[1].weight.grad.double()

    for left_out in (1, 2, 3):
        moved = float((summed(slice(left_out - 1, batch)) - summed(slice(left_out, batch))).norm())
        assert moved <= run.optimizer.sensitivities().total


# ---------------------------------------------------------------------------------------------- budget and charging


def test_a_step_is_charged_before_its_noise_is_drawn():
    order = []

    def charge(event: GaussianEvent) -> None:
        order.append(("charged", len(run.noise.draws)))

    run = private(built("plain")[0], charge=charge)
    run.step(X, Y)
    run.step(X, Y)
    assert order == [("charged", 0), ("charged", 4)]


def test_a_step_that_is_not_granted_draws_no_noise_and_moves_nothing():
    def refuse(event: GaussianEvent) -> None:
        raise BudgetExceededError("spent")

    model = built("plain")[0]
    run = private(model, charge=refuse, optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    run.backward(X, Y)
    before, gradients = run.weights(), run.released()
    with pytest.raises(BudgetExceededError):
        run.optimizer.step()
    assert not run.noise.draws and not run.optimizer.state
    assert all(torch.equal(before[n], w) for n, w in run.weights().items())
    assert all(torch.equal(gradients[n], g) for n, g in run.released().items())


def test_the_event_charged_holds_the_rate_of_the_loader_and_the_multiplier_of_the_noise():
    run = private(plain(), noise_multiplier=1.3, batches=Handed(sample_rate=0.01))
    run.step(X, Y)
    assert run.charged == [GaussianEvent(1.3, 0.01)]
    assert run.optimizer.noise_multiplier == 1.3
    with pytest.raises(AttributeError):
        run.optimizer.noise_multiplier = 0.1


def test_a_loader_that_changes_its_rate_is_refused():
    run = private(plain(), batches=Handed(sample_rate=0.01))
    run.step(X, Y)
    run.batches.sample_rate = 0.5
    with pytest.raises(ConfigurationError, match="when this optimizer was made"):
        run.step(X, Y)
    assert [event.sample_rate for event in run.charged] == [0.01]


# ----------------------------------------------------------------------------------------- a torch optimizer to torch


SCHEDULERS = {
    "StepLR": lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.5),
    "LambdaLR": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "CosineAnnealingLR": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 5),
    "OneCycleLR": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.3, total_steps=6),
    "SequentialLR": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [torch.optim.lr_scheduler.ConstantLR(o, 0.1, 2), torch.optim.lr_scheduler.ExponentialLR(o, 0.5)],
        milestones=[2],
    ),
}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_schedulers_work_around_the_private_optimizer_and_around_the_wrapped_one(name, kind):
    rates = []
    for target in ("vanilla", "wrapped", "private"):
        model = built("plain")[0]
        momentum = {"momentum": 0.9} if kind == "SGD" else {}
        inner = getattr(torch.optim, kind)(model.parameters(), lr=0.1, **momentum)
        run = private(model, optimizer=inner, noise_multiplier=0.0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # torch warns where it believes that no step was taken
            scheduler = SCHEDULERS[name](run.optimizer if target == "private" else inner)
            found = []
            for _ in range(5):
                if target == "vanilla":
                    run.optimizer._only.open = True
                    inner.step()
                else:
                    run.step(X, Y)
                found.append(inner.param_groups[0]["lr"])
                assert run.optimizer.param_groups[0]["lr"] == found[-1]
                scheduler.step()
        rates.append(found)
    assert rates[0] == rates[1] == rates[2]
    assert len(set(rates[0])) > 1


def test_the_state_of_the_optimizer_survives_a_round_trip():
    model = built("plain")[0]
    run = private(model, noise_multiplier=0.0, optimizer=torch.optim.Adam(model.parameters(), lr=0.05))
    for _ in range(3):
        run.step(X, Y)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": run.optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = built("plain", seed=9)[0]
    again.load_state_dict(saved["model"])
    resumed = private(again, noise_multiplier=0.0, optimizer=torch.optim.Adam(again.parameters(), lr=0.9))
    resumed.optimizer.load_state_dict(saved["optimizer"])
    assert resumed.optimizer.param_groups[0]["lr"] == 0.05
    for each in (run, resumed):
        each.step(X, Y)
    for name, weight in run.weights().items():
        torch.testing.assert_close(weight, resumed.weights()[name])
    resumed.optimizer.param_groups[0]["lr"] = 0.0
    held = resumed.weights()
    resumed.step(X, Y)
    assert all(torch.equal(held[n], w) for n, w in resumed.weights().items())


def test_a_copy_of_a_trained_model_is_an_ordinary_model():
    run = private(orthogonal(), optimizer=None)
    run.step(X, Y)
    duplicate = copy.deepcopy(run.model)
    file = io.BytesIO()
    torch.save(run.model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for other in (duplicate, loaded):
        torch.testing.assert_close(other(X), run.model(X))
        optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
        F.cross_entropy(other(X), Y).backward()
        optimizer.step()
        assert dplip.certify(other, X).shape == (40,)
        dplip.sensitivity(other, CrossEntropy(), (6,))
    run.step(X, Y)  # and nothing of that is held against the original
    assert len(run.charged) == 2


def test_the_state_dict_of_a_private_model_is_that_of_stock_layers():
    run = private(orthogonal())
    run.step(X, Y)
    stock = nn.Sequential(nn.Identity(), nn.Linear(6, 8, bias=False), dn.GroupSort(2), nn.Linear(8, 4, bias=False))
    stock.load_state_dict(run.model.state_dict())
    assert list(run.model.state_dict()) == ["1.weight", "3.weight"]


def test_a_model_can_be_made_private_again():
    model = built("plain")[0]
    first = private(model)
    first.step(X, Y)
    second = private(model)
    second.step(X, Y)
    assert len(second.charged) == 1
    assert len(model._forward_hooks) == 1


@pytest.mark.parametrize("order", ["one by one", "a sum of losses", "a sum of losses of outputs made before"])
def test_a_batch_may_be_passed_back_in_parts(order):
    run = private(built("plain")[0], noise_multiplier=0.0)
    parts = [(X[:9], Y[:9]), (X[9:], Y[9:])]
    run.batches.give(len(X))
    if order == "one by one":
        for x, y in parts:
            run.loss(run.model(x), y).backward()
    elif order == "a sum of losses":
        sum(run.loss(run.model(x), y) for x, y in parts).backward()
    else:
        scores = [run.model(x) for x, _ in parts]
        sum(run.loss(z, y) for z, (_, y) in zip(scores, parts, strict=True)).backward()
    run.optimizer.step()
    whole = private(built("plain")[0], noise_multiplier=0.0)
    whole.step(X, Y)
    for name, gradient in run.released().items():
        torch.testing.assert_close(gradient, whole.released()[name])


def test_evaluation_between_steps_is_not_mistaken_for_training():
    run = private(built("plain")[0])
    run.batches.give(len(X))
    run.optimizer.zero_grad()
    value = right(run)
    with torch.no_grad():
        run.loss(run.model(X[:3]), Y[:3])
    value.backward()
    run.optimizer.step()
    assert len(run.charged) == 1


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_an_adversarial_search_beside_the_loss_is_not_mistaken_for_training(mode):
    """Its gradient ends at the inputs, in whatever mode and of whatever loss, and nothing of it is released."""
    model = nn.Sequential(dn.BallProjection(2.0), nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 4))
    run = private(model)
    run.batches.give(len(X))
    run.optimizer.zero_grad()
    x = X.clone().requires_grad_()
    model.train(mode)
    (slope,) = torch.autograd.grad(F.cross_entropy(model(x), Y), x)
    model.train()
    value = run.loss(model((x + slope.sign()).detach()), Y)
    torch.autograd.grad(F.cross_entropy(model(x), Y), x)
    value.backward()
    run.optimizer.step()
    assert len(run.charged) == 1


def test_a_foreign_loss_after_an_adversarial_search_is_refused():
    run = private(built("plain")[0])
    run.batches.give(len(X))
    x = X.clone().requires_grad_()
    torch.autograd.grad(run.model(x).sum(), x)
    z = run.model(x)
    (run.loss(z, Y) + z.sum()).backward()
    with pytest.raises(ConfigurationError, match="something else"):
        run.optimizer.step()


def test_outputs_are_not_kept_alive():
    run = private(built("plain")[0])
    for _ in range(20):
        run.step(X, Y)
    watched = list(run.model._forward_hooks.values())
    assert all(len(getattr(hook, "outputs", ())) <= 2 for hook in watched)


def test_regression_through_a_huber_loss_is_private_too():
    model = plain(classes=2)
    run = private(model, loss=Huber(0.5), optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    run.step(X, torch.randn(40, 2))
    assert len(run.charged) == 1


def test_the_optimizer_is_a_torch_optimizer_and_says_its_noise():
    run = private(plain(), noise_multiplier=1.5)
    assert isinstance(run.optimizer, torch.optim.Optimizer) and isinstance(run.optimizer, DPLipOptimizer)
    assert "1.5" in repr(run.optimizer)


# ------------------------------------------------------------------------ what a forward reads that is no attribute


class Settings:
    scale, hook = 1.0, False


def surroundings(how: str) -> nn.Module:
    """A model that multiplies its scores by a number from somewhere."""
    held = {"closure": 1.0}

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(dn.BallProjection(1.0), nn.Linear(6, 4))
            self.register_buffer("gain", torch.ones(()))
            self.held = lambda: held["closure"]

        def number(self) -> float:
            if how == "weight":
                return 1 / float(dict(self.named_parameters())["layers.1.weight"].detach().norm())
            if how == "buffer":
                return float(dict(self.named_buffers())["gain"])
            if how == "state_dict":
                return float(self.state_dict()["gain"])
            if how == "environment":
                return float(os.environ.get("DPLIP_TEST_SCALE", "1"))
            if how == "closure":
                return self.held()
            return Settings.scale

        def forward(self, x: Tensor) -> Tensor:
            z = self.layers(x)
            if how == "hook" and Settings.hook:
                z.register_hook(lambda g: 20 * g)
            if how == "gradient mode":
                return z * (20.0 if torch.is_grad_enabled() else 1.0)
            return z * self.number()

    def change(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
        held["closure"] = 20.0
        monkeypatch.setattr(Settings, "scale", 20.0)
        monkeypatch.setenv("DPLIP_TEST_SCALE", "20")

    net = Net()
    net.change = change
    return net


@pytest.mark.parametrize("how", ["weight", "buffer", "state_dict", "gradient mode"])
def test_a_number_read_off_a_weight_a_buffer_or_the_mode_is_refused(how):
    with pytest.raises(UnboundedOperationError, match="other results than its trace"):
        private(surroundings(how))


@pytest.mark.parametrize("how", ["global", "environment", "closure"])
def test_the_bounds_follow_what_the_forward_reads_that_is_no_attribute(how, monkeypatch):
    model = surroundings(how)
    run = private(model)
    before = run.optimizer.sensitivities().total
    model.change(model, monkeypatch)
    assert run.optimizer.sensitivities().total == pytest.approx(20 * before, rel=1e-3)
    run.backward(X, Y)
    run.optimizer.step()


@pytest.mark.parametrize("how", ["global", "environment", "closure"])
def test_what_the_forward_read_must_still_hold_at_the_step(how, monkeypatch):
    model = surroundings(how)
    run = private(model)
    with pytest.MonkeyPatch.context() as meanwhile:
        model.change(model, meanwhile)
        run.backward(X, Y)
    if how == "closure":
        model.held = lambda: 1.0
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ConfigurationError, match="has changed since its gradient"):
        run.optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_gradient_that_changes_alone_is_seen(monkeypatch):
    model = surroundings("hook")
    run = private(model)
    monkeypatch.setattr(Settings, "hook", True)
    run.backward(X, Y)
    with pytest.raises((ConfigurationError, UnboundedOperationError)):
        run.optimizer.step()


@pytest.mark.parametrize("call", [{"scale": 50.0}, {"x": X}, (X, 50.0)])
def test_further_arguments_of_the_model_are_refused(call):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(dn.BallProjection(1.0), nn.Linear(6, 4))

        def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
            return self.layers(x) * scale

    model = Net()
    run = private(model)
    run.batches.give(len(X))
    outputs = model(*call) if isinstance(call, tuple) else model(**{"x": X, **call})
    run.loss(outputs, Y).backward()
    with pytest.raises(ConfigurationError, match=r"Call model\(x\)"):
        run.optimizer.step()


def test_the_bound_of_a_loss_must_still_hold_at_the_step():
    class Public(dplip.losses.Huber):
        def logit_gradient(self, shape):
            return super().logit_gradient(shape) * Settings.scale

    model = nn.Sequential(dn.BallProjection(1.0), nn.Linear(6, 4))
    run, targets = private(model, loss=Public()), torch.zeros(len(X), 4)
    before = run.optimizer.sensitivities().total
    with pytest.MonkeyPatch.context() as meanwhile:
        meanwhile.setattr(Settings, "scale", 20.0)
        assert run.optimizer.sensitivities().total > 19 * before
        run.backward(X, targets)
    with pytest.raises(ConfigurationError, match="has changed since its gradient"):
        run.optimizer.step()
