"""Time the l-infinity distance, forward and backward, against torch.cdist and a broadcast, with their peak memory.

usage: python benchmarks/linf.py [--json FILE|-] [--batch 512] [--inputs 784] [--outputs 256] [--threads 1] [--rounds 9]

All forms take turns in one process; a figure is the median of their times, and the ratio that of neighbouring rounds.
Peak memory is that of one process each, above what importing the library takes. `torch` is the form without a C
compiler (DPLIP_KERNEL=0); `power mean` the relaxation at p = 8.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from dplip.nn.linf import kernel
from dplip.nn.linf.distance import max_distance
from dplip.nn.linf.power_mean import mean_distance


def in_torch(x: Tensor, w: Tensor) -> Tensor:
    worth, kernel.WORTH = kernel.WORTH, 2**62
    try:
        return max_distance(x, w)
    finally:
        kernel.WORTH = worth


FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "dplip": max_distance,
    "dplip torch": in_torch,
    "cdist": lambda x, w: torch.cdist(x, w, p=math.inf),
    "broadcast": lambda x, w: (x[:, None] - w).abs().amax(2),
    "power mean": lambda x, w: mean_distance(x, w, 8.0),
}


def step(form: str, x: Tensor, w: Tensor) -> float:
    """Seconds for one forward and backward pass."""
    x.grad = w.grad = None
    started = time.perf_counter()
    FORMS[form](x, w).sum().backward()
    return time.perf_counter() - started


def inputs(batch: int, d: int, m: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.rand(batch, d).requires_grad_(), torch.randn(m, d).requires_grad_()


def peak_memory() -> float:
    """Peak resident memory of this process in MB (of itself alone, not of the process that started it)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**10


def peak(form: str, sizes: tuple[int, int, int], threads: int) -> list[float]:
    command = [sys.executable, __file__, "--peak", form, *map(str, sizes), "--threads", str(threads)]
    return [float(v) for v in subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="write the figures here (- for standard output)")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--inputs", type=int, default=784)
    parser.add_argument("--outputs", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--peak", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        form, *sizes = arguments.peak
        x, w = inputs(*map(int, sizes))
        (x.sum() + w.sum()).backward()  # so that the libraries of a backward pass are loaded
        before = peak_memory()
        for _ in range(3):
            step(form, x, w)
        print(peak_memory(), before)
        return
    sizes = (arguments.batch, arguments.inputs, arguments.outputs)
    x, w = inputs(*sizes)
    for form in FORMS:
        step(form, x, w)
    rounds = [{form: step(form, x, w) for form in FORMS} for _ in range(arguments.rounds)]
    memory = {form: peak(form, sizes, arguments.threads) for form in FORMS}
    rows = [
        {
            "form": form,
            "ms": 1000 * statistics.median(r[form] for r in rounds),
            "times_faster_than_cdist": statistics.median(r["cdist"] / r[form] for r in rounds),
            "peak_mb": memory[form][0],
            "peak_mb_above_import": memory[form][0] - memory[form][1],
            "peak_ratio_to_cdist": memory[form][0] / memory["cdist"][0],
        }
        for form in FORMS
    ]
    result = {
        "sizes": {"batch": sizes[0], "inputs": sizes[1], "outputs": sizes[2]},
        "threads": arguments.threads,
        "compiler": kernel.library() is not None,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "rows": rows,
    }
    if arguments.json == "-":
        print(json.dumps(result, indent=2))
        return
    for row in rows:
        print(
            f"{row['form']:<12} {row['ms']:8.1f} ms, {row['times_faster_than_cdist']:5.2f} times as fast as cdist, "
            f"peak {row['peak_mb']:.0f} MB ({row['peak_mb_above_import']:.0f} above import)"
        )
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
