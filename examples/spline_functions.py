"""Three functions of one variable, fitted by 1-Lipschitz networks with each activation under one weight constraint.

usage: python examples/spline_functions.py [--models 5] [--steps 3000] [--plot FILE.png] [--json FILE] [--quick]
       python examples/spline_functions.py --search        (the learning rates, by three other models)

The functions on [-1, 1]: f1 has slopes 1 and -1 in turn between 9 random knots, f2 slopes drawn from -1, 0 and 1
between equally spaced ones, f3 = cos(7 pi x) / (7 pi). Each is fitted from 1,000 points by networks 1-10-10-10-1 with
orthogonal weights and biases, by Adam; the figure is the median, over models, of the mean squared error on a grid of
10,000 points. All models of an activation are trained at once, side by side: as groups of one network.
Source: Ducotterd and others, 2024 (arXiv 2210.16222), with 3,000 steps of all points, not 100,000 of 10.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from spline_nets import ACTIVATIONS, groups, project, save
from torch import Tensor, nn

import dplip
from dplip import nn as dn

GRID = torch.linspace(-1, 1, 10_000)
"""The points at which models are judged."""


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


def householder(width: int) -> nn.Module:
    """Householder activations of neighbouring pairs, so that models side by side do not mix."""
    return nn.Sequential(nn.ChannelShuffle(width // 2), dn.Householder(width), nn.ChannelShuffle(2))


ALL = {
    **ACTIVATIONS,
    "Householder": householder,
    "spline": lambda width: dn.LinearSpline(width, 101, 0.5, "absolute"),
}
"""The same activations, with knots as close as in the source."""

RATES = {
    "ReLU": 4e-2,
    "absolute value": 8e-2,
    "PReLU": 8e-2,
    "GroupSort": 4e-2,
    "Householder": 0.16,
    "spline": 4e-2,
}
"""Learning rates of the weights, the best of --search; splines learn at SPLINE times that."""

SPLINE = 4.0


def network(activation: Callable[[int], nn.Module], models: int, width: int = 10) -> nn.Sequential:
    """So many models 1 - width - width - width - 1 side by side, as groups of convolutions with kernels of one point.

    Shape: (1, models, points) to the same. Each group has orthogonal weights of its own, and biases.
    """
    layers: list[nn.Module] = []
    for inputs in (1, width, width):
        layers += [side_by_side(inputs, width, models), activation(models * width)]
    return nn.Sequential(*layers, side_by_side(width, 1, models))


def side_by_side(inputs: int, outputs: int, models: int) -> nn.Module:
    layer = nn.Conv1d(models * inputs, models * outputs, 1, groups=models)
    return dplip.constrain(layer, "weight", dplip.Orthogonal())


def fit(
    function: Callable[[Tensor], Tensor],
    activation: Callable[[int], nn.Module],
    lr: float,
    steps: int,
    models: int,
    seed: int,
) -> tuple[list[float], nn.Module]:
    """The mean squared error of each of the models, which are trained side by side, and the network of them."""
    torch.manual_seed(seed)
    model = network(activation, models)
    x = 2 * torch.rand(1, models, 1000) - 1
    y = function(x)
    optimizer = torch.optim.Adam(groups(model, lr, SPLINE))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) - y).square().mean(2).sum().backward()  # a sum: the gradients of a model are those of its own error
        optimizer.step()
        schedule.step()
        project(model)
    with torch.no_grad():
        return (model(GRID.expand(1, models, -1)) - function(GRID)).square().mean(2)[0].tolist(), model


def search(steps: int, activations: list[str], rates: tuple[float, ...]) -> None:
    """The median error of three models that are not among the reported, at each learning rate."""
    for activation, rate in itertools.product(activations, rates):
        medians = [
            statistics.median(fit(function, ALL[activation], rate, steps, 3, seed=100)[0])
            for function in functions().values()
        ]
        mean = math.exp(statistics.mean(map(math.log, medians)))
        print(f"{activation:<16} {rate:<7g}", *(f"{m:.1e}" for m in medians), f"mean {mean:.2e}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--plot", help="draw the fits here")
    parser.add_argument("--json", help="write the figures here")
    parser.add_argument("--activations", nargs="*", default=list(ALL))
    parser.add_argument("--search", action="store_true", help="print the errors of other models at learning rates")
    parser.add_argument("--rates", nargs="*", type=float, default=[0.0025 * 2**k for k in range(7)], help="of --search")
    parser.add_argument("--quick", action="store_true", help="one model of 100 steps each")
    arguments = parser.parse_args()
    models, steps = (1, 100) if arguments.quick else (arguments.models, arguments.steps)
    if arguments.search:
        return search(steps, arguments.activations, arguments.rates)
    results: dict[str, dict[str, Any]] = {}
    fits: dict[str, dict[str, Tensor]] = {}
    for name, function in functions().items():
        results[name], fits[name] = {}, {}
        for activation in arguments.activations:
            started = time.perf_counter()
            errors, network = fit(function, ALL[activation], RATES[activation], steps, models, seed=0)
            median = sorted(errors)[len(errors) // 2]
            with torch.no_grad():
                fits[name][activation] = network(GRID.expand(1, models, -1))[0, errors.index(median)]
            results[name][activation] = {"median": statistics.median(errors), "all": errors}
            print(
                f"{name:<22} {activation:<16} median {statistics.median(errors):.1e} "
                f"({min(errors):.1e} to {max(errors):.1e})  {time.perf_counter() - started:.0f} s",
                flush=True,
            )
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"models": models, "steps": steps, "mse": results}, file, indent=2)
    if arguments.plot:
        draw(results, fits, arguments.plot)


def draw(results: dict[str, dict[str, Any]], fits: dict[str, dict[str, Tensor]], path: str) -> None:
    """Each function with the median fits of some activations, and the errors of all."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    targets = functions()
    figure = Figure(figsize=(11, 5.6), layout="constrained")
    axes = figure.subplots(2, 3, height_ratios=(3, 2))
    for column, (name, function) in enumerate(targets.items()):
        top, bottom = axes[0, column], axes[1, column]
        top.plot(GRID, function(GRID), color="black", lw=3, alpha=0.25, label="target")
        for activation, color in (("ReLU", "tab:red"), ("absolute value", "tab:green"), ("spline", "tab:blue")):
            if activation in fits[name]:
                top.plot(GRID, fits[name][activation], color=color, lw=1.2, label=activation)
        top.set(title=name, xlabel="x", ylabel="f(x)")
        for row, values in enumerate(results[name].values()):
            bottom.plot(values["all"], [row] * len(values["all"]), ".", color="tab:gray")
            bottom.plot(values["median"], row, "|", color="black", ms=14, mew=2)
        bottom.set(xscale="log", xlabel="mean squared error (bar: median)", yticks=range(len(results[name])))
        bottom.xaxis.set_minor_formatter(NullFormatter())
        bottom.set(xlim=(1e-5, 1e-1))
        bottom.set_yticklabels(list(results[name]) if column == 0 else [])
        bottom.invert_yaxis()
        bottom.grid(axis="x", alpha=0.3)
    axes[0, 0].legend(frameon=False, fontsize=8)
    save(figure, path)


if __name__ == "__main__":
    main()
