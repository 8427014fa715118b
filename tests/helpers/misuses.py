"""Every way to put a gradient into a private model that its bounds do not cover."""

import copy
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from helpers.models import plain
from helpers.runs import Run, X, Y
from torch import Tensor, nn


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
