"""The report: complete, readable JSON, written whole or not at all."""

import json
import math
import os
from importlib import metadata

import numpy as np
import pytest
import torch

from dplip.errors import ConfigurationError
from dplip.records import validate_report, versions, write_report
from dplip.records.report import FIELDS


def example() -> dict[str, dict[str, object]]:
    return {
        "privacy": {
            "epsilon": 3.0,
            "delta": 1e-5,
            "accountant": "rdp",
            "noise_multiplier": 1.1,
            "sample_rate": 0.1,
            "steps": 400,
            "neighboring": "add_remove",
            "seeded": False,
            "public_size": 1437,
            "tuning": "not accounted",
        },
        "utility": {"accuracy": 0.91},
        "certified": {"norm": 2, "radii": [0.1, 0.2], "accuracy": [0.8, 0.7]},
        "time": {"training_seconds": 1.5},
        "versions": {**versions()},
    }


def test_a_complete_report_passes():
    validate_report(example())


@pytest.mark.parametrize("section, field", [(s, f) for s, fields in FIELDS.items() for f in fields])
def test_every_missing_field_is_named(section, field):
    report = example()
    del report[section][field]
    with pytest.raises(ConfigurationError, match=rf"{section}\.{field}"):
        validate_report(report)


@pytest.mark.parametrize("section", FIELDS)
def test_every_missing_section_is_named(section):
    report = example()
    del report[section]
    with pytest.raises(ConfigurationError, match=section):
        validate_report(report)


def test_one_certified_accuracy_per_radius():
    report = example()
    report["certified"]["radii"] = [0.1]
    with pytest.raises(ConfigurationError, match="differ in length"):
        validate_report(report)


def test_what_is_written_is_what_was_passed(tmp_path):
    path = tmp_path / "made" / "report.json"
    write_report(path, example())
    assert json.loads(path.read_text()) == example()
    assert os.listdir(path.parent) == ["report.json"]


def test_numbers_of_other_types_become_numbers(tmp_path):
    path = tmp_path / "report.json"
    write_report(path, {"a": np.float32(0.5), "b": np.int64(3), "c": (True, None, "s")})
    assert json.loads(path.read_text()) == {"a": 0.5, "b": 3, "c": [True, None, "s"]}


def test_infinities_become_strings(tmp_path):
    path = tmp_path / "report.json"
    write_report(path, {"epsilon": math.inf, "low": [-math.inf]})
    assert json.loads(path.read_text()) == {"epsilon": "inf", "low": ["-inf"]}


@pytest.mark.parametrize(
    "value, named",
    [
        (math.nan, r"report\.privacy\.radii\[1\]=nan"),
        (torch.tensor(1.0), "Tensor"),
        ({1: 2}, "the key 1"),
    ],
)
def test_what_json_cannot_say_is_refused_and_the_old_report_stays(tmp_path, value, named):
    path = tmp_path / "report.json"
    write_report(path, {"old": 1})
    with pytest.raises(ConfigurationError, match=named):
        write_report(path, {"privacy": {"radii": [0.0, value]}})
    assert json.loads(path.read_text()) == {"old": 1}


def test_a_failed_replacement_leaves_the_old_report_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    write_report(path, {"old": 1})

    def refuse(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(ConfigurationError, match="no space left"):
        write_report(path, {"new": 1})
    assert json.loads(path.read_text()) == {"old": 1}
    assert os.listdir(tmp_path) == ["report.json"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        write_report(tmp_path / "file" / "report.json", {})


def test_versions_are_those_installed():
    found = versions()
    assert found["torch"] == metadata.version("torch")  # torch.__version__ also names the build, such as +cu130
    assert found["numpy"] == np.__version__
    assert all(found.values())
