"""The contents of a report, as texts, tables and figures, from what a run wrote to its folder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from statistics import NormalDist
from typing import Any

from dplip.accounting import Accountant, TradeOff, tightest
from dplip.data import read_schema
from dplip.errors import CheckpointError, ConfigurationError
from dplip.records import read_report
from dplip.records.spends import composed, read_ledgers, spends
from dplip.records.weights import FILE, read_weights
from dplip.reports.claim import ACCOUNTANTS, NOT_SHOWN, PRIVATE, claim, guarantee
from dplip.reports.figures import Line, legend, plot
from dplip.reports.rounded import (
    at_least,
    at_most,
    delta_at_most,
    number,
    percent,
    percent_at_least,
    percent_at_most,
    plain,
)

FPRS = (1e-4, 1e-3, 1e-2, 1e-1)
"""The false-positive rates at which an attack's success is bounded."""


def contents(folder: str | Path) -> dict[str, Any]:
    """What the templates of a report take.

    Raises:
        ConfigurationError: the folder holds no report.
    """
    folder = Path(folder)
    report = read_report(folder)
    spent, audited = spends(folder, number(report["privacy"]["delta"])), audit(folder, report)
    problem = spent["problem"] or unknown(folder, report, spent, audited)
    spent = {**spent, "problem": problem, "epsilon": None if problem else spent["epsilon"]}
    claimed = claim(report, spent)
    together = composed(read_ledgers(folder)) if claimed.status == PRIVATE else None
    attack = attacks(together) if isinstance(together, Accountant) else None
    utility, certificates = accuracy(folder, report), certified(report)
    return {
        "name": name_of(folder, report),
        "version": report["versions"]["dplip"],
        "claim": claimed,
        "tiles": tiles(claimed.epsilon, attack, utility, certificates),
        "attacks": attack,
        "guarantee": guarantee(report, spent),
        "spent": spent_rows(spent),
        "total": None if spent["epsilon"] is None else at_most(spent["epsilon"]),
        "delta": delta_at_most(spent["delta"]),
        "problem": spent["problem"],
        "audit": audited,
        "utility": utility,
        "certified": certificates,
        "training": training(report),
        "not_shown": NOT_SHOWN,
        "provenance": provenance(report),
    }


def unknown(
    folder: Path, report: Mapping[str, Any], spent: Mapping[str, Any], audited: Mapping[str, Any] | None
) -> str | None:
    """Why nothing is known of these weights by these ledgers: they are others than those of the report, or attacked."""
    named = report.get("spent", {}).get("runs", [])
    if not named:
        return "report.json names no run, so whose ledgers these are is not known"
    there = {run["run"]: run for run in spent["runs"] if "run" in run}
    for run in named:
        if "run" in run and (run["run"] not in there or there[run["run"]]["events"] < run["events"]):
            return f"report.json names a run of {run['events']} releases, {run['run']}, which no ledger here holds"
    if {run["neighboring"] for run in there.values()} != {report["privacy"]["neighboring"]}:
        return f"report.json is for {report['privacy']['neighboring']}, and the ledgers are not"
    try:
        read_weights(folder, report.get("provenance", {}).get("weights"))
    except CheckpointError:
        return f"{FILE} does not hold the weights that report.json is about"
    return None if audited is None or audited["survived"] else "an attack of dplip audit broke a promise of this run"


def name_of(folder: Path, report: Mapping[str, Any]) -> str:
    """A name for the run: its data set, without the folder that it is in."""
    data = report.get("run", {}).get("data")
    return Path(folder).resolve().name if data is None else Path(str(data)).name


