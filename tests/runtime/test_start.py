"""What ``import dplip`` and the command line load."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from dplip.runtime.uncompiled import uncompiled

LATE = ["torch._dynamo", "torch._inductor", "sympy", "scipy", "sklearn", "opacus", "pandas", "PIL", "matplotlib"]


@pytest.mark.parametrize("start", ["import dplip", "import dplip.cli.main"])
def test_heavy_packages_are_imported_when_they_are_used(start):
    code = f"import sys, torch; before = set(sys.modules)\n{start}\nprint(*sorted(set(sys.modules) - before))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "dplip.training.trainer" in loaded
    assert not [name for name in LATE if name in loaded]


def test_a_function_that_is_not_compiled_runs_as_python_in_compiled_code():
    seen = []

    @uncompiled
    def look(x):
        seen.append((torch.compiler.is_compiling(), float(x.sum())))
        return x + 1

    def double(x):
        return look(x * 2) * 2

    assert torch.equal(double(torch.ones(2)), torch.full((2,), 6.0))
    compiled = torch.compile(double, backend="eager")
    for _ in range(3):
        assert torch.equal(compiled(torch.ones(2)), torch.full((2,), 6.0))
    assert seen == [(False, 4.0)] * 4
