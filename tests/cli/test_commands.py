"""The commands: what they print and write."""

import json
import math
import re

import pytest
from helpers.commands import QUICK, refused

import dplip
from dplip.accounting import GaussianEvent, create_accountant
from dplip.cli.train import show, upper
from dplip.records import validate_report


def test_train_writes_a_whole_report_whose_epsilon_is_within_the_budget(finished):
    report = json.loads((finished / "report.json").read_text())
    validate_report(report)
    privacy = report["privacy"]
    assert 7.9 < privacy["epsilon"] <= 8.0
    assert privacy["delta"] == 1e-5 and privacy["seeded"] is True and privacy["neighboring"] == "add_remove"
    assert privacy["public_size"] == 1437
    assert report["utility"]["accuracy"] > 0.5
    assert len(report["certified"]["radii"]) == len(report["certified"]["accuracy"]) >= 3
    assert report["certified"]["accuracy"] == sorted(report["certified"]["accuracy"], reverse=True)
    assert report["run"]["data"] == "digits"


def test_a_second_run_in_a_folder_reports_what_the_first_has_spent(dplip_command, tmp_path):
    reports = []
    for _ in range(2):
        ran = dplip_command("train", *QUICK, "--out", tmp_path)
        reports.append(json.loads((tmp_path / "report.json").read_text()))
    first, second = (report["spent"] for report in reports)
    assert [run["ledger"] for run in second["runs"]] == ["ledger-1.jsonl", "ledger.jsonl"]
    assert second["runs"][0]["epsilon"] == first["epsilon"] == reports[0]["privacy"]["epsilon"]
    assert second["epsilon"] > reports[1]["privacy"]["epsilon"]
    assert f"{upper(second['epsilon'])} with the earlier runs" in ran.out and "an earlier run" in ran.err


def test_a_model_for_accuracy_is_not_shown_as_a_failure_at_radii(finished, capsys):
    report = json.loads((finished / "report.json").read_text())
    copy = finished.parent / "accurate"
    copy.mkdir()
    report["certified"]["accuracy"] = [report["certified"]["accuracy"][0], *[0.0] * 3]
    (copy / "report.json").write_text(json.dumps(report))
    show(copy)
    printed = capsys.readouterr().out
    assert "certified nothing at l2 radius 0.1412 and beyond" in printed and "certified 0.0000" not in printed


def test_account_recomputes_from_the_ledger_alone_what_the_report_says(finished, dplip_command):
    report = json.loads((finished / "report.json").read_text())
    ran = dplip_command("account", "--ledger", finished / "ledger.jsonl", "--delta", "1e-5")
    assert ran.code == 0
    assert f"epsilon {report['privacy']['epsilon']:.6f}" in ran.out
    assert ran.out.strip().endswith("add_remove")


@pytest.mark.parametrize("option", [("--neighboring", "replace_one"), ("--accountant", "prv"), ("--steps", 3)])
def test_account_does_not_pass_over_what_a_ledger_does_not_say(finished, dplip_command, option):
    ran = dplip_command("account", "--ledger", finished / "ledger.jsonl", *option)
    assert ran.code == 2 and option[0] in ran.err


def test_certify_shows_certified_accuracy_against_radius(finished, dplip_command):
    report = json.loads((finished / "report.json").read_text())
    ran = dplip_command("certify", finished, "--points", 5)
    assert ran.code == 0
    rows = re.findall(r"radius +([\d.]+) +certified accuracy ([\d.]+)", ran.out)
    radii, accuracy = zip(*[(float(r), float(a)) for r, a in rows], strict=True)
    assert len(rows) == 6 and radii[0] == 0 and list(radii) == sorted(radii)
    assert list(accuracy) == sorted(accuracy, reverse=True)
    assert accuracy[0] == pytest.approx(report["utility"]["accuracy"], abs=1e-4) and accuracy[-1] == 0
    assert "average certified radius" in ran.out


@pytest.mark.parametrize("norm", ["1", "inf"])
def test_certify_takes_the_other_norms(finished, dplip_command, norm):
    ran = dplip_command("certify", finished, "--norm", norm, "--points", 1)
    assert ran.code == 0 and f"norm {norm}" in ran.out


