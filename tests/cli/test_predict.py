"""``dplip predict`` and ``dplip report``: what they print, write and refuse."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import finished as runs
from helpers.commands import refused
from helpers.tables import frame

from dplip.data import load
from dplip.runs import load_run

X = load("digits").test.tensors[0][:5]


@pytest.fixture
def arrays(tmp_path) -> Path:
    np.save(tmp_path / "x.npy", X.numpy())
    return tmp_path / "x.npy"


@pytest.fixture
def images(tmp_path) -> Path:
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "images").mkdir()
    for k, x in enumerate(X):
        image.fromarray((x[0] * 255).round().byte().numpy()).save(tmp_path / f"images/{k}.png")
    return tmp_path / "images"


def test_arrays_are_predicted_with_a_radius_each(finished, dplip_command, arrays):
    ran = dplip_command("predict", finished, "--input", arrays)
    assert ran.code == 0 and "radius: in the l2 norm" in ran.err
    rows = list(csv.DictReader(io.StringIO(ran.out)))
    found = load_run(finished).predict(X)
    assert [int(row["label"]) for row in rows] == found.labels
    assert [float(row["radius"]) for row in rows] == found.radii
    assert [float(row["score 3"]) for row in rows] == found.scores[:, 3].tolist()


def test_images_are_predicted_by_their_names(finished, dplip_command, images, tmp_path):
    ran = dplip_command("predict", finished, "--input", images, "--norm", "inf", "--output", tmp_path / "p.jsonl")
    assert ran.code == 0 and ran.out == ""
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [row["input"] for row in rows] == [f"{k}.png" for k in range(5)]
    found = load_run(finished).predict((X * 255).round() / 255, float("inf"))
    assert [row["radius"] for row in rows] == pytest.approx(found.radii, rel=1e-3)


def test_a_table_of_numbers_is_predicted(finished, dplip_command, tmp_path):
    flat = X.flatten(1).double().numpy()
    lines = [",".join(f"p{k}" for k in range(64)), *(",".join(map(repr, row.tolist())) for row in flat)]
    (tmp_path / "x.csv").write_text("\n".join(lines))
    ran = dplip_command("predict", finished, "--input", tmp_path / "x.csv", "--output", tmp_path / "p.csv")
    assert ran.code == 0
    rows = list(csv.DictReader((tmp_path / "p.csv").open()))
    assert [int(row["label"]) for row in rows] == load_run(finished).predict(X).labels


def test_a_table_is_predicted_by_its_schema_without_the_target(dplip_command, tmp_path):
    folder = runs.table(tmp_path / "run")
    frame(20, 2).drop(columns="bought").to_csv(tmp_path / "new.csv", index=False)
    ran = dplip_command("predict", folder, "--input", tmp_path / "new.csv")
    assert ran.code == 0 and "the public range of a column" in ran.err
    assert {row["label"] for row in csv.DictReader(io.StringIO(ran.out))} <= {"True", "False"}
    frame(20, 2).drop(columns="age").to_csv(tmp_path / "less.csv", index=False)
    assert "no column 'age'" in refused(dplip_command("predict", folder, "--input", tmp_path / "less.csv"))


def test_an_output_is_never_overwritten(finished, dplip_command, arrays, tmp_path):
    (tmp_path / "p.csv").write_text("mine")
    error = refused(dplip_command("predict", finished, "--input", arrays, "--output", tmp_path / "p.csv"))
    assert "not overwritten" in error and (tmp_path / "p.csv").read_text() == "mine"
    assert ".csv or .jsonl" in refused(dplip_command("predict", finished, "--input", arrays, "--output", "p.xlsx"))


def deep(path: Path) -> None:
    pytest.importorskip("PIL.Image").fromarray(np.zeros((8, 8), dtype=np.uint16)).save(path)


def wide(path: Path) -> None:
    pytest.importorskip("PIL.Image").fromarray(np.zeros((8, 9), dtype=np.uint8)).save(path)


@pytest.mark.parametrize(
    "name, make, told",
    [
        ("none.npy", lambda path: None, "there is no such file"),
        ("x.npy", lambda path: path.write_bytes(b"junk"), "no array of numbers"),
        ("x.npy", lambda path: np.save(path, np.array([{}]), allow_pickle=True), "no array of numbers"),
        ("x.npy", lambda path: np.save(path, np.zeros((2, 8, 8))), "the model takes (batch, 1, 8, 8)"),
        ("x.npy", lambda path: np.save(path, np.zeros((2, 1, 8, 8), dtype=np.uint8)), "bytes of pixels"),
        ("x.csv", lambda path: path.write_text("a,b\n1,2\n"), "it has 2 columns, and an input has 64"),
        (
            "x.csv",
            lambda path: path.write_text(",".join(f"c{k}" for k in range(64)) + "\n" + ",".join(64 * "x")),
            "'c0'",
        ),
        ("x.txt", lambda path: path.write_text(""), "Convert it"),
        ("folder", lambda path: path.mkdir(), "no image is in this folder"),
        ("x.png", lambda path: path.write_bytes(b"junk"), "cannot be read"),
        ("x.png", wide, "9 pixels wide and 8 high"),
        ("x.png", deep, "more than 8 bits"),
    ],
)
def test_an_input_that_does_not_fit_is_refused(finished, dplip_command, tmp_path, name, make, told):
    make(tmp_path / name)
    error = refused(dplip_command("predict", finished, "--input", tmp_path / name, "--output", tmp_path / "p.csv"))
    assert told in error and not (tmp_path / "p.csv").exists()


def test_train_and_report_write_the_pages(finished, dplip_command, tmp_path):
    assert {"report.html", "model-card.md"} <= {path.name for path in finished.iterdir()}
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    before = (folder / "report.html").read_bytes()
    (folder / "report.html").unlink()
    ran = dplip_command("report", folder)
    assert ran.code == 0 and str(folder / "report.html") in ran.out
    assert (folder / "report.html").read_bytes() == before
    assert "no report can be read" in refused(dplip_command("report", tmp_path))
