"""Train each preset and print a Markdown table of what it reaches: the figures that README and docs quote.

usage: python benchmarks/accuracy.py [--data-dir DIR] [--seeds 3] [--out DIR] [digits:8 fashion-mnist:3:scattering ...]

Every run is `dplip train --data NAME --epsilon E --delta 1e-5 --model MODEL` (l2 if none is given); the test
set is used for the table alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

DEFAULT = ["digits:8", "mnist:3", "fashion-mnist:3", "fashion-mnist:1", "cifar10:8", "cifar10:3"]


def train(name: str, epsilon: str, model: str, out: Path, data_dir: str | None) -> dict[str, dict[str, Any]]:
    """One run of the command line in its own process, and its report; a run that is there already is read."""
    report = out / "report.json"
    if not report.exists():
        command = [sys.executable, "-c", "from dplip.cli.main import main; main()", "train", "--no-progress"]
        command += ["--data", name, "--epsilon", epsilon, "--model", model, "--out", str(out)]
        subprocess.run(command + (["--data-dir", data_dir] if data_dir else []), check=True)
    return json.loads(report.read_text())


def percent(values: list[float]) -> str:
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", default=DEFAULT, help="NAME:EPSILON or NAME:EPSILON:MODEL")
    parser.add_argument("--data-dir")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/accuracy"))
    arguments = parser.parse_intermixed_args()
    print("| data, epsilon | accuracy | certified at 36/255 | 72/255 | 108/255 | seconds |")
    print("| --- | --- | --- | --- | --- | --- |")
    for run in arguments.runs:
        name, epsilon, model = (*run.split(":"), "l2")[:3]
        folders = [arguments.out / f"{run.replace(':', '-')}-{i}" for i in range(arguments.seeds)]
        reports = [train(name, epsilon, model, folder, arguments.data_dir) for folder in folders]
        columns = [[r["certified"]["accuracy"][i] for r in reports] for i in range(4)]
        seconds = statistics.median(r["time"]["train_seconds"] for r in reports)
        print(f"| {run.replace(':', ', ')} | {' | '.join(map(percent, columns))} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
