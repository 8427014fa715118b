"""Mutants of certificates and of the roundings that they allow for."""

from attacks.mutants.mutant import mutant

CERTIFICATES = [
    mutant(
        "radius from half of the margin's bound",
        "certificates/radii.py",
        "bound = walk.cotangents(seeds(walk))[walk.start()].norm(dual)\n    return",
        "bound = walk.cotangents(seeds(walk))[walk.start()].norm(dual) / 2\n    return",
        "certificates/test_radii.py::test_the_certificate_of_a_linear_model_is_its_distance_to_the_decision_boundary",
    ),
    mutant(
        "a certificate in the wrong norm",
        "certificates/radii.py",
        "dual = dual_of(norm)\n    walk.refuse_surrogates()",
        "dual = 2.0\n    walk.refuse_surrogates()",
        "certificates/test_radii.py::test_the_certificate_of_a_linear_model_is_its_distance_to_the_decision_boundary",
    ),
    mutant(
        "products of slopes without those of other signs",
        "certificates/slopes/walk.py",
        "low, high = ends.amin(0), ends.amax(0)",
        "low, high = ends[0], ends[3]",
        "certificates/test_composed_slopes.py::test_every_slope_lies_in_its_interval_behind_and_before_any_signs",
    ),
    mutant(
        "slopes rolled the same way back",
        "certificates/slopes/rules.py",
        "else -shifts",
        "else shifts",
        "certificates/test_slopes.py::test_slopes_through_every_operation_lie_in_their_intervals",
    ),
    mutant(
        "points through which not all passes",
        "certificates/articulation.py",
        "if reach <= i:",
        "if reach <= i + 1:",
        "certificates/test_intervals.py::test_articulation_points_are_what_all_later_values_pass_through",
    ),
]

ROUNDINGS = [
    mutant(
        "the rounding of a column in units of where it lies",
        "rounding/rules/normalization.py",
        "Roundings(0.0, 8.0, Norms(x.shape, linf=8.0 + 2",
        "Roundings(8.0, 8.0, Norms(x.shape, linf=8.0 + 2",
        "certificates/test_slopes.py::test_a_column_far_from_zero_is_certified",
    ),
    mutant(
        "one slack for sums of every width",
        "rounding/registry.py",
        "half = n / 2 / (1 - min(n * 2.0**-24, 0.5)) if n < 2.0**23 else math.inf",
        "half = 8.0",
        "rounding/test_rounding.py::test_no_grey_image_of_another_class_lies_within_a_radius_of_a_wide_layer",
    ),
    mutant(
        "a rounding on the way counted once",
        "rounding/walk.py",
        "[times(s[top], n) for s, n",
        "[times(torch.ones_like(s[top]), n) for s, n",
        "rounding/test_rounding.py::test_the_rounding_of_an_input_further_out_is_larger",
    ),
    mutant(
        "the rounding of the input itself taken for that within the radius",
        "rounding/walk.py",
        "inputs = {n: sizes[n] + apart[n] for n in call.sources}",
        "inputs = {n: sizes[n] for n in call.sources}",
        "rounding/test_rounding.py::test_the_rounding_of_an_input_further_out_is_larger",
    ),
    mutant(
        "one of two branches taken to stay where it is",
        "rounding/walk.py",
        "for n, jacobian in zip(call.sources, call.jacobians, strict=True):",
        "for n, jacobian in [*zip(call.sources, call.jacobians, strict=True)][:1]:",
        "rounding/test_rounding.py::test_the_rounding_of_an_input_further_out_is_larger",
    ),
    mutant(
        "scores in float64 taken to be exact where the model is in it",
        "rounding/walk.py",
        "return 2.0 if self._exact is None",
        "return 1.0 if self._exact is None",
        "rounding/test_rounding.py::test_the_roundings_that_are_allowed_for_cover_those_that_are_seen",
    ),
    mutant(
        "an operation that is not known to round taken to be exact",
        "rounding/walk.py",
        "            if found is None:\n                operation.refuse(",
        "            if found is None:\n                return EXACT\n                operation.refuse(",
        "rounding/test_rounding.py"
        "::test_an_operation_that_is_not_known_to_round_is_refused_by_name_until_it_is_said_how",
    ),
    mutant(
        "certificates under autocast",
        "runtime/mode.py",
        "if torch.is_autocast_enabled(kind):",
        "if False:",
        "certificates/test_certifier.py::test_a_certificate_is_the_same_within_autocast_and_every_other_setting",
    ),
    mutant(
        "roundings left out of the margin",
        "certificates/radii.py",
        "certified = _smallest(gaps - errors(every, farthest), self.slopes, top)",
        "certified = _smallest(gaps, self.slopes, top)",
        "rounding/test_rounding.py::test_no_grey_image_of_another_class_lies_within_a_radius_of_a_wide_layer",
    ),
    mutant(
        "wide sums taken to be exact going forward",
        "rounding/walk.py",
        "if not kind.none and not kind.held:",
        "if False:",
        "sensitivities/test_propagated.py::test_the_rounding_of_a_wide_sum_is_within_the_sensitivity_of_what_follows",
    ),
    mutant(
        "wide sums taken to be exact on the way back",
        "rounding/walk.py",
        "            if kind.back:\n                inputs",
        "            if False:\n                inputs",
        "sensitivities/test_propagated.py"
        "::test_the_rounding_of_a_wide_sum_on_the_way_back_is_within_the_sensitivity_of_what_precedes",
    ),
    mutant(
        "attention whose sums do not round",
        "rounding/rules/normalization.py",
        "pulls = x * (2 * (features / 2 + tokens + 16.0))",
        "pulls = x * 0.0",
        "rules/test_claims.py::test_float32_takes_no_operation_further_from_the_exact_one_than_is_claimed"
        " -k DistanceAttention",
    ),
]
