"""Where a run's figures come from: the commit of the code, and digests of the weights and the settings."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Mapping
from typing import Any

from dplip.records.report import json_value


def provenance(report: Mapping[str, Any], weights: str) -> dict[str, Any]:
    """The report's section of that name.

    Args:
        report: the other sections.
        weights: the SHA-256 of the file of the weights.
    """
    return {"git": git_commit(), "weights": weights, "settings": settings_digest(report)}


def settings_digest(report: Mapping[str, Any]) -> str:
    """The SHA-256 of the sections ``privacy`` and ``run``, as JSON with sorted keys and without spaces."""
    settings = {name: report.get(name) for name in ("privacy", "run")}
    text = json.dumps(json_value(settings, "report"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def git_commit() -> str | None:
    """The commit that the current folder is at, with ``-dirty`` behind it if files differ; None: there is none."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None