def attacks(accountant: Accountant) -> dict[str, Any]:
    """How well any attacker can tell whether an example was in the data."""
    exact = tightest(accountant)
    bound, normal = TradeOff(exact), NormalDist()
    at = [10 ** (k / 20) for k in range(-80, 1)]
    rates = [bound.tpr(a) for a in at]
    mu = bound.gaussian()
    lines = [Line(at, rates, "first", "any attack on what was released: at most")]
    if math.isfinite(mu):
        gaussian = [normal.cdf(normal.inv_cdf(a) + mu) if a < 1 else 1.0 for a in at]
        lines.append(Line(at, gaussian, "second", f"one look at a Gaussian, μ = {at_most(mu, 3)}"))
    lines.append(Line(at, at, "faint", "guessing"))
    title = "The largest true-positive rate of any attack, by its false-positive rate"
    figure = plot(lines, title=title, x="false-positive rate", y="true-positive rate", log_x=True, share=True)
    return {
        "rows": [(f"{100 * fpr:g}%", percent_at_most(bound.tpr(fpr))) for fpr in FPRS],
        "at_one_percent": percent_at_most(bound.tpr(0.01)),
        "mu": at_most(mu, 3) if math.isfinite(mu) else None,
        "accountant": ACCOUNTANTS[exact.mechanism()],
        "figure": figure,
        "legend": legend(lines),
    }


def tiles(
    epsilon: str, attack: Mapping[str, Any] | None, utility: Mapping[str, Any], certificates: Mapping[str, Any]
) -> list[tuple[str, str, str]]:
    """The figures at the head of the report: name, value, and what it is to be compared with."""
    found = [("epsilon", epsilon, "everything released from this folder")]
    if attack is not None:
        found.append(("best attack", "≤ " + attack["at_one_percent"], "found, at 1% false alarms"))
    if utility["score"] is not None:
        found.append(utility["score"])
    if certificates["tile"] is not None:
        found.append(certificates["tile"])
    return found


def spent_rows(spent: Mapping[str, Any]) -> list[dict[str, str]]:
    """A row for each run in the folder."""
    rows = []
    for run in spent["runs"]:
        known = "problem" not in run
        rows.append(
            {
                "ledger": run["ledger"],
                "run": run["run"] if known else "",
                "events": f"{run['events']:,}" if known else "",
                "epsilon": at_most(run["epsilon"]) if known else "not known",
                "note": run["problem"] if not known else ("seeded: not private" if run["seeded"] else ""),
            }
        )
    return rows


def audit(folder: Path, report: Mapping[str, Any]) -> dict[str, Any] | None:
    """What ``dplip audit`` found; None: it was not run on this run.

    Raises:
        ConfigurationError: its file is damaged.
    """
    path, runs = folder / "audit.json", report.get("spent", {}).get("runs", [])
    if not path.exists() or not runs:
        return None
    try:
        found = json.loads(path.read_text())
        rows = [
            {
                "promise": str(row["promise"]),
                "tried": str(row["tried"]),
                "bound": plain(row["bound"]),
                "found": plain(row["found"]),
                "survived": bool(row["survived"]),
                "note": str(row["note"]),
            }
            for row in found["rows"]
        ]
        stale = (found["run"], found["events"]) != tuple(runs[-1].get(key) for key in ("run", "events"))
    except (OSError, ValueError, KeyError, TypeError) as wrong:
        raise ConfigurationError(f"{path}: no audit can be read there ({wrong!r}). Run dplip audit again.") from None
    return None if stale else {"rows": rows, "survived": all(row["survived"] for row in rows)}


def accuracy(folder: Path, report: Mapping[str, Any]) -> dict[str, Any]:
    """The figures on held-out data: a score with its baseline, the confusion matrix, and figures for each class."""
    utility = report["utility"]
    shown = [(name, value) for name, value in utility.items() if name != "confusion" and value is not None]
    score = None
    if utility.get("accuracy") is not None:
        beside = f"always the commonest class: {percent(utility['majority'])}" if "majority" in utility else "held out"
        score = ("accuracy", percent(utility["accuracy"]), beside)
    elif "rmse" in utility:
        score = ("error", plain(utility["rmse"]), "root mean square, held-out data")
    confusion = utility.get("confusion")
    names = class_names(folder, report)
    examples = sum(map(sum, confusion)) if confusion else None
    return {
        "rows": [(LABELS.get(n, n), percent(v) if n in ("accuracy", "majority") else plain(v)) for n, v in shown],
        "score": score,
        "examples": examples,
        "names": names,
        "confusion": shaded(confusion) if confusion else None,
        "classes": per_class(confusion, names) if confusion else [],
    }


LABELS = {
    "accuracy": "accuracy",
    "majority": "accuracy of always naming the commonest class",
    "loss": "mean loss",
    "mse": "mean squared error",
    "rmse": "root mean squared error",
}


