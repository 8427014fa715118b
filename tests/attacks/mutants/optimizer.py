"""Mutants of the private step: what is noised, charged and moved, and what is refused."""

from attacks.mutants.mutant import Mutant, mutant

ADD = "self.noise.add_to_part_(owned, sums[index][1], sums[index][0].numel())"
CHARGE = "        if charge is not None:\n            self._group.in_turn(lambda: charge(self.event))\n"

STEP = [
    mutant(
        "biases without noise",
        "training/optimizer.py",
        ADD,
        ADD.replace("[1],", "[1] if owned.ndim > 1 else 0.0,"),
        "training/test_step_noise.py::test_every_parameter_gets_its_noise_on_every_step_and_once",
    ),
    mutant(
        "one generator state for every parameter",
        "training/optimizer.py",
        ADD,
        ADD.replace("self.noise", "type(self.noise)(7)"),
        "training/test_step_noise.py::test_the_noise_of_tensors_and_steps_and_halves_of_a_tensor_is_independent",
    ),
    Mutant(
        "noise drawn after the division",
        "training/optimizer.py",
        (
            (
                "((t, stds[n]) for n, t in",
                "((t.div_(self.expected_batch_size), stds[n] / self.expected_batch_size**2) for n, t in",
            ),
            ("p.grad = whole[name].div_(self.expected_batch_size)", "p.grad = whole[name]"),
        ),
        "audit/test_replay.py::test_neighbouring_steps_differ_within_the_sensitivity_and_in_nothing_else -k plain",
    ),
    Mutant(
        "mean over the actual batch",
        "training/optimizer.py",
        (
            ("        self.batches.take()\n", "        taken = self.batches.take()\n"),
            ("whole[name].div_(self.expected_batch_size)", "whole[name].div_(max(taken, 1))"),
        ),
        "training/test_step_noise.py::test_the_sum_is_divided_by_the_expected_batch_size_and_never_by_the_batchs_own",
    ),
    mutant(
        "noise for every physical batch, counted once a step",
        "training/optimizer.py",
        "                self._collect()\n                return",
        "                for p in self.model.parameters():\n"
        "                    p.grad is None or self.noise.add_(p.grad, 1.0)\n"
        "                self._collect()\n                return",
        "training/test_physical_batches.py"
        "::test_physical_batches_give_the_step_of_the_whole_batch_with_one_draw_of_noise",
    ),
    mutant(
        "bounds of the first weights for ever",
        "training/optimizer.py",
        "bounds = self._bounds(self._monitor.seen)\n",
        "self._first = bounds = getattr(self, '_first', None) or self._bounds(self._monitor.seen)\n",
        "training/test_bounds_of_a_step.py::test_the_noise_follows_every_change_of_the_model_between_steps",
    ),
    mutant(
        "replacing an example counted once",
        "accounting/events.py",
        '"replace_one": 2.0',
        '"replace_one": 1.0',
        "training/test_bounds_of_a_step.py::test_replacing_one_example_counts_twice",
    ),
    mutant(
        "a step that is not charged",
        "training/optimizer.py",
        CHARGE,
        "",
        "training/test_charging.py"
        "::test_the_event_charged_holds_the_rate_of_the_loader_and_the_multiplier_of_the_noise",
    ),
    Mutant(
        "a step charged after its noise",
        "training/optimizer.py",
        ((CHARGE, ""), ("        keep_gradients_of(", CHARGE + "        keep_gradients_of(")),
        "training/test_charging.py::test_a_step_is_charged_before_its_noise_is_drawn",
    ),
    mutant(
        "an empty batch is no step",
        "training/optimizer.py",
        "        self.batches.take()\n",
        "        if self.batches.take() == 0:\n            return\n",
        "training/test_step_noise.py::test_an_empty_batch_is_a_step_with_noise_whose_gradient_is_dropped",
    ),
    mutant(
        "the blank row of an empty batch is learned from",
        "training/optimizer.py",
        "leaf.grad = None",
        "pass",
        "training/test_step_noise.py::test_an_empty_batch_is_a_step_with_noise_whose_gradient_is_dropped",
    ),
    mutant(
        "two backward passes over one batch",
        "training/step_checks.py",
        "if seen != handed:",
        "if False:",
        "training/test_refused_gradients.py"
        "::test_a_gradient_that_the_bounds_do_not_cover_is_refused_and_nothing_is_spent_or_changed",
    ),
    mutant(
        "gradients of another loss",
        "training/step_checks.py",
        "    if monitor.problem:\n",
        "    if False:\n",
        "training/test_refused_gradients.py"
        "::test_a_gradient_that_the_bounds_do_not_cover_is_refused_and_nothing_is_spent_or_changed",
    ),
    mutant(
        "weights changed between gradient and bound",
        "training/gradient_monitor.py",
        "if self._state != self._present_state():",
        "if False:",
        "training/test_refused_gradients.py"
        "::test_a_gradient_that_the_bounds_do_not_cover_is_refused_and_nothing_is_spent_or_changed",
    ),
    mutant(
        "two batches in one step",
        "training/step_checks.py",
        "if batches.logical_batches != 1:",
        "if False:",
        "training/test_refused_gradients.py::test_two_batches_in_one_step_are_named",
    ),
    mutant(
        "a frozen model trained without noise",
        "training/wrapped.py",
        '    if foreign:\n        raise ConfigurationError(\n            f"optimizer: it holds',
        '    if False:\n        raise ConfigurationError(\n            f"optimizer: it holds',
        "training/test_refused_models.py::test_an_optimizer_over_other_parameters_than_the_models_is_refused",
    ),
    mutant(
        "rounding of large sums not covered",
        "training/step_bounds.py",
        "bound * (1 + relative)",
        "bound",
        "sensitivities/test_neighbouring_sums.py::test_neighbouring_sums_lie_within_the_sensitivity",
    ),
    mutant(
        "a batch summed in one go in bounded layers",
        "nn/sums.py",
        "BLOCK = 128",
        "BLOCK = 1 << 30",
        "sensitivities/test_neighbouring_sums.py::test_neighbouring_sums_lie_within_the_sensitivity",
    ),
    mutant(
        "the layers of torch sum as they like",
        "training/gradient_monitor.py",
        "if type(module).forward in SUMMED:",
        "if False:",
        "sensitivities/test_neighbouring_sums.py::test_neighbouring_sums_lie_within_the_sensitivity",
    ),
    mutant(
        "the gradient of a convolution as torch sums it",
        "nn/sums.py",
        "    channels, positions = v.shape[1], math.prod(v.shape[2:])\n",
        "    channels, positions = v.shape[1], math.prod(v.shape[2:])\n"
        "    size = (channels, x.shape[1] // groups, *taps)\n"
        "    return torch.nn.grad.conv2d_weight(x, size, v, stride, padding, dilation, groups)\n",
        "sensitivities/test_neighbouring_sums.py::test_neighbouring_sums_of_a_convolution_lie_within_the_sensitivity",
    ),
    mutant(
        "an order that is left to the machine trusted",
        "nn/sums.py",
        "blocked else n * terms\n",
        "blocked else 1\n",
        "nn/test_sums.py::test_any_order_of_a_sum_is_covered",
    ),
    mutant(
        "parts of a batch by place, so that one more example moves them all",
        "sampling/loader.py",
        "place = torch.from_numpy(self._dealer.numbers.integers(self._part_count * ranks, size=len(chosen)))",
        "place = torch.arange(len(chosen)) * self._part_count * ranks // max(1, len(chosen))",
        "training/test_parts_of_a_batch.py::test_one_more_example_changes_its_own_part_alone",
    ),
    mutant(
        "parts of a batch added in the type of the parameters",
        "training/optimizer.py",
        "p.grad.double() if",
        "p.grad.clone() if",
        "training/test_parts_of_a_batch.py::test_parts_are_added_in_float64",
    ),
]

