"""Mutants of joint radii: of the two passes, and of the noise for the gradients of all parameters together."""

from attacks.mutants.mutant import mutant

LAWS, RUNS = "nn/test_joint.py", "training/test_joint_radius.py"

JOINT = [
    mutant(
        "uses of a parameter counted once",
        "nn/bounded/joint.py",
        "of_parameters[p] + norms if p in of_parameters else norms",
        "norms",
        f"{LAWS}::test_the_uses_of_one_parameter_share_the_radius",
    ),
    mutant(
        "a view of a parameter taken for another one",
        "nn/bounded/joint.py",
        """while not hasattr(following, "variable"):""",
        "while False:",
        f"{LAWS}::test_views_and_copies_of_a_parameter_are_uses_of_it",
    ),
    mutant(
        "shares that may be used again",
        "nn/bounded/enforcing.py",
        """get("shares", {}).pop(edge, None)""",
        """get("shares", {}).get(edge)""",
        f"{LAWS}::test_shares_are_used_once_and_none_is_left_for_a_later_pass",
    ),
    mutant(
        "shares that an earlier pass has left",
        "nn/bounded/joint.py",
        "node.shares.clear()",
        "pass",
        f"{LAWS}::test_shares_are_used_once_and_none_is_left_for_a_later_pass",
    ),
    mutant(
        "the whole radius for each parameter",
        "nn/bounded/enforcing.py",
        "return of_examples(share, None)",
        "return of_examples(float(radius), None)",
        f"{LAWS}::test_no_example_adds_more_than_the_radius_and_each_keeps_its_direction",
    ),
    mutant(
        "the factor of the first pass trusted in the second",
        "nn/bounded/enforcing.py",
        "return of_examples(share, None)",
        "of_examples(0.0, norms)\n        return of_examples(None, None) * (share / norms[0]).to(torch.float32).min()",
        f"{LAWS}::test_whatever_changes_between_the_passes_the_radius_holds",
    ),
    mutant(
        "shares of the batch's largest example",
        "nn/bounded/joint.py",
        "inside / of_all.clamp_min(inside)",
        "inside / of_all.max().clamp_min(inside)",
        f"{LAWS}::test_a_batch_adds_what_its_examples_add_alone",
    ),
    mutant(
        "a scale of its own for terms that cancel",
        "nn/bounded/use.py",
        "if isinstance(ctx.radius, JointRadius):  #",
        "ctx.radius = float(ctx.radius)\n            if isinstance(ctx.radius, JointRadius):  #",
        f"{LAWS}::test_no_example_adds_more_than_the_radius_and_each_keeps_its_direction",
    ),
    mutant(
        "a copy whose parameters have the radius of the model",
        "nn/bounded/parameter.py",
        "copy.deepcopy(self.radius, memo)",
        "self.radius",
        f"{LAWS}::test_a_copy_has_one_joint_radius_of_its_own",
    ),
    mutant(
        "noise for each parameter by itself, of a bound of all",
        "training/optimizer.py",
        "self.noise_multiplier, bounds.together)",
        "self.noise_multiplier)",
        f"{RUNS}::test_all_parameters_get_the_noise_of_the_joint_radius",
    ),
    mutant(
        "a joint bound without the relation's factor",
        "training/step_bounds.py",
        "Sensitivities(found, self._factor * (bounds.together",
        "Sensitivities(found, (bounds.together",
        f"{RUNS}::test_all_parameters_get_the_noise_of_the_joint_radius",
    ),
    mutant(
        "the smallest rounding of all parameters",
        "training/step_bounds.py",
        "max(r for r, _ in roundings.values())",
        "min(r for r, _ in roundings.values())",
        f"{RUNS}::test_the_rounding_of_a_joint_bound_is_the_largest_of_all_parameters",
    ),
    mutant(
        "the joint radius of the last pass alone",
        "training/passes.py",
        "self.radii | other.radii",
        "other.radii",
        f"{RUNS}::test_a_joint_radius_that_changes_is_that_of_its_passes",
    ),
    mutant(
        "layers with radii of their own beside a joint one",
        "sensitivities/uses.py",
        "radii.add(node.radius if isinstance(node.radius, JointRadius) else None)",
        "radii |= {node.radius} if isinstance(node.radius, JointRadius) else set()",
        f"{RUNS}::test_a_model_that_is_joint_in_part_is_refused_in_words",
    ),
    mutant(
        "an automatic radius within a joint one",
        "training/sources.py",
        "if joint is not None and any(",
        "if joint is None and any(",
        f"{RUNS}::test_a_model_that_is_joint_in_part_is_refused_in_words",
    ),
]
