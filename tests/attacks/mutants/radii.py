"""Mutants of what a run says it learned, of slack coordinates and of the Adam that knows the noise."""

from attacks.mutants.mutant import mutant

LEARNED = [
    mutant(
        "movements added up in units that change",
        "training/learned.py",
        "alpha=1 / stds[name])",
        "alpha=1.0)",
        "training/test_learned.py::test_noise_alone_is_standard_normal_whatever_its_deviations_do",
    ),
    mutant(
        "weights drawn back taken for noise",
        "training/learned.py",
        "abs(self.deviations) >= TOLD",
        "self.deviations >= TOLD",
        "training/test_learned.py::test_weights_that_are_drawn_back_to_where_they_were_are_told_from_a_walk",
    ),
    mutant(
        "a run that learned nothing ends in silence",
        "training/trainer.py",
        "        self.optimizer.learned().warn()\n",
        "",
        "training/test_learned.py::test_the_trainer_warns_at_the_end_and_reports",
    ),
]

SLACK = [
    mutant(
        "a second moment in the units of another noise",
        "training/radii.py",
        '"exp_avg_sq": 2,',
        '"exp_avg_sq": 1,',
        "training/test_radii.py::test_moments_are_kept_in_units_of_the_noise",
    ),
    mutant(
        "moments saved without their units",
        "training/radii.py",
        "kept: Any = optimizer.state",
        "kept: Any = vars(optimizer)",
        "training/test_radii.py::test_the_units_of_moments_are_kept_with_them",
    ),
    mutant(
        "a reference that only inference mode may write to",
        "norms/cache.py",
        "with torch.inference_mode(False):",
        "if True:",
        "norms/test_cache.py::test_a_norm_that_was_certified_in_inference_mode_is_certified_again_outside_of_it",
    ),
    mutant(
        "a slack beyond the radius",
        "nn/bounded/slack.py",
        "(inside**2 - norms.clamp(max=inside).square()).clamp_min(0).sqrt()",
        "(inside - norms.clamp(max=inside) ** 2 / (2 * inside))",
        "nn/test_slack.py::test_no_example_attains_more_than_the_radius_with_its_slack",
    ),
    mutant(
        "the slack of the bias beside the gradient of the weight",
        "nn/bounded/linear.py",
        "gradient = sent(ctx, 1, product, told) if for_weight else None",
        "gradient = sent(ctx, 1, product) if for_weight else None\n                for_weight = False",
        "nn/test_slack.py::test_no_example_attains_more_than_the_radius_with_its_slack",
    ),
    mutant(
        "less noise for a slack than for its gradient",
        "training/optimizer.py",
        "(t, stds[n]) for t, n in slack",
        "(t, stds[n] / 2) for t, n in slack",
        "training/test_radii.py::test_each_slack_gets_the_noise_of_its_weight_and_the_event_is_the_same",
    ),
    mutant(
        "a propagated bound below the radius charged for a gradient with its slack",
        "training/sources.py",
        "enforced = self._half or any(True for _ in adaptive_layers(self.walk.model))",
        "enforced = self._half",
        "training/test_radii.py::test_a_radius_is_charged_even_where_propagated_norms_are_smaller",
    ),
    mutant(
        "bounds of the radii of the step before",
        "training/sources.py",
        "bound * factors.get(name, 1.0) for",
        "bound for",
        "training/test_radii.py::test_bounds_are_those_of_the_present_radii_and_nothing_is_traced_again",
    ),
    mutant(
        "shared weights bounded by the radius that moved first",
        "training/sources.py",
        "if all(len(r) == 1 for r in found.values()) else None",
        "",
        "training/test_radii.py::test_layers_that_share_a_weight_are_bounded_by_the_sum_of_their_radii",
    ),
    mutant(
        "a slack that a hook changes",
        "training/arrivals.py",
        "own = {id(p): p.grad for p in leaves(self._model)",
        "own = {id(p): p.grad for p in self._model.parameters()",
        "training/test_radii.py",
    ),
    mutant(
        "the slack of the last part alone",
        "training/optimizer.py",
        "for name, p in [*self.model.named_parameters(), *self.radii.leaves()]",
        "for name, p in self.model.named_parameters()",
        "training/test_radii.py::test_parts_of_a_batch_release_what_the_whole_does",
    ),
    mutant(
        "the slack of gradients that were cleared",
        "training/optimizer.py",
        "        self.radii.clear()\n",
        "",
        "training/test_radii.py::test_gradients_that_are_cleared_leave_no_slack",
    ),
    mutant(
        "the slack of a blank row",
        "training/optimizer.py",
        "for _, leaf in [*self.model.named_parameters(), *self.radii.leaves()]",
        "for _, leaf in self.model.named_parameters()",
        "training/test_radii.py::test_an_empty_batch_counts_no_slack",
    ),
    mutant(
        "a grid too coarse for the slacks",
        "noise/discrete.py",
        "max(1, slack + sum(",
        "max(1, sum(",
        "training/test_radii.py::test_secure_noise_counts_the_slacks_among_its_parameters",
    ),
]

ADAM = [
    mutant(
        "a second moment that learns the noise",
        "training/adam.py",
        ".sub(noise)",
        ".sub(0.0)",
        "training/test_adam.py::test_the_second_moment_is_that_of_the_gradient_and_not_of_the_noise",
    ),
    mutant(
        "the deviation of the sum's noise told for the mean's",
        "training/optimizer.py",
        "self.original.tell({p: deviations[name]",
        "self.original.tell({p: stds[name]",
        "training/test_adam.py::test_the_private_optimizer_tells_the_deviation_of_the_mean_gradients_noise",
    ),
]
