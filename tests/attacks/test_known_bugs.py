"""Bugs that private-training libraries have had, each with the tests here that would notice it.

"Opacus", "jax_privacy", "TF" (tensorflow/privacy), "PT" (private-transformers), "fastDP": the issue or pull request of
that project. "lip-dp": found in the code of the published package of training without clipping.
"""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]

PEERS = {
    "shuffled batches accounted as Poisson (Opacus #80, PT #7)": [
        "sampling/test_poisson:test_two_examples_appear_independently",
        "training/test_engine:test_what_does_not_fit_is_refused_with_a_remedy_and_nothing_is_changed",
    ],
    "normaliser depends on the size of the data (Opacus #571, #819)": [
        "training/test_plan:test_a_neighbour_of_the_data_is_trained_with_the_same_constants"
    ],
    "q from the length of the loader, sampler dropped (Opacus #813, #600)": [
        "training/test_engine:test_a_weighted_sampler_is_refused_as_poisson_sampling_would_drop_the_weights"
    ],
    "accounted noise is not the noise that is added (Opacus #807)": [
        "training/test_step_noise:test_the_noise_added_is_that_of_one_gaussian_of_the_accounted_multiplier"
    ],
    "division by the true size of the batch (Opacus AdaClip)": [
        "training/test_step_noise:test_the_sum_is_divided_by_the_expected_batch_size_and_never_by_the_batchs_own"
    ],
    "an empty batch crashes (Opacus #161 and six more)": [
        "training/test_step_noise:test_an_empty_batch_is_a_step_with_noise_whose_gradient_is_dropped",
        "training/test_trainer:test_tiny_data_with_empty_batches_are_trained_on_by_a_model_that_reshapes_by_the_batch",
    ],
    "empty batches are skipped (Opacus, distributed)": [
        "training/test_engine:test_empty_batches_are_steps_like_all_others"
    ],
    "one NaN poisons every parameter (Opacus)": [
        "losses/test_values:test_an_example_whose_gradient_is_nan_sends_nothing_back",
        "training/test_refused_runs:test_inputs_that_are_not_numbers_are_neutralised_by_the_ball",
    ],
    "zero_grad forgotten (Opacus, ghost mode)": [
        "training/test_refused_gradients:test_a_gradient_that_the_bounds_do_not_cover_is_refused_and_nothing_is_spent_or_changed"
    ],
    "two backward passes over one batch (Opacus, ghost mode)": [
        "training/test_refused_gradients:test_a_gradient_that_the_bounds_do_not_cover_is_refused_and_nothing_is_spent_or_changed",
        "accounting/test_accountant:test_an_invalid_event_is_refused_and_not_counted",
    ],
    "parts of a batch lost or carried over (Opacus #54, #93, #516)": [
        "training/test_physical_batches:test_a_new_pass_over_the_data_drops_the_parts_of_an_abandoned_batch",
        "sampling/test_poisson:test_a_logical_batch_is_split_and_counted",
    ],
    "steps counted in physical batches (jax_privacy #234, #308)": [
        "training/test_engine:test_physical_batches_are_of_the_given_size_and_the_steps_of_the_logical_ones"
    ],
    "microbatches double the sensitivity (TF #620, #88)": [
        "training/test_physical_batches:test_physical_batches_give_the_step_of_the_whole_batch_with_one_draw_of_noise"
    ],
    "one random key for every parameter (jax #3646)": [
        "training/test_step_noise:test_the_noise_of_tensors_and_steps_and_halves_of_a_tensor_is_independent",
        "noise/test_gaussian:test_a_forked_process_never_repeats_the_draws",
    ],
    "a bias's norm is wrong, a bound is ignored (Opacus #664, #751)": [
        "sensitivities/test_propagated:test_a_bias_on_a_feature_map_collects_every_position",
        "sensitivities/test_propagated:test_a_bound_of_a_loss_enters_every_parameter_in_proportion",
    ],
    "calibration overshoots or does not end (Opacus #346, #587)": [
        "accounting/test_calibration:test_calibration_never_overshoots_and_comes_close",
        "accounting/test_calibration:test_extreme_targets",
    ],
    "negative epsilon, or an error for no steps (Opacus #585)": [
        "accounting/test_epsilon:test_epsilon_is_never_negative",
        "accounting/test_epsilon:test_no_step_costs_nothing_and_no_noise_costs_everything",
    ],
    "epsilon 0 at an order of almost 1 (TF #166)": [
        "accounting/test_divergences:test_divergences_bound_a_quadrature_at_fractional_orders",
        "accounting/test_epsilon:test_rdp_is_never_above_dp_accounting_nor_far_below",
    ],
    "manual_seed fixes the noise (Opacus)": [
        "noise/test_gaussian:test_global_seeds_do_not_touch_it",
        "training/test_step_noise:test_manual_seed_does_not_fix_the_noise_and_a_step_does_not_move_torchs_generator",
    ],
    "a secure mode that is none (Opacus #504, #616, #731)": [
        "noise/test_discrete:test_every_value_is_a_multiple_of_the_grid_and_the_noise_has_its_deviation",
        "noise/test_discrete:test_the_distribution_is_that_of_the_discrete_gaussian",
    ],
    "one step an epoch lost by rounding (Opacus)": [
        "sampling/test_poisson:test_an_epoch_has_the_steps_that_were_planned"
    ],
    "checkpoints are pickles (Opacus)": [
        "records/test_checkpoint:test_a_pickle_is_not_read",
        "accounting/test_accountant:test_a_state_of_another_mechanism_is_refused_by_both_names",
    ],
    "the private gradient is overwritten (PT #9)": [
        "audit/test_replay:test_neighbouring_steps_differ_within_the_sensitivity_and_in_nothing_else"
    ],
    "examples mixed by a function (Opacus)": [
        "propagation/test_refused_operations:test_an_operation_without_a_bound_is_refused",
        "rules/test_claims:test_one_example_does_not_see_the_others",
    ],
    "the engine's target and the accountant differ (fastDP #46)": [
        "training/test_plan:test_the_plan_is_known_before_anything_is_spent_and_is_what_fit_spends"
    ],
}

