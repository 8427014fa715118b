"""A finished run read again: its predictions, their radii, and what is refused."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import finished
from helpers.runs import HELD_OUT
from helpers.tables import frame
from helpers.trainers import trainer
from torch import nn

import dplip
from dplip.certificates import certify
from dplip.cli.saved_run import read_run
from dplip.data import load, load_table
from dplip.errors import CheckpointError, ConfigurationError
from dplip.models.table_trainer import in_public_ranges
from dplip.runs import LoadedRun, load_run

X = load("digits").test.tensors[0][:40]


@pytest.mark.parametrize("norm", [None, 1, float("inf")])
def test_predictions_and_radii_are_those_of_the_model(digits_folder, digits_run, norm):
    model = read_run(digits_folder, None).model.eval()
    found = digits_run.predict(X, norm)
    assert torch.equal(found.scores, model(X)) and found.labels == model(X).argmax(1).tolist()
    assert torch.equal(torch.tensor(found.radii, dtype=torch.float64), certify(model, X, 2 if norm is None else norm))
    assert found.why is None and found.norm == (2 if norm is None else norm)
    assert next(iter(found)) == {"label": found.labels[0], "scores": found.scores[0].tolist(), "radius": found.radii[0]}


def test_no_input_within_its_radius_gets_another_label(digits_run):
    found = digits_run.predict(X)
    certain = [k for k, radius in enumerate(found.radii) if radius > 0]
    x = X[certain].clone().requires_grad_()
    scores = digits_run.model(x)
    best = scores.topk(2).values
    (direction,) = torch.autograd.grad((best[:, 1] - best[:, 0]).sum(), x)
    unit = direction / direction.flatten(1).norm(dim=1)[:, None, None, None]
    radii = torch.tensor([found.radii[k] for k in certain], dtype=torch.float32)[:, None, None, None]
    near, far = (digits_run.predict((x + size * radii * unit).detach(), radii=False).labels for size in (0.999, 4.0))
    assert len(certain) > 20
    assert near == [found.labels[k] for k in certain] and far != near


def test_the_slopes_are_computed_once(digits_folder, monkeypatch):
    made, new = [], LoadedRun._new_certifier

    def counted(run, norm):
        made.append(norm)
        return new(run, norm)

    monkeypatch.setattr(LoadedRun, "_new_certifier", counted)
    run = load_run(digits_folder)
    assert run.predict(X, radii=False).radii == [None] * 40 and not made
    for _ in range(3):
        run.predict(X)
    assert made == [2]


def test_a_table_is_predicted_by_its_schema(table_folder):
    run, table = load_run(table_folder), load_table(table_folder.parent / "shop.csv")
    found = run.predict(table.test.tensors[0])
    assert set(found.labels) <= {False, True} and isinstance(found.labels[0], bool)
    assert run.predict(frame(200, 1).drop(columns="bought")).radii == found.radii
    rest, scaled = in_public_ranges(run.model, table.test)
    assert found.radii == certify(rest, scaled.tensors[0], 1).tolist()
    assert (found.norm, found.unit) == (1, "the public range of a column")


def test_a_regression_gives_values_in_its_targets_units_and_no_radius(regression_folder):
    run, table = load_run(regression_folder), load_table(regression_folder.parent / "sums.csv")
    x, y = table.test.tensors
    found = run.predict(x)
    assert found.radii == [None] * len(x) and "regression" in found.why
    error = (np.array(found.labels) - y.numpy()) ** 2
    assert error.mean() == pytest.approx(run.report["utility"]["mse"], rel=1e-4)


def test_a_model_of_ones_own_comes_from_the_function_that_made_it(own_folder):
    run = load_run(own_folder, model=finished.own_model)
    x = HELD_OUT.tensors[0]
    assert run.predict(x).radii == certify(run.model, x).tolist() and not run.model.training
    with pytest.raises(ConfigurationError, match=r"dplip.load_run\(folder, model=function\)"):
        load_run(own_folder)


@pytest.mark.parametrize("make, told", [(lambda: nn.Linear(6, 4), "not those of this model"), (dict, "made a dict")])
def test_another_model_is_refused(own_folder, make, told):
    with pytest.raises(ConfigurationError, match=told):
        load_run(own_folder, model=make)


def test_a_model_without_a_certificate_says_so(tmp_path):
    trainer(finished.untraced_model(), output_dir=tmp_path, epochs=1).fit()
    found = load_run(tmp_path, model=finished.untraced_model).predict(HELD_OUT.tensors[0])
    assert set(found.labels) <= set(range(4))
    assert found.radii == [None] * 40 and "control flow" in found.why


@pytest.mark.parametrize(
    "x, told",
    [
        (X[0], r"shape \(1, 8, 8\).*x\[None\]"),
        (torch.zeros(2, 8, 8), r"the model takes \(batch, 1, 8, 8\)"),
        (torch.zeros(()), "shape"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), "uint8.*255"),
        (np.zeros((2, 1, 8, 8), dtype=object), "object"),
        (np.full((3, 1, 8, 8), np.nan), r"x\[0\] holds NaN or infinity \(and 2 other"),
        ([[0.0]], "is a list"),
    ],
)
def test_an_input_that_the_model_does_not_take_is_refused(digits_run, x, told):
    with pytest.raises(ConfigurationError, match=told):
        digits_run.predict(x)


def test_doubles_are_rounded_and_an_empty_batch_is_no_error(digits_run):
    assert digits_run.predict(X.double().numpy()).radii == digits_run.predict(X).radii
    assert len(digits_run.predict(X[:0])) == 0
    with pytest.raises(ConfigurationError, match="norm=3"):
        digits_run.predict(X, norm=3)


# Folders


def without_report(folder: Path) -> None:
    (folder / "report.json").unlink()


def of_an_earlier_version(folder: Path) -> None:
    changed(folder, lambda report: report.pop("input"))


def without_classes(folder: Path) -> None:
    changed(folder, lambda report: report["run"].pop("classes"))


def of_another_kind(folder: Path) -> None:
    changed(folder, lambda report: report["run"].update(model="tower"))


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def weights_of_another_run(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    save_file({name: -value for name, value in weights.items()}, folder / "model.safetensors")


def changed(folder: Path, change) -> None:
    report = json.loads((folder / "report.json").read_text())
    change(report)
    (folder / "report.json").write_text(json.dumps(report))


@pytest.mark.parametrize(
    "damage, told",
    [
        (shutil.rmtree, "there is no such folder"),
        (without_report, "no report can be read"),
        (of_an_earlier_version, "did not write what the model is built from"),
        (without_classes, "no number of classes"),
        (of_another_kind, "does not say how to build the model"),
        (without_weights, "no weights can be read"),
        (weights_of_another_run, "not the weights that report.json beside it is about"),
    ],
)
def test_a_folder_that_holds_no_such_run_is_refused(digits_folder, tmp_path, damage, told):
    folder = Path(shutil.copytree(digits_folder, tmp_path / "run"))
    damage(folder)
    with pytest.raises((ConfigurationError, CheckpointError), match=told):
        dplip.load_run(folder)


def test_nothing_in_a_folder_is_executed(digits_folder, tmp_path):
    class Bomb:
        def __reduce__(self):
            return Path.touch, (tmp_path / "exploded",)

    folder = Path(shutil.copytree(digits_folder, tmp_path / "run"))
    for name in ("model.safetensors", "report.json", "checkpoint.safetensors"):
        (folder / name).write_bytes(pickle.dumps(Bomb()))
        with pytest.raises((ConfigurationError, CheckpointError)):
            load_run(folder)
    assert not (tmp_path / "exploded").exists()
