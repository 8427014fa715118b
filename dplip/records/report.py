"""The report of a run: what was spent, what was reached, and with which versions, as one JSON file."""

from __future__ import annotations

import json
import math
import numbers
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from dplip.errors import ConfigurationError
from dplip.runtime.files import write_text

FIELDS: Mapping[str, tuple[str, ...]] = {
    "privacy": (
        "epsilon",
        "delta",
        "accountant",
        "noise_multiplier",
        "sample_rate",
        "steps",
        "neighboring",
        "seeded",
        "public_size",
        "tuning",
    ),
    "utility": ("accuracy",),
    "certified": ("norm", "radii", "accuracy"),
    "time": (),
    "versions": ("python", "dplip", "torch", "opacus", "numpy", "platform"),
}
"""The sections of a report and the fields that each must have; further ones are allowed."""

_KNOWN = {"accountant": ("rdp", "prv", "pld"), "neighboring": ("add_remove", "replace_one")}
_NUMBERS = ("epsilon", "delta", "noise_multiplier", "sample_rate", "steps")


def versions() -> dict[str, str]:
    """The versions that a run's figures depend on, read without importing the packages.

    >>> list(versions())
    ['python', 'dplip', 'torch', 'opacus', 'numpy', 'platform']
    """
    packages = {name: _version(name) for name in ("dplip", "torch", "opacus", "numpy")}
    return {"python": platform.python_version(), **packages, "platform": platform.platform()}


def validate_report(report: Mapping[str, Any]) -> None:
    """Refuse a report in which a field of ``FIELDS`` is missing or the certificate's lists disagree.

    Raises:
        ConfigurationError: naming every missing field.
    """
    if not isinstance(report, Mapping):
        raise ConfigurationError(f"the report is a {type(report).__name__}: it must be a mapping of its sections")
    missing = []
    for section, fields in FIELDS.items():
        content = report.get(section)
        if not isinstance(content, Mapping):
            missing.append(section)
        else:
            missing += [f"{section}.{field}" for field in fields if field not in content]
    if missing:
        raise ConfigurationError(f"the report lacks {', '.join(missing)}: fill in every field of its schema")
    if not isinstance(report.get("run", {}), Mapping):
        raise ConfigurationError(f"run={report['run']!r} in the report: it is a section of its own; leave it out")
    for name, known in _KNOWN.items():
        if report["privacy"][name] not in known:
            raise ConfigurationError(f"privacy.{name}={report['privacy'][name]!r} in the report: not one of {known}")
    for name in _NUMBERS:
        value = report["privacy"][name]
        if not isinstance(value, int | float) and value != "inf":
            raise ConfigurationError(f"privacy.{name}={value!r} in the report: this is a number, or 'inf'; mend it")
    radii, accuracy = report["certified"]["radii"], report["certified"]["accuracy"]
    if not (isinstance(radii, Sequence) and isinstance(accuracy, Sequence)):
        raise ConfigurationError(f"certified.radii={radii!r}, certified.accuracy={accuracy!r}: give two lists")
    if len(radii) != len(accuracy):
        raise ConfigurationError(
            f"certified.radii={radii} and certified.accuracy={accuracy} differ in length: give one accuracy per radius"
        )


def write_report(path: str | Path, report: Mapping[str, Any]) -> None:
    """Write a report as JSON, whole or not at all: a reader never sees half a file.

    Infinite numbers, which JSON lacks, are written as the strings ``"inf"`` and ``"-inf"``.

    Args:
        path: the file; its folder is made if need be.
        report: nested mappings and sequences of strings, numbers, booleans and None.

    Raises:
        ConfigurationError: a value is NaN or has no JSON form, or the file cannot be written.
    """
    write_text(path, json.dumps(json_value(report, "report"), indent=2, allow_nan=False) + "\n")


def remove(path: Path) -> None:
    """Remove an earlier report, if there is one.

    Raises:
        ConfigurationError: it cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"path={str(path)!r}: the report there cannot be replaced ({error}): name a folder that you can write to"
        ) from error


def read_report(folder: str | Path) -> dict[str, Any]:
    """The report that a run wrote to its folder.

    Raises:
        ConfigurationError: there is none, or it is not a report.
    """
    path = Path(folder) / "report.json"
    try:
        report = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as wrong:
        raise ConfigurationError(
            f"{path}: no report can be read there ({wrong}). Give the folder of a finished run; "
            "one that was interrupted is finished by dplip train --resume."
        ) from None
    validate_report(report)
    return dict(report)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def json_value(value: object, name: str) -> Any:
    """The value in JSON's own types; ``name`` is its dotted place in the report."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        number = float(value)
        if math.isnan(number):
            raise ConfigurationError(f"{name}={number} is not a number, so it reports nothing: leave it out or mend it")
        return number if math.isfinite(number) else str(number)
    if isinstance(value, Mapping):
        return {_key(key, name): json_value(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item, f"{name}[{index}]") for index, item in enumerate(value)]
    raise ConfigurationError(
        f"{name} is a {type(value).__name__}, which JSON has no form for: pass numbers, strings, lists or mappings"
    )


def _key(key: object, name: str) -> str:
    if not isinstance(key, str):
        raise ConfigurationError(f"{name} has the key {key!r}, which is not a string: name it by a string")
    return key
