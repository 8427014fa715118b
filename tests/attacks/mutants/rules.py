"""Mutants of rules and operator norms: bounds that are too small."""

from attacks.mutants.mutant import mutant

BOUNDS = [
    mutant(
        "power iteration as a norm",
        "norms/matrix.py",
        "math.sqrt(float(torch.linalg.eigvalsh(gram)[-1]))",
        "math.sqrt(float((gram @ (v := gram @ gram.new_ones(len(gram)))).norm() / v.norm()))",
        "norms/test_matrix.py::test_a_matrix_norm_is_exact_from_above",
    ),
    mutant(
        "a norm carried over steps without its drift",
        "norms/cache.py",
        "return entry.bound + drift",
        "return entry.bound",
        "norms/test_cache.py::test_a_carried_norm_is_never_below_the_true_one",
    ),
    mutant(
        "bias of a feature map without the square root of its positions",
        "rules/convolution.py",
        "v.sum_to(tuple(bias.shape)).summed(positions)",
        "Norms(tuple(bias.shape), l2=v.l2)",
        "sensitivities/test_propagated.py::test_a_bias_on_a_feature_map_collects_every_position",
    ),
    mutant(
        "kernel without the patch factor",
        "rules/convolution.py",
        "reuse = math.sqrt(most_reads(*map(tuple, (size, taps, stride, padding, dilation)), circular))",
        "reuse = 1.0",
        "rules/test_claims.py::test_no_input_and_no_cotangent_go_beyond_what_is_claimed -k Conv2d",
    ),
    mutant(
        "norm of a kernel as a matrix in place of a convolution",
        "norms/convolution.py",
        "return _symbol_norm(kernel, grid) / cosines",
        "return spectral_norm(w.flatten(1))",
        "norms/test_convolution.py::test_no_convolution_exceeds_its_bounds",
    ),
    mutant(
        "tokens that share a bias count once",
        "rules/linear.py",
        "v.sum_to(tuple(bias.shape)).summed(tokens)",
        "Norms(tuple(bias.shape), l2=v.l2)",
        "rules/test_claims.py::test_no_input_and_no_cotangent_go_beyond_what_is_claimed -k tokens",
    ),
    mutant(
        "cotangents of a residual sum not added",
        "propagation/walk.py",
        "_plus(cotangents[source], v) if source in cotangents else v",
        "v",
        "propagation/test_compositions.py::test_a_residual_sum_is_tight",
    ),
    mutant(
        "a shared weight counted once",
        "propagation/walk.py",
        "parameters[name] + norms if name in parameters else norms",
        "norms",
        "propagation/test_idioms.py::test_a_tied_weight_is_one_parameter_whose_uses_add",
    ),
    mutant(
        "centring over the batch",
        "nn/center.py",
        "tuple(range(1, x.ndim))",
        "tuple(range(x.ndim - 1))",
        "rules/test_claims.py::test_one_example_does_not_see_the_others -k Center",
    ),
    mutant(
        "the ball lets everything through",
        "nn/ball.py",
        "return project_rows(x, self.radius)",
        "return torch.nan_to_num(x)",
        "audit/test_gradient.py::test_the_search_finds_long_gradients_and_none_beyond_the_declared -k plain",
    ),
    mutant(
        "the ball lets NaN through",
        "nn/ball.py",
        "return project_rows(x, self.radius)",
        "return x * (self.radius / x.flatten(1).norm(dim=1).clamp_min(self.radius)).reshape(-1, *[1] * (x.ndim - 1))",
        "sensitivities/test_attacked_examples.py"
        "::test_inputs_far_outside_the_ball_and_inputs_that_are_not_numbers_stay_within_it -k plain",
    ),
    mutant(
        "clamp removed",
        "nn/clamp.py",
        "return torch.clamp(x, self.low, self.high)",
        "return x",
        "rules/test_claims.py::test_what_is_claimed_of_any_input_holds_for_huge_ones -k Clamp",
    ),
    mutant(
        "a bound that is a hundredth too small",
        "sensitivities/propagated.py",
        "b * (1 + GRADIENT_SLACK)",
        "b * 0.99",
        "audit/test_gradient.py::test_the_search_finds_long_gradients_and_none_beyond_the_declared -k orthogonal",
    ),
    mutant(
        "batch normalisation accepted",
        "propagation/checks.py",
        '    "BatchNorm": (',
        '    "NoSuchThing": (',
        "propagation/test_refused_modules.py::test_a_module_without_a_bound_is_refused",
    ),
]
