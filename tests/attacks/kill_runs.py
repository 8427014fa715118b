"""Kill a training run with SIGKILL at random moments, resume it each time, and compare the ledger with what happened.

    PYTHONPATH=tests python tests/attacks/kill_runs.py --kills 100

Every draw of noise is put down in a transcript of its own before it is used. After each kill the ledger must hold at
least the steps whose noise was drawn; at the end no draw may have been made twice, the budget must have been kept, and
the model must have learned. Some crashes also tear the last line of the ledger, as a loss of power can.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from helpers.models import orthogonal
from helpers.runs import examples
from safetensors.torch import load_file
from tqdm import tqdm

from dplip import DPLipTrainer
from dplip.losses import CrossEntropy
from dplip.noise import GaussianNoise
from dplip.records import Checkpoint, Ledger
from dplip.records.ledger import begun

STEPS, EPSILON, DELTA = 40, 6.0, 1e-5
TRAIN, HELD_OUT = examples(400), examples(200, seed=1)


class Transcribed(GaussianNoise):
    """Noise that puts down what it draws, and for which sum, before anybody can see it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.file = open(path, "ab", buffering=0)

    def add_(self, tensor: torch.Tensor, std: float) -> torch.Tensor:
        before = tensor.detach().clone()
        super().add_(tensor, std)
        noise = hashlib.sha256((tensor - before).div(std).numpy().round(3).tobytes()).hexdigest()[:16]
        self.file.write(f"{noise}\n".encode())
        return tensor


def trainer(folder: Path) -> DPLipTrainer:
    torch.manual_seed(0)
    model = orthogonal()
    made = DPLipTrainer(
        model,
        loss=CrossEntropy(8.0, normalize=True),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9),
        train_dataset=TRAIN,
        eval_dataset=HELD_OUT,
        batch_size=100,
        epochs=STEPS // 4,
        target_epsilon=EPSILON,
        target_delta=DELTA,
        output_dir=folder,
        checkpoint_every=3,
        progress=False,
    )
    vars(made.optimizer)["noise"] = Transcribed(folder / "transcript")
    return made


def start(folder: Path) -> int:
    """A process that resumes the run in a folder until it is done or killed."""
    process = os.fork()
    if process == 0:
        status = 1
        # Not the lock that all forks share: whoever is killed while holding that one keeps it.
        tqdm.set_lock(threading.RLock())
        try:
            trainer(folder).fit(resume=True)
            status = 0
        except BaseException as wrong:
            print(f"{type(wrong).__name__}: {wrong}", file=sys.stderr, flush=True)
        finally:
            os._exit(status)
    return process


def check(folder: Path) -> int:
    """The ledger holds at least what was drawn, and no draw was made twice; the number of steps on the ledger."""
    transcript = folder / "transcript"
    draws = transcript.read_bytes().split(b"\n")[:-1] if transcript.exists() else []
    assert len(set(draws)) == len(draws), "a draw of noise was made twice"
    steps = 0
    if begun(folder / "ledger.jsonl"):
        with Ledger(folder / "ledger.jsonl", resume=True, delta=DELTA, facts=header(folder)["facts"]) as ledger:
            steps = ledger.steps  # mends a torn line, as a resumed run would
        assert Ledger.read(folder / "ledger.jsonl").epsilon() <= EPSILON, "the budget was exceeded"
    assert -(-len(draws) // 2) <= steps, f"{len(draws)} draws for two parameters, but {steps} steps on the ledger"
    assert saved(folder) <= steps
    return steps


def saved(folder: Path) -> int:
    """The steps of the checkpoint, 0 without one; a line that it covers was on disk, so no loss of power tears it."""
    path = folder / "checkpoint.safetensors"
    return Checkpoint.read(path).steps if path.exists() else 0


def header(folder: Path) -> dict:
    return json.loads((folder / "ledger.jsonl").read_bytes().split(b"\n")[0])


def finish(folder: Path) -> float:
    """A run that is done is usable and says what it spent; its accuracy."""
    report = json.loads((folder / "report.json").read_text())
    assert report["privacy"]["epsilon"] == Ledger.read(folder / "ledger.jsonl").epsilon() <= EPSILON
    assert report["privacy"]["steps"] == STEPS
    model = orthogonal()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    x, y = HELD_OUT.tensors
    accuracy = float((model(x).argmax(1) == y).float().mean())
    assert accuracy > 0.5, f"accuracy {accuracy}"  # of four classes
    return accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    chance = random.Random(arguments.seed)
    place = Path(tempfile.mkdtemp())
    try:
        (place / "0").mkdir()
        trainer(place / "0")  # imports all that the processes will need
        started = time.perf_counter()
        assert os.waitpid(start(place / "0"), 0)[1] == 0  # one run that nobody disturbs, for its time
        longest = time.perf_counter() - started
        check(place / "0")
        kills, torn, runs, lost, accuracies = 0, 0, 0, 0, [finish(place / "0")]
        folder = place / "1"
        while kills < arguments.kills:
            folder.mkdir(exist_ok=True)
            process = start(folder)
            time.sleep(chance.uniform(0, 0.7 * longest))
            os.kill(process, signal.SIGKILL)
            _, status = os.waitpid(process, 0)
            if os.WIFSIGNALED(status):
                kills += 1
                ledger = folder / "ledger.jsonl"
                lines = ledger.read_bytes().count(b'{"step":') if begun(ledger) else 0
                if lines > max(1, saved(folder)) and chance.random() < 0.3:
                    os.truncate(ledger, ledger.stat().st_size - chance.randint(1, 60))
                    torn += 1
                steps = check(folder)
                lost = max(lost, steps - saved(folder))
            else:
                assert os.WEXITSTATUS(status) == 0, "a resumed run failed"
                check(folder)
                accuracies.append(finish(folder))
                runs += 1
                folder = place / str(runs + 1)
        folder.mkdir(exist_ok=True)
        assert os.waitpid(start(folder), 0)[1] == 0, "the last run could not be finished"
        check(folder)
        accuracies.append(finish(folder))
        print(
            json.dumps(
                {
                    "kills": kills,
                    "torn": torn,
                    "finished": runs + 1,
                    "most_steps_lost": lost,
                    "accuracy_undisturbed": round(accuracies[0], 3),
                    "accuracy_least": round(min(accuracies), 3),
                }
            )
        )
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
