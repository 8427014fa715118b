"""What a signer must not be led to believe: every way in which a claim would be about something else than the run."""

import json
import shutil
from pathlib import Path

import pytest
from helpers import finished
from helpers.trainers import trainer

from dplip.accounting import GaussianEvent
from dplip.errors import ConfigurationError
from dplip.records import Ledger, read_report
from dplip.records.spends import spends
from dplip.reports import write_pages
from dplip.reports.claim import claim, guarantee
from dplip.reports.contents import contents
from dplip.reports.rounded import delta_at_most
from dplip.runs import load_run
from dplip.runs.export import privacy


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return finished.digits(tmp_path_factory.mktemp("claims") / "digits")


@pytest.fixture
def copied(folder, tmp_path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "run"))


def change(folder: Path, **sections) -> None:
    report = read_report(folder)
    for name, section in sections.items():
        report[name] = {**report[name], **section}
    (folder / "report.json").write_text(json.dumps(report))


def shortened(folder: Path) -> None:
    path = folder / "ledger.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))


def test_other_weights_are_not_claimed_to_be_private(copied):
    content = bytearray((copied / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (copied / "model.safetensors").write_bytes(content)
    assert contents(copied)["claim"].status == "unknown"
    (copied / "model.safetensors").unlink()
    found = contents(copied)
    assert found["claim"].status == "unknown" and found["total"] is None and found["attacks"] is None


def test_a_report_of_another_relation_than_its_ledgers_claims_nothing(copied):
    change(copied, privacy={"neighboring": "replace_one"})
    assert contents(copied)["claim"].status == "unknown"


@pytest.mark.parametrize("name, value", [("neighboring", "other"), ("accountant", "gdp")])
def test_a_report_of_unknown_terms_is_refused(copied, name, value):
    change(copied, privacy={name: value})
    with pytest.raises(ConfigurationError, match=value):
        write_pages(copied)


def test_a_report_that_names_no_run_is_not_read_beside_any_ledger(copied):
    change(copied, spent={"runs": []})
    shortened(copied)
    assert contents(copied)["claim"].status == "unknown"


def test_a_promise_that_an_attack_broke_is_not_claimed(copied):
    row = {"promise": "p", "tried": "t", "bound": 1.0, "found": 2.0, "survived": False, "note": ""}
    run = read_report(copied)["spent"]["runs"][-1]
    (copied / "audit.json").write_text(json.dumps({"run": run["run"], "events": run["events"], "rows": [row]}))
    found = contents(copied)
    assert found["claim"].status == "unknown" and "broke a promise" in found["claim"].sentence


def test_a_damaged_ledger_is_named_without_its_place_on_this_machine(copied):
    (copied / "ledger.jsonl").write_bytes((copied / "ledger.jsonl").read_bytes()[:-9])
    for page in write_pages(copied):
        text = page.read_text()
        assert "ledger.jsonl, line" in text and str(copied) not in text
    assert str(copied) not in json.dumps(spends(copied, 1e-5))


@pytest.mark.parametrize(
    "facts, told",
    [
        ({"trusted_optimizer": "own.Sgd"}, "(own.Sgd), which nothing checked"),
        ({"distributed": "independent"}, "others"),
    ],
)
def test_what_is_taken_on_trust_is_in_the_claim_itself_for_every_run_of_the_folder(copied, facts, told):
    with Ledger(copied / "ledger-1.jsonl", facts=facts) as earlier:
        earlier.append(GaussianEvent(5.0, 0.1))
    found = contents(copied)["claim"]
    assert found.status == "private" and told in found.sentence


def test_the_accountant_of_the_folder_is_named_beside_that_of_the_run(copied):
    with Ledger(copied / "ledger-1.jsonl") as earlier:
        earlier.append(GaussianEvent(5.0, 0.1))
    report = read_report(copied)
    report["privacy"]["accountant"] = "prv"
    points = dict(guarantee(report, spends(copied, 1e-5)))
    assert "numerical composition" in points["Accounting"] and "this folder: Rényi" in points["Accounting"]


def test_delta_is_rounded_up(copied):
    delta = 1 / 1437
    change(copied, privacy={"delta": delta})
    assert float(delta_at_most(delta)) >= delta
    assert f"δ = {delta_at_most(delta)}" in claim(read_report(copied), spends(copied, delta)).sentence


def test_two_runs_without_noise_in_one_folder_are_reported(tmp_path, capsys):
    for _ in range(2):
        finished.digits(tmp_path / "run", epsilon=float("inf"), epochs=1)
    assert "inf with the earlier runs" in capsys.readouterr().out
    assert contents(tmp_path / "run")["claim"].status == "not private"


def test_what_the_command_says_is_rounded_to_the_safe_side(tmp_path, capsys):
    report = read_report(finished.digits(tmp_path / "run"))
    words = [line.split() for line in capsys.readouterr().out.splitlines()]
    (epsilon,) = [float(line[1]) for line in words if line[0] == "epsilon"]
    assert epsilon >= report["privacy"]["epsilon"]
    radii = [float(line[-1]) for line in words if line[0] == "certified"]
    assert radii and all(r <= most for r, most in zip(radii, report["certified"]["radii"][1:], strict=True))


def test_a_run_on_images_in_the_folder_of_a_table_is_not_read_by_its_schema(tmp_path):
    folder = finished.digits(finished.table(tmp_path / "run"))
    run = load_run(folder)
    assert (folder / "schema.json").exists() and run.schema is None
    assert contents(folder)["utility"]["names"] == [str(k) for k in range(10)]


def test_an_export_of_a_seeded_run_claims_no_epsilon(tmp_path):
    trainer(output_dir=tmp_path, epochs=1, seed=1).fit()
    assert privacy(read_report(tmp_path))["epsilon"] == "inf"
