"""The command line in this process, and a short run that it has made."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.commands import QUICK, Ran

from dplip.cli.main import main


@pytest.fixture
def dplip_command(monkeypatch, capfd) -> Callable[..., Ran]:
    """Run ``dplip ...`` in this process; an exception other than the exit would be a traceback, and fails the test."""

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["dplip", *map(str, arguments)])
        capfd.readouterr()
        code: object = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
        captured = capfd.readouterr()
        assert isinstance(code, int)
        return Ran(code, captured.out, captured.err)

    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("DPLIP_DATA", raising=False)
    return run


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A short run on digits, by the command itself in a process of its own; a test copies it before it changes it."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    command = [sys.executable, "-c", "from dplip.cli.main import main; main()", "train", *map(str, QUICK)]
    options = ["--epsilon", "8", "--delta", "1e-5", "--seed", "1", "--epochs", "20", "--out", str(folder)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert str(folder / "report.json") in done.stdout
    return folder