WEIGHTS_MOVED = [
    mutant(
        "a hook on an accumulator not seen",
        "training/arrivals.py",
        "if _any(self._found):",
        "if False:",
        "training/test_wrapped.py::test_a_hook_on_what_accumulates_a_gradient_is_seen",
    ),
    mutant(
        "a gradient beside the model's output not seen",
        "training/arrivals.py",
        "self._found.append(_differ(sent[0], gradient))",
        "sent = gradient.clone(), 0",
        "training/test_wrapped.py::test_a_gradient_beside_the_models_output_is_refused",
    ),
    mutant(
        "a gradient put back between two parts not seen",
        "training/arrivals.py",
        "        self._arrived: set[int] = set()\n        self._left = {}\n",
        "        self._arrived: set[int] = getattr(self, '_arrived', set())\n",
        "training/test_wrapped.py::test_a_gradient_that_is_put_back_between_the_parts_of_a_batch_is_refused",
    ),
    mutant(
        "settings that change between the parts not seen",
        "training/wrapped.py",
        "if self._incomplete() and not _same_settings(self._settings or [], present):",
        "if False:",
        "training/test_wrapped.py::test_what_the_optimizer_keeps_does_not_change_between_the_parts_of_a_batch",
    ),
    mutant(
        "what a charge depends on may be set",
        "accounting/budget.py",
        "if name in self._FIXED and name in vars(self):",
        "if False:",
        "training/test_wrapped.py::test_what_a_charge_depends_on_is_fixed",
    ),
    mutant(
        "copies of a run that are not told apart",
        "records/run_folder.py",
        "if self._unsaid:",
        "if False:",
        "training/test_resumed_run.py::test_copies_of_a_run_that_are_gone_on_with_are_told_apart_and_add_up",
    ),
    mutant(
        "the step of the wrapped optimizer",
        "training/wrapped.py",
        "if not self.open and self._private() is not None:",
        "if False:",
        "training/test_wrapped.py::test_the_step_of_the_wrapped_optimizer_is_refused",
    ),
    mutant(
        "any optimizer is trusted",
        "training/wrapped.py",
        "    if trusted:\n",
        "    if True:\n",
        "training/test_wrapped.py::test_an_optimizer_with_a_step_of_its_own_is_taken_by_an_explicit_word_alone",
    ),
    mutant(
        "hooks on a step not seen",
        "training/wrapped.py",
        '    if foreign:\n        raise ConfigurationError(\n            f"optimizer: {len(foreign)} hooks',
        '    if False:\n        raise ConfigurationError(\n            f"optimizer: {len(foreign)} hooks',
        "training/test_wrapped.py::test_what_is_hooked_into_the_step_later_is_refused",
    ),
    mutant(
        "stale gradients move frozen weights",
        "training/wrapped.py",
        "if id(p) not in noisy:",
        "if False:",
        "training/test_wrapped.py::test_a_stale_gradient_of_a_frozen_layer_moves_nothing",
    ),
    mutant(
        "a schedule sees the parts of a batch",
        "training/wrapped.py",
        "if incomplete is not None and incomplete():",
        "if False:",
        "training/test_wrapped.py::test_a_schedule_cannot_be_stepped_between_the_parts_of_a_batch",
    ),
    mutant(
        "a schedule is not tried out",
        "training/schedules.py",
        "    rehearse(made, steps - done)\n",
        "",
        "training/test_wrapped.py::test_a_schedule_that_is_too_short_is_refused_before_anything_is_spent",
    ),
    mutant(
        "repeated examples",
        "sampling/distinct.py",
        "        if copies:\n",
        "        if False:\n",
        "sampling/test_distinct.py::test_an_example_that_is_in_the_data_twice_is_refused",
    ),
    mutant(
        "steps by hand are not on the ledger",
        "training/durable_run.py",
        "if self._folder is None or self._folder.is_open:",
        "if True:",
        "training/test_wrapped.py::test_steps_by_hand_are_on_the_ledger",
    ),
]

