"""Mutants of the exact norms of bounded linear layers and convolutions."""

from attacks.mutants.mutant import mutant

LAW = "nn/test_exact_norms.py::test_no_example_exceeds_the_radius_and_where_it_is_active_it_is_reached"
GRAM = "nn/test_exact_norms.py::test_gram_matrices_bound_the_norm_from_above_and_nearly_exactly"
REFERENCE = "nn/test_exact_norms.py::test_the_gradient_is_the_sum_of_each_example_s_own_scaled_by_its_own_norm"

BOUNDED = [
    mutant(
        "a gradient of a function's parameters is not scaled",
        "nn/bounded/weights.py",
        "sum_of_examples(gradients, None, some_of(radius, some), told).flatten()",
        "gradients.sum(0).flatten()",
        "nn/test_bounded_parameter.py::test_no_example_exceeds_a_radius_for_each_use",
    ),
    mutant(
        "of an example's frames the first alone is counted",
        "nn/sums.py",
        "found.unflatten(0, (-1, each)).sum(1)",
        "found.unflatten(0, (-1, each))[:, 0]",
        "nn/test_bounded_frames.py::test_an_example_s_frames_are_scaled_together",
    ),
    mutant(
        "the bias of a convolution is scaled by one frame alone",
        "nn/bounded/convolution.py",
        "by_image.movedim(2, 3).flatten(1, 2)",
        "by_image.movedim(2, 3).flatten(0, 1)",
        "nn/test_bounded_frames.py::test_an_example_s_frames_are_scaled_together",
    ),
    mutant(
        "gram matrices without their rounding",
        "nn/bounded/linear.py",
        "rounding = (d + p + d * p * u + 1) * u",
        "rounding = 0.0 * (d + p) * u",
        GRAM,
    ),
    mutant(
        "gram matrices whose products underflow",
        "nn/bounded/linear.py",
        "under = 2 * positions",
        "under = 0 * positions",
        GRAM,
    ),
    mutant(
        "magnitudes that cancel are not bounded",
        "nn/bounded/linear.py",
        "torch.maximum(square.sqrt(), most / SPREAD)",
        "square.sqrt()",
        "nn/test_exact_norms.py::test_what_cancels_within_an_example_rounds_no_further_than_is_said",
    ),
    mutant(
        "magnitudes that cancel in a gradient by itself are not bounded",
        "nn/bounded/enforcing.py",
        "torch.maximum(row_norms(rows), magnitudes / CANCELLED)",
        "row_norms(rows)",
        "nn/test_exact_norms.py::test_what_cancels_in_a_gradient_by_itself_is_scaled_by_its_magnitudes",
    ),
    mutant(
        "magnitudes that cancel are not charged",
        "nn/sums.py",
        "depth *= SPREAD if terms > 1 else 1",
        "pass",
        "nn/test_exact_norms.py::test_several_terms_of_an_example_are_charged_their_magnitudes",
    ),
    mutant(
        "the norm of an example at one position for all",
        "nn/bounded/linear.py",
        "norms = (sizes * lengths).sum(1)\n    # The",
        "norms = (sizes * lengths).amax(1)\n    # The",
        LAW,
    ),
    mutant(
        "all rows together, and one term charged",
        "nn/bounded/linear.py",
        "return Summation(positions if rows else 1, blocked=True)",
        "return Summation(1, blocked=True)",
        "nn/test_exact_norms.py::test_a_node_says_how_many_terms_it_adds_as_the_walk_does",
    ),
    mutant(
        "an example's gradient by itself at the sum's norm",
        "nn/bounded/enforcing.py",
        "torch.maximum(row_norms(rows), magnitudes / CANCELLED)",
        "magnitudes / CANCELLED",
        LAW,
    ),
    mutant(
        "a formed gradient that is not finite",
        "nn/bounded/enforcing.py",
        "        rows = torch.where(kept[:, None], rows, 0.0)\n",
        "        pass\n",
        "nn/test_exact_norms.py::test_an_example_that_is_not_finite_or_too_large_adds_nothing",
    ),
    mutant(
        "a norm of whole pieces alone",
        "nn/gradient_ball.py",
        "torch.cat([pieces.double(), norms[:, None]], 1)",
        "pieces.double()",
        "nn/test_exact_norms.py::test_norms_of_many_numbers_are_bounded_nearly_exactly",
    ),
    mutant(
        "a transposed convolution as if it were none",
        "nn/bounded/convolution.py",
        "((v, x) if transposed else (x, v))",
        "(x, v)",
        REFERENCE,
    ),
    mutant(
        "a convolution whose examples are elsewhere",
        "nn/bounded/convolution.py",
        "if rows is not None and rows.axis != 0:",
        "if False:",
        "nn/test_exact_norms.py::test_a_convolution_takes_examples_in_front_alone",
    ),
    mutant(
        "a linear layer that takes axis 0 for the examples",
        "nn/bounded/linear.py",
        "return examples_first(self._bounded, x, constant=super().forward)",
        "return self._bounded(x)",
        "nn/test_exact_norms.py::test_a_linear_layer_finds_its_examples_in_another_place",
    ),
    mutant(
        "rows by an example's place in the batch",
        "nn/bounded/meetings.py",
        "expanded=table and _alike(value.ids, x)",
        "expanded=table",
        "nn/test_bounded_places.py::test_a_row_that_is_looked_up_by_an_example_s_place_in_the_batch_is_refused",
    ),
    mutant(
        "more copies than examples",
        "nn/bounded/use.py",
        "if watch is not None and examples != watch.examples:",
        "if False:",
        "nn/test_bounded_places.py::test_copies_are_as_many_as_the_examples",
    ),
    mutant(
        "a radius as it was set",
        "nn/bounded/enforcing.py",
        "ctx.radius = None if radius is None else checked_radius(radius)",
        "ctx.radius = radius",
        "nn/test_bounded_places.py::test_a_radius_that_was_set_to_no_radius_is_refused",
    ),
    mutant(
        "a bias whose terms cancel",
        "nn/bounded/enforcing.py",
        "    if v.shape[1] > 1:\n",
        "    if False:\n",
        "nn/test_bounded_places.py::test_terms_that_cancel_round_no_further_in_another_batch",
    ),
    mutant(
        "a shift whose terms cancel",
        "nn/bounded/use.py",
        "if ctx.radius is not None and terms.numel() > summed.numel():",
        "if False:",
        "nn/test_bounded_places.py::test_terms_that_cancel_round_no_further_in_another_batch",
    ),
    mutant(
        "an equation without its result",
        "nn/bounded/meetings.py",
        "if not arrow:",
        "if False:",
        "nn/test_bounded_places.py::test_equations_without_a_result_or_with_dots_are_torch_s",
    ),
]
