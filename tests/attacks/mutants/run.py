"""Break the library in every way of the zoo, run the test that must notice, and print one JSON line a mutant.

    python tests/attacks/mutants/run.py [--every N] [--also-sound]

A mutant is a copy of the package with its substitutions, imported in a process of its own, which is forked from one
that has imported everything else.
"""

import argparse
import gc
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "tests")]

from attacks.mutants.mutant import Mutant  # noqa: E402
from attacks.mutants.zoo import MUTANTS  # noqa: E402

SECONDS = 120


def warm() -> None:
    """Import what tests and package need, but neither of them."""
    import dp_accounting.pld.privacy_loss_distribution
    import hypothesis
    import hypothesis.strategies
    import opacus.accountants
    import pytest
    import safetensors.torch
    import scipy.optimize
    import scipy.stats
    import sklearn.datasets
    import torch
    import torch._dynamo
    import torch.func
    import torch.fx
    import torch.optim.swa_utils
    import tqdm.auto
    import typer.testing

    torch.set_num_threads(1)
    assert "dplip" not in sys.modules
    gc.freeze()  # no process looks through what was imported here
    del dp_accounting, hypothesis, opacus, pytest, safetensors, scipy, sklearn, tqdm, typer


def outcome(mutant: Mutant, selection: list[str]) -> tuple[str, float]:
    """What the tests make of a mutant: "caught", "survived", or what went wrong."""
    place = Path(tempfile.mkdtemp())
    started = time.perf_counter()
    try:
        shutil.copytree(ROOT / "dplip", place / "dplip", ignore=shutil.ignore_patterns("__pycache__"))
        if mutant.changes:
            for path, text in mutant.sources(place / "dplip").items():
                path.write_text(text, encoding="utf-8")
        process = os.fork()
        if process == 0:
            status = 99
            try:
                signal.alarm(SECONDS)
                os.chdir(ROOT)
                log = os.open(place / "log", os.O_CREAT | os.O_WRONLY)
                os.dup2(log, 1)
                os.dup2(log, 2)
                sys.path.insert(0, str(place))
                import pytest

                import dplip

                assert dplip.__file__.startswith(str(place)), dplip.__file__
                status = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *selection]))
            finally:
                sys.stdout.flush()
                os._exit(status)
        _, status = os.waitpid(process, 0)
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -1
        said = {0: "survived", 1: "caught", -1: "caught" if os.WTERMSIG(status) == signal.SIGALRM else "crashed"}
        tail = (place / "log").read_text(errors="replace")[-800:] if code not in (0, 1) else ""
        return said.get(code, f"pytest said {code}: {tail}"), time.perf_counter() - started
    finally:
        shutil.rmtree(place)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="only every N-th mutant")
    parser.add_argument("--start", type=int, default=0, help="leave out so many first")
    parser.add_argument("--count", type=int, default=None, help="at most so many")
    parser.add_argument("--only", default="", help="only mutants with this in their name")
    parser.add_argument("--also-sound", action="store_true", help="see first that the tests pass without a mutant")
    arguments = parser.parse_args()
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # imports that no test needs
    warm()
    mutants = [m for m in MUTANTS[arguments.start :: arguments.every] if arguments.only in m.name][: arguments.count]
    failed = False
    if arguments.also_sound:
        for selection in sorted({tuple(m.selection) for m in mutants}):
            said, _ = outcome(Mutant("none", "", (), ""), list(selection))
            if said != "survived":
                failed = True
                print(json.dumps({"mutant": "none", "test": selection[0], "outcome": said}), flush=True)
    for mutant in mutants:
        said, seconds = outcome(mutant, mutant.selection)
        failed = failed or said != "caught"
        line = {"mutant": mutant.name, "test": mutant.test, "outcome": said, "seconds": round(seconds, 1)}
        print(json.dumps(line), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