def test_certify_draws_the_curve(finished, dplip_command, tmp_path):
    pytest.importorskip("matplotlib")
    ran = dplip_command("certify", finished, "--plot", tmp_path / "curve.png")
    assert ran.code == 0
    assert (tmp_path / "curve.png").read_bytes()[1:4] == b"PNG"


def test_certify_refuses_a_picture_of_no_known_kind(finished, dplip_command, tmp_path):
    pytest.importorskip("matplotlib")
    assert "no picture can be written" in refused(dplip_command("certify", finished, "--plot", tmp_path / "curve.foo"))


def test_train_without_a_seed_says_so_and_can_be_repeated_in_the_same_folder(dplip_command, tmp_path):
    for repeated in (False, True):
        ran = dplip_command("train", *QUICK, "--out", tmp_path)
        assert ran.code == 0 and "SEEDED" not in ran.out
        assert ("its ledger is kept, and the two add up" in ran.err) is repeated
    assert json.loads((tmp_path / "report.json").read_text())["privacy"]["seeded"] is False


def test_train_says_where_it_is_seeded_and_what_it_spent(dplip_command, tmp_path):
    ran = dplip_command("train", *QUICK, "--seed", 3, "--out", tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert "SEEDED" in ran.out
    assert (
        f"epsilon   {upper(report['privacy']['epsilon'])} " in ran.out
        and f"{report['utility']['accuracy']:.4f}" in ran.out
    )


def test_train_with_an_infinite_budget_has_no_noise_and_no_privacy(dplip_command, tmp_path):
    ran = dplip_command("train", *QUICK, "--epsilon", "inf", "--out", tmp_path)
    assert ran.code == 0 and "epsilon   inf" in ran.out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["privacy"]["epsilon"] == "inf" and report["privacy"]["noise_multiplier"] == 0


def test_train_shows_its_progress_and_the_epsilon_spent(dplip_command, tmp_path):
    ran = dplip_command("train", "--epochs", 4, "--batch-size", 400, "--out", tmp_path)
    assert "noise multiplier" in ran.out + ran.err
    assert "16/16" in ran.err and "epsilon=" in ran.err


def test_account_computes_epsilon_from_the_noise(dplip_command):
    expected = create_accountant("rdp").epsilon_after(GaussianEvent(1.1, 0.01), 1000, 1e-5)
    ran = dplip_command("account", "--sample-rate", 0.01, "--steps", 1000, "--noise-multiplier", 1.1)
    assert ran.code == 0 and f"epsilon {expected:.6f} at delta 1e-05" in ran.out


def test_account_finds_the_noise_that_a_budget_needs(dplip_command):
    ran = dplip_command("account", "--sample-rate", 0.01, "--steps", 1000, "--epsilon", 3)
    spent, noise = re.search(r"epsilon ([\d.]+) .* noise multiplier ([\d.]+)", ran.out).groups()
    assert 2.9 < float(spent) <= 3.0
    assert float(noise) == pytest.approx(
        dplip.get_noise_multiplier(target_epsilon=3.0, target_delta=1e-5, sample_rate=0.01, steps=1000), abs=1e-6
    )


def test_the_version_is_that_of_the_package(dplip_command):
    ran = dplip_command("--version")
    assert ran.code == 0 and ran.out.strip() == dplip.__version__


def test_help_names_every_command_and_its_options(dplip_command):
    ran = dplip_command("--help")
    assert ran.code == 0
    assert all(name in ran.out for name in ("train", "account", "certify"))
    for command, options in {
        "train": ("--data", "--data-dir", "--epsilon", "--delta", "--seed", "--out"),
        "account": ("--sample-rate", "--steps", "--ledger"),
        "certify": ("--norm", "--plot"),
    }.items():
        shown = dplip_command(command, "--help")
        assert shown.code == 0 and all(option in shown.out for option in options)


def test_an_empty_command_line_shows_the_help(dplip_command):
    ran = dplip_command()
    assert "train" in ran.out + ran.err


def test_a_budget_of_almost_nothing_still_holds(dplip_command, tmp_path):
    dplip_command("train", *QUICK, "--epsilon", "0.001", "--out", tmp_path)
    privacy = json.loads((tmp_path / "report.json").read_text())["privacy"]
    assert 0 < privacy["epsilon"] <= 0.001 and math.isfinite(privacy["noise_multiplier"])
