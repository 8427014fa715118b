"""Mutants of losses and of their declared gradients."""

from attacks.mutants.mutant import Mutant, mutant

SUM = "values.sum() if reduction"
NEVER_RESCALED = "losses/test_values.py::test_a_plain_loss_is_never_rescaled_not_even_at_its_largest_gradient"

LOSSES = [
    mutant(
        "a mean over the batch",
        "losses/base.py",
        SUM,
        "values.mean() if reduction",
        "losses/test_values.py::test_the_sum_is_the_sum_of_the_examples",
    ),
    Mutant(
        "sqrt 2 of the cross-entropy missing",
        "losses",
        (
            ("math.sqrt(squares + total**2 - 2 * total * least)", "total"),
            ("split = (rows / excess).split(", "split = rows.split("),
        ),
        "audit/test_gradient.py::test_the_search_finds_long_gradients_and_none_beyond_the_declared -k orthogonal",
    ),
    Mutant(
        "loss constant without temperature",
        "losses",
        (
            ("            / self.temperature\n        )\n", "        )\n"),
            ("split = (rows / excess).split(", "split = rows.split("),
        ),
        "losses/test_declared_norms.py::test_no_output_and_target_exceed_the_declared_norms -k cross_entropy",
    ),
    mutant(
        "one NaN poisons the batch",
        "losses/base.py",
        "rows = torch.where(rows.isfinite().all(1, keepdim=True), rows, torch.zeros_like(rows))",
        "pass",
        "losses/test_values.py::test_an_example_whose_gradient_is_nan_sends_nothing_back",
    ),
    mutant(
        "normalised by the norm of the batch",
        "losses/base.py",
        "torch.linalg.vector_norm(rows, 2, 1, keepdim=True).clamp_min(FLOOR)",
        "torch.linalg.vector_norm(rows).clamp_min(FLOOR)",
        "losses/test_values.py::test_an_example_is_treated_alike_whatever_else_is_in_the_batch",
    ),
    mutant(
        "a mean over positions as if none could be ignored",
        "losses/cross_entropy.py",
        "counted = counted if self.ignore_index is None else 1",
        "pass",
        f"{NEVER_RESCALED} -k ignored",
    ),
    mutant(
        "a sum over positions bounded as one position",
        "losses/cross_entropy.py",
        "return Norms(shape, counted * norms[0], math.sqrt(counted) * norms[1], norms[2])",
        "return Norms(shape, *norms)",
        f"{NEVER_RESCALED} -k summed",
    ),
    mutant(
        "positions averaged over those that count in the batch",
        "losses/cross_entropy.py",
        "values / counted.sum(1).clamp_min(1)",
        "values / counted.sum().clamp_min(1)",
        "losses/test_several_outputs.py::test_every_loss_is_seen_to_treat_each_example_by_itself -k tokens",
    ),
    mutant(
        "class weights bounded by their mean",
        "losses/cross_entropy.py",
        "least, top = share * min(w), max(w)",
        "least, top = share * min(w), sum(w) / len(w)",
        f"{NEVER_RESCALED} -k weighed",
    ),
    mutant(
        "smoothing takes off as much as the heaviest class",
        "losses/cross_entropy.py",
        "least, top = share * min(w), max(w)",
        "least, top = share * max(w), max(w)",
        f"{NEVER_RESCALED} -k weighed_and_smoothed",
    ),
    mutant(
        "soft targets have the directions of class numbers",
        "losses/cross_entropy.py",
        "one = not self.soft and not self.label_smoothing",
        "one = True",
        "losses/test_positions.py::test_the_direction_of_a_gradient_stays_within_its_norms",
    ),
    mutant(
        "the direction at several positions is that at one",
        "losses/cross_entropy.py",
        "2 * linf * math.sqrt(self._most(shape))",
        "2 * linf",
        "losses/test_positions.py::test_the_direction_of_a_gradient_stays_within_its_norms",
    ),
    mutant(
        "positive labels weigh more than is stated",
        "losses/binary_cross_entropy.py",
        ".clamp_min(1)\n        largest",
        ".clamp_max(1)\n        largest",
        f"{NEVER_RESCALED} -k positives_weighed",
    ),
    mutant(
        "soft targets of any sum",
        "losses/cross_entropy.py",
        "if not (low >= 0 and off <= SUM_TO_ONE):",
        "if False:",
        "losses/test_positions.py::test_positions_that_do_not_fit_are_refused",
    ),
    mutant(
        "heads bounded without their weights",
        "losses/heads.py",
        """loss.gradient_norms(self._at(shape, key, "outputs")) * weight""",
        """loss.gradient_norms(self._at(shape, key, "outputs"))""",
        f"{NEVER_RESCALED} -k heads",
    ),
    mutant(
        "a head's own bound left out",
        "losses/heads.py",
        "own = bounded(mapped(lambda g: g / weight, gradients[key]), loss)",
        "own = mapped(lambda g: g / weight, gradients[key])",
        "losses/test_values.py::test_value_and_gradient_are_those_of_the_published_formula -k heads_own",
    ),
    mutant(
        "several outputs bounded one by one",
        "losses/base.py",
        "    shape = shapes(gradients)\n",
        "    if not isinstance(gradients, Tensor) and len(leaves(gradients)) > 1 and loss.max_gradient:\n"
        "        from dplip.losses.own import PerExample\n\n"
        "        return mapped(lambda g: bounded(g, PerExample(abs, loss.max_gradient)), gradients)\n"
        "    shape = shapes(gradients)\n",
        "losses/test_several_outputs.py::test_the_bound_is_that_of_all_heads_together",
    ),
    mutant(
        "a function of one's own may give one value for the batch",
        "losses/own.py",
        "values.shape != (examples,)",
        "False",
        "losses/test_several_outputs.py::test_what_does_not_fit_is_refused_in_words",
    ),
    mutant(
        "one output of the model vouches for the others",
        "losses/base.py",
        "all(loss.monitor.is_model_output(z) for z in outputs)",
        "any(loss.monitor.is_model_output(z) for z in outputs)",
        "losses/test_several_outputs.py::test_a_monitor_is_told_the_gradients_of_all_outputs_at_once",
    ),
    mutant(
        "a shifted loss looks at the same position",
        "losses/cross_entropy.py",
        "F.pad(targets[:, 1:], (0, 1), value=self._ignored) if self.shift else targets",
        "targets",
        "losses/test_positions.py::test_a_shifted_loss_is_that_of_causal_language_models",
    ),
]
