"""Mutants of enforced models: of the uses that are counted, of what is seen of a pass, and of the calls."""

from attacks.mutants.mutant import mutant

USES = "sensitivities/test_uses.py"
MODELS = "training/test_enforced_models.py"

ENFORCED = [
    mutant(
        "two uses of a parameter count as one",
        "sensitivities/uses.py",
        "return Use(self.bound + other.bound, self.summation + other.summation)",
        "return Use(max(self.bound, other.bound), self.summation + other.summation)",
        f"{USES}::test_radii_add_up_over_uses_whatever_lies_between",
    ),
    mutant(
        "any node between an enforcing one and a parameter is a selection",
        "sensitivities/uses.py",
        "sent = use if not enforcing and type(node).__name__ in SELECTIONS else None",
        "sent = use if not enforcing else None",
        f"{USES}::test_another_sender_is_refused",
    ),
    mutant(
        "the input of an enforcing node is bounded as its parameters are",
        "sensitivities/uses.py",
        "if enforcing and position >= given:",
        "if enforcing:",
        f"{USES}::test_another_sender_is_refused",
    ),
    mutant(
        "a backward pass of unknown code is believed",
        "sensitivities/uses.py",
        'if function.__module__.partition(".")[0] != "dplip":',
        "if False:",
        f"{USES}::test_another_sender_is_refused",
    ),
    mutant(
        "an output's own gradient is forgotten",
        "sensitivities/uses.py",
        "received: dict[Any, Use | None] = dict.fromkeys(roots)",
        "received: dict[Any, Use | None] = dict.fromkeys(roots, Use(0.0, Summation()))",
        f"{USES}::test_another_sender_is_refused",
    ),
    mutant(
        "operators other than were tried pass",
        "sensitivities/enforced_model.py",
        "self._learn()  # an attribute of the model may have changed",
        "return None",
        f"{MODELS}::test_another_number_of_examples_must_run_the_same_operators",
    ),
    mutant(
        "pairs of several lengths are refused before they are padded",
        "training/data_checks.py",
        "as_it_is = calls.plain and collate is collated",
        "as_it_is = calls.plain",
        f"{MODELS}::test_pairs_of_several_lengths_are_padded",
    ),
    mutant(
        "an interrupted pass is watched on",
        "training/trainer.py",
        "            self.optimizer.leave()\n",
        "",
        f"{MODELS}::test_nothing_is_watched_after_an_interrupt",
    ),
    mutant(
        "checkpointed code of bare parameters runs again as if they were plain ones",
        "runtime/mixing.py",
        "edges = [get_gradient_edge(t) for t in wanted]",
        "edges = list(wanted)",
        f"{MODELS}::test_a_model_of_any_code_trains",
    ),
    mutant(
        "gradients of inputs are taken for those of weights",
        "training/arrivals.py",
        "id(leaf) in weights and ",
        "",
        f"{MODELS}::test_an_input_may_have_a_gradient_of_its_own",
    ),
    mutant(
        "public passes may find what a private one has left behind",
        "sensitivities/enforced_model.py",
        "if self._before == guards_of(self.model):",
        "if True:",
        f"{MODELS}::test_what_a_pass_leaves_behind_does_not_explain_it",
    ),
    mutant(
        "radii may depend on the batch",
        "sensitivities/enforced_model.py",
        "return bounds[0] == bounds[1] and ",
        "return ",
        f"{MODELS}::test_what_a_pass_leaves_behind_does_not_explain_it",
    ),
    mutant(
        "sensitivities stay those of earlier radii",
        "sensitivities/enforced_model.py",
        " and self._radii == self._present_radii()",
        "",
        f"{MODELS}::test_attributes_and_radii_may_change_between_steps",
    ),
    mutant(
        "an input may come from a part of the model",
        "sensitivities/enforced_model.py",
        "        if outside:",
        "        if False:",
        f"{MODELS}::test_an_input_that_a_part_of_the_model_computed_is_refused",
    ),
    mutant(
        "weights that an earlier pass has converted are met",
        "separation/watch.py",
        "torch.clear_autocast_cache()",
        "torch.is_autocast_cache_enabled()",
        f"{MODELS}::test_half_precision_is_one_more_way_to_run",
    ),
    mutant(
        "a parameter that is thawed later keeps its absence from the plan",
        "sensitivities/enforced_model.py",
        "return self.planned.keys() == set(self._names().values()) and self._radii == self._present_radii()",
        "return True",
        f"{MODELS}::test_a_parameter_that_is_thawed_later_has_its_noise",
    ),
    mutant(
        "a trained parameter need not be used",
        "sensitivities/enforced_model.py",
        "if name not in self.planned:",
        "if False:",
        f"{MODELS}::test_a_parameter_that_is_not_used_is_refused_by_name",
    ),
    mutant(
        "the uses of a pass are not read",
        "training/passes.py",
        "return Seen(uses=self._uses)",
        "return Seen()",
        f"{MODELS}::test_a_batch_is_noised_for_the_largest_radius_of_its_passes",
    ),
    mutant(
        "examples of any shape are taken",
        "runtime/example.py",
        "rows.shape[1:] == own.shape and ",
        "",
        f"{MODELS}::test_another_call_is_refused_in_words_and_nothing_is_charged",
    ),
    mutant(
        "a value of an earlier batch is a constant",
        "separation/marks.py",
        "if earlier is not None and isinstance(earlier.label, Rows):",
        "if False:",
        f"{MODELS}::test_what_mixes_examples_is_refused",
    ),
    mutant(
        "an enforcing node takes the first axis for the examples",
        "nn/bounded/enforcing.py",
        "if rows not in (None, Rows(0, inner=rows.inner if rows is not None and grouped else 1)):",
        "if False:",
        f"{MODELS}::test_a_node_refuses_examples_that_are_not_in_front",
    ),
    mutant(
        "padding to the longest sequence of a batch",
        "data/padding.py",
        "return default_collate([self._padded(item) for item in items])",
        "self.length = max(len(torch.as_tensor(item[0])) for item in items)\n"
        "        return default_collate([self._padded(item) for item in items])",
        "data/test_padding.py::test_the_length_is_the_public_one",
    ),
]
