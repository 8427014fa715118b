"""Wasserstein-1 distances by their dual, between samples whose distance is known exactly.

usage: python examples/wasserstein.py [--data-dir DIR] [--steps 400] [--seeds 3] [--plot FILE.png] [--quick]

W1(P, Q) is the largest E_P f - E_Q f over 1-Lipschitz f. Here f is a network with orthogonal weights, and P and Q are
samples, so that each estimate, divided by the certified Lipschitz constant of f, is a lower bound of the distance, and
shown as a fraction of it. Distances: a sample and its copy shifted by t have |t| (the mean gap from below, the shift
from above); a sample X and r X have (r - 1) mean |X| (f = |x| from below, the scaling from above).
Sizes: 2,000 images of MNIST shifted by 1 or 5; normal samples in 16 dimensions, shifted; normal samples in 2 and 16
dimensions, scaled by 2. Without --data-dir, handwritten digits of 8 x 8 pixels stand in for MNIST.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from spline_nets import ACTIVATIONS, groups, project, save
from torch import Tensor, nn

import dplip
from dplip import nn as dn
from dplip.data import load

ALL = {**ACTIVATIONS, "spline": lambda width: dn.LinearSpline(width, 41, 4.0, "absolute")}
"""The same activations, with splines that reach as far as these inputs do."""


@dataclass(frozen=True)
class Pair:
    """Two samples, and their exact distance."""

    p: Tensor
    q: Tensor
    distance: float


def shifted(x: Tensor, length: float, seed: int = 0) -> Pair:
    """A sample and its copy, moved by ``length`` in a random direction."""
    direction = torch.randn(x.shape[1], generator=torch.Generator().manual_seed(seed))
    return Pair(x + length * direction / direction.norm(), x, length)


def scaled(x: Tensor, factor: float) -> Pair:
    """A sample and its copy, multiplied by ``factor`` > 1."""
    return Pair(factor * x, x, (factor - 1) * float(x.norm(dim=1).mean()))


def pairs(data_dir: str | None, count: int = 2000) -> dict[str, Callable[[], Pair]]:
    generator = torch.Generator().manual_seed(0)
    wide, flat = torch.randn(count, 16, generator=generator), torch.randn(count, 2, generator=generator)

    def images() -> Tensor:
        data = load("mnist" if data_dir else "digits", data_dir)
        return data.train.tensors[0][:count].flatten(1)

    name = "MNIST" if data_dir else "digits"
    return {
        f"{name}, shifted by 1": lambda: shifted(images(), 1.0),
        f"{name}, shifted by 5": lambda: shifted(images(), 5.0),
        "normal in 16, shifted by 3": lambda: shifted(wide, 3.0),
        "normal in 2, times 2": lambda: scaled(flat, 2.0),
        "normal in 16, times 2": lambda: scaled(wide, 2.0),
    }


def network(inputs: int, activation: Callable[[int], nn.Module], width: int = 64) -> nn.Sequential:
    """Three hidden layers with orthogonal weights and biases; one output."""
    layers: list[nn.Module] = []
    for size in (inputs, width, width):
        layers += [dn.OrthogonalLinear(size, width, bias=True), activation(width)]
    return nn.Sequential(*layers, dn.OrthogonalLinear(width, 1, bias=False))


def estimate(pair: Pair, activation: Callable[[int], nn.Module], steps: int, seed: int, batch: int = 1000) -> float:
    """The certified lower bound of the distance, as a fraction of it."""
    torch.manual_seed(seed)
    model = network(pair.p.shape[1], activation)
    # Not Adam: its steps have entries of one size, so that rows turn to the signs of a direction, not to the direction.
    optimizer = torch.optim.SGD(groups(model, 0.5, 2.0), momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = [torch.randint(len(x), (batch,)) for x in (pair.p, pair.q)]
        optimizer.zero_grad()
        (model(pair.q[rows[1]]).mean() - model(pair.p[rows[0]]).mean()).backward()
        optimizer.step()
        schedule.step()
        project(model)
    dplip.project(model)
    with torch.no_grad():
        gap = float(model(pair.p).double().mean() - model(pair.q).double().mean())
    return gap / dplip.lipschitz(model, tuple(pair.p.shape[1:])) / pair.distance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="the folder of MNIST")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--plot", help="draw the fractions here")
    parser.add_argument("--json", help="write the figures here")
    parser.add_argument("--activations", nargs="*", default=list(ALL))
    parser.add_argument("--quick", action="store_true", help="one seed of 30 steps each")
    arguments = parser.parse_args()
    seeds, steps = (1, 30) if arguments.quick else (arguments.seeds, arguments.steps)
    results: dict[str, dict[str, list[float]]] = {}
    for name, make in pairs(arguments.data_dir).items():
        pair = make()
        results[name] = {}
        for activation in arguments.activations:
            started = time.perf_counter()
            found = [estimate(pair, ALL[activation], steps, seed) for seed in range(seeds)]
            results[name][activation] = found
            print(
                f"{name:<28} {activation:<16} {statistics.mean(found):.4f} ({min(found):.4f} to {max(found):.4f}) of "
                f"{pair.distance:.3f}  {time.perf_counter() - started:.0f} s",
                flush=True,
            )
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"steps": steps, "seeds": seeds, "fractions": results}, file, indent=2)
    if arguments.plot:
        draw(results, arguments.plot)


def draw(results: dict[str, dict[str, list[float]]], path: str) -> None:
    """What each activation misses of the distance."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 4), layout="constrained")
    axes = figure.subplots()
    names = list(next(iter(results.values())))
    for k, activation in enumerate(names):
        at = [row + 0.12 * (k - (len(names) - 1) / 2) for row in range(len(results))]
        missed = [[1 - fraction for fraction in values[activation]] for values in results.values()]
        centre = [statistics.mean(m) for m in missed]
        spread = [[c - min(m) for c, m in zip(centre, missed, strict=True)]]
        spread += [[max(m) - c for c, m in zip(centre, missed, strict=True)]]
        axes.errorbar(centre, at, xerr=spread, fmt="o", ms=5, capsize=2, label=activation)
    axes.axvline(0.05, color="black", lw=1, ls="--", label="aim")
    axes.set(xscale="log", yticks=range(len(results)))
    axes.set_xlabel("1 - certified lower bound of W1 / exact W1 (mean, least and most)")
    axes.set_yticklabels(list(results))
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    save(figure, path)


if __name__ == "__main__":
    main()