CLIPPING_FREE = {
    "power iteration is a lower bound": ["norms/test_matrix:test_a_matrix_norm_is_exact_from_above"],
    "torch's spectral_norm of a convolution (pytorch #99149)": [
        "norms/test_convolution:test_no_convolution_exceeds_its_bounds",
        "propagation/test_refused_modules:test_a_module_without_a_bound_is_refused",
    ],
    "bounds of other weights than the step's": [
        "training/test_bounds_of_a_step:test_the_noise_follows_every_change_of_the_model_between_steps"
    ],
    "no adversarial inputs": [
        "audit/test_gradient:test_the_search_finds_long_gradients_and_none_beyond_the_declared",
        "sensitivities/test_attacked_examples:test_no_example_found_by_ascent_exceeds_the_declared_sensitivity",
    ],
    "inputs out of bounds, narrow types": [
        "sensitivities/test_attacked_examples:test_inputs_far_outside_the_ball_and_inputs_that_are_not_numbers_stay_within_it",
        "attacks/test_numerics:test_half_precision_is_refused_and_double_has_the_bounds_of_single",
    ],
    "a mean over the batch": ["losses/test_values:test_a_mean_over_the_batch_is_refused"],
    "replacing counted as removing": ["training/test_bounds_of_a_step:test_replacing_one_example_counts_twice"],
    "each layer amplified on its own": [
        "noise/test_allocation:test_the_split_spends_the_multiplier_exactly_and_has_the_least_energy"
    ],
    "fixed batches accounted as Poisson": [
        "accounting/test_fixed_size_cost:test_batches_of_a_fixed_size_cost_more_than_poisson_batches",
        "training/test_fixed_size_run:test_a_run_charges_the_event_of_its_batches",
    ],
    "neighbours never run": [
        "audit/test_replay:test_neighbouring_steps_differ_within_the_sensitivity_and_in_nothing_else"
    ],
}

