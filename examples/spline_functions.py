"""Three functions of one variable, fitted by 1-Lipschitz networks with each activation under one weight constraint.

usage: python examples/spline_functions.py [--models 5] [--steps 1500] [--plot FILE.png] [--json FILE] [--quick]

The functions on [-1, 1]: f1 has slopes 1 and -1 in turn between 9 random knots, f2 slopes drawn from -1, 0 and 1
between equally spaced ones, f3 = cos(7 pi x) / (7 pi). Each is fitted from 1,000 points by networks 1-10-10-10-1 with
orthogonal weights and biases, by Adam; the figure is the median, over models, of the mean squared error on a grid of
10,000 points.
Source: Ducotterd and others, 2024 (arXiv 2210.16222), scaled down: 1,500 steps of 100 points, not 100,000 of 10.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from spline_nets import ACTIVATIONS, groups, project
from torch import Tensor, nn

from dplip import nn as dn


def broken_line(knots: Tensor, slopes: Tensor) -> Callable[[Tensor], Tensor]:
    """The continuous function with these slopes between -1, the knots and 1, and mean zero at them."""
    ends = torch.cat((torch.tensor([-1.0]), knots, torch.tensor([1.0])))
    values = torch.cat((torch.zeros(1), (slopes * ends.diff()).cumsum(0)))
    values = values - values.mean()

    def function(x: Tensor) -> Tensor:
        k = (torch.bucketize(x, ends) - 1).clamp(0, len(slopes) - 1)
        return values[k] + slopes[k] * (x - ends[k])

    return function


def functions(seed: int = 0) -> dict[str, Callable[[Tensor], Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    zigzag = torch.where(torch.arange(10) % 2 == 0, 1.0, -1.0)
    steps = torch.randint(-1, 2, (10,), generator=generator).float()
    return {
        "f1: slopes 1, -1": broken_line((2 * torch.rand(9, generator=generator) - 1).sort().values, zigzag),
        "f2: slopes 1, 0, -1": broken_line(torch.linspace(-1, 1, 11)[1:-1], steps),
        "f3: cos(7 pi x)/(7 pi)": lambda x: torch.cos(7 * math.pi * x) / (7 * math.pi),
    }


def network(activation: Callable[[int], nn.Module], width: int = 10) -> nn.Sequential:
    """1 - width - width - width - 1, orthogonal weights with biases."""
    layers: list[nn.Module] = []
    for inputs in (1, width, width):
        layers += [dn.OrthogonalLinear(inputs, width, bias=True), activation(width)]
    return nn.Sequential(*layers, dn.OrthogonalLinear(width, 1, bias=True))


def fit(
    function: Callable[[Tensor], Tensor], activation: Callable[[int], nn.Module], steps: int, seed: int
) -> tuple[float, nn.Module]:
    """The mean squared error of one model, and the model."""
    torch.manual_seed(seed)
    model = network(activation)
    x = 2 * torch.rand(1000, 1) - 1
    y = function(x)
    optimizer = torch.optim.Adam(groups(model, 5e-3))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.randint(len(x), (100,))
        optimizer.zero_grad()
        (model(x[rows]) - y[rows]).square().mean().backward()
        optimizer.step()
        schedule.step()
        project(model)
    grid = torch.linspace(-1, 1, 10_000)[:, None]
    with torch.no_grad():
        return float((model(grid) - function(grid)).square().mean()), model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--plot", help="draw the fits here")
    parser.add_argument("--json", help="write the figures here")
    parser.add_argument("--activations", nargs="*", default=list(ACTIVATIONS))
    parser.add_argument("--quick", action="store_true", help="one model of 100 steps each")
    arguments = parser.parse_args()
    models, steps = (1, 100) if arguments.quick else (arguments.models, arguments.steps)
    results: dict[str, dict[str, Any]] = {}
    fits: dict[str, dict[str, Any]] = {}
    for name, function in functions().items():
        results[name], fits[name] = {}, {}
        for activation in arguments.activations:
            started = time.perf_counter()
            found = [fit(function, ACTIVATIONS[activation], steps, seed) for seed in range(models)]
            errors = sorted(error for error, _ in found)
            results[name][activation] = {"median": statistics.median(errors), "all": errors}
            fits[name][activation] = sorted(found, key=lambda f: f[0])[len(found) // 2][1]
            print(
                f"{name:<22} {activation:<16} median {statistics.median(errors):.1e} "
                f"({errors[0]:.1e} to {errors[-1]:.1e})  {time.perf_counter() - started:.0f} s",
                flush=True,
            )
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"models": models, "steps": steps, "mse": results}, file, indent=2)
    if arguments.plot:
        draw(results, fits, arguments.plot)


def draw(results: dict[str, dict[str, Any]], fits: dict[str, dict[str, Any]], path: str) -> None:
    """Each function with the median fits of some activations, and the errors of all."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter

    targets = functions()
    figure, axes = plt.subplots(2, 3, figsize=(11, 5.6), layout="constrained", height_ratios=(3, 2))
    x = torch.linspace(-1, 1, 1001)[:, None]
    for column, (name, function) in enumerate(targets.items()):
        top, bottom = axes[0, column], axes[1, column]
        top.plot(x[:, 0], function(x)[:, 0], color="black", lw=3, alpha=0.25, label="target")
        for activation, color in (("ReLU", "tab:red"), ("GroupSort", "tab:green"), ("spline", "tab:blue")):
            if activation in fits[name]:
                with torch.no_grad():
                    top.plot(x[:, 0], fits[name][activation](x)[:, 0], color=color, lw=1.2, label=activation)
        top.set(title=name, xlabel="x", ylabel="f(x)")
        for row, values in enumerate(results[name].values()):
            bottom.plot(values["all"], [row] * len(values["all"]), ".", color="tab:gray")
            bottom.plot(values["median"], row, "|", color="black", ms=14, mew=2)
        bottom.set(xscale="log", xlabel="mean squared error (bar: median)", yticks=range(len(results[name])))
        bottom.xaxis.set_minor_formatter(NullFormatter())
        bottom.set(xlim=(1e-5, 1e-1))
        bottom.set_yticklabels(list(results[name]) if column == 0 else [])
        bottom.grid(axis="x", alpha=0.3)
    axes[0, 0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
    print(f"picture {path}")


if __name__ == "__main__":
    main()
