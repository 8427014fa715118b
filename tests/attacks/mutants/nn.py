"""Mutants of layers that bound gradients by themselves, and of their sums."""

from attacks.mutants.mutant import mutant

AUTOCAST_OFF = "        with torch.autocast(v.device.type, enabled=False):\n"
LINEAR_BACKWARD = (
    "            if for_weight or for_bias:\n"
    "                # In the weight's type, which has as many digits: (examples, positions, features).\n"
)

WHATEVER_THE_WEIGHTS = [
    mutant(
        "a row scaled to twice the radius",
        "nn/gradient_ball.py",
        "inside = radius * (1 - ROW_SLACK)",
        "inside = 2 * radius",
        "nn/test_gradient_ball.py::test_no_cotangent_leaves_a_gradient_ball",
    ),
    mutant(
        "a factor below the normal numbers kept",
        "nn/gradient_ball.py",
        "scale = torch.where(scale >= torch.finfo(like.dtype).tiny, scale, 0.0)  # NaN is not",
        "scale = torch.where(scale >= 0.0, scale, 0.0)",
        "nn/test_gradient_ball.py::test_factors_below_the_normal_numbers_do_not_round_out_of_the_ball",
    ),
    mutant(
        "a bounded layer that forgets its input",
        "nn/bounded/linear.py",
        "norms = (sizes * lengths).sum(1)\n    # The",
        "norms = lengths.sum(1)\n    # The",
        "nn/test_bounded.py::test_every_example_is_scaled_by_itself_to_the_radius",
    ),
    mutant(
        "a bounded layer that stays in half precision",
        "nn/bounded/linear.py",
        "(t.to(weight.dtype).reshape",
        "(t.to(v.dtype).reshape",
        "nn/test_half_precision.py::test_no_example_exceeds_the_radius_whatever_meets_in_the_layer",
    ),
    mutant(
        "autocast left on where a bounded layer makes its gradient",
        "nn/bounded/linear.py",
        AUTOCAST_OFF + LINEAR_BACKWARD,
        "        if True:\n" + LINEAR_BACKWARD,
        "nn/test_half_precision.py::test_no_example_exceeds_the_radius_whatever_meets_in_the_layer",
    ),
    mutant(
        "propagated bounds used under autocast",
        "training/sources.py",
        "enforced_sensitivity(self.walk) if enforced else ",
        "",
        "sensitivities/test_enforced.py::test_a_bound_that_is_propagated_is_not_used",
    ),
    mutant(
        "every finite bound of a layer believed under autocast",
        "sensitivities/enforced.py",
        "believed = module is not None and RULES.of_module(module) in ENFORCED",
        "believed = True",
        "sensitivities/test_enforced.py::test_a_parameter_that_no_layer_bounds_by_itself_is_refused",
    ),
    mutant(
        "autocast around the backward pass alone unseen",
        "training/gradient_monitor.py",
        "if self._rounds(gradients[0]):",
        "if False:",
        "training/test_half_precision_run.py::test_autocast_is_refused_unless_the_optimizer_was_told",
    ),
    mutant(
        "constants of the present weights",
        "sensitivities/propagated.py",
        "sensitivity_of(walk.without_weights(), loss)",
        "sensitivity_of(walk, loss)",
        "sensitivities/test_constants.py::test_a_model_whose_bounds_need_a_weight_has_no_constants",
    ),
    mutant(
        "a surrogate taken for a derivative",
        "propagation/traced_model.py",
        'if getattr(module, "surrogate", False) and module.training:',
        "if False:",
        "nn/test_gradient_ball.py::test_derivatives_are_not_read_off_a_surrogate",
    ),
    mutant(
        "gradients edited after the backward pass",
        "training/gradient_monitor.py",
        "        if self._gradients != self._present_gradients():\n            self._report(_EDITED)\n        layers",
        "        layers",
        "training/test_refused_gradients.py"
        "::test_a_gradient_that_the_bounds_do_not_cover_is_refused_and_nothing_is_spent_or_changed",
    ),
    mutant(
        "a layer called by itself",
        "training/gradient_monitor.py",
        "if not (self._inside or again) and isinstance",
        "if False and isinstance",
        "training/test_refused_gradients.py::test_a_part_that_was_called_by_itself_is_named",
    ),
]

