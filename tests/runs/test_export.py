"""Export: the model as it was, and a certificate that needs no dplip and is never larger than the library's."""

import json
import math

import pytest
import torch
from helpers import finished

from dplip.certificates import Certifier
from dplip.data import load
from dplip.errors import ConfigurationError
from dplip.runs import load_run
from dplip.runs.export import certificate, program, roundings

X = load("digits").test.tensors[0][:60]


def radius(scores: torch.Tensor, certificate: dict) -> float:
    """The formula of the docs."""
    y = int(scores.argmax())
    margins = (scores[y] - scores).double() - torch.tensor(certificate["rounding"][y], dtype=torch.float64)
    ratios = margins / torch.tensor(certificate["slopes"][y], dtype=torch.float64)
    ratios[y] = math.inf
    return max(0.0, min(certificate["largest"], float(ratios.min())))


@pytest.mark.parametrize("norm", [1.0, 2.0, float("inf")])
def test_the_exported_model_gives_the_scores_and_radii_within_the_librarys(digits_run, tmp_path, norm):
    beside = digits_run.export(tmp_path / "m.pt2", norm)
    about, model = json.loads(beside.read_text()), torch.export.load(tmp_path / "m.pt2").module()
    found, scores = digits_run.predict(X, norm), model(X)
    assert torch.allclose(scores, found.scores, atol=1e-5)
    radii = [radius(row, about["certificate"]) for row in scores]
    assert all(r <= most for r, most in zip(radii, found.radii, strict=True))
    if norm == 2:
        assert sum(radii) > 0.98 * sum(found.radii)
    assert about["weights"] == digits_run.report["provenance"]["weights"]
    assert about["privacy"] == {"epsilon": digits_run.report["spent"]["epsilon"], "delta": 1e-5}


def test_no_input_within_the_exported_radius_gets_another_label(digits_run, tmp_path):
    about = json.loads(digits_run.export(tmp_path / "m.pt2").read_text())
    model = torch.export.load(tmp_path / "m.pt2").module()
    for x in X[:20]:
        scores = model(x[None])[0]
        y, reach = int(scores.argmax()), radius(scores, about["certificate"])
        for other in range(10):
            moved = x.clone()
            for _ in range(5):  # ascent of the rival's lead, onto the sphere of the radius
                at = moved.clone().requires_grad_()
                z = digits_run.model(at[None])[0]
                (g,) = torch.autograd.grad(z[other] - z[y], at)
                moved = x + 0.999 * reach * g / g.norm().clamp_min(1e-12)
            assert int(model(moved[None])[0].argmax()) == y


@pytest.mark.parametrize("norm", [1, 2, math.inf])
def test_the_roundings_hold_for_every_input_of_the_range(digits_run, norm):
    certifier = digits_run.certifier(norm)
    assert isinstance(certifier, Certifier)
    bound = roundings(certifier, -1.0, 1.0, largest=0.5)
    x = torch.cat([X, torch.rand_like(X) * 2 - 1, torch.ones_like(X), torch.zeros_like(X)])
    exact, _ = certifier.rounding.at(x)
    off = digits_run.model(x).double() - exact
    assert bool(((off[:, :, None] - off[:, None]).abs() * 2 <= bound).all())
    assert bool((roundings(certifier, 0.0, 1.0, largest=0.1) <= bound).all())


def test_the_radii_of_a_table_are_left_to_the_library(table_folder, tmp_path):
    run = load_run(table_folder)
    found = certificate(run, None, 0.0, 1.0, 2.0)
    assert "scaled columns" in found["why"] and "slopes" not in found
    with pytest.raises(ConfigurationError, match=r"torch\.export does not take this model"):
        run.export(tmp_path / "m.pt2")  # it looks at the values of its categories
    assert not list(tmp_path.iterdir())


def test_a_model_of_ones_own_is_exported(own_folder, tmp_path):
    run = load_run(own_folder, model=finished.own_model)
    about = json.loads(run.export(tmp_path / "m.pt2", low=-3.0, high=3.0).read_text())
    assert len(about["certificate"]["slopes"]) == 4


@pytest.mark.parametrize(
    "name, options, told",
    [
        ("m.onnx", {}, "ends in .pt2"),
        ("there.pt2", {}, "not overwritten"),
        ("m.pt2", {"low": 1.0, "high": 0.0}, "give a range"),
        ("m.pt2", {"largest": math.inf}, "a distance above 0"),
    ],
)
def test_what_cannot_be_exported_is_refused(digits_run, tmp_path, name, options, told):
    (tmp_path / "there.json").write_text("mine")
    with pytest.raises(ConfigurationError, match=told):
        digits_run.export(tmp_path / name, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["there.json"]


def test_a_program_that_is_not_the_model_is_refused(digits_folder, tmp_path, monkeypatch):
    run = load_run(digits_folder)
    made = program(run)
    monkeypatch.setattr("dplip.runs.export.program", lambda run: made)
    monkeypatch.setattr(made, "module", lambda: lambda x: torch.zeros(len(x), 10))
    with pytest.raises(ConfigurationError, match="another program than the model"):
        run.export(tmp_path / "m.pt2")
    assert not list(tmp_path.iterdir())
