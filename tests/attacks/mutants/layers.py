"""Mutants of normalisations, embeddings and bare parameters that bound their own gradients."""

from attacks.mutants.mutant import mutant

OWN_GRADIENTS = [
    mutant(
        "each example's slice of a parameter added whole",
        "nn/bounded/use.py",
        "of_rows(into_radius(rows, ctx.radius))",
        "of_rows(rows)",
        "nn/test_bounded_affine.py::test_each_example_s_gradient_is_scaled_into_the_radius_and_reaches_it",
    ),
    mutant(
        "a slice that is not finite kept",
        "nn/bounded/use.py",
        "kept = norms <= LARGEST_NORM",
        "kept = norms >= 0",
        "nn/test_bounded_affine.py::test_no_magnitude_takes_an_example_beyond_the_radius",
    ),
    mutant(
        "the batch scaled into the radius as one example",
        "nn/bounded/use.py",
        "copies = per_example(p, count, radius).reshape(count, *rest)",
        "copies = per_example(p, 1, radius).reshape(1, *rest)",
        "nn/test_bounded_affine.py::test_each_example_s_gradient_is_scaled_into_the_radius_and_reaches_it",
    ),
    mutant(
        "statistics of a batch taken",
        "nn/bounded/normalization.py",
        'if getattr(self, "track_running_stats", False):',
        "if False:",
        "nn/test_bounded_affine.py::test_statistics_of_a_batch_are_refused_before_anything_is_changed",
    ),
    mutant(
        "repeats of a word left out of the norm",
        "nn/bounded/embedding.py",
        "            rows, keys = of_runs(rows, keys)\n            rows = into_radius_together",
        "            rows = into_radius_together",
        "nn/test_bounded_embedding.py::test_each_example_s_gradient_is_scaled_into_the_radius_and_reaches_it",
    ),
    mutant(
        "the row of padding trained",
        "nn/bounded/embedding.py",
        "if ctx.padding is not None:",
        "if False:",
        "nn/test_bounded_embedding.py::test_each_example_s_gradient_is_scaled_into_the_radius_and_reaches_it",
    ),
    mutant(
        "rows of a table scaled by themselves",
        "nn/bounded/embedding.py",
        "norms = squares.new_zeros(count).index_add_(0, examples, squares).sqrt()",
        "norms = squares.new_zeros(count).index_copy_(0, examples, squares).sqrt()",
        "nn/test_bounded_embedding.py::test_each_example_s_gradient_is_scaled_into_the_radius_and_reaches_it",
    ),
    mutant(
        "runs of a table cut short",
        "nn/bounded/embedding.py",
        "step *= 2",
        "step *= 3",
        "nn/test_bounded_embedding.py::test_runs_are_summed_in_trees_that_round_by_less_than_is_charged",
    ),
    mutant(
        "frequencies of words in a batch taken",
        "nn/bounded/embedding.py",
        "if value not in (None, False):",
        "if False:",
        "nn/test_bounded_embedding.py::test_settings_that_no_bound_covers_are_refused",
    ),
]
