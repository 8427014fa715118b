"""Time a layer of splines against ReLU, GroupSort and a naive spline; and see what noise does to fits.

usage: python benchmarks/spline.py [--json FILE|-] [--batch 2048] [--features 512] [--knots 21] [--threads 1]
       python benchmarks/spline.py --noise [--seeds 5]

A figure is the time of a forward and a backward pass. All forms take turns in one process; it is the median of their
times, and a ratio that of neighbouring rounds. `naive` is the sum over the knots of hat functions, in a loop.

With --noise, one spline is fitted to a function on [-1, 1] by 150 noisy gradient steps on 1,000 points, in each set of
coordinates, with noise of the given multiple of one example's sensitivity. It starts from zero, and each figure is that
of the best of 19 learning rates for it.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn

import dplip
from dplip import nn as dn
from dplip.nn.splines.spline import Spline
from dplip.noise import split


class Naive(nn.Module):
    """A spline as the sum of its hat functions, knot after knot."""

    def __init__(self, features: int, knots: int) -> None:
        super().__init__()
        self.coefficient = nn.Parameter(torch.linspace(-1, 1, knots).abs().expand(features, -1).clone())

    def forward(self, x: Tensor) -> Tensor:
        knots = self.coefficient.shape[1]
        u = ((x + 1) * (knots - 1) / 2).clamp(0, knots - 1)
        y = torch.zeros_like(x)
        for k in range(knots):
            y = y + self.coefficient[:, k] * (1 - (u - k).abs()).clamp_min(0)
        return y + torch.relu(x.abs() - 1)


def forms(features: int, knots: int) -> dict[str, nn.Module]:
    return {
        "ReLU": nn.ReLU(),
        "GroupSort": dn.GroupSort(2),
        "spline (slopes)": dn.LinearSpline(features, knots, init="absolute"),
        "spline (values)": dn.CoefficientSpline(features, knots, init="absolute"),
        "spline, scaled": dn.LinearSpline(features, knots, init="absolute", min_scale=0.1),
        "naive": Naive(features, knots),
    }


def step(layer: nn.Module, x: Tensor, g: Tensor) -> float:
    """Seconds for one forward and backward pass."""
    x.grad = None
    layer.zero_grad()
    started = time.perf_counter()
    layer(x).backward(g)
    return time.perf_counter() - started


def speed(arguments: argparse.Namespace) -> None:
    torch.manual_seed(0)
    layers = forms(arguments.features, arguments.knots)
    x = (0.5 * torch.randn(arguments.batch, arguments.features)).requires_grad_()
    g = torch.randn_like(x)
    for layer in layers.values():
        step(layer, x, g)
    rounds = [{name: step(layer, x, g) for name, layer in layers.items()} for _ in range(arguments.rounds)]
    rows = [
        {
            "layer": name,
            "ms": 1000 * statistics.median(r[name] for r in rounds),
            "ratio_to_group_sort": statistics.median(r[name] / r["GroupSort"] for r in rounds),
        }
        for name in layers
    ]
    for row in rows:
        print(f"{row['layer']:<16} {row['ms']:8.1f} ms, {row['ratio_to_group_sort']:5.2f} times GroupSort")
    sizes = {"batch": arguments.batch, "features": arguments.features, "knots": arguments.knots}
    save(arguments.json, {**sizes, "threads": arguments.threads, "machine": platform.machine(), "rows": rows})


TARGETS = {
    "|x|": torch.abs,
    "relu": torch.relu,
    "zigzag": lambda x: ((2 * x) % 1 - 0.5).abs() - 0.25,
}


def fit(kind: type[Spline], knots: int, target: Any, noise: float, lr: float, seed: int) -> float:
    """The mean squared error on [-1, 1] after 150 steps on one spline; residuals are cut at 1."""
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.rand(1000, 1, generator=generator) - 1
    spline = kind(1, knots, init="zero")
    parameters = dict(spline.named_parameters())
    bounds = dplip.parameter_bounds(spline, (1,), None)
    stds = split(bounds, {name: p.numel() for name, p in parameters.items()}, noise)
    for _ in range(150):
        with torch.no_grad():
            g = (spline(x) - target(x)).clamp(-1, 1)
        gradients = torch.autograd.grad(spline(x), list(parameters.values()), g)
        with torch.no_grad():
            for (name, p), gradient in zip(parameters.items(), gradients, strict=True):
                noisy = gradient + stds[name] * torch.randn(p.shape, generator=generator)
                p.sub_(lr / bounds[name] ** 2 * noisy / len(x))  # a unit step in each set of coordinates
        dplip.project(spline)
    grid = torch.linspace(-1, 1, 801)[:, None]
    return float((spline(grid) - target(grid)).square().mean().detach())


def noise(arguments: argparse.Namespace) -> None:
    rates = [10 ** (k / 4 - 2) for k in range(19)]
    kinds = {"values": dn.CoefficientSpline, "slopes": dn.LinearSpline}
    rows = []
    for name, target in TARGETS.items():
        for level in (0.0, 20.0, 100.0, 300.0):
            row: dict[str, Any] = {"target": name, "noise": level}
            for kind, cls in kinds.items():
                errors = {
                    lr: [fit(cls, arguments.knots, target, level, lr, s) for s in range(arguments.seeds)]
                    for lr in rates
                }
                row[kind] = min(statistics.mean(e) for e in errors.values())
            rows.append(row)
            print(f"{name:<7} noise {level:5.0f}: values {row['values']:.1e}, slopes {row['slopes']:.1e}", flush=True)
    save(arguments.json, {"knots": arguments.knots, "seeds": arguments.seeds, "rows": rows})


def save(path: str | None, result: dict[str, Any]) -> None:
    if path == "-":
        print(json.dumps(result, indent=2))
    elif path:
        with open(path, "w") as file:
            json.dump(result, file, indent=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="write the figures here (- for standard output)")
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--knots", type=int, default=21)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--noise", action="store_true")
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    noise(arguments) if arguments.noise else speed(arguments)


if __name__ == "__main__":
    main()