_UNCOVERED = (
    "training/test_refused_gradients.py"
    "::test_a_gradient_that_the_bounds_do_not_cover_is_refused_and_nothing_is_spent_or_changed"
)

INNER_NODES = [
    mutant(
        "a loss with a forward of its own is trusted",
        "losses/base.py",
        'if type(loss).forward is not Loss.forward or "forward" in vars(loss):',
        "if False:",
        "runtime/test_mixing.py::test_a_loss_with_a_forward_of_its_own_is_refused",
    ),
    mutant(
        "what a node inside the model is given is not looked at",
        "training/arrivals.py",
        "            elif sent[0] is not gradient:\n                self._doubts",
        "            elif False:\n                self._doubts",
        _UNCOVERED,
    ),
    mutant(
        "a gradient edited in place on its way to a weight not seen",
        "training/arrivals.py",
        "or sent[0]._version != sent[1]:",
        "or False:",
        _UNCOVERED,
    ),
    mutant(
        "a foreign gradient into the output is never of interest",
        "training/arrivals.py",
        "if self._suspicion is not None:",
        "if False:",
        "training/test_refused_gradients.py::test_a_foreign_loss_after_an_adversarial_search_is_refused",
    ),
    mutant(
        "the search for an adversarial example is taken for training",
        "training/arrivals.py",
        "self._suspicion, self._touched = None, False",
        "self._touched = False",
        "training/test_refused_gradients.py::test_an_adversarial_search_beside_the_loss_is_not_mistaken_for_training",
    ),
]
