"""What was spent in a folder: by every ledger in it, or not known."""

from pathlib import Path

import pytest
from helpers.trainers import trainer

from dplip.accounting import GaussianEvent, create_accountant
from dplip.records import Ledger, read_report
from dplip.records.spends import spends

DELTA = 1e-5


def ledger(path: Path, steps: int, noise: float = 1.0, **header) -> None:
    with Ledger(path, delta=DELTA, **header) as one:
        for _ in range(steps):
            one.append(GaussianEvent(noise, 0.1))


def epsilon(*events: tuple[float, int], mechanism: str = "rdp") -> float:
    accountant = create_accountant(mechanism)
    for noise, steps in events:
        accountant.count(GaussianEvent(noise, 0.1), steps)
    return accountant.get_epsilon(DELTA)


def test_all_runs_of_a_folder_add_up_in_the_order_of_time(tmp_path):
    for name, steps, noise in (("ledger.jsonl", 3, 1.0), ("ledger-10.jsonl", 7, 2.0), ("ledger-2.jsonl", 5, 4.0)):
        ledger(tmp_path / name, steps, noise)
    found = spends(tmp_path, DELTA)
    assert [run["ledger"] for run in found["runs"]] == ["ledger-2.jsonl", "ledger-10.jsonl", "ledger.jsonl"]
    assert [run["events"] for run in found["runs"]] == [5, 7, 3]
    assert found["epsilon"] == epsilon((4.0, 5), (2.0, 7), (1.0, 3)) and found["problem"] is None
    assert found["runs"][2]["epsilon"] == epsilon((1.0, 3)) < found["epsilon"]


def test_runs_of_several_accountants_are_composed_by_rdp(tmp_path):
    ledger(tmp_path / "ledger-1.jsonl", 4, mechanism="prv")
    ledger(tmp_path / "ledger.jsonl", 4)
    found = spends(tmp_path, DELTA)
    assert found["accountant"] == "rdp" and found["epsilon"] == epsilon((1.0, 8))


@pytest.mark.parametrize("damage", [lambda text: text[:-9], lambda text: text.replace("0.1", "0.2", 1)])
def test_a_damaged_ledger_makes_the_sum_unknown(tmp_path, damage):
    ledger(tmp_path / "ledger-1.jsonl", 4)
    ledger(tmp_path / "ledger.jsonl", 4)
    (tmp_path / "ledger-1.jsonl").write_text(damage((tmp_path / "ledger-1.jsonl").read_text()))
    found = spends(tmp_path, DELTA)
    assert found["epsilon"] is None and "ledger-1.jsonl" in found["problem"]
    assert "problem" in found["runs"][0] and found["runs"][1]["epsilon"] == epsilon((1.0, 4))


def test_relations_that_differ_do_not_add_up(tmp_path):
    ledger(tmp_path / "ledger-1.jsonl", 4, neighboring="replace_one")
    ledger(tmp_path / "ledger.jsonl", 4)
    found = spends(tmp_path, DELTA)
    assert found["epsilon"] is None and "do not add up" in found["problem"]


def test_a_ledger_that_had_not_begun_spent_nothing(tmp_path):
    (tmp_path / "ledger-1.jsonl").write_text('{"led')
    ledger(tmp_path / "ledger.jsonl", 2)
    assert spends(tmp_path, DELTA)["epsilon"] == epsilon((1.0, 2))
    assert spends(tmp_path / "none", DELTA)["problem"] == "there is no ledger"


def test_the_report_of_a_run_names_all_that_was_spent_in_its_folder(tmp_path):
    first = trainer(output_dir=tmp_path, epochs=1).fit()
    second = trainer(output_dir=tmp_path, epochs=2).fit()
    report = read_report(tmp_path)
    assert [run["epsilon"] for run in report["spent"]["runs"]] == [first.get_epsilon(), second.get_epsilon()]
    assert report["spent"]["epsilon"] > max(first.get_epsilon(), second.get_epsilon())
    assert report["privacy"]["epsilon"] == second.get_epsilon()