SUMS = [
    mutant(
        "parts that are joined are covered as parts",
        "training/gradient_monitor.py",
        "if self._together > self.most:",
        "if False:",
        "training/test_parts_of_a_batch.py::test_more_examples_at_once_than_a_part_has_are_refused",
    ),
    mutant(
        "a bias beside a frozen weight is not summed in blocks",
        "nn/bounded/hooks.py",
        "for p in (module.weight, module.bias))",
        "for p in (module.weight,))",
        "nn/test_sums.py::test_a_layer_sums_in_blocks_whatever_is_frozen_or_written_on_it",
    ),
    mutant(
        "an attribute turns sums in blocks off",
        "nn/bounded/hooks.py",
        "done = type(module).forward in BOUNDED and module.training",
        'done = hasattr(module, "radius") and module.training',
        "nn/test_sums.py::test_a_layer_sums_in_blocks_whatever_is_frozen_or_written_on_it",
    ),
    mutant(
        "norms are taken anew when an example is left out",
        "nn/bounded/linear.py",
        "norms = torch.where(kept, norms, 0.0)",
        "norms = row_norms(x) * row_norms(v)",
        "nn/test_sums.py::test_an_example_that_is_left_out_moves_no_other",
    ),
    mutant(
        "a radius is looked at only when a layer is made",
        "nn/bounded/enforcing.py",
        "ctx.radius = None if radius is None else checked_radius(radius)",
        "ctx.radius = radius",
        "nn/test_sums.py::test_a_radius_that_is_none_is_refused_whenever_it_is_set",
    ),
    mutant(
        "a radius below the digits of float32",
        "nn/bounded/enforcing.py",
        "if positive(radius) < SMALLEST:",
        "if positive(radius) < 0:",
        "nn/test_sums.py::test_a_radius_that_is_none_is_refused_whenever_it_is_set",
    ),
    mutant(
        "products below the normal numbers",
        "training/step_bounds.py",
        " + absolute) if bound",
        ") if bound",
        "sensitivities/test_neighbouring_sums.py::test_products_below_the_normal_numbers_are_covered",
    ),
    mutant(
        "whoever has the rule of a layer has its sums",
        "propagation/traced_model.py",
        "if use.blocked and not summed:",
        "if False:",
        "nn/test_sums.py::test_a_class_with_the_rule_of_a_layer_and_not_its_sums_is_charged_for_any_order",
    ),
]

SEQUENCES = [
    mutant(
        "steps beyond a sequence's length counted",
        "nn/bounded/recurrence.py",
        "(slope[t] * g[:, None]).flatten(1), 0.0)",
        "(slope[t] * g[:, None]).flatten(1), (slope[t] * g[:, None]).flatten(1))",
        "nn/test_bounded_recurrent.py::test_what_lies_beyond_a_sequence_is_not_read",
    ),
    mutant(
        "the weight of a GRU's state takes the cotangent of the input's",
        "nn/bounded/recurrence.py",
        "below, *own = of_all(ctx, d, on_state, x, h, w)",
        "below, *own = of_all(ctx, d, d, x, h, w)",
        "nn/test_bounded_recurrent.py::test_outputs_and_inactive_gradients_are_torch_s",
    ),
    mutant(
        "later steps send nothing to earlier ones",
        "nn/bounded/recurrence.py",
        "e = kept(on[t], here * forgotten[t], e)",
        "e = kept(on[t], torch.zeros_like(here), e)",
        "nn/test_bounded_recurrent.py::test_outputs_and_inactive_gradients_are_torch_s",
    ),
    mutant(
        "a bias of a recurrent layer is not scaled",
        "nn/bounded/recurrence.py",
        "partial(of_bias, by_example(ctx, d))",
        "lambda *_: of_bias(by_example(ctx, d), None)",
        "nn/test_bounded_recurrent.py::test_no_magnitude_takes_an_example_beyond_the_radius",
    ),
    mutant(
        "each of an example's sequences is scaled by itself",
        "nn/bounded/recurrent.py",
        "return found.pop().inner",
        "return 1",
        "nn/test_bounded_recurrent.py::test_a_watch_says_which_sequences_are_one_example_s",
    ),
    mutant(
        "sequences are taken for examples wherever these are",
        "nn/bounded/recurrent.py",
        "if len(found) != 1 or any(r.axis or r.outer != 1 for r in found):",
        "if not found:",
        "nn/test_bounded_recurrent.py::test_examples_along_another_axis_are_refused_under_a_watch",
    ),
    mutant(
        "a layer's radius is looked at only when it is made",
        "nn/bounded/recurrent.py",
        "alive, each, checked_radius(self.radius))",
        "alive, each, 1.0)",
        "nn/test_bounded_recurrent.py::test_each_example_s_gradient_is_scaled_into_the_radius_and_reaches_it",
    ),
    mutant(
        "the packed projection of attention is used without a bound",
        "nn/bounded/attention.py",
        "LinearGradients.apply(x, weight, bias, None, checked_radius(self.radius), None)",
        "F.linear(x, weight, bias)",
        "nn/test_bounded_attention.py::test_each_example_s_gradient_is_scaled_into_the_radius_and_reaches_it",
    ),
    mutant(
        "the output of attention is projected as torch's layer does",
        "nn/bounded/attention.py",
        "self.out_proj(out.transpose(1, 2).flatten(2))",
        "F.linear(out.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)",
        "nn/test_bounded_attention.py::test_each_example_s_gradient_is_scaled_into_the_radius_and_reaches_it",
    ),
    mutant(
        "places of attention are taken for examples",
        "nn/bounded/attention.py",
        "t if self.batch_first else t.transpose(0, 1) for t",
        "t for t",
        "nn/test_bounded_attention.py::test_outputs_and_inactive_gradients_are_torch_s",
    ),
    mutant(
        "a row of keys is used without a bound",
        "nn/bounded/attention.py",
        "at_examples(row, x[:, :1], self.radius, row.shape)",
        "row.expand(len(x), 1, -1)",
        "nn/test_bounded_attention.py::test_no_use_takes_an_example_beyond_the_radius",
    ),
]
