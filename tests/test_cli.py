"""The command line: what it prints and writes, and errors that are one sentence with exit code 2."""

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import dplip
from dplip.accounting import GaussianEvent, create_accountant
from dplip.cli.main import main
from dplip.records import validate_report

torch.set_num_threads(1)


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def dplip_command(monkeypatch, capfd) -> Callable[..., Ran]:
    """Run ``dplip ...`` in this process; an exception other than the exit would be a traceback, and fails the test."""

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["dplip", *map(str, arguments)])
        capfd.readouterr()
        code: object = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
        captured = capfd.readouterr()
        assert isinstance(code, int)
        return Ran(code, captured.out, captured.err)

    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("DPLIP_DATA", raising=False)
    return run


def refused(ran: Ran) -> str:
    """The sentence of a refusal."""
    assert ran.code == 2
    assert "Traceback" not in ran.out + ran.err
    return ran.err


QUICK = ("--data", "digits", "--epochs", 2, "--no-progress")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A short run on digits, by the command itself in a process of its own."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    command = [sys.executable, "-c", "from dplip.cli.main import main; main()", "train", *map(str, QUICK)]
    options = ["--epsilon", "8", "--delta", "1e-5", "--seed", "1", "--epochs", "20", "--out", str(folder)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert str(folder / "report.json") in done.stdout
    return folder


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
    assert f"{report['privacy']['epsilon']:.4f}" in ran.out and f"{report['utility']['accuracy']:.4f}" in ran.out


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


@pytest.mark.parametrize(
    "arguments, named",
    [
        (("train", "--data", "digitz"), "digits"),
        (("train", "--data", "fashionmnist"), "fashion-mnist"),
        (("train", "--data", "mnist"), "DPLIP_DATA"),
        (("train", "--data", "mnist", "--data-dir", "nowhere"), "nowhere"),
        (("train", "--epsilon", "0"), "target_epsilon=0"),
        (("train", "--epsilon", "-1"), "target_epsilon=-1"),
        (("train", "--epsilon", "nan"), "target_epsilon=nan"),
        (("train", "--epsilon", "abc"), "epsilon"),
        (("train", "--delta", "0"), "delta=0"),
        (("train", "--delta", "2"), "delta=2"),
        (("train", "--epochs", "0"), "epochs=0"),
        (("train", "--batch-size", "0"), "batch_size=0"),
        (("train", "--batch-size", "100000"), "batch_size=100000"),
        (("train", "--seed", "-1"), "seed=-1"),
        (("train", "--lr", "-1"), "lr"),
        (("train", "--lr", "nan"), "lr"),
        (("train", "--accountant", "gdp"), "rdp"),
        (("train", "--max-physical-batch-size", "0"), "max_physical_batch_size=0"),
        (("train", "--nothing"), "nothing"),
        (("train", "--norm", "3"), "norm=3"),
        (("train", "--data", "table.csv", "--norm", "2"), "--norm"),
        (("train", "--data", "table.csv", "--model", "l2"), "--model"),
        (("train", "--data", "digits", "--model", "windows"), "digits"),
        (("account",), "--sample-rate"),
        (("account", "--sample-rate", "0.1", "--steps", "10"), "--noise-multiplier"),
        (("account", "--sample-rate", "2", "--steps", "10", "--noise-multiplier", "1"), "sample_rate=2"),
        (("account", "--sample-rate", "0.1", "--steps", "-1", "--noise-multiplier", "1"), "steps=-1"),
        (("account", "--sample-rate", "0.1", "--steps", "10", "--noise-multiplier", "-1"), "noise_multiplier=-1"),
        (("account", "--sample-rate", "0.1", "--steps", "10", "--epsilon", "0"), "epsilon=0"),
        (("account", "--ledger", "nowhere"), "nowhere"),
        (("certify", "nowhere"), "nowhere"),
        (("certify",), "run"),
        (("lunch",), "lunch"),
    ],
    ids=lambda v: "-".join(v).replace("--", "") if isinstance(v, tuple) else None,
)
def test_what_cannot_be_is_refused_with_exit_code_2_and_its_name(
    dplip_command, tmp_path, monkeypatch, arguments, named
):
    monkeypatch.chdir(tmp_path)
    assert named in refused(dplip_command(*arguments))
    assert not list(tmp_path.rglob("ledger*"))


def test_a_norm_without_certificates_is_refused(finished, dplip_command):
    assert "norm=3" in refused(dplip_command("certify", finished, "--norm", 3))


@pytest.mark.parametrize("place", ["file", "file/run"])
def test_an_output_folder_that_cannot_be_made_is_refused(dplip_command, tmp_path, place):
    (tmp_path / "file").write_text("")
    assert str(tmp_path / place) in refused(dplip_command("train", *QUICK, "--out", tmp_path / place))


def copied(finished: Path, folder: Path) -> Path:
    for name in ("report.json", "model.pt"):
        (folder / name).write_bytes((finished / name).read_bytes())
    return folder


def without_model(folder: Path) -> None:
    (folder / "model.pt").unlink()


def damaged_model(folder: Path) -> None:
    (folder / "model.pt").write_text("junk")


def list_for_a_report(folder: Path) -> None:
    (folder / "report.json").write_text("[]")


def edited(**changes: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        report = json.loads((folder / "report.json").read_text())
        report["run"] = {**report["run"], **changes}
        (folder / "report.json").write_text(json.dumps(report))

    return edit


DAMAGE = {
    "no weights": without_model,
    "damaged weights": damaged_model,
    "a list": list_for_a_report,
    "no preset": edited(preset=None),
    "unknown entry of the preset": edited(preset={"colour": "red"}),
    "unknown data": edited(data="digitz"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_certify_refuses_a_damaged_run(finished, dplip_command, tmp_path, damage):
    DAMAGE[damage](copied(finished, tmp_path))
    refused(dplip_command("certify", tmp_path))


def test_certify_refuses_weights_of_another_architecture(finished, dplip_command, tmp_path):
    folder = copied(finished, tmp_path)
    preset = json.loads((folder / "report.json").read_text())["run"]["preset"]
    edited(preset={**preset, "widths": [16]})(folder)
    refused(dplip_command("certify", folder))


def test_a_ledger_that_was_edited_is_refused(finished, dplip_command, tmp_path):
    path = tmp_path / "ledger.jsonl"
    path.write_text((finished / "ledger.jsonl").read_text().replace('"step":2', '"step":3'))
    assert "line 3" in refused(dplip_command("account", "--ledger", path))


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


def test_an_error_is_one_line_on_the_error_stream(dplip_command):
    ran = dplip_command("train", "--data", "digitz")
    assert ran.out == "" and ran.err.startswith("error: ") and ran.err.count("\n") == 1


def test_a_budget_of_almost_nothing_still_holds(dplip_command, tmp_path):
    dplip_command("train", *QUICK, "--epsilon", "0.001", "--out", tmp_path)
    privacy = json.loads((tmp_path / "report.json").read_text())["privacy"]
    assert 0 < privacy["epsilon"] <= 0.001 and math.isfinite(privacy["noise_multiplier"])
