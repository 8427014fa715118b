"""What each guard of a private step costs: steps with and without it, in turns within one process.

usage: python benchmarks/guards.py [--batch 2048] [--widths 784 128 10] [--rounds 40] [--threads 1]

A figure is the median of the ratios of a step with a guard to the same step without it, round by round, with quartiles.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from steps import Fixed
from torch import nn

import dplip
from dplip.nn import sums
from dplip.propagation.public_rows import PublicRows
from dplip.training import gradient_monitor as monitor
from dplip.training import passes
from dplip.training.arrivals import Arrivals

TURN = 0.15
"""Seconds of a turn, at least."""

GUARDS: dict[str, list[tuple[Any, str, Any]]] = {
    "sums in blocks": [(sums, "BLOCK", 1 << 30)],
    "what reaches the weights": [
        (Arrivals, "follow", lambda self, outputs: [None] * len(outputs)),
        (Arrivals, "finish", lambda self: None),
    ],
    "modes and attributes": [(place, "guards_of", lambda model: ()) for place in (monitor, passes)],
    "edits of weights and gradients": [(place, "sample", lambda tensors: []) for place in (monitor, passes)],
    "public rows": [(PublicRows, "of_model", lambda self, gradients=False: None)],
}
"""What is put in the place of a guard, by its name."""


@contextmanager
def without(name: str) -> Iterator[None]:
    with ExitStack() as stack:
        for place, attribute, instead in GUARDS[name]:
            stack.enter_context(mock.patch.object(place, attribute, instead))
        yield


def private_step(widths: list[int], batch: int) -> Any:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    model = dplip.nn.bound_gradients(nn.Sequential(*layers[:-1]), radius=1.0)
    loss, batches = dplip.losses.CrossEntropy(normalize=True), Fixed(batch)
    sgd = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    optimizer = dplip.DPLipOptimizer(
        sgd, model=model, loss=loss, input_shape=(widths[0],), noise_multiplier=3.0, batches=batches
    )
    x, y = torch.rand(batch, widths[0]), torch.randint(widths[-1], (batch,))

    def step() -> None:
        optimizer.zero_grad()
        batches.handed_out = batch
        loss(model(x), y).backward()
        optimizer.step()

    return step


def timed(step: Any) -> float:
    step()  # what was left by the turn before is not timed
    start, count = time.perf_counter(), 0
    while count < 2 or time.perf_counter() - start < TURN:
        step()
        count += 1
    return (time.perf_counter() - start) / count


def cost(name: str, step: Any, rounds: int) -> list[float]:
    ratios = []
    for _ in range(rounds):
        with_it = timed(step)
        with without(name):
            step()
            ratios.append(with_it / timed(step))
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--widths", type=int, nargs="+", default=[784, 128, 10])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    step = private_step(arguments.widths, arguments.batch)
    for _ in range(5):
        step()
    print(f"a step: {timed(step) * 1e3:.2f} ms")
    for name in GUARDS:
        low, median, high = statistics.quantiles(cost(name, step, arguments.rounds), n=4)
        print(f"{name:44s} {median:.3f} ({low:.3f} to {high:.3f})", flush=True)


if __name__ == "__main__":
    main()
