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
MUTANTS, KILLS = "attacks/mutants/run.py", "attacks/kill_runs.py"
PROMISES = {
    "no gradient exceeds its sensitivity; noise and epsilon are as said": "dplip audit",
    "the audits have power, and sound runs survive them": "audit",
    "every rule claims no less than is attained": "rules norms/test_value_norms.py propagation/test_compositions.py",
    "sensitivity holds under ascent, ties, huge and missing numbers": (
        "sensitivities/test_attacked_examples.py sensitivities/test_propagated.py"
    ),
    "bounds hold in floating point": "attacks/test_numerics.py",
    "half precision stays within what is enforced": (
        "nn/test_half_precision.py sensitivities/test_enforced.py training/test_half_precision_run.py"
    ),
    "sums over a batch round as is said, in any order": (
        "nn/test_sums.py sensitivities/test_neighbouring_sums.py training/test_parts_of_a_batch.py"
    ),
    "no example mixes with another": "runtime/test_mixing.py",
    "the trace is the model, and what has no rule is refused": (
        "propagation training/test_what_a_forward_reads.py training/test_refused_gradients.py"
    ),
    "nothing but the noisy gradient moves the weights": "training/test_wrapped.py sampling/test_distinct.py",
    "masks and batches are secret, in one process": (
        "runtime/test_secret_masks.py runtime/test_threads_and_forks.py runtime/test_processes.py"
        " sampling/test_secret_draws.py"
    ),
    "batches are those of their event": "sampling/test_poisson.py sampling/test_fixed_size.py",
    "no input inside a radius has another class, however wide the layers": (
        "certificates/test_radii.py certificates/test_certifier.py certificates/test_accuracy.py"
        " certificates/test_lipschitz.py rounding"
    ),
    "one more row re-encodes no other": "data/test_neighbouring_tables.py data/test_schema.py data/test_tables.py",
    "a model of a table is monotone": (
        "certificates/test_monotonicity.py models/test_monotone.py cli/test_runs_on_tables.py"
    ),
    "a bug put in on purpose is caught": MUTANTS,
    "a killed run resumes, spends what was planned, draws no noise twice": KILLS,
    "no accountant's epsilon is below an optimistic one": "accounting/test_epsilon.py -k optimistic",
    "ledgers and checkpoints that do not fit are refused": (
        "records/test_checkpoint.py records/test_ledger.py training/test_refused_resumption.py"
    ),
    "a resumed run is the run that was interrupted": "training/test_resumed_run.py attacks/test_crashes.py",
    "whatever a file holds, no traceback": "attacks/test_fuzz.py",
}
"""Each promise, and the tests that attack it."""

Outcome = tuple[bool, str, str]
"""Whether a promise survived, what was tried, and what went wrong."""


def run(*arguments: str) -> tuple[bool, str]:
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    return done.returncode == 0, done.stdout + (done.stderr if done.returncode else "")


def tests(selection: str) -> Outcome:
    """Whether the tests pass, and how many there were; a selection is of files and folders of tests, and ``-k``."""
    paths, _, expression = selection.partition(" -k ")
    named = [f"tests/{path}" for path in paths.split()] + (["-k", expression] if expression else [])
    passed, output = run("-m", "pytest", "-q", "-p", "no:cacheprovider", *named)
    counted = re.findall(r"(\d+) passed", output)
    return passed, f"{counted[-1] if counted else 0} tests", "" if passed else output[-3000:]


def trained() -> Outcome:
    """``dplip audit`` on a run of ``dplip train``."""
    command = "from dplip.cli.main import main; main()"
    with tempfile.TemporaryDirectory() as folder:
        done, output = run("-c", command, "train", "--out", folder, "--no-progress")
        if done:
            done, output = run("-c", command, "audit", folder)
    attacks = len(output.splitlines()) - 1
    return done, f"{attacks} attacks, digits at epsilon 8", "" if done else output[-3000:]


def mutants() -> Outcome:
    passed, output = run(str(HERE / "mutants" / "run.py"), "--also-sound")
    outcomes = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    caught = sum(one["outcome"] == "caught" for one in outcomes)
    unsound = [one for one in outcomes if one["mutant"] == "none"]  # tests that fail without a mutant, too
    survivors = [*unsound, *(one for one in outcomes if one["outcome"] != "caught")]
    return passed, f"{caught} of {len(outcomes)} mutants", "" if passed else f"{survivors}\n{output[-1000:]}"


def kills(count: int) -> Outcome:
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
    ENVIRONMENT["DPLIP_FUZZ"] = str(arguments.fuzz)
    others = {"dplip audit": trained, MUTANTS: mutants, KILLS: lambda: kills(arguments.kills)}
    rows, problems, started = [], [], time.perf_counter()
    for promise, selection in PROMISES.items():
        begun = time.perf_counter()
        survived, tried, problem = others[selection]() if selection in others else tests(selection)
        rows.append((promise, tried, "yes" if survived else "NO", f"{time.perf_counter() - begun:.0f} s", selection))
        if problem:
            problems.append(f"{promise}\n{problem}")
        print(f"... {promise}: {rows[-1][2]}", file=sys.stderr, flush=True)
    heads = ("promise", "tried", "survived", "time", "tests")
    widths = [max(len(row[k]) for row in [heads, *rows]) for k in range(len(heads))]
    for row in [heads, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"{time.perf_counter() - started:.0f} s in all")
    print("\n\n".join(problems), end="\n" if problems else "")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
