"""Attack every promise at full size, and print one table: promise, test, tried, survived.

    python tests/attacks/audit_all.py [--kills 100]

Exit code 1: something did not survive.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE.parent}",
}


def run(*arguments: str, **environment: str) -> tuple[bool, str]:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env={**ENVIRONMENT, **environment}, capture_output=True, text=True
    )
    return done.returncode == 0, done.stdout + (done.stderr if done.returncode else "")


def tests(*selection: str, **environment: str) -> tuple[bool, str, str]:
    """Whether the tests pass, and how many there were."""
    passed, output = run("-m", "pytest", "-q", "-p", "no:cacheprovider", *selection, **environment)
    counted = re.findall(r"(\d+) passed", output)
    return passed, f"{counted[-1] if counted else 0} tests", "" if passed else output[-3000:]


def trained() -> tuple[bool, str, str]:
    """``dplip audit`` on a run of ``dplip train``."""
    command = "from dplip.cli.main import main; main()"
    with tempfile.TemporaryDirectory() as folder:
        done, output = run("-c", command, "train", "--out", folder, "--no-progress")
        if done:
            done, output = run("-c", command, "audit", folder)
    attacks = len(output.splitlines()) - 1
    return done, f"{attacks} attacks, digits at epsilon 8", "" if done else output[-3000:]


def mutants() -> tuple[bool, str, str]:
    passed, output = run(str(HERE / "mutants" / "run.py"), "--also-sound")
    outcomes = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    caught = sum(one["outcome"] == "caught" for one in outcomes)
    survivors = [one for one in outcomes if one["outcome"] != "caught"]
    return passed, f"{caught} of {len(outcomes)} mutants", "" if passed else f"{survivors}\n{output[-1000:]}"


def kills(count: int) -> tuple[bool, str, str]:
    passed, output = run(str(HERE / "kill_runs.py"), "--kills", str(count))
    if not passed:
        return False, f"{count} kills", output[-3000:]
    outcome = json.loads(output)
    return True, f"{outcome['kills']} kills, {outcome['torn']} torn lines, {outcome['finished']} runs", ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--fuzz", type=int, default=1000, help="inputs of each fuzz test")
    arguments = parser.parse_args()
    attacks = [
        ("no gradient exceeds its sensitivity; noise and epsilon are as said", "dplip audit", trained),
        ("the audits have power, and sound runs survive them", "tests/audit", None),
        ("every rule claims no less than is attained", "tests/rules", None),
        ("sensitivity holds under ascent, ties, huge and missing numbers", "tests/sensitivities", None),
        ("bounds hold in floating point", "tests/attacks/test_numerics.py", None),
        ("sums over a batch round as is said, in any order", "tests/nn/test_sums.py", None),
        ("no example mixes with another", "tests/runtime/test_mixing.py", None),
        ("the trace is the model, and what has no rule is refused", "tests/propagation", None),
        ("nothing but the noisy gradient moves the weights", "tests/training/test_wrapped.py", None),
        ("masks and batches are secret, in one process", "tests/runtime", None),
        ("batches are those of their event", "tests/sampling", None),
        ("no input inside a radius has another class, however wide the layers", "tests/certificates", None),
        ("one more row re-encodes no other", "tests/data", None),
        ("a bug put in on purpose is caught", "tests/attacks/mutants/run.py", mutants),
        (
            "a killed run resumes, spends what was planned, draws no noise twice",
            "tests/attacks/kill_runs.py",
            lambda: kills(arguments.kills),
        ),
        (
            "no accountant's epsilon is below an optimistic one",
            "tests/accounting",
            lambda: tests("tests/accounting", "-k", "optimistic", DPLIP_FUZZ=str(arguments.fuzz)),
        ),
        ("ledgers and checkpoints that do not fit are refused", "tests/records", None),
        (
            "a resumed run is the run that was interrupted",
            "tests/training",
            lambda: tests("tests/training", "-k", "resum"),
        ),
        (
            "whatever a file holds, no traceback",
            "tests/attacks/test_fuzz.py",
            lambda: tests("tests/attacks/test_fuzz.py", DPLIP_FUZZ=str(arguments.fuzz)),
        ),
    ]
    rows, problems, started = [], [], time.perf_counter()
    for promise, test, attack in attacks:
        begun = time.perf_counter()
        survived, tried, problem = tests(test) if attack is None else attack()
        rows.append((promise, test, tried, "yes" if survived else "NO", f"{time.perf_counter() - begun:.0f} s"))
        if problem:
            problems.append(f"{promise}\n{problem}")
        print(f"... {promise}: {rows[-1][3]}", file=sys.stderr, flush=True)
    heads = ("promise", "test", "tried", "survived", "time")
    widths = [max(len(row[k]) for row in [heads, *rows]) for k in range(len(heads))]
    for row in [heads, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"{time.perf_counter() - started:.0f} s in all")
    print("\n\n".join(problems), end="\n" if problems else "")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
