"""Mutants of the trace and of the comparison of the trace with the model."""

from attacks.mutants.mutant import mutant

THE_TRACE_IS_THE_MODEL = [
    mutant(
        "a trace that is not compared by value",
        "propagation/traced_model.py",
        "return made is None or agree(",
        "return True or agree(",
        "training/test_what_a_forward_reads.py::test_the_bounds_follow_what_the_forward_reads_that_is_no_attribute",
    ),
    mutant(
        "what the forward read taken for what is read at the step",
        "propagation/traced_model.py",
        "self._rows.of_model() if rows is None else rows",
        "self._rows.of_model()",
        "training/test_what_a_forward_reads.py::test_what_the_forward_read_must_still_hold_at_the_step",
    ),
    mutant(
        "code of others taken for ours",
        "propagation/guards.py",
        'startswith(("torch.nn.", "dplip."))',
        'startswith(("t", "dplip."))',
        "training/test_what_a_forward_reads.py::test_the_bounds_follow_what_the_forward_reads_that_is_no_attribute",
    ),
    mutant(
        "gradients of the public rows not compared",
        "training/passes.py",
        "gradients=self._count % BACKWARD == 0",
        "gradients=False",
        "training/test_what_a_forward_reads.py::test_a_gradient_that_changes_alone_is_seen",
    ),
    mutant(
        "weights as they are at trace time only",
        "propagation/public_rows.py",
        "t.data = old * (1 + torch.rand_like(old) / 2) + torch.rand_like(old) / 8",
        "t.data = old",
        "training/test_what_a_forward_reads.py::test_a_number_read_off_a_weight_a_buffer_or_the_mode_is_refused",
    ),
    mutant(
        "further arguments unseen",
        "training/passes.py",
        "if len(args) != 1 or kwargs:",
        "if False:",
        "training/test_what_a_forward_reads.py::test_further_arguments_of_the_model_are_refused",
    ),
    mutant(
        "the norms that a loss held unseen",
        "training/gradient_monitor.py",
        "if self._norms is not None and self._norms[1] != self._loss.gradient_norms(self._norms[0]):",
        "if False:",
        "training/test_what_a_forward_reads.py::test_the_bound_of_a_loss_must_still_hold_at_the_step",
    ),
    mutant(
        "a stored bound for a loss whose norms have changed",
        "training/sources.py",
        "state = guards_of(self._loss), self._loss.gradient_norms(shape)",
        "state = guards_of(self._loss)",
        "training/test_what_a_forward_reads.py::test_the_bound_of_a_loss_must_still_hold_at_the_step",
    ),
    mutant(
        "values that mix unseen",
        "runtime/mixing.py",
        "return _values_mix(drawn, rows, alone) or _gradients_mix(",
        "return _gradients_mix(",
        "runtime/test_mixing.py::test_a_front_end_without_gradients_that_mixes_examples_is_refused",
    ),
    mutant(
        "gradients that mix unseen",
        "runtime/mixing.py",
        "return _values_mix(drawn, rows, alone) or _gradients_mix(drawn, few, weights, alone, rounding)",
        "return _values_mix(drawn, rows, alone)",
        "runtime/test_mixing.py::test_a_rule_does_not_make_up_for_mixing",
    ),
    mutant(
        "only mild rows beside",
        "runtime/mixing.py",
        "for sizes in ((1.0,), (1e4, 0.0, -1e8), (math.nan, math.inf)):",
        "for sizes in ((1.0,),):",
        "runtime/test_mixing.py::test_a_front_end_without_gradients_that_mixes_examples_is_refused",
    ),
    mutant(
        "only the first row looked at",
        "runtime/mixing.py",
        "kept = sorted({0, count // 2, count - 1})",
        "kept = [0]",
        "runtime/test_mixing.py::test_values_alone_show_that_any_row_mixes",
    ),
    mutant(
        "a loss that mixes accepted",
        "losses/base.py",
        "values.shape[:1] == outputs.shape[:1] and not mixes(values_of, [outputs, *known])",
        "True",
        "runtime/test_mixing.py::test_a_loss_that_looks_at_the_batch_is_refused",
    ),
    mutant(
        "complex values accepted",
        "norms/value_norms.py",
        "tensor.dtype in (*FLOATS, *_WHOLE)",
        "True",
        "propagation/test_refused_values.py::test_constants_and_weights_of_which_the_bounds_say_nothing_are_refused",
    ),
    mutant(
        "batch normalisation in training mode accepted",
        "propagation/checks.py",
        "(module.training or module.running_mean is None)",
        "False",
        "propagation/test_refused_modules.py"
        "::test_batch_normalisation_is_an_affine_map_in_evaluation_mode_and_keeps_no_count_when_refused",
    ),
    mutant(
        "the variance of a frozen normalisation forgotten",
        "rules/normalization.py",
        "scale = (module.running_var.double() + module.eps).rsqrt()",
        "scale = torch.ones_like(module.running_var.double())",
        "propagation/test_refused_modules.py"
        "::test_batch_normalisation_is_an_affine_map_in_evaluation_mode_and_keeps_no_count_when_refused",
    ),
]