LIP_DP = {
    "lip-dp 1: kernel bound without the square root of its taps": [
        "rules/test_claims:test_no_input_and_no_cotangent_go_beyond_what_is_claimed"
    ],
    "lip-dp 2: bias on a map without the square root of its positions": [
        "sensitivities/test_propagated:test_a_bias_on_a_feature_map_collects_every_position"
    ],
    "lip-dp 3: centring over the batch": ["rules/test_claims:test_one_example_does_not_see_the_others"],
    "lip-dp 4: loss normalised by the batch's class counts": [
        "losses/test_targets:test_class_frequencies_are_the_declared_ones_and_not_those_of_the_batch"
    ],
    "lip-dp 5: shuffled batches accounted as Poisson": ["sampling/test_poisson:test_two_examples_appear_independently"],
    "lip-dp 6: fixed size with add/remove": [
        "training/test_fixed_size_run:test_what_no_theorem_covers_is_refused_before_anything_is_spent"
    ],
    "lip-dp 7: a convolution's norm above the claimed one": [
        "constraints/test_orthogonal:test_a_constrained_convolution_has_norm_at_most_one"
    ],
    "lip-dp 8: reparametrised weights": ["propagation/test_refused_modules:test_a_module_without_a_bound_is_refused"],
    "lip-dp 9: no check of norms afterwards": [
        "constraints/test_orthogonal:test_a_recorded_bound_is_never_below_the_true_norm"
    ],
    "lip-dp 10: planning ignores a cost": [
        "training/test_plan:test_the_plan_is_known_before_anything_is_spent_and_is_what_fit_spends"
    ],
    "lip-dp 11: an assertion that never fires, over budget": [
        "training/test_engine_budget:test_a_budget_never_lets_a_step_through_that_the_accountant_would_not"
    ],
    "lip-dp 12: an example owns several rows": [
        "training/test_refused_gradients:test_a_gradient_that_the_bounds_do_not_cover_is_refused_and_nothing_is_spent_or_changed"
    ],
    "lip-dp 13: private data in preprocessing and selection": [
        "training/test_files_of_a_run:test_the_report_has_every_field_and_says_what_was_spent"
    ],
    "lip-dp 14: radius by the largest standard deviation": [
        "certificates/test_radii:test_radii_are_in_raw_pixels_where_dividing_by_a_standard_deviation_is_part_of_the_model"
    ],
    "lip-dp 15: reduction and sharing not enforced": [
        "losses/test_values:test_a_mean_over_the_batch_is_refused",
        "propagation/test_idioms:test_a_tied_weight_is_one_parameter_whose_uses_add",
    ],
    "lip-dp 16: bounds tested against the wrong layers, at first only": [
        "training/test_bounds_of_a_step:test_bounds_carried_over_many_steps_stay_above_those_of_the_present_weights",
        "audit/test_finished_run:test_a_finished_run_survives_its_audit",
    ],
    "lip-dp 17: a clip that never lowers the noise": [
        "sensitivities/test_propagated:test_a_bound_of_a_loss_enters_every_parameter_in_proportion"
    ],
    "lip-dp 18: bounds that are needlessly loose": [
        "sensitivities/test_attacked_examples:test_the_declared_sensitivity_is_not_absurdly_loose"
    ],
    "lip-dp 20: noise equal over layers": ["noise/test_allocation:test_the_split_of_a_published_example"],
}


@pytest.mark.parametrize(
    "bug, tests", [*PEERS.items(), *CLIPPING_FREE.items(), *LIP_DP.items()], ids=lambda v: str(v)[:50]
)
def test_a_bug_of_the_past_has_tests_that_would_notice_it(bug, tests):
    for named in tests:
        file, _, name = named.partition(":")
        tree = ast.parse((TESTS / f"{file}.py").read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, named


def test_every_item_of_the_lists_is_here():
    assert (len(PEERS), len(CLIPPING_FREE)) == (25, 10)
