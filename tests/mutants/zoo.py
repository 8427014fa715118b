"""Bugs, put into the library on purpose: each breaks a promise and must be caught by the test that is named.

Many are bugs that private-training libraries have had. A mutant is one or more substitutions in one source file or
package; each text must occur there exactly once, so that a mutant cannot become idle when the code changes.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mutant:
    """A bug: the file or the folder of the package, what is replaced by what, and the test that must fail."""

    name: str
    file: str
    changes: tuple[tuple[str, str], ...]
    caught_by: str

    @property
    def test(self) -> str:
        return self.caught_by.split(" -k ")[0]

    @property
    def selection(self) -> list[str]:
        """Arguments for pytest."""
        test, _, expression = self.caught_by.partition(" -k ")
        return [f"tests/{test}", *(["-k", expression] if expression else [])]

    def sources(self, package: Path) -> dict[Path, str]:
        """The files that it changes, with their new text.

        Raises:
            ValueError: a text is not there, or more than once.
        """
        place, new = package / self.file, {}
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            new[path] = path.read_text(encoding="utf-8")
        for old, instead in self.changes:
            holders = [path for path, text in new.items() for _ in range(text.count(old))]
            if len(holders) != 1:
                raise ValueError(f"{self.file} holds {len(holders)} times, and not once: {old!r}")
            new[holders[0]] = new[holders[0]].replace(old, instead)
        return new


def mutant(name: str, file: str, old: str, new: str, caught_by: str) -> Mutant:
    return Mutant(name, file, ((old, new),), caught_by)


ADD = "self.noise.add_(p.grad, stds[name])"
CHARGE = "        if self._charge is not None:\n            self._charge(self.event)\n"
SUM = "values.sum() if reduction"
AUTOCAST_OFF = "        with torch.autocast(v.device.type, enabled=False):\n"
LINEAR_BACKWARD = (
    "            if for_weight or for_bias:\n"
    "                inputs, scaled, sent = _bounded_rows(x, v, weight, ctx.radius, 1.0,"
)
MASK = "np.flatnonzero(self._generator.random(self._size) < self.sample_rate)"

NOISE = [
    mutant(
        "noise halved",
        "noise/gaussian.py",
        "add_(draws, alpha=std)",
        "add_(draws, alpha=std / 2)",
        "test_noise.py::test_the_draws_are_normal_with_the_given_deviation",
    ),
    mutant(
        "noise a hundredth too small in what is added",
        "noise/gaussian.py",
        "add_(draws, alpha=std)",
        "add_(draws, alpha=0.99 * std)",
        "test_noise.py::test_the_draws_are_normal_with_the_given_deviation",
    ),
    mutant(
        "noise reused across parameters and steps",
        "noise/gaussian.py",
        "self._used += draws.numel()",
        "self._used += 0",
        "test_noise.py::test_every_tensor_and_every_step_gets_fresh_draws",
    ),
    mutant(
        "a block of noise that was made ahead handed out again",
        "noise/gaussian.py",
        "        self._ahead.append(self._thread.submit(self._block, spent))",
        "        if spent.numel():\n            return spent",
        "test_noise.py::test_draws_that_were_added_are_not_overwritten_by_the_blocks_that_follow",
    ),
    mutant(
        "noise of a forked process from the blocks that its parent made ahead",
        "noise/gaussian.py",
        "        self._pools: dict[tuple[torch.device, torch.dtype], _Pool] = {}",
        "        self._pools = getattr(self, '_pools', {})",
        "test_noise.py::test_a_forked_process_never_repeats_the_draws",
    ),
    mutant(
        "noise fixed by torch.manual_seed",
        "runtime/secret.py",
        "np.random.SeedSequence(self._seed, spawn_key=self._key)",
        "np.random.SeedSequence(torch.initial_seed())",
        "test_noise.py::test_global_seeds_do_not_touch_it",
    ),
    mutant(
        "noise repeated by a forked process",
        "runtime/secret.py",
        "if self._process != os.getpid():",
        "if False:",
        "test_noise.py::test_a_forked_process_never_repeats_the_draws",
    ),
    mutant(
        "one multiplier for each parameter: sqrt of their number missing",
        "noise/allocation.py",
        "{name: scale * math.sqrt(value / math.sqrt(sizes[name]))",
        "{name: noise_multiplier * value",
        "test_noise.py::test_the_split_spends_the_multiplier_exactly_and_has_the_least_energy",
    ),
    mutant(
        "halves of a Box-Muller pair alike",
        "noise/gaussian.py",
        "np.sin(second, out=second)",
        "np.cos(second, out=second)",
        "test_noise.py::test_the_two_halves_of_a_pair_are_independent",
    ),
    mutant(
        "noise of 5 standard deviations at most",
        "noise/gaussian.py",
        "radius *= 2.0**-39",
        "radius[:] = np.maximum(np.floor(radius * 2.0**-21), 0.5) * 2.0**-18",
        "test_noise.py::test_the_tails_go_beyond_those_of_24_bit_uniforms",
    ),
]

STEP = [
    mutant(
        "biases without noise",
        "training/optimizer.py",
        ADD,
        "self.noise.add_(p.grad, stds[name] if p.ndim > 1 else 0.0)",
        "test_optimizer.py::test_every_parameter_gets_its_noise_on_every_step_and_once",
    ),
    mutant(
        "one generator state for every parameter",
        "training/optimizer.py",
        ADD,
        "type(self.noise)(7).add_(p.grad, stds[name])",
        "test_optimizer.py::test_the_noise_of_tensors_and_steps_and_halves_of_a_tensor_is_independent",
    ),
    mutant(
        "noise drawn after the division",
        "training/optimizer.py",
        ADD + "\n            p.grad.div_(self.expected_batch_size)",
        "p.grad.div_(self.expected_batch_size)\n            "
        + ADD.replace("stds[name]", "stds[name] / self.expected_batch_size**2"),
        "test_audit.py::test_neighbouring_steps_differ_within_the_sensitivity_and_in_nothing_else -k plain",
    ),
    Mutant(
        "mean over the actual batch",
        "training/optimizer.py",
        (
            ("empty = self.batches.take() == 0", "taken = self.batches.take()\n        empty = taken == 0"),
            ("p.grad.div_(self.expected_batch_size)", "p.grad.div_(max(taken, 1))"),
        ),
        "test_optimizer.py::test_the_sum_is_divided_by_the_expected_batch_size_and_never_by_the_batchs_own",
    ),
    mutant(
        "noise for every physical batch, counted once a step",
        "training/optimizer.py",
        "            self._collect()\n            return",
        "            for p in self.model.parameters():\n"
        "                p.grad is None or self.noise.add_(p.grad, 1.0)\n"
        "            self._collect()\n            return",
        "test_optimizer.py::test_physical_batches_give_the_step_of_the_whole_batch_with_one_draw_of_noise",
    ),
    mutant(
        "bounds of the first weights for ever",
        "training/optimizer.py",
        "bounds = self._bounds(self._witness.rows)\n",
        "self._first = bounds = getattr(self, '_first', None) or self._bounds(self._witness.rows)\n",
        "test_optimizer.py::test_the_noise_follows_every_change_of_the_model_between_steps",
    ),
    mutant(
        "replacing an example counted once",
        "accounting/events.py",
        '"replace_one": 2.0',
        '"replace_one": 1.0',
        "test_optimizer.py::test_replacing_one_example_counts_twice",
    ),
    mutant(
        "a step that is not charged",
        "training/optimizer.py",
        CHARGE,
        "",
        "test_optimizer.py::test_the_event_charged_holds_the_rate_of_the_loader_and_the_multiplier_of_the_noise",
    ),
    Mutant(
        "a step charged after its noise",
        "training/optimizer.py",
        ((CHARGE, ""), ("        keep_gradients_of(", CHARGE + "        keep_gradients_of(")),
        "test_optimizer.py::test_a_step_is_charged_before_its_noise_is_drawn",
    ),
    mutant(
        "an empty batch is no step",
        "training/optimizer.py",
        "empty = self.batches.take() == 0\n",
        "empty = self.batches.take() == 0\n        if empty:\n            return\n",
        "test_optimizer.py::test_an_empty_batch_is_a_step_with_noise_whose_gradient_is_dropped",
    ),
    mutant(
        "the blank row of an empty batch is learned from",
        "training/optimizer.py",
        "elif p.grad is None or empty:",
        "elif p.grad is None:",
        "test_optimizer.py::test_an_empty_batch_is_a_step_with_noise_whose_gradient_is_dropped",
    ),
    mutant(
        "two backward passes over one batch",
        "training/optimizer.py",
        "if seen != handed:",
        "if False:",
        "test_optimizer.py::test_a_gradient_that_the_bounds_do_not_cover_is_refused_and_nothing_is_spent_or_changed",
    ),
    mutant(
        "gradients of another loss",
        "training/optimizer.py",
        "        if self._witness.problem:\n",
        "        if False:\n",
        "test_optimizer.py::test_a_gradient_that_the_bounds_do_not_cover_is_refused_and_nothing_is_spent_or_changed",
    ),
    mutant(
        "weights changed between gradient and bound",
        "training/gradient_monitor.py",
        "if self._state != self._present_state():",
        "if False:",
        "test_optimizer.py::test_a_gradient_that_the_bounds_do_not_cover_is_refused_and_nothing_is_spent_or_changed",
    ),
    mutant(
        "two batches in one step",
        "training/optimizer.py",
        "if self.batches.logical_batches != 1:",
        "if False:",
        "test_optimizer.py::test_two_batches_in_one_step_are_named",
    ),
    mutant(
        "a frozen model trained without noise",
        "training/wrapped.py",
        '    if foreign:\n        raise ConfigurationError(\n            f"optimizer: it holds',
        '    if False:\n        raise ConfigurationError(\n            f"optimizer: it holds',
        "test_optimizer.py::test_an_optimizer_over_other_parameters_than_the_models_is_refused",
    ),
    mutant(
        "rounding of large sums not covered",
        "training/optimizer.py",
        "bound * (1 + rounding[n])",
        "bound",
        "test_sums.py::test_neighbouring_sums_lie_within_the_sensitivity",
    ),
    mutant(
        "a batch summed in one go in bounded layers",
        "nn/sums.py",
        "BLOCK = 128",
        "BLOCK = 1 << 30",
        "test_sums.py::test_neighbouring_sums_lie_within_the_sensitivity",
    ),
    mutant(
        "the layers of torch sum as they like",
        "training/gradient_monitor.py",
        "if type(module).forward in SUMMED:",
        "if False:",
        "test_sums.py::test_neighbouring_sums_lie_within_the_sensitivity",
    ),
    mutant(
        "the gradient of a convolution as torch sums it",
        "nn/sums.py",
        "    channels, positions = v.shape[1], math.prod(v.shape[2:])\n",
        "    channels, positions = v.shape[1], math.prod(v.shape[2:])\n"
        "    size = (channels, x.shape[1] // groups, *taps)\n"
        "    return torch.nn.grad.conv2d_weight(x, size, v, stride, padding, dilation, groups)\n",
        "test_sums.py::test_neighbouring_sums_of_a_convolution_lie_within_the_sensitivity",
    ),
    mutant(
        "an order that is left to the machine trusted",
        "nn/sums.py",
        "blocked else n * terms\n",
        "blocked else 1\n",
        "test_sums.py::test_any_order_of_a_sum_is_covered",
    ),
    mutant(
        "parts of a batch by place, so that one more example moves them all",
        "sampling/loader.py",
        "part = torch.from_numpy(self._dealer.numbers.integers(self._part_count, size=len(chosen)))",
        "part = torch.arange(len(chosen)) * self._part_count // max(1, len(chosen))",
        "test_sums.py::test_one_more_example_changes_its_own_part_alone",
    ),
    mutant(
        "parts of a batch added in the type of the parameters",
        "training/optimizer.py",
        "p.grad.double() if",
        "p.grad.clone() if",
        "test_sums.py::test_parts_are_added_in_float64",
    ),
]

SAMPLING = [
    mutant(
        "batches of one size in place of Poisson",
        "sampling/poisson.py",
        MASK,
        "np.sort(self._generator.permutation(self._size)[: max(1, round(self.sample_rate * self._size))])",
        "test_sampling.py::test_two_examples_appear_independently",
    ),
    mutant(
        "one mask for every batch",
        "sampling/poisson.py",
        MASK,
        "np.flatnonzero(np.random.Generator(np.random.SFC64(1)).random(self._size) < self.sample_rate)",
        "test_sampling.py::test_draws_are_fresh_whatever_the_global_seed",
    ),
    mutant(
        "q from the private size",
        "sampling/poisson.py",
        "_rate(sample_rate, batch_size, known)",
        "_rate(sample_rate, batch_size, size)",
        "test_sampling.py::test_a_neighbouring_data_set_has_the_same_constants",
    ),
    mutant(
        "masks of 24 bits",
        "sampling/poisson.py",
        "self._generator.random(self._size)",
        "self._generator.random(self._size, dtype=np.float32)",
        "test_sampling.py::test_a_small_rate_is_not_rounded_up",
    ),
    mutant(
        "1 / q rounded down",
        "sampling/loader.py",
        "max(1, round(1 / self.sample_rate))",
        "max(1, int(1 / self.sample_rate))",
        "test_sampling.py::test_an_epoch_has_the_steps_that_were_planned",
    ),
    mutant(
        "a weighted sampler taken for Poisson",
        "sampling/poisson.py",
        "        if not plain or",
        "        if False or",
        "test_sampling.py::test_a_loader_that_samples_otherwise_is_refused",
    ),
    mutant(
        "batches of a fixed size accounted as Poisson",
        "sampling/fixed_size.py",
        "return FixedSizeEvent(noise_multiplier, self._batch_size, self.public_size)",
        "return GaussianEvent(noise_multiplier, self.sample_rate)",
        "test_fixed_size.py::test_a_run_charges_the_event_of_its_batches",
    ),
    mutant(
        "batches of a fixed size drawn with replacement",
        "sampling/fixed_size.py",
        "replace=False",
        "replace=True",
        "test_fixed_size.py::test_every_batch_holds_exactly_so_many_different_examples",
    ),
    mutant(
        "batches of a fixed size under add/remove",
        "accounting/events.py",
        "if neighboring not in event.neighboring:",
        "if False:",
        "test_fixed_size.py::test_what_no_theorem_covers_is_refused_before_anything_is_spent",
    ),
    mutant(
        "the ternary bound without its factor of four",
        "accounting/fixed_size.py",
        "ternary = math.log(4) +",
        "ternary =",
        "test_fixed_size.py::test_a_divergence_is_not_below_its_theorem_in_exact_arithmetic",
    ),
]

BOUNDS = [
    mutant(
        "power iteration as a norm",
        "norms/matrix.py",
        "math.sqrt(float(torch.linalg.eigvalsh(gram)[-1]))",
        "math.sqrt(float((gram @ (v := gram @ gram.new_ones(len(gram)))).norm() / v.norm()))",
        "test_operators.py::test_a_matrix_norm_is_exact_from_above",
    ),
    mutant(
        "a norm carried over steps without its drift",
        "norms/cache.py",
        "return entry.bound + drift",
        "return entry.bound",
        "test_operators.py::test_a_carried_norm_is_never_below_the_true_one",
    ),
    mutant(
        "bias of a feature map without the square root of its positions",
        "rules/convolution.py",
        "v.sum_to(tuple(bias.shape)).summed(positions)",
        "Norms(tuple(bias.shape), l2=v.l2)",
        "test_sensitivity.py::test_a_bias_on_a_feature_map_collects_every_position",
    ),
    mutant(
        "kernel without the patch factor",
        "rules/convolution.py",
        "reuse = math.sqrt(most_reads(*map(tuple, (size, taps, stride, padding, dilation)), circular))",
        "reuse = 1.0",
        "test_rules.py::test_no_input_and_no_cotangent_go_beyond_what_is_claimed -k Conv2d",
    ),
    mutant(
        "norm of a kernel as a matrix in place of a convolution",
        "norms/convolution.py",
        "return _symbol_norm(kernel, grid) / cosines",
        "return spectral_norm(w.flatten(1))",
        "test_operators.py::test_no_convolution_exceeds_its_bounds",
    ),
    mutant(
        "tokens that share a bias count once",
        "rules/linear.py",
        "v.sum_to(tuple(bias.shape)).summed(tokens)",
        "Norms(tuple(bias.shape), l2=v.l2)",
        "test_rules.py::test_no_input_and_no_cotangent_go_beyond_what_is_claimed -k tokens",
    ),
    mutant(
        "cotangents of a residual sum not added",
        "propagation/walk.py",
        "_plus(cotangents[source], v) if source in cotangents else v",
        "v",
        "test_rules.py::test_a_residual_sum_is_tight",
    ),
    mutant(
        "a shared weight counted once",
        "propagation/walk.py",
        "parameters[name] + norms if name in parameters else norms",
        "norms",
        "test_propagate.py::test_a_tied_weight_is_one_parameter_whose_uses_add",
    ),
    mutant(
        "centring over the batch",
        "nn/center.py",
        "tuple(range(1, x.ndim))",
        "tuple(range(x.ndim - 1))",
        "test_rules.py::test_one_example_does_not_see_the_others -k Center",
    ),
    mutant(
        "the ball lets everything through",
        "nn/ball.py",
        "return project_rows(x, self.radius)",
        "return torch.nan_to_num(x)",
        "test_audit.py::test_the_search_finds_long_gradients_and_none_beyond_the_declared -k plain",
    ),
    mutant(
        "the ball lets NaN through",
        "nn/ball.py",
        "return project_rows(x, self.radius)",
        "return x * (self.radius / x.flatten(1).norm(dim=1).clamp_min(self.radius)).reshape(-1, *[1] * (x.ndim - 1))",
        "test_sensitivity.py::test_inputs_far_outside_the_ball_and_inputs_that_are_not_numbers_stay_within_it -k plain",
    ),
    mutant(
        "clamp removed",
        "nn/clamp.py",
        "return torch.clamp(x, self.low, self.high)",
        "return x",
        "test_rules.py::test_what_is_claimed_of_any_input_holds_for_huge_ones -k Clamp",
    ),
    mutant(
        "a bound that is a hundredth too small",
        "sensitivities/propagated.py",
        "b * (1 + SLACK)",
        "b * 0.99",
        "test_audit.py::test_the_search_finds_long_gradients_and_none_beyond_the_declared -k orthogonal",
    ),
    mutant(
        "batch normalisation accepted",
        "propagation/checks.py",
        '    "BatchNorm": (',
        '    "NoSuchThing": (',
        "test_propagate.py::test_a_module_without_a_bound_is_refused",
    ),
]

LOSSES = [
    mutant(
        "a mean over the batch",
        "losses/base.py",
        SUM,
        "values.mean() if reduction",
        "test_losses.py::test_the_sum_is_the_sum_of_the_examples",
    ),
    Mutant(
        "sqrt 2 of the cross-entropy missing",
        "losses",
        (
            ("l1=2.0, l2=math.sqrt(2.0), linf=1.0", "l1=2.0, l2=1.0, linf=1.0"),
            ("return (rows / excess).reshape(gradient.shape)", "return rows.reshape(gradient.shape)"),
        ),
        "test_audit.py::test_the_search_finds_long_gradients_and_none_beyond_the_declared -k orthogonal",
    ),
    Mutant(
        "loss constant without temperature",
        "losses",
        (
            (
                'F.cross_entropy(outputs * self.temperature, targets, reduction="none") / self.temperature',
                'F.cross_entropy(outputs * self.temperature, targets, reduction="none")',
            ),
            ("return (rows / excess).reshape(gradient.shape)", "return rows.reshape(gradient.shape)"),
        ),
        "test_losses.py::test_no_output_and_target_exceed_the_declared_norms -k cross_entropy",
    ),
    mutant(
        "one NaN poisons the batch",
        "losses/base.py",
        "rows = torch.where(rows.isfinite().all(1, keepdim=True), rows, torch.zeros_like(rows))",
        "pass",
        "test_losses.py::test_an_example_whose_gradient_is_nan_sends_nothing_back",
    ),
    mutant(
        "normalised by the norm of the batch",
        "losses/base.py",
        "torch.linalg.vector_norm(rows, 2, 1, keepdim=True).clamp_min(FLOOR)",
        "torch.linalg.vector_norm(rows).clamp_min(FLOOR)",
        "test_losses.py::test_an_example_is_treated_alike_whatever_else_is_in_the_batch",
    ),
]

ACCOUNTING = [
    mutant(
        "sampled twice",
        "accounting/events.py",
        "k * math.log(q),",
        "2 * k * math.log(q),",
        "test_accounting.py::test_divergences_agree_with_dp_accounting_at_integer_orders",
    ),
    mutant(
        "sampled twice, at fractional orders",
        "accounting/events.py",
        "q=q, noise",
        "q=q**2, noise",
        "test_accounting.py::test_divergences_bound_a_quadrature_at_fractional_orders",
    ),
    mutant(
        "the last term of the conversion counted twice",
        "accounting/rdp.py",
        "+ math.log1p(-1 / order)",
        "+ 2 * math.log1p(-1 / order)",
        "test_accounting.py::test_a_plain_gaussian_is_bounded_tightly_from_above",
    ),
    Mutant(
        "negative epsilons",
        "accounting",
        (
            ("if -math.expm1(-spent(2.0)) <= delta**2:\n        return 0.0", "if False:\n        return 0.0"),
            (
                "rdp = max(0.0, rdp_epsilon(spent, neighboring, delta))",
                "rdp = rdp_epsilon(spent, neighboring, delta)",
            ),
        ),
        "test_accounting.py::test_epsilon_is_never_negative",
    ),
    mutant(
        "no noise is free",
        "accounting/accountant.py",
        "if any(event.noise_multiplier == 0 for event in spent):\n        return math.inf",
        "if any(event.noise_multiplier == 0 for event in spent):\n        return 0.0",
        "test_accounting.py::test_no_step_costs_nothing_and_no_noise_costs_everything",
    ),
    mutant(
        "merged steps lost",
        "accounting/accountant.py",
        "steps += self._history.pop()[-1]",
        "self._history.pop()",
        "test_accounting.py::test_history_merges_equal_neighbours_and_counts_every_step",
    ),
    mutant(
        "calibration takes the wrong end of its bracket",
        "accounting/calibration.py",
        "            low, above = middle, tried\n    return high",
        "            low, above = middle, tried\n    return low",
        "test_accounting.py::test_calibration_never_overshoots_and_comes_close",
    ),
    mutant(
        "replacing an example, from a part of it with half of the noise gained",
        "accounting/events.py",
        "2 * sigma, at",
        "4 * sigma, at",
        "test_replace_one.py::test_no_pair_of_examples_is_further_apart_than_is_charged",
    ),
    mutant(
        "replacing an example, as if the others hid nothing of it",
        "accounting/replace_one.py",
        "adding(order) - math.log1p(-sample_rate)",
        "adding(order)",
        "test_replace_one.py::test_no_pair_of_examples_is_further_apart_than_is_charged",
    ),
    mutant(
        "replacing an example by an accountant without a theorem",
        "accounting/events.py",
        """return ("rdp",) if neighboring""",
        """return ("rdp",) if False and neighboring""",
        "test_replace_one.py::test_accountants_without_a_theorem_are_refused_but_for_full_batches",
    ),
    mutant(
        "two relations in one engine",
        "training/engine.py",
        "        self.accountant.relate(neighboring)\n",
        "",
        "test_replace_one.py::test_an_engine_is_for_one_relation",
    ),
    mutant(
        "one step beyond the budget",
        "accounting/budget.py",
        "accountant.epsilon_after(event, 1, self.delta)",
        "accountant.epsilon_after(event, 0, self.delta)",
        "test_engine.py::test_a_budget_never_lets_a_step_through_that_the_accountant_would_not",
    ),
    mutant(
        "a budget that looks too far ahead",
        "accounting/budget.py",
        "steps + ahead)",
        "steps + 2 * ahead)",
        "test_engine.py::test_a_budget_never_lets_a_step_through_that_the_accountant_would_not",
    ),
]

EPSILONS = [
    mutant(
        "the orders of sampled batches end at 1024",
        "accounting/events.py",
        "LARGEST_SAMPLED_ORDER = 2**16",
        "LARGEST_SAMPLED_ORDER = 1024",
        "test_accounting.py::test_small_epsilons_of_sampled_batches_come_from_orders_above_1024",
    ),
    mutant(
        "no order between those of the set",
        "accounting/rdp.py",
        "while high - low > 2 and high > 64:",
        "while False:",
        "test_accounting.py::test_the_orders_between_those_of_the_set_are_tried",
    ),
    mutant(
        "a divergence rounded to the nearest and not upwards",
        "accounting/events.py",
        "terms += 4e-15 *",
        "terms -= 4e-15 *",
        "test_accounting.py::test_divergences_bound_exact_sums_closely",
    ),
    mutant(
        "the first term of a divergence forgotten",
        "accounting/events.py",
        "k = np.arange(2.0, order + 1)",
        "k = np.arange(3.0, order + 1)",
        "test_accounting.py::test_no_accountants_epsilon_is_below_an_optimistic_one",
    ),
    mutant(
        "small deltas left to the FFT",
        "accounting/accountant.py",
        "if not 0 < rdp < 100 or delta < 1e-13 * max(1000, sum(spent.values())):",
        "if not 0 < rdp < 100:",
        "test_accounting.py::test_prv_leaves_the_field_to_rdp_where_its_rounding_shows",
    ),
    mutant(
        "rdp in place of small epsilons of prv and pld",
        "accounting/accountant.py",
        "if not 0 < rdp < 100 or",
        "if not 0.01 < rdp < 100 or",
        "test_accounting.py::test_a_small_epsilon_is_the_accountants_own",
    ),
    mutant(
        "a truth value taken for a number",
        "errors.py",
        "isinstance(value, Real) and not isinstance(value, bool)",
        "isinstance(value, Real)",
        "test_accounting.py::test_what_is_no_number_is_refused_by_name",
    ),
]

RECORDS = [
    mutant(
        "ledger line dropped",
        "records/run_folder.py",
        "            self._ledger.append(event)\n",
        "            pass\n",
        "test_trainer.py::test_the_ledger_holds_a_step_before_its_noise_is_drawn",
    ),
    mutant(
        "ledger line written when it suits",
        "training/trainer.py",
        "            self._folder.append(event)\n",
        "            if self.accountant.num_steps % 2:\n                self._folder.append(event)\n",
        "test_trainer.py::test_the_files_of_a_run_agree_with_it_and_with_each_other",
    ),
    mutant(
        "ledger line not synced",
        "records/ledger.py",
        "            sync(self._file.fileno())\n        except OSError",
        "        except OSError",
        "test_ledger.py::test_a_step_is_on_disk_when_append_returns",
    ),
    mutant(
        "checksums not compared",
        "records/ledger_lines.py",
        'if sealed != line + b"\\n":',
        "if False:",
        "test_ledger.py::test_every_changed_byte_is_noticed",
    ),
    mutant(
        "a torn step forgotten",
        "records/ledger.py",
        "self._steps, self._chain = self._steps + 1, self._last\n\n\ndef epsilon_together",
        "pass\n\n\ndef epsilon_together",
        "test_ledger.py::test_a_torn_step_counts_as_the_dearest_so_far",
    ),
    mutant(
        "a torn step at the lowest price",
        "accounting/events.py",
        "cls(min(e.noise_multiplier for e in events), max",
        "cls(max(e.noise_multiplier for e in events), max",
        "test_ledger.py::test_a_torn_step_counts_as_the_dearest_so_far",
    ),
    mutant(
        "two writers",
        "records/files.py",
        "fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
        "test_ledger.py::test_a_ledger_has_one_writer_at_a_time",
    ),
    mutant(
        "the count of an earlier process forgotten",
        "training/trainer.py",
        "for event in self._folder.ledger.history():",
        "for event in ():",
        "test_checkpoint.py::test_a_resumed_run_spends_what_an_undisturbed_one_spends",
    ),
    mutant(
        "seeded draws repeated after a crash",
        "training/trainer.py",
        "if self.seed is not None:\n            stream",
        "if False:\n            stream",
        "test_checkpoint.py::test_a_seeded_run_draws_from_another_stream_after_a_crash",
    ),
    mutant(
        "a ledger that lost lines is taken",
        "records/run_folder.py",
        "if checkpoint.steps > done or record.chains[checkpoint.steps] != checkpoint.chain:",
        "if False:",
        "test_checkpoint.py::test_a_ledger_that_lost_whole_lines_is_refused_at_the_line",
    ),
    mutant(
        "checkpoints written in place",
        "records/files.py",
        'part = path.with_name(f".{path.name}.part")',
        "part = path",
        "test_checkpoint.py::test_a_checkpoint_that_cannot_be_written_leaves_the_one_before",
    ),
    mutant(
        "a changed checkpoint is taken",
        "records/checkpoint.py",
        'if metadata["digest"] != _digest(text, tensors):',
        "if False:",
        "test_checkpoint.py::test_every_changed_byte_of_a_checkpoint_is_noticed",
    ),
    mutant(
        "a report that forgets the relation",
        "training/trainer.py",
        '"neighboring": self.optimizer.neighboring,\n                "seeded"',
        '"seeded"',
        "test_trainer.py::test_the_report_has_every_field_and_says_what_was_spent",
    ),
]

WHATEVER_THE_WEIGHTS = [
    mutant(
        "a row scaled to twice the radius",
        "nn/gradient_ball.py",
        "inside = radius * (1 - ROUNDING)",
        "inside = 2 * radius",
        "test_gates.py::test_no_cotangent_leaves_a_gradient_ball",
    ),
    mutant(
        "a factor below the normal numbers kept",
        "nn/gradient_ball.py",
        "scale = torch.where(scale < torch.finfo(like.dtype).tiny, 0.0, scale)",
        "pass",
        "test_gates.py::test_factors_below_the_normal_numbers_do_not_round_out_of_the_ball",
    ),
    mutant(
        "a bounded layer that forgets its input",
        "nn/bounded.py",
        "norms, on_input = reuse * sizes * lengths,",
        "norms, on_input = reuse * lengths,",
        "test_gates.py::test_every_example_is_scaled_by_itself_to_the_radius",
    ),
    mutant(
        "a bounded layer that stays in half precision",
        "nn/bounded.py",
        "x, v = x.to(weight.dtype), v.to(weight.dtype)",
        "x, v = x.to(v.dtype), v",
        "test_half_precision.py::test_no_example_exceeds_the_radius_whatever_meets_in_the_layer",
    ),
    mutant(
        "autocast left on where a bounded layer makes its gradient",
        "nn/bounded.py",
        AUTOCAST_OFF + LINEAR_BACKWARD,
        "        if True:\n" + LINEAR_BACKWARD,
        "test_half_precision.py::test_no_example_exceeds_the_radius_whatever_meets_in_the_layer",
    ),
    mutant(
        "propagated bounds used under autocast",
        "training/optimizer.py",
        "enforced_sensitivity(self._walk) if self._half else ",
        "",
        "test_half_precision.py::test_a_bound_that_is_propagated_is_not_used",
    ),
    mutant(
        "every finite bound of a layer believed under autocast",
        "sensitivities/enforced.py",
        "believed = module is not None and module_rule(module) in ENFORCED",
        "believed = True",
        "test_half_precision.py::test_a_parameter_that_no_layer_bounds_by_itself_is_refused",
    ),
    mutant(
        "autocast around the backward pass alone unseen",
        "training/gradient_monitor.py",
        "if self._rounds(gradient):",
        "if False:",
        "test_half_precision.py::test_autocast_is_refused_unless_the_optimizer_was_told",
    ),
    mutant(
        "constants of the present weights",
        "sensitivities/propagated.py",
        "sensitivity_of(walk.without_weights(), loss)",
        "sensitivity_of(walk, loss)",
        "test_gates.py::test_a_model_whose_bounds_need_a_weight_has_no_constants",
    ),
    mutant(
        "a surrogate taken for a derivative",
        "propagation/walk.py",
        'if getattr(module, "surrogate", False) and module.training:',
        "if False:",
        "test_gates.py::test_derivatives_are_not_read_off_a_surrogate",
    ),
    mutant(
        "gradients edited after the backward pass",
        "training/gradient_monitor.py",
        "        if self._gradients != self._present_gradients():\n            self._report(_EDITED)\n        layers",
        "        layers",
        "test_optimizer.py::test_a_gradient_that_the_bounds_do_not_cover_is_refused_and_nothing_is_spent_or_changed",
    ),
    mutant(
        "a layer called by itself",
        "training/gradient_monitor.py",
        "if not self._inside and isinstance",
        "if False and isinstance",
        "test_optimizer.py::test_a_part_that_was_called_by_itself_is_named",
    ),
]

CERTIFICATES = [
    mutant(
        "radius from half of the margin's bound",
        "certificates/radii.py",
        "bound = walk.cotangents(seeds(walk))[walk.start()].norm(dual)\n    return",
        "bound = walk.cotangents(seeds(walk))[walk.start()].norm(dual) / 2\n    return",
        "test_certify.py::test_the_certificate_of_a_linear_model_is_its_distance_to_the_decision_boundary",
    ),
    mutant(
        "a certificate in the wrong norm",
        "certificates/radii.py",
        "dual = dual_of(norm)\n    walk = Walk(model, ",
        "dual = 2.0\n    walk = Walk(model, ",
        "test_certify.py::test_the_certificate_of_a_linear_model_is_its_distance_to_the_decision_boundary",
    ),
]

MEAN = [
    mutant(
        "the mean released without a charge",
        "training/trainer.py",
        "        for event in self._releases:\n            self._charge(event)\n",
        "",
        "test_release.py::test_the_release_is_charged_and_fits_the_budget",
    ),
    mutant(
        "the mean of inputs that nothing bounds",
        "training/mean_release.py",
        "project_rows(values, layer.radius).sum(0)",
        "values.sum(0)",
        "test_release.py::test_one_example_moves_the_sum_by_no_more_than_the_radius",
    ),
    mutant(
        "the mean's noise for adding one, when one is replaced",
        "training/mean_release.py",
        "layer.radius * apart *",
        "layer.radius *",
        "test_release.py::test_sum_and_deviation",
    ),
    mutant(
        "the mean released again after a crash",
        "training/trainer.py",
        "if self._mean is not None and self.accountant.num_steps == 0:\n                self._release",
        "if self._mean is not None and self._done == 0:\n                self._release",
        "test_release.py::test_a_crash_between_the_ledger_and_the_release_leaves_it_spent",
    ),
    mutant(
        "the least norm of several places",
        "norms/operator_norms.py",
        "return cls(*(max(each)",
        "return cls(*(min(each)",
        "test_whitening.py::test_the_certified_norm_is_the_largest_of_all_places",
    ),
    mutant(
        "rows near the radius scaled only beside an outlier",
        "nn/bounded.py",
        "<= radius * (1 - ROUNDING))",
        "<= radius)",
        "test_gates.py::test_an_example_far_out_changes_no_other_row",
    ),
    mutant(
        "rows of huge factors dropped only beside an outlier",
        "nn/bounded.py",
        "if not _all(kept & (reuse",
        "if not _all((reuse",
        "test_gates.py::test_an_example_far_out_changes_no_other_row",
    ),
    mutant(
        "values of the loss weighed by the batch",
        "losses/base.py",
        "witness.weighed()",
        "pass",
        "test_optimizer.py::test_a_gradient_that_the_bounds_do_not_cover_is_refused_and_nothing_is_spent_or_changed",
    ),
    mutant(
        "a hook on the output unseen",
        "training/gradient_monitor.py",
        "len(output._backward_hooks or ()) > 1",
        "False",
        "test_optimizer.py::test_a_hook_on_the_output_is_named_even_if_it_does_nothing",
    ),
    mutant(
        "an output edited in place taken for the model's",
        "training/gradient_monitor.py",
        "ref() is outputs and version == outputs._version",
        "ref() is outputs",
        "test_optimizer.py::test_a_gradient_that_the_bounds_do_not_cover_is_refused_and_nothing_is_spent_or_changed",
    ),
    mutant(
        "edits through .data unseen",
        "propagation/guards.py",
        "if t.is_floating_point() or t.is_complex()]",
        "if False]",
        "test_optimizer.py::test_a_gradient_that_the_bounds_do_not_cover_is_refused_and_nothing_is_spent_or_changed",
    ),
    mutant(
        "a layer at two places seen once",
        "propagation/guards.py",
        "for name, m in model.named_modules(remove_duplicate=False)\n    )",
        "for name, m in model.named_modules()\n    )",
        "test_optimizer.py::test_the_bounds_follow_a_block_that_is_called_once_more",
    ),
    mutant(
        "settings held by an object unseen",
        "propagation/guards.py",
        'if depth and hasattr(value, "__dict__") and not _opaque(value):',
        "if False:",
        "test_optimizer.py::test_the_bounds_follow_a_number_that_the_models_forward_reads",
    ),
    mutant(
        "a certificate for one draw",
        "propagation/walk.py",
        "if self._probe.draws:",
        "if False:",
        "test_certify.py::test_a_model_that_draws_in_evaluation_mode_has_no_certificate",
    ),
    mutant(
        "stored norms of a buffer that has changed",
        "norms/matrix.py",
        "if found is None or not torch.equal(values, tensor):",
        "if found is None:",
        "test_whitening.py::test_the_norms_of_a_fixed_layer_follow_its_buffer",
    ),
    mutant(
        "a frozen network in training mode",
        "nn/frozen.py",
        "self.module.eval()",
        "self.module.train(mode)",
        "test_frozen.py::test_any_public_network_serves_and_only_what_follows_it_is_trained",
    ),
    mutant(
        "a frozen network taken for one that does not expand",
        "nn/frozen.py",
        "return (Norms(x.shape),), {}",
        "return (Norms(x.shape, v.l1, v.l2, v.linf),), {}",
        "test_frozen.py::test_no_certificate_is_given",
    ),
]

WEIGHTS_MOVED = [
    mutant(
        "a hook on an accumulator not seen",
        "training/arrivals.py",
        "if self._found and bool(torch.stack(self._found).any()):",
        "if False:",
        "test_wrapped.py::test_a_hook_on_what_accumulates_a_gradient_is_seen",
    ),
    mutant(
        "a gradient beside the model's output not seen",
        "training/arrivals.py",
        "self._found.append(_differ(sent[0], gradient))",
        "sent = gradient.clone(), 0",
        "test_wrapped.py::test_a_gradient_beside_the_models_output_is_refused",
    ),
    mutant(
        "a gradient put back between two parts not seen",
        "training/arrivals.py",
        "        self._arrived: set[int] = set()\n        self._left = {}\n",
        "        self._arrived: set[int] = getattr(self, '_arrived', set())\n",
        "test_wrapped.py::test_a_gradient_that_is_put_back_between_the_parts_of_a_batch_is_refused",
    ),
    mutant(
        "settings that change between the parts not seen",
        "training/optimizer.py",
        "if self._settings is not None and not same_settings(self._settings, present):",
        "if False:",
        "test_wrapped.py::test_what_the_optimizer_keeps_does_not_change_between_the_parts_of_a_batch",
    ),
    mutant(
        "what a charge depends on may be set",
        "accounting/budget.py",
        "if name in self._FIXED and name in vars(self):",
        "if False:",
        "test_wrapped.py::test_what_a_charge_depends_on_is_fixed",
    ),
    mutant(
        "copies of a run that are not told apart",
        "records/run_folder.py",
        "if self._unsaid:",
        "if False:",
        "test_checkpoint.py::test_copies_of_a_run_that_are_gone_on_with_are_told_apart_and_add_up",
    ),
    mutant(
        "the step of the wrapped optimizer",
        "training/wrapped.py",
        "if not self.open and self._private() is not None:",
        "if False:",
        "test_wrapped.py::test_the_step_of_the_wrapped_optimizer_is_refused",
    ),
    mutant(
        "any optimizer is trusted",
        "training/wrapped.py",
        "    if trusted:\n",
        "    if True:\n",
        "test_wrapped.py::test_an_optimizer_with_a_step_of_its_own_is_taken_by_an_explicit_word_alone",
    ),
    mutant(
        "hooks on a step not seen",
        "training/wrapped.py",
        '    if foreign:\n        raise ConfigurationError(\n            f"optimizer: {len(foreign)} hooks',
        '    if False:\n        raise ConfigurationError(\n            f"optimizer: {len(foreign)} hooks',
        "test_wrapped.py::test_what_is_hooked_into_the_step_later_is_refused",
    ),
    mutant(
        "stale gradients move frozen weights",
        "training/wrapped.py",
        "if id(p) not in noisy:",
        "if False:",
        "test_wrapped.py::test_a_stale_gradient_of_a_frozen_layer_moves_nothing",
    ),
    mutant(
        "a schedule sees the parts of a batch",
        "training/wrapped.py",
        "if incomplete is not None and incomplete():",
        "if False:",
        "test_wrapped.py::test_a_schedule_cannot_be_stepped_between_the_parts_of_a_batch",
    ),
    mutant(
        "a schedule is not tried out",
        "training/trainer.py",
        "        rehearse(scheduler, self.steps)\n",
        "",
        "test_wrapped.py::test_a_schedule_that_is_too_short_is_refused_before_anything_is_spent",
    ),
    mutant(
        "repeated examples",
        "sampling/distinct.py",
        "        if copies:\n",
        "        if False:\n",
        "test_wrapped.py::test_an_example_that_is_in_the_data_twice_is_refused",
    ),
    mutant(
        "steps by hand are not on the ledger",
        "training/trainer.py",
        "if self._folder is None or self._folder.is_open:",
        "if True:",
        "test_wrapped.py::test_steps_by_hand_are_on_the_ledger",
    ),
]

THE_TRACE_IS_THE_MODEL = [
    mutant(
        "a trace that is not compared by value",
        "propagation/walk.py",
        "return made is None or agree(",
        "return True or agree(",
        "test_optimizer.py::test_the_bounds_follow_what_the_forward_reads_that_is_no_attribute",
    ),
    mutant(
        "what the forward read taken for what is read at the step",
        "propagation/walk.py",
        "self._rows.of_model() if rows is None else rows",
        "self._rows.of_model()",
        "test_optimizer.py::test_what_the_forward_read_must_still_hold_at_the_step",
    ),
    mutant(
        "code of others taken for ours",
        "propagation/guards.py",
        'startswith(("torch.nn.", "dplip."))',
        'startswith(("t", "dplip."))',
        "test_optimizer.py::test_the_bounds_follow_what_the_forward_reads_that_is_no_attribute",
    ),
    mutant(
        "gradients of the public rows not compared",
        "training/gradient_monitor.py",
        "gradients=self._passes % BACKWARD == 0",
        "gradients=False",
        "test_optimizer.py::test_a_gradient_that_changes_alone_is_seen",
    ),
    mutant(
        "weights as they are at trace time only",
        "propagation/public_rows.py",
        "t.data = old * (1 + torch.rand_like(old) / 2) + torch.rand_like(old) / 8",
        "t.data = old",
        "test_optimizer.py::test_a_number_read_off_a_weight_a_buffer_or_the_mode_is_refused",
    ),
    mutant(
        "further arguments unseen",
        "training/gradient_monitor.py",
        "if len(args) != 1 or kwargs:",
        "if False:",
        "test_optimizer.py::test_further_arguments_of_the_model_are_refused",
    ),
    mutant(
        "the norms that a loss held unseen",
        "training/gradient_monitor.py",
        "if self._norms is not None and self._norms != self._loss.gradient_norms(self._norms.shape):",
        "if False:",
        "test_optimizer.py::test_the_bound_of_a_loss_must_still_hold_at_the_step",
    ),
    mutant(
        "a stored bound for a loss whose norms have changed",
        "training/optimizer.py",
        "state = fingerprint(self.loss), self.loss.gradient_norms(shape)",
        "state = fingerprint(self.loss)",
        "test_optimizer.py::test_the_bound_of_a_loss_must_still_hold_at_the_step",
    ),
    mutant(
        "values that mix unseen",
        "runtime/mixing.py",
        "return _values_mix(drawn, rows, alone) or _gradients_mix(",
        "return _gradients_mix(",
        "test_mixing.py::test_a_front_end_without_gradients_that_mixes_examples_is_refused",
    ),
    mutant(
        "gradients that mix unseen",
        "runtime/mixing.py",
        "return _values_mix(drawn, rows, alone) or _gradients_mix(drawn, few, weights, alone)",
        "return _values_mix(drawn, rows, alone)",
        "test_mixing.py::test_a_rule_does_not_make_up_for_mixing",
    ),
    mutant(
        "only mild rows beside",
        "runtime/mixing.py",
        "for sizes in ((1.0,), (1e4, 0.0, -1e8), (math.nan, math.inf)):",
        "for sizes in ((1.0,),):",
        "test_mixing.py::test_a_front_end_without_gradients_that_mixes_examples_is_refused",
    ),
    mutant(
        "only the first row looked at",
        "runtime/mixing.py",
        "kept = sorted({0, count // 2, count - 1})",
        "kept = [0]",
        "test_mixing.py::test_values_alone_show_that_any_row_mixes",
    ),
    mutant(
        "a loss that mixes accepted",
        "losses/base.py",
        "values.shape[:1] == outputs.shape[:1] and not mixes(loss.per_example, [outputs, targets])",
        "True",
        "test_mixing.py::test_a_loss_that_looks_at_the_batch_is_refused",
    ),
    mutant(
        "complex values accepted",
        "norms/value_norms.py",
        "tensor.dtype in (*FLOATS, *_WHOLE)",
        "True",
        "test_propagate.py::test_constants_and_weights_of_which_the_bounds_say_nothing_are_refused",
    ),
    mutant(
        "batch normalisation in training mode accepted",
        "propagation/checks.py",
        "(module.training or module.running_mean is None)",
        "False",
        "test_propagate.py::test_batch_normalisation_is_an_affine_map_in_evaluation_mode_and_keeps_no_count_when_refused",
    ),
    mutant(
        "the variance of a frozen normalisation forgotten",
        "rules/normalization.py",
        "scale = (module.running_var.double() + module.eps).rsqrt()",
        "scale = torch.ones_like(module.running_var.double())",
        "test_propagate.py::test_batch_normalisation_is_an_affine_map_in_evaluation_mode_and_keeps_no_count_when_refused",
    ),
]

SECRETS = "test_secret.py::test_"
RANDOMNESS = [
    mutant(
        "masks that go by place, from a state that others may know",
        "training/gradient_monitor.py",
        "if torch.is_grad_enabled() and torch._C._functorch.peek_interpreter_stack() is None:",
        "if False:",
        f"{SECRETS}masks_are_fresh_and_the_global_state_stays",
    ),
    mutant(
        "masks of a seed of 32 bits",
        "runtime/secret.py",
        "torch.default_generator.set_state(_state(bits))",
        "torch.default_generator.manual_seed(int(bits.random_raw()))",
        f"{SECRETS}the_whole_state_of_torchs_generator_is_secret",
    ),
    mutant(
        "masks of dropout by the processor's generator of 31 bits",
        "runtime/secret.py",
        "if func in _AXES and",
        "if False and",
        f"{SECRETS}dropout_does_not_go_by_torchs_generator",
    ),
    mutant(
        "other masks where activations are computed again",
        "runtime/secret.py",
        " and _top_saved_tensors_default_hooks(True) is None:",
        ":",
        f"{SECRETS}what_is_computed_again_has_the_mask_that_it_had",
    ),
    mutant(
        "a secret state left behind for all to read",
        "runtime/secret.py",
        "            generator.set_state(state)\n",
        "            pass\n",
        f"{SECRETS}masks_are_fresh_and_the_global_state_stays",
    ),
    mutant(
        "a secret state left behind by a pass that failed",
        "training/gradient_monitor.py",
        "with_kwargs=True, always_call=True",
        "with_kwargs=True",
        f"{SECRETS}a_pass_that_fails_gives_the_global_state_back",
    ),
    mutant(
        "augmentation that goes by place, from a state that others may know",
        "sampling/loader.py",
        "with lent_to_readers(self._chance):",
        "if True:",
        f"{SECRETS}augmentation_follows_no_known_seed",
    ),
    mutant(
        "a model that draws from numpy's generator",
        "propagation/probe.py",
        "if after[1:] != before[1:]:",
        "if False:",
        f"{SECRETS}a_model_that_draws_from_other_generators_is_refused",
    ),
    mutant(
        "a copied loader with the same batches to come",
        "runtime/secret.py",
        "return (type(self), (None, *self._key))",
        "return __import__('copyreg')._reduce_ex(self, 1)",
        f"{SECRETS}a_copied_loader_draws_other_batches",
    ),
    mutant(
        "a copied loader of one seed",
        "runtime/secret.py",
        "        if self.seeded:\n            raise",
        "        if False:\n            raise",
        f"{SECRETS}a_seeded_loader_is_not_copied",
    ),
    mutant(
        "a forked process with the same batches and masks to come",
        "runtime/secret.py",
        "if self._process != os.getpid():",
        "if False:",
        f"{SECRETS}a_forked_process_draws_other_batches",
    ),
    mutant(
        "one batch that two processes go on with",
        "sampling/loader.py",
        "if process != os.getpid():",
        "if False:",
        f"{SECRETS}an_iteration_that_had_begun_does_not_go_on_in_a_fork",
    ),
    mutant(
        "several processes, as the launcher says, unseen",
        "runtime/processes.py",
        "if count.isdigit() and int(count) > 1:",
        "if False:",
        "test_processes.py::test_one_of_several_processes_is_refused",
    ),
    mutant(
        "a process group that comes up later unseen",
        "runtime/processes.py",
        "        if size > 1:",
        "        if False:",
        "test_processes.py::test_a_group_that_comes_up_later_is_seen",
    ),
    mutant(
        "processes looked at only at first",
        "training/optimizer.py",
        "        self._process.require()\n",
        "",
        "test_processes.py::test_a_step_is_refused_once_there_are_other_processes",
    ),
    mutant(
        "a forked optimizer whose steps no budget counts",
        "runtime/processes.py",
        "if self._process != os.getpid():",
        "if False:",
        "test_processes.py::test_a_fork_of_what_was_made_takes_no_step",
    ),
]

ROUNDINGS = [
    mutant(
        "the rounding of a column in units of where it lies",
        "rounding/rules.py",
        "Roundings(0.0, 8.0, Norms(x.shape, linf=8.0 + 2",
        "Roundings(8.0, 8.0, Norms(x.shape, linf=8.0 + 2",
        "test_monotonic.py::test_a_column_far_from_zero_is_certified",
    ),
    mutant(
        "one slack for sums of every width",
        "rounding/registry.py",
        "half = n / 2 / (1 - min(n * 2.0**-24, 0.5)) if n < 2.0**23 else math.inf",
        "half = 8.0",
        "test_certify.py::test_no_grey_image_of_another_class_lies_within_a_radius_of_a_wide_layer",
    ),
    mutant(
        "a rounding on the way counted once",
        "rounding/walk.py",
        "[times(s[top], n) for s, n",
        "[times(torch.ones_like(s[top]), n) for s, n",
        "test_certify.py::test_the_rounding_of_an_input_further_out_is_larger",
    ),
    mutant(
        "the rounding of the input itself taken for that within the radius",
        "rounding/walk.py",
        "inputs = {n: sizes[n] + apart[n] for n in call.sources}",
        "inputs = {n: sizes[n] for n in call.sources}",
        "test_certify.py::test_the_rounding_of_an_input_further_out_is_larger",
    ),
    mutant(
        "one of two branches taken to stay where it is",
        "rounding/walk.py",
        "for n, jacobian in zip(call.sources, call.jacobians, strict=True):",
        "for n, jacobian in [*zip(call.sources, call.jacobians, strict=True)][:1]:",
        "test_certify.py::test_the_rounding_of_an_input_further_out_is_larger",
    ),
    mutant(
        "scores in float64 taken to be exact where the model is in it",
        "rounding/walk.py",
        "return 2.0 if self._exact is None",
        "return 1.0 if self._exact is None",
        "test_certify.py::test_the_roundings_that_are_allowed_for_cover_those_that_are_seen",
    ),
    mutant(
        "an operation that is not known to round taken to be exact",
        "rounding/walk.py",
        "            if found is None:\n                refuse(",
        "            if found is None:\n                return EXACT\n                refuse(",
        "test_certify.py::test_an_operation_that_is_not_known_to_round_is_refused_by_name_until_it_is_said_how",
    ),
    mutant(
        "certificates under autocast",
        "runtime/mode.py",
        "if torch.is_autocast_enabled(kind):",
        "if False:",
        "test_certify.py::test_a_certificate_is_the_same_within_autocast_and_every_other_setting",
    ),
    mutant(
        "roundings left out of the margin",
        "certificates/radii.py",
        "certified = _smallest(gaps - errors(every, farthest), self.slopes, top)",
        "certified = _smallest(gaps, self.slopes, top)",
        "test_certify.py::test_no_grey_image_of_another_class_lies_within_a_radius_of_a_wide_layer",
    ),
    mutant(
        "wide sums taken to be exact going forward",
        "rounding/walk.py",
        "if not kind.none and not kind.held:",
        "if False:",
        "test_sensitivity.py::test_the_rounding_of_a_wide_sum_is_within_the_sensitivity_of_what_follows",
    ),
    mutant(
        "wide sums taken to be exact on the way back",
        "rounding/walk.py",
        "            if kind.back:\n                inputs",
        "            if False:\n                inputs",
        "test_sensitivity.py::test_the_rounding_of_a_wide_sum_on_the_way_back_is_within_the_sensitivity_of_what_precedes",
    ),
]

TABLES = [
    mutant(
        "a file read by the type of its column",
        "data/tables.py",
        "    return names, columns",
        "    import pandas\n\n"
        "    read = [pandas.to_numeric(pandas.Series(c), errors='coerce') for c in columns]\n"
        "    return names, [c if (r != r).any() else r.tolist() for c, r in zip(columns, read)]",
        "test_tabular.py::test_one_more_row_of_a_file_changes_no_bit_of_the_others",
    ),
    mutant(
        "floats that are whole, as other text than whole numbers",
        "data/schema.py",
        "return str(int(value)) if whole else",
        "return str(value) if whole else",
        "test_tabular.py::test_one_more_value_that_changes_a_columns_type_changes_no_other",
    ),
    Mutant(
        "short records filled up",
        "data/tables.py",
        (
            ("if len(record) != len(names):", "record += [''] * (len(names) - len(record))\n            if False:"),
            ("zip(columns, record, strict=True)", "zip(columns, record, strict=False)"),
        ),
        "test_tabular.py::test_what_is_no_row_is_refused_wherever_it_stands",
    ),
    mutant(
        "held out by number",
        "data/checks.py",
        "[_coin(row, seed) < fraction for row in _rows(dataset)]",
        "[_coin(b'%d' % i, seed) < fraction for i, _ in enumerate(_rows(dataset))]",
        "test_data.py::test_holdout_keeps_neighbours_neighbouring_wherever_the_example_stands",
    ),
    mutant(
        "held out by number, in a table",
        "data/checks.py",
        "[_coin(row, seed) < fraction for row in _rows(dataset)]",
        "[_coin(b'%d' % i, seed) < fraction for i, _ in enumerate(_rows(dataset))]",
        "test_tabular.py::test_neighbouring_tables_have_training_parts_that_differ_in_one_row",
    ),
    mutant(
        "a quote left open takes in later rows",
        "data/tables.py",
        'if any("\\n" in field or "\\r" in field for field in record):',
        "if False:",
        "test_tabular.py::test_a_record_that_takes_in_others_is_refused",
    ),
    mutant(
        "folds that are chosen by the labels",
        "estimators/search.py",
        "if type(folds) not in (KFold, RepeatedKFold):",
        "if False:",
        "test_estimators.py::test_a_search_in_a_pipeline_says_what_all_its_fits_spent",
    ),
]

SUMS = [
    mutant(
        "parts that are joined are covered as parts",
        "training/gradient_monitor.py",
        "if self._together > self.most:",
        "if False:",
        "test_sums.py::test_more_examples_at_once_than_a_part_has_are_refused",
    ),
    mutant(
        "a bias beside a frozen weight is not summed in blocks",
        "nn/bounded.py",
        "for p in (module.weight, module.bias))",
        "for p in (module.weight,))",
        "test_sums.py::test_a_layer_sums_in_blocks_whatever_is_frozen_or_written_on_it",
    ),
    mutant(
        "an attribute turns sums in blocks off",
        "nn/bounded.py",
        "done = bounded and module.training",
        'done = hasattr(module, "radius") and module.training',
        "test_sums.py::test_a_layer_sums_in_blocks_whatever_is_frozen_or_written_on_it",
    ),
    mutant(
        "norms are taken anew when an example is left out",
        "nn/bounded.py",
        "sizes, lengths = (torch.where(kept, n, 0.0) for n in (sizes, lengths))",
        "sizes, lengths = row_norms(x), row_norms(v)",
        "test_sums.py::test_an_example_that_is_left_out_moves_no_other",
    ),
    mutant(
        "a radius is looked at only when a layer is made",
        "nn/bounded.py",
        "radius = _radius(module.radius)",
        "radius = module.radius",
        "test_sums.py::test_a_radius_that_is_none_is_refused_whenever_it_is_set",
    ),
    mutant(
        "a radius below the digits of float32",
        "nn/bounded.py",
        "if positive(radius) < SMALLEST:",
        "if positive(radius) < 0:",
        "test_sums.py::test_a_radius_that_is_none_is_refused_whenever_it_is_set",
    ),
    mutant(
        "products below the normal numbers",
        "training/optimizer.py",
        "+ self._lost(n)) if bound",
        ") if bound",
        "test_sums.py::test_products_below_the_normal_numbers_are_covered",
    ),
    mutant(
        "whoever has the rule of a layer has its sums",
        "propagation/walk.py",
        "if use.blocked and not summed:",
        "if False:",
        "test_sums.py::test_a_class_with_the_rule_of_a_layer_and_not_its_sums_is_charged_for_any_order",
    ),
]

READ_BEFORE_TRAINING_AND_THREADS = [
    mutant(
        "a fixed front end is read under a global seed",
        "training/feature_extractor.py",
        "evaluation(front), lent_to_readers(Secret(seed, 3)), bar:",
        "evaluation(front), bar:",
        "test_secret.py::test_augmentation_that_is_read_before_training_follows_no_known_seed",
    ),
    mutant(
        "the mean of the inputs is read under a global seed",
        "training/mean_release.py",
        "with evaluation(before), lent_to_readers(noise.masks):",
        "with evaluation(before):",
        "test_secret.py::test_augmentation_that_is_read_before_training_follows_no_known_seed",
    ),
    mutant(
        "two threads are lent secret states at once",
        "runtime/secret.py",
        "    with _turn():",
        "    if True:",
        "test_secret.py::test_two_threads_have_masks_of_their_own_and_leave_the_global_state_as_it_was",
    ),
    mutant(
        "a fork waits for a thread that it does not have",
        "runtime/secret.py",
        "_TURNS.__setitem__(0, threading.RLock())",
        "None",
        "test_secret.py::test_a_fork_has_its_own_turn",
    ),
    mutant(
        "two threads take the same draws",
        "noise/gaussian.py",
        "        with self._one_taker:",
        "        if True:",
        "test_secret.py::test_one_thread_at_a_time_takes_from_a_source",
    ),
]

_UNCOVERED = (
    "test_optimizer.py::test_a_gradient_that_the_bounds_do_not_cover_is_refused_and_nothing_is_spent_or_changed"
)

INNER_NODES = [
    mutant(
        "a loss with a forward of its own is trusted",
        "losses/base.py",
        'if type(loss).forward is not Loss.forward or "forward" in vars(loss):',
        "if False:",
        "test_mixing.py::test_a_loss_with_a_forward_of_its_own_is_refused",
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
        "test_optimizer.py::test_a_foreign_loss_after_an_adversarial_search_is_refused",
    ),
    mutant(
        "the search for an adversarial example is taken for training",
        "training/arrivals.py",
        "self._suspicion, self._touched = None, False",
        "self._touched = False",
        "test_optimizer.py::test_an_adversarial_search_beside_the_loss_is_not_mistaken_for_training",
    ),
]

FILES = [
    mutant(
        "a run that could not be restored is gone on with at the second try",
        "records/run_folder.py",
        "self._unsaid = self._half = from_disk",
        "self._unsaid = from_disk",
        "test_checkpoint.py::test_what_was_refused_is_not_gone_on_with_at_the_second_try",
    ),
    mutant(
        "a ledger that lost lines lowers what a trainer spent",
        "training/trainer.py",
        "if again.num_steps < self.accountant.num_steps:",
        "if False:",
        "test_checkpoint.py::test_a_ledger_that_lost_lines_between_two_fits_is_refused",
    ),
    mutant(
        "a schedule that is set later is not rehearsed",
        "training/trainer.py",
        "self.scheduler if self.scheduler is not self._rehearsed else None",
        "None",
        "test_checkpoint.py::test_a_schedule_that_is_set_later_is_rehearsed_before_anything_is_spent",
    ),
    mutant(
        "the ledger does not say that noise was secure",
        "training/trainer.py",
        "**{name: value for name, value in marks.items() if value},",
        "",
        "test_checkpoint.py::test_a_run_does_not_become_secure_half_way",
    ),
    mutant(
        "new weights beside an earlier run's report",
        "training/trainer.py",
        "        remove(path)  # first",
        "        # first",
        "test_checkpoint.py::test_no_weights_lie_beside_the_report_of_others",
    ),
    mutant(
        "an object twice in a list counts twice",
        "sampling/distinct.py",
        "isinstance(dataset, list | tuple)",
        "False",
        "test_wrapped.py",
    ),
    mutant(
        "a relation beside a ledger is passed over",
        "cli/account.py",
        '            "neighboring": neighboring,\n        }.items():',
        "        }.items():",
        "test_cli.py::test_account_does_not_pass_over_what_a_ledger_does_not_say",
    ),
]

MUTANTS = [
    *NOISE,
    *STEP,
    *SAMPLING,
    *BOUNDS,
    *LOSSES,
    *ACCOUNTING,
    *EPSILONS,
    *RECORDS,
    *WHATEVER_THE_WEIGHTS,
    *CERTIFICATES,
    *MEAN,
    *WEIGHTS_MOVED,
    *THE_TRACE_IS_THE_MODEL,
    *RANDOMNESS,
    *ROUNDINGS,
    *TABLES,
    *SUMS,
    *READ_BEFORE_TRAINING_AND_THREADS,
    *INNER_NODES,
    *FILES,
]
