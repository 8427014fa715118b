"""Mutants of the released mean, of fixed networks and of what is watched during training."""

from attacks.mutants.mutant import mutant

MEAN = [
    mutant(
        "the mean released without a charge",
        "training/durable_run.py",
        "        for event in self.releases:\n"
        "            self._group.in_turn(lambda: self.charge(event))  # noqa: B023\n",
        "",
        "training/test_mean_release.py::test_the_release_is_charged_and_fits_the_budget",
    ),
    mutant(
        "the mean of inputs that nothing bounds",
        "training/mean_release.py",
        "project_rows(values, layer.radius).sum(0)",
        "values.sum(0)",
        "training/test_mean_release.py::test_one_example_moves_the_sum_by_no_more_than_the_radius",
    ),
    mutant(
        "the mean's noise for adding one, when one is replaced",
        "training/mean_release.py",
        "layer.radius * apart *",
        "layer.radius *",
        "training/test_mean_release.py::test_sum_and_deviation",
    ),
    mutant(
        "the mean released again after a crash",
        "training/durable_run.py",
        "if self._mean is None or self._accountant.num_steps > 0:",
        "if self._mean is None or self.done > 0:",
        "training/test_mean_release.py::test_a_crash_between_the_ledger_and_the_release_leaves_it_spent",
    ),
    mutant(
        "the least norm of several places",
        "norms/operator_norms.py",
        "return cls(*(max(each)",
        "return cls(*(min(each)",
        "nn/test_whitening.py::test_the_certified_norm_is_the_largest_of_all_places",
    ),
    mutant(
        "rows near the radius scaled only beside an outlier",
        "nn/bounded/linear.py",
        "<= radius * (1 - ROW_SLACK))",
        "<= radius)",
        "nn/test_bounded.py::test_an_example_far_out_changes_no_other_row",
    ),
    mutant(
        "rows of huge factors dropped only beside an outlier",
        "nn/bounded/linear.py",
        "if known(kept & (norms",
        "if known((norms",
        "nn/test_bounded.py::test_an_example_far_out_changes_no_other_row",
    ),
    mutant(
        "values of the loss weighed by the batch",
        "losses/base.py",
        "monitor.on_reweighting()",
        "pass",
        "training/test_refused_gradients.py"
        "::test_a_gradient_that_the_bounds_do_not_cover_is_refused_and_nothing_is_spent_or_changed",
    ),
    mutant(
        "a hook on the output unseen",
        "training/gradient_monitor.py",
        "len(output._backward_hooks or ()) > 1",
        "False",
        "training/test_refused_gradients.py::test_a_hook_on_the_output_is_named_even_if_it_does_nothing",
    ),
    mutant(
        "an output edited in place taken for the model's",
        "training/gradient_monitor.py",
        "ref() is outputs and version == outputs._version",
        "ref() is outputs",
        "training/test_refused_gradients.py"
        "::test_a_gradient_that_the_bounds_do_not_cover_is_refused_and_nothing_is_spent_or_changed",
    ),
    mutant(
        "edits through .data unseen",
        "propagation/guards.py",
        "if t.is_floating_point() or t.is_complex()]",
        "if False]",
        "training/test_refused_gradients.py"
        "::test_a_gradient_that_the_bounds_do_not_cover_is_refused_and_nothing_is_spent_or_changed",
    ),
    mutant(
        "a layer at two places seen once",
        "propagation/guards.py",
        "for name, child in module._modules.items())",
        "for name, child in ())",
        "training/test_bounds_of_a_step.py::test_the_bounds_follow_a_block_that_is_called_once_more",
    ),
    mutant(
        "settings held by an object unseen",
        "propagation/guards.py",
        'if depth and hasattr(value, "__dict__") and not _opaque(value):',
        "if False:",
        "training/test_bounds_of_a_step.py::test_the_bounds_follow_a_number_that_the_models_forward_reads",
    ),
    mutant(
        "a certificate for one draw",
        "propagation/traced_model.py",
        "if self._probe.draws:",
        "if False:",
        "certificates/test_certifier.py::test_a_model_that_draws_in_evaluation_mode_has_no_certificate",
    ),
    mutant(
        "stored norms of a buffer that has changed",
        "norms/matrix.py",
        "if found is None or not torch.equal(values, tensor):",
        "if found is None:",
        "nn/test_whitening.py::test_the_norms_of_a_fixed_layer_follow_its_buffer",
    ),
    mutant(
        "a frozen network in training mode",
        "nn/frozen.py",
        "self.module.eval()",
        "self.module.train(mode)",
        "nn/test_frozen.py::test_any_public_network_serves_and_only_what_follows_it_is_trained",
    ),
    mutant(
        "a frozen network taken for one that does not expand",
        "nn/frozen.py",
        "return (Norms(x.shape),), {}",
        "return (Norms(x.shape, v.l1, v.l2, v.linf),), {}",
        "nn/test_frozen.py::test_no_certificate_is_given",
    ),
]
