"""Private classifiers with learnable splines against GroupSort and others: one recipe, one budget.

usage: python benchmarks/spline_private.py fashion-mnist --data-dir DIR [--epsilon 3] [--seeds 3] [--json FILE]
       python benchmarks/spline_private.py fashion-mnist --data-dir DIR --tune init=absolute,maxmin range=0.5,1 ...

The model and recipe are those of the preset (dplip.models), with another activation in place of GroupSort. Without
--tune every activation is trained on all the training data, and judged on the test data. With --tune the combinations
of the given values are trained on nine tenths of the training data and judged on the rest; the test data is not read.
Fields: kind (slopes, values), init, knots, range, lr (of the splines, as a multiple of the preset's), scale (its
floor), or activation (a name below); and those of the preset (temperature, radius, epochs, ...).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from tune import combinations

from dplip import nn as dn
from dplip.certificates import certified_accuracy, correct_radii
from dplip.data import holdout, load
from dplip.models import Preset, preset
from dplip.nn.splines.spline import Spline
from dplip.training.evaluation import RADII

KINDS = {"slopes": dn.LinearSpline, "values": dn.CoefficientSpline}
SPLINE: dict[str, Any] = {"kind": "slopes", "init": "absolute", "knots": 21, "range": 1.0, "lr": 1.0, "scale": None}
"""The splines chosen on held-out data."""


class Absolute(nn.Module):
    """The absolute value."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.abs()


def spline(width: int, setting: dict[str, Any]) -> Spline:
    made = {**SPLINE, **setting}
    return KINDS[made["kind"]](width, made["knots"], made["range"], made["init"], min_scale=made["scale"])


ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {
    "GroupSort": lambda width: dn.GroupSort(2),
    "ReLU": lambda width: nn.ReLU(),
    "absolute value": lambda width: Absolute(),
    "Householder": lambda width: dn.Householder(width),
    "spline (slopes)": lambda width: spline(width, {"kind": "slopes"}),
    "spline (values)": lambda width: spline(width, {"kind": "values"}),
}


def build(recipe: Preset, data: Any, activation: Callable[[int], nn.Module]) -> nn.Sequential:
    """The preset's model with another activation."""
    model = recipe.model(data.input_shape, data.num_classes)
    chain: Any
    for chain in [part for part in model.modules() if isinstance(part, nn.Sequential)]:
        for i, layer in enumerate(chain):
            if isinstance(layer, dn.GroupSort):
                chain[i] = activation(chain[i - 1].out_features)  # what a linear layer before it gives
    return model


def train(
    recipe: Preset, data: Any, train_set: Any, activation: Any, epsilon: float, seed: int, lr: float
) -> tuple[nn.Module, float]:
    torch.manual_seed(seed)
    model = build(recipe, data, activation)
    own = [p for m in model.modules() if isinstance(m, Spline) for p in m.parameters()]
    others = [p for p in model.parameters() if all(p is not q for q in own)]
    groups: list[dict[str, Any]] = [{"params": others}]
    if own:
        groups.append({"params": own, "lr": lr * recipe.lr})
    trainer = recipe.trainer(
        data,
        model,
        torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum),
        train_dataset=train_set,
        eval_dataset=None,
        target_epsilon=epsilon,
        progress=False,
        seed=seed,
    )
    started = time.perf_counter()
    trainer.fit()
    return model, time.perf_counter() - started


def tune(recipe: Preset, data: Any, arguments: argparse.Namespace) -> None:
    train_set, held_out = holdout(data.train, 0.1, seed=0)
    for setting in combinations(arguments.tune):
        name = setting.pop("activation", None)
        own = {k: v for k, v in setting.items() if k in SPLINE}
        made = dataclasses.replace(recipe, **{k: v for k, v in setting.items() if k not in SPLINE})
        activation = ACTIVATIONS[name] if name else lambda width, own=own: spline(width, own)
        scores, seconds = [], 0.0
        for seed in range(arguments.seeds):
            model, seconds = train(
                made, data, train_set, activation, arguments.epsilon, seed, own.get("lr", SPLINE["lr"])
            )
            scores.append(certified_accuracy(correct_radii(model, held_out), RADII))
        mean = [100 * statistics.mean(s[i] for s in scores) for i in range(len(RADII))]
        print(" ".join(f"{m:.2f}" for m in mean), f"{seconds:.0f}s", name or "", setting, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--data-dir")
    parser.add_argument("--epsilon", type=float, default=3.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--activations", nargs="*", default=list(ACTIVATIONS))
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="another recipe than the preset's")
    parser.add_argument("--tune", nargs="*", help="field=value,value ...")
    parser.add_argument("--json", help="write the figures here")
    arguments = parser.parse_args()
    data, recipe = load(arguments.data, arguments.data_dir), preset(arguments.data)
    assert isinstance(recipe, Preset)
    recipe = dataclasses.replace(recipe, **combinations(arguments.set)[0])
    if arguments.tune is not None:
        tune(recipe, data, arguments)
        return
    rows = []
    for name in arguments.activations:
        runs = []
        for seed in range(arguments.seeds):
            model, seconds = train(recipe, data, data.train, ACTIVATIONS[name], arguments.epsilon, seed, SPLINE["lr"])
            runs.append([100 * a for a in certified_accuracy(correct_radii(model, data.test), RADII)])
        means = [statistics.mean(run[i] for run in runs) for i in range(len(RADII))]
        clean = [run[0] for run in runs]
        spread = statistics.stdev(clean) if len(runs) > 1 else 0.0
        rows.append({"activation": name, "runs": runs, "mean": means, "std": spread, "seconds": seconds})
        certified = ", ".join(f"{m:.1f}" for m in means[1:])
        print(f"{name:<16} {means[0]:.2f} (std {spread:.2f}) certified {certified}  {seconds:.0f} s", flush=True)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"data": arguments.data, "epsilon": arguments.epsilon, "rows": rows}, file, indent=2)


if __name__ == "__main__":
    main()
