"""The example of several processes: started by torchrun it prints the epsilon of one process."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from helpers.ranks import values

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "distributed.py"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("distributed_example", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_torchrun_prints_the_epsilon_of_one_process(example):
    command = [sys.executable, *TORCHRUN, str(SCRIPT), "--epochs", "10"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    alone, accuracy = example.by_trainer(3.0, 10)
    (line,) = [line for line in done.stdout.splitlines() if "processes: epsilon" in line]
    assert line.startswith(f"2 processes: epsilon {alone!r}, accuracy ")
    assert min(accuracy, float(line.split()[-1])) > 0.7


def test_the_loop_spends_the_same(example):
    alone, accuracy = example.by_a_loop(3.0, 10)
    found = values(2, lambda group: example.by_a_loop(3.0, 10))
    assert {epsilon for epsilon, _ in found} == {alone}
    assert min(accuracy, *(accuracy for _, accuracy in found)) > 0.7
