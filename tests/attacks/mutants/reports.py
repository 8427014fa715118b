"""Mutants of reports, of loaded runs and of what certifies an exported one."""

from attacks.mutants.mutant import mutant

REPORTS = [
    mutant(
        "epsilon of the last run only",
        "reports/claim.py",
        '    epsilon = at_most(spent["epsilon"])\n',
        '    epsilon = at_most(privacy["epsilon"])\n',
        "reports/test_pages.py::test_what_is_claimed_is_the_epsilon_of_every_run_in_the_folder",
    ),
    mutant(
        "epsilon rounded down",
        "reports/rounded.py",
        "return _rounded(number(value), digits, ROUND_CEILING)",
        "return _rounded(number(value), digits, ROUND_FLOOR)",
        "reports/test_pages.py::test_what_is_claimed_is_the_epsilon_of_every_run_in_the_folder",
    ),
    mutant(
        "a ledger that is gone is not missed",
        "reports/contents.py",
        'if "run" in run and (run["run"] not in there or there[run["run"]]["events"] < run["events"]):',
        "if False:",
        "reports/test_pages.py::test_what_is_not_known_is_not_claimed",
    ),
    mutant(
        "a seeded run among the earlier ones overlooked",
        "reports/claim.py",
        'if privacy["seeded"] or any(run.get("seeded") for run in runs):',
        'if privacy["seeded"]:',
        "reports/test_pages.py::test_a_run_that_is_not_private_says_so",
    ),
    mutant(
        "an earlier ledger not added",
        "records/spends.py",
        "for event in (event for record in records for event in record.events):",
        "for event in records[-1].events:",
        "records/test_spends.py::test_all_runs_of_a_folder_add_up_in_the_order_of_time",
    ),
    mutant(
        "delta left out of the best attack",
        "accounting/trade_off.py",
        "return (delta + grown * fpr) * (1 + 1e-12), 1 - (1 - fpr - delta) / grown + 1e-12",
        "return grown * fpr, 1 - (1 - fpr) / grown",
        "accounting/test_trade_off.py::test_the_best_test_of_a_gaussian_is_within_the_bound",
    ),
    mutant(
        "an exported radius without its rounding",
        "runs/export.py",
        "* (2 / rounding.share)",
        "* 0.0",
        "runs/test_export.py::test_the_roundings_hold_for_every_input_of_the_range",
    ),
    mutant(
        "a table's radius in the units of its columns",
        "runs/loaded_run.py",
        "return self.model if self.schema is None else list(self.model.children())[1]",
        "return self.model",
        "runs/test_load_run.py::test_a_table_is_predicted_by_its_schema",
    ),
    mutant(
        "weights of another run",
        "records/weights.py",
        "if expected not in (None, hashlib.sha256(content).hexdigest()):",
        "if False:",
        "runs/test_load_run.py::test_a_folder_that_holds_no_such_run_is_refused",
    ),
]
