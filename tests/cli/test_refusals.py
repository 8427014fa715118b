"""Errors of the command line: one sentence, exit code 2, and no traceback."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.commands import QUICK, refused


@pytest.mark.parametrize(
    "arguments, named",
    [
        (("train", "--data", "digitz"), "digits"),
        (("train", "--data", "fashionmnist"), "fashion-mnist"),
        (("train", "--data", "folder_of_png"), "give dplip.DPLipTrainer a data set of (image, class) pairs"),
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
    for name in ("report.json", "model.safetensors"):
        (folder / name).write_bytes((finished / name).read_bytes())
    return folder


def without_model(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def damaged_model(folder: Path) -> None:
    (folder / "model.safetensors").write_text("junk")


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
    "unknown kind of model": edited(model="tree"),
    "unknown data": edited(data="digitz"),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("command", ["certify", "audit"])
def test_a_damaged_run_is_refused(finished, dplip_command, tmp_path, damage, command):
    DAMAGE[damage](copied(finished, tmp_path))
    refused(dplip_command(command, tmp_path))


def test_certify_refuses_weights_of_another_architecture(finished, dplip_command, tmp_path):
    folder = copied(finished, tmp_path)
    preset = json.loads((folder / "report.json").read_text())["run"]["preset"]
    edited(preset={**preset, "widths": [16]})(folder)
    refused(dplip_command("certify", folder))


def test_a_ledger_that_was_edited_is_refused(finished, dplip_command, tmp_path):
    path = tmp_path / "ledger.jsonl"
    path.write_text((finished / "ledger.jsonl").read_text().replace('"step":2', '"step":3'))
    assert "line 3" in refused(dplip_command("account", "--ledger", path))


def test_flags_that_differ_at_resumption_are_named_with_those_of_the_run(dplip_command, tmp_path):
    run = ("train", *QUICK[:2], "--no-progress", "--out", tmp_path)
    assert dplip_command(*run, "--epochs", 1).code == 0
    words = refused(dplip_command(*run, "--epochs", 2, "--resume"))
    assert "facts={'steps': 3, 'noise_multiplier'" in words and "{'steps': 6," in words and "sample_rate" not in words
    assert f"--out {tmp_path} --epochs 1; go on by the same with --resume" in words
    assert dplip_command(*run, "--epochs", 1, "--resume").code == 0


def test_a_draft_that_is_there_already_says_what_to_write_into_it(dplip_command, tmp_path):
    (tmp_path / "t.csv").write_text("a,y\n1,no\n")
    assert dplip_command("schema", tmp_path / "t.csv").code == 0
    words = refused(dplip_command("schema", tmp_path / "t.csv", "--target", "y"))
    assert "not overwritten" in words and '"target": "y"' in words and "--out" in words


def test_an_error_is_one_line_on_the_error_stream(dplip_command):
    ran = dplip_command("train", "--data", "digitz")
    assert ran.out == "" and ran.err.startswith("error: ") and ran.err.count("\n") == 1
