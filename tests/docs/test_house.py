"""The house stays as it is laid out: no file outgrows what one reads at a sitting, and tests mirror the packages."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {path.name for path in (ROOT / "dplip").iterdir() if (path / "__init__.py").exists()}
BESIDE = {"attacks", "benchmarks", "docs", "examples", "helpers"}


@pytest.mark.parametrize("folder, most", [("dplip", 350), ("tests", 450)])
def test_no_file_is_too_long(folder, most):
    lines = {path: path.read_text(encoding="utf-8").count("\n") for path in (ROOT / folder).rglob("*.py")}
    assert len(lines) > 100
    assert not {str(path.relative_to(ROOT)): n for path, n in lines.items() if n > most}


def test_tests_stand_in_the_folders_of_the_packages():
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and any(path.rglob("*.py"))}
    assert folders == PACKAGES | BESIDE


def test_no_test_stands_outside_them():
    assert [path.name for path in (ROOT / "tests").glob("*.py")] == ["conftest.py"]


def test_importing_dplip_loads_nothing_heavy():
    heavy = {"opacus", "dp_accounting", "opendp", "sklearn", "pandas", "matplotlib", "typer", "torchvision"}
    heavy |= {"scipy.optimize", "scipy.stats", "scipy.integrate"}
    code = f"import sys, torch; before = {{*sys.modules}}; import dplip; print({heavy!r} & {{*sys.modules}} - before)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "set()"
