"""Time one private step against one step of ordinary SGD on the same torch model, and their peak memory.

usage: python benchmarks/step_time.py [--json FILE|-] [--batch 2048] [--threads 2] [--rounds 15] [--models ...]

Each model is timed in one process in alternating rounds: plain, private, plain, ...; the figure is the median of the
ratios of neighbouring rounds. Peak memory is that of one process each. The plain model has stock layers and torch's
cross-entropy. The private one has the same, and its sensitivity comes from:

- bounded: layers that bound each example's gradient by themselves, whatever the weights (`bound_gradients`);
- orthogonal: the same, with weights projected to orthogonal ones after every fourth step, for certificates;
- certified: the norms of the weights, which stay free and are certified anew as they drift;
- certified orthogonal: the norms of the weights, which are projected after every step.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn

import dplip

SHAPES = {"mlp": (784,), "cnn": (1, 28, 28)}


WEIGHTS = ("bounded", "orthogonal", "certified", "certified orthogonal")


def build(name: str, weights: str = "") -> nn.Sequential:
    """The MLP 784-512-512-10, or a three-layer CNN; ReLU, no biases, inputs in a ball."""
    if name == "mlp":
        layers = [nn.Linear(784, 512, bias=False), nn.ReLU(), nn.Linear(512, 512, bias=False), nn.ReLU()]
        layers += [nn.Linear(512, 10, bias=False)]
    else:
        layers = [nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.ReLU(), nn.AvgPool2d(2)]
        layers += [nn.Conv2d(32, 64, 3, padding=1, bias=False), nn.ReLU(), nn.AvgPool2d(2)]
        layers += [nn.Flatten(), nn.Linear(64 * 49, 10, bias=False)]
    for layer in layers:
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            nn.init.orthogonal_(layer.weight)
            if weights.endswith("orthogonal"):
                dplip.constrain(layer, "weight", dplip.Orthogonal())
    model = nn.Sequential(dplip.nn.BallProjection(9.0), *layers)
    return dplip.nn.bound_gradients(model, radius=9.0) if weights in ("bounded", "orthogonal") else model


class Endless:
    """One fixed batch, handed out for ever: the loader's own cost is in neither side of the ratio."""

    sample_rate, number, complete, logical_batches = 0.05, 1, True, 1

    def __init__(self, batch: int) -> None:
        self.expected_batch_size, self.handed_out = float(batch), batch

    def event(self, noise_multiplier: float) -> dplip.accounting.GaussianEvent:
        return dplip.accounting.GaussianEvent(noise_multiplier, self.sample_rate)

    def take(self) -> int:
        return self.handed_out


def runner(kind: str, name: str, batch: int, weights: str):
    """A function that takes one step of a fresh model on a fixed batch."""
    torch.manual_seed(0)
    model = build(name, weights if kind == "private" else "")
    x, y = torch.rand(batch, *SHAPES[name]), torch.randint(10, (batch,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    loss = dplip.losses.CrossEntropy(temperature=5.0, normalize=kind == "private")
    if kind == "private":
        optimizer = dplip.DPLipOptimizer(
            optimizer,
            model=model,
            loss=loss,
            input_shape=SHAPES[name],
            noise_multiplier=3.0,
            batches=Endless(batch),
            project_every=4 if weights == "orthogonal" else 1,
        )
    criterion = loss if kind == "private" else nn.CrossEntropyLoss()

    def step() -> float:
        started = time.perf_counter()
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()
        return time.perf_counter() - started

    return step


def compare(name: str, batch: int, weights: str, rounds: int) -> dict[str, object]:
    plain, private = (runner(kind, name, batch, weights) for kind in ("plain", "private"))
    for _ in range(3):
        plain(), private()
    pairs = [(plain(), private()) for _ in range(rounds)]
    ratios = sorted(b / a for a, b in pairs)
    memory = {kind: peak(kind, name, batch, weights) for kind in ("plain", "private")}
    return {
        "model": name,
        "weights": weights,
        "batch": batch,
        "plain_ms": 1000 * statistics.median(a for a, _ in pairs),
        "private_ms": 1000 * statistics.median(b for _, b in pairs),
        "ratio": statistics.median(ratios),
        "ratio_quartiles": [ratios[len(ratios) // 4], ratios[(3 * len(ratios)) // 4]],
        "memory_mb": memory,
        "memory_ratio": memory["private"] / memory["plain"],
    }


def peak(kind: str, name: str, batch: int, weights: str) -> float:
    """Peak resident memory in MB of a process that takes four steps."""
    command = [sys.executable, __file__, "--peak", kind, name, str(batch), weights]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def peak_memory() -> float:
    """Peak resident memory of this process in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would start at the size of the parent that forked this process
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="write the figures here (- for standard output)")
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--weights", nargs="+", choices=WEIGHTS, default=list(WEIGHTS))
    parser.add_argument("--peak", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        kind, name, batch, weights = arguments.peak
        step = runner(kind, name, int(batch), weights)
        for _ in range(4):
            step()
        print(peak_memory())
        return
    rows = [compare(n, arguments.batch, w, arguments.rounds) for n in arguments.models for w in arguments.weights]
    result = {"threads": arguments.threads, "torch": torch.__version__, "machine": platform.machine(), "rows": rows}
    if arguments.json == "-":
        print(json.dumps(result, indent=2))
        return
    for row in rows:
        low, high = row["ratio_quartiles"]
        print(
            f"{row['model']} {row['weights']:<20} batch {row['batch']}: plain {row['plain_ms']:.1f} ms, private "
            f"{row['private_ms']:.1f} ms, ratio {row['ratio']:.3f} ({low:.3f} to {high:.3f}), memory ratio "
            f"{row['memory_ratio']:.3f}"
        )
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(result, file, indent=2)


if __name__ == "__main__":
    main()
