"""Draw how a private model's prediction answers to one feature, with the band that its certificate leaves it.

usage: python examples/monotone_response.py [--epsilon 3] [--out response.png] [--seed 0] [--quick]
       python examples/monotone_response.py --data adult --data-dir DIR --feature education-num --epsilon 1

Without --data the table is made up: the chance of a purchase, which rises with income and falls with price. Two models
are trained, with noise for epsilon and without. For each, one column moves through its public range while the others of
a held-out row stay (a partial dependence): for five single rows, and for the mean score of all. The shaded band starts
at the mean's left end and opens with the least and the largest certified slope: no response can leave it, whatever the
rows. Without the residual it would open downwards too. Scores are shown as chances (a regression's as they are).
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from dplip import certify_monotonic
from dplip.certificates.slopes import slopes
from dplip.data import Column, Schema, Table, load_table
from dplip.models import TabularPreset, tabular_preset

SHOP = Schema(
    Column("bought", "boolean"),
    (
        Column("income", "numeric", 0, 200, monotone=1),
        Column("price", "numeric", 1, 1000, log=True, monotone=-1),
        Column("age", "numeric", 18, 98),
    ),
)


def shop(rows: int, seed: int) -> TensorDataset:
    g = np.random.default_rng(seed)
    x = np.stack([g.uniform(0, 200, rows), np.exp(g.uniform(0, 6.9, rows)), g.uniform(18, 98, rows)], axis=1)
    score = 3 * np.tanh((x[:, 0] - 80) / 30) - 0.8 * (np.log(x[:, 1]) - 3.5) + np.cos(x[:, 2] / 10)
    bought = g.random(rows) < 1 / (1 + np.exp(-score))
    return TensorDataset(torch.from_numpy(x).float(), torch.from_numpy(bought.astype(np.int64)))


def train(table: Table, recipe: TabularPreset, epsilon: float, seed: int) -> Any:
    torch.manual_seed(seed)
    trainer = recipe.trainer(table, eval_dataset=None, target_epsilon=epsilon, seed=seed, progress=False)
    return trainer.fit().model.eval()


@torch.no_grad()
def responses(model: torch.nn.Sequential, rows: Tensor, feature: int, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores (rows, points) while one feature moves, and the ends of the certified band (points,) around their mean.

    Proof of the band: between two points the scaled feature rises by some d >= 0, and a score whose slope in it lies in
    [l, u] changes by something in [l d, u d]; so does a mean of scores.
    """
    found, scaled = [], []
    for value in at:
        moved = rows.clone()
        moved[:, feature] = value
        found.append(model(moved)[:, 0])
        scaled.append(model[0](moved)[0, feature])
    scores, distance = torch.stack(found, dim=1), torch.stack(scaled) - scaled[0]
    lower, upper = (float(end[0, feature]) for end in slopes(model[1], rows.shape[1]))
    start = scores.mean(0)[0]
    return scores, start + lower * distance, start + upper * distance


def draw(axes: Any, at: Tensor, scores: Tensor, band: tuple[Tensor, Tensor], shown: Callable[[Tensor], Tensor]) -> None:
    for k, row in enumerate(scores[:5]):
        axes.plot(at, shown(row), color="0.6", linewidth=0.8, label="single rows" if k == 0 else None)
    axes.plot(at, shown(scores.mean(0)), color="C0", linewidth=2, label="mean score of held-out rows")
    axes.fill_between(at, *map(shown, band), color="C0", alpha=0.15, label="certified band of the mean")
    axes.grid(alpha=0.2)


def chance(score: Tensor, scale: float) -> Tensor:
    return torch.sigmoid(scale * score)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a table with a schema, or the name of one (then with --data-dir)")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--feature", help="the column that moves [the first monotone one]")
    parser.add_argument("--epsilon", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("response.png"))
    parser.add_argument("--quick", action="store_true", help="few rows, few epochs")
    arguments = parser.parse_args()
    if arguments.data:
        table = load_table(arguments.data, arguments.data_dir)
    else:
        table = Table("shop", shop(1000 if arguments.quick else 20000, 0), shop(2000, 1), SHOP)
    schema = table.schema
    feature = arguments.feature or next(c.name for c in schema.numeric if c.monotone)
    index = schema.features.index(feature)
    column = schema.numeric[index]
    at = torch.linspace(column.low, column.high, 200)
    models, scales = {}, {}
    for epsilon in (arguments.epsilon, math.inf):
        recipe = tabular_preset(table.name, math.isfinite(epsilon), schema.regression)
        if arguments.quick:
            recipe = dataclasses.replace(recipe, epochs=2)
        scales[f"epsilon {epsilon:g}"] = recipe.scale
        models[f"epsilon {epsilon:g}"] = train(table, recipe, epsilon, arguments.seed)

    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots(1, len(models), sharey=True)
    for axis, (name, model) in zip(axes, models.items(), strict=True):
        proof = certify_monotonic(model, schema.directions, schema.features)
        scores, low, high = responses(model, table.test.tensors[0], index, at)
        steps = scores.diff(dim=1) * (column.monotone or 1)
        print(f"{name}: least step of a response {float(steps.min()):.2e}, certified margin {proof.margin:.2e}")
        shown = partial(chance, scale=scales[name]) if not schema.regression else Tensor.clone
        draw(axis, at, scores, (low, high), shown)
        axis.set(title=name, xlabel=f"{feature} (its own units)")
    if not schema.regression:
        axes[0].set(ylabel="predicted chance", ylim=(-0.02, 1.02))
    else:
        axes[0].set(ylabel="prediction (scaled target)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    figure.savefig(arguments.out, dpi=80)
    print(f"picture {arguments.out}")


if __name__ == "__main__":
    main()
