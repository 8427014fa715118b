"""Mutants of events, accountants, calibration and budgets."""

from attacks.mutants.mutant import Mutant, mutant

ACCOUNTING = [
    mutant(
        "sampled twice",
        "accounting/events.py",
        "k * math.log(q),",
        "2 * k * math.log(q),",
        "accounting/test_divergences.py::test_divergences_agree_with_dp_accounting_at_integer_orders",
    ),
    mutant(
        "sampled twice, at fractional orders",
        "accounting/events.py",
        "q=q, noise",
        "q=q**2, noise",
        "accounting/test_divergences.py::test_divergences_bound_a_quadrature_at_fractional_orders",
    ),
    mutant(
        "the last term of the conversion counted twice",
        "accounting/rdp.py",
        "+ math.log1p(-1 / order)",
        "+ 2 * math.log1p(-1 / order)",
        "accounting/test_epsilon.py::test_a_plain_gaussian_is_bounded_tightly_from_above",
    ),
    Mutant(
        "negative epsilons",
        "accounting",
        (
            ("if -math.expm1(-spent(2.0)) <= delta**2:\n        return 0.0", "if False:\n        return 0.0"),
            (
                "rdp = max(0.0, rdp_epsilon(spent, neighboring, delta))",
                "rdp = rdp_epsilon(spent, neighboring, delta)",
            ),
        ),
        "accounting/test_epsilon.py::test_epsilon_is_never_negative",
    ),
    mutant(
        "no noise is free",
        "accounting/accountant.py",
        "if any(event.noise_multiplier == 0 for event in spent):\n        return math.inf",
        "if any(event.noise_multiplier == 0 for event in spent):\n        return 0.0",
        "accounting/test_epsilon.py::test_no_step_costs_nothing_and_no_noise_costs_everything",
    ),
    mutant(
        "merged steps lost",
        "accounting/accountant.py",
        "steps += self._events.pop()[1]",
        "self._events.pop()",
        "accounting/test_accountant.py::test_history_merges_equal_neighbours_and_counts_every_step",
    ),
    mutant(
        "calibration takes the wrong end of its bracket",
        "accounting/calibration.py",
        "            low, above = middle, tried\n    return high",
        "            low, above = middle, tried\n    return low",
        "accounting/test_calibration.py::test_calibration_never_overshoots_and_comes_close",
    ),
    mutant(
        "replacing an example, from a part of it with half of the noise gained",
        "accounting/events.py",
        "2 * sigma, at",
        "4 * sigma, at",
        "accounting/test_replace_one.py::test_no_pair_of_examples_is_further_apart_than_is_charged",
    ),
    mutant(
        "replacing an example, as if the others hid nothing of it",
        "accounting/replace_one.py",
        "adding(order) - math.log1p(-sample_rate)",
        "adding(order)",
        "accounting/test_replace_one.py::test_no_pair_of_examples_is_further_apart_than_is_charged",
    ),
    mutant(
        "replacing an example by an accountant without a theorem",
        "accounting/events.py",
        """return ("rdp",) if neighboring""",
        """return ("rdp",) if False and neighboring""",
        "training/test_replace_one_run.py::test_accountants_without_a_theorem_are_refused_but_for_full_batches",
    ),
    mutant(
        "two relations in one engine",
        "training/engine.py",
        "        self.accountant.relate(neighboring)\n",
        "",
        "training/test_replace_one_run.py::test_an_engine_is_for_one_relation",
    ),
    mutant(
        "one step beyond the budget",
        "accounting/budget.py",
        "accountant.epsilon_after(event, 1, self.delta)",
        "accountant.epsilon_after(event, 0, self.delta)",
        "training/test_engine_budget.py::test_a_budget_never_lets_a_step_through_that_the_accountant_would_not",
    ),
    mutant(
        "a budget that looks too far ahead",
        "accounting/budget.py",
        "steps + ahead)",
        "steps + 2 * ahead)",
        "training/test_engine_budget.py::test_a_budget_never_lets_a_step_through_that_the_accountant_would_not",
    ),
]

EPSILONS = [
    mutant(
        "the orders of sampled batches end at 1024",
        "accounting/events.py",
        "LARGEST_SAMPLED_ORDER = 2**16",
        "LARGEST_SAMPLED_ORDER = 1024",
        "accounting/test_epsilon.py::test_small_epsilons_of_sampled_batches_come_from_orders_above_1024",
    ),
    mutant(
        "no order between those of the set",
        "accounting/rdp.py",
        "while high - low > 2 and high > 64:",
        "while False:",
        "accounting/test_epsilon.py::test_the_orders_between_those_of_the_set_are_tried",
    ),
    mutant(
        "a divergence rounded to the nearest and not upwards",
        "accounting/events.py",
        "terms += 4e-15 *",
        "terms -= 4e-15 *",
        "accounting/test_divergences.py::test_divergences_bound_exact_sums_closely",
    ),
    mutant(
        "the first term of a divergence forgotten",
        "accounting/events.py",
        "k = np.arange(2.0, order + 1)",
        "k = np.arange(3.0, order + 1)",
        "accounting/test_epsilon.py::test_no_accountants_epsilon_is_below_an_optimistic_one",
    ),
    mutant(
        "small deltas left to the FFT",
        "accounting/accountant.py",
        "if not 0 < rdp < 100 or delta < 1e-13 * max(1000, sum(spent.values())):",
        "if not 0 < rdp < 100:",
        "accounting/test_epsilon.py::test_prv_leaves_the_field_to_rdp_where_its_rounding_shows",
    ),
    mutant(
        "rdp in place of small epsilons of prv and pld",
        "accounting/accountant.py",
        "if not 0 < rdp < 100 or",
        "if not 0.01 < rdp < 100 or",
        "accounting/test_epsilon.py::test_a_small_epsilon_is_the_accountants_own",
    ),
    mutant(
        "a truth value taken for a number",
        "validate.py",
        "isinstance(value, Real) and not isinstance(value, bool)",
        "isinstance(value, Real)",
        "accounting/test_accountant.py::test_what_is_no_number_is_refused_by_name",
    ),
]