def class_names(folder: Path, report: Mapping[str, Any]) -> list[str]:
    """The levels of a table's target, or the numbers of the classes."""
    schema = folder / "schema.json"
    if "monotonicity" in report and schema.exists():  # else it is of an earlier run in the folder, on a table
        return list(read_schema(schema).target.levels or ("false", "true"))
    return [str(k) for k in range(len(report["utility"].get("confusion") or []))]


def shaded(confusion: list[list[int]]) -> list[list[tuple[int, int]]]:
    """Each count of the matrix, and its share of its row in percent, for its shade."""
    return [[(count, round(100 * count / max(1, sum(row)))) for count in row] for row in confusion]


def per_class(confusion: list[list[int]], names: list[str]) -> list[tuple[str, str, str, str]]:
    """For each class its name, its held-out examples, its recall and its precision."""
    rows = []
    for k, name in enumerate(names):
        of, said, right = sum(confusion[k]), sum(row[k] for row in confusion), confusion[k][k]
        rows.append((name, f"{of:,}", percent(right / of) if of else "-", percent(right / said) if said else "-"))
    return rows


def certified(report: Mapping[str, Any]) -> dict[str, Any]:
    """The certified accuracy at the report's radii, and its curve."""
    section, proof = report["certified"], report.get("monotonicity", {})
    norm = f"l{section['norm']}" if isinstance(section["norm"], str) else f"l{section['norm']:g}"
    unit = f"parts of the {section['unit']}" if "unit" in section else "raw input units"
    rows = [
        (at_least(radius), percent_at_least(share))
        for radius, share in zip(section["radii"], section["accuracy"], strict=True)
    ]
    curve = section.get("curve", {"radii": section["radii"], "accuracy": section["accuracy"]})
    line = Line(curve["radii"], curve["accuracy"])
    title = f"Certified accuracy on held-out data, by {norm} radius"
    figure = plot([line], title=title, x=f"radius ({norm}, {unit})", y="certified accuracy", share=True)
    largest = max(curve["radii"], default=0.0)
    tile = None
    if len(rows) > 1:
        tile = ("certified", rows[1][1], f"right and provably stable within {norm} radius {rows[1][0]}")
    return {
        "norm": norm,
        "unit": unit,
        "rows": rows,
        "figure": figure if rows else "",
        "largest": at_least(largest) if rows else None,
        "why": section.get("why"),
        "tile": tile,
        "monotone": [(name, "rises" if sign > 0 else "falls") for name, sign in proof.get("directions", {}).items()],
        "margin": at_least(proof["margin"]) if proof else None,
    }


def training(report: Mapping[str, Any]) -> dict[str, Any]:
    """The curves of public quantities, and whether each parameter learned."""
    history = report.get("history", [])
    steps = [row["step"] for row in history]

    def curve(key: str, title: str) -> str:
        values = [number(row[key]) for row in history]
        return plot([Line(steps, values)], title=f"{title}, by step", x="step", y=title, small=True) if steps else ""

    figures = [
        curve("epsilon", "ε spent by this run"),
        curve("sensitivity", "sensitivity"),
        curve("noise", "noise"),
    ]
    learned = report.get("learned", {})
    rows = [
        (
            name,
            f"{row['entries']:,}",
            "yes" if row["moved"] else "no",
            "" if row["length"] is None else plain(round(row["length"], 3)),
            "" if row["deviations"] is None else f"{row['deviations']:.1f}",
        )
        for name, row in learned.get("parameters", {}).items()
    ]
    return {"figures": [figure for figure in figures if figure], "learned": rows}


def provenance(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where the figures come from."""
    known, run = report.get("provenance", {}), report.get("run", {})
    rows = [
        ("data", Path(str(run["data"])).name if "data" in run else None),
        ("model", run.get("model")),
        ("input", _shape(report)),
        ("git commit of the folder it was started in", known.get("git")),
        ("SHA-256 of model.safetensors", known.get("weights")),
        ("SHA-256 of the settings", known.get("settings")),
        ("resumed", report.get("resume", {}).get("begun")),
        *report["versions"].items(),
    ]
    return [(name, str(value)) for name, value in rows if value is not None]


def _shape(report: Mapping[str, Any]) -> str | None:
    shape = report.get("input", {}).get("shape")
    return None if shape is None else " x ".join(map(str, shape))
