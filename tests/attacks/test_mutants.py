"""Every mutant of the zoo is caught by the test that it names; here every eighth, in ``make audit`` all."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from attacks.mutants.zoo import MUTANTS

TESTS = Path(__file__).resolve().parents[1]


def names_in(file: Path) -> set[str]:
    return {node.name for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_changes_something_and_names_a_test(mutant):
    for path, text in mutant.sources(TESTS.parent / "dplip").items():
        compile(text, path, "exec")
    file, _, name = mutant.test.partition("::")
    assert name.partition("[")[0] in {"", *names_in(TESTS / file)}


def test_there_are_enough_of_them_and_no_two_have_one_name():
    assert len(MUTANTS) >= 25
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_mutants_are_caught():
    done = subprocess.run(
        [sys.executable, str(TESTS / "attacks" / "mutants" / "run.py"), "--every", "8"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=600,
    )
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(outcomes) >= 9 and done.returncode == 0, done.stdout + done.stderr
    assert all(one["outcome"] == "caught" for one in outcomes)
