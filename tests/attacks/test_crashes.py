"""Whole processes that run out of disk or are killed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


def python(code: str, *arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE.parents[1]}{os.pathsep}{HERE.parent}"}
    return subprocess.run(
        [sys.executable, *(["-c", code] if code else []), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=HERE,
        timeout=300,
    )


FULL_DISK = """
import resource, sys
from pathlib import Path
from helpers.durable_runs import trainer
from dplip.errors import CheckpointError, LedgerError
for name, limit, every in (("header", 1, 3), ("line", 1000, 100), ("checkpoint", 1000, 3)):
    folder = Path(sys.argv[1]) / name
    run = trainer(folder, checkpoint_every=every)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        run.fit()
    except (LedgerError, CheckpointError) as refused:
        print(type(refused).__name__, refused)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    before = run.accountant.num_steps
    run = trainer(folder, checkpoint_every=every).fit(resume=True)
    print(before, run.accountant.num_steps, run.get_epsilon() <= 4.0)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits on the size of files")
def test_a_full_disk_stops_a_run_with_one_sentence_and_loses_nothing(tmp_path):
    """The kernel itself refuses to write more: at the first byte, in the middle of a line, in a checkpoint."""
    done = python(FULL_DISK, str(tmp_path))
    assert done.returncode == 0, done.stderr
    header, resumed, line, again, kept, last = done.stdout.splitlines()
    assert header.startswith("LedgerError") and line.startswith("LedgerError") and "must not be released" in line
    assert kept.startswith("CheckpointError") and "the steps on the ledger stand" in kept
    assert resumed == "0 16 True" and last == "3 16 True"
    assert 0 < int(again.split()[0]) < 16 and again.endswith("16 True")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_a_run_survives_being_killed_at_random_moments():
    """Ten times here; make audit does it a hundred times."""
    done = python("", "kill_runs.py", "--kills", "10")
    assert done.returncode == 0, done.stdout + done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["kills"] == 10 and outcome["finished"] >= 1
