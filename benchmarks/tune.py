"""Compare recipes for a data set on a held-out part of its training data; the test set is never read.

usage: python benchmarks/tune.py fashion-mnist --epsilon 3 --data-dir DIR lr=0.5,1,2 epochs=40,80 ...

Every combination of the given values (fields of dplip.models.Recipe) is trained on 90% of the training data and
judged on the other 10%; prints one line each, best last.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import time
from collections.abc import Iterable
from typing import Any

import torch

from dplip.certificates import certified_accuracy, correct_radii
from dplip.data import Data, holdout, load
from dplip.models import Recipe, preset
from dplip.training.evaluation import RADII


def value(text: str) -> Any:
    """None, a number, numbers joined by x (4x3; a single one: 4x), or the word itself."""
    if text == "none":
        return None
    try:
        numbers = [int(part) if part.isdigit() else float(part) for part in text.split("x") if part]
    except ValueError:
        return text
    return tuple(numbers) if "x" in text else numbers[0]


def combinations(items: Iterable[str]) -> list[dict[str, Any]]:
    """Every setting of the grid that is given as FIELD=VALUE,VALUE items; one without a field if there are none."""
    pairs = [item.partition("=") for item in items]
    choices = [[(field, value(text)) for text in texts.split(",")] for field, _, texts in pairs]
    return [dict(chosen) for chosen in itertools.product(*choices)]


def score(recipe: Recipe, data: Data, epsilon: float, seed: int) -> tuple[list[float], float]:
    train, held_out = holdout(data.train, 0.1, seed=0)
    torch.manual_seed(seed)
    trainer = recipe.trainer(
        data, train_dataset=train, eval_dataset=None, target_epsilon=epsilon, progress=False, seed=seed
    )
    started = time.perf_counter()
    trainer.fit()
    seconds = time.perf_counter() - started
    return certified_accuracy(correct_radii(trainer.model, held_out, recipe.norm), RADII), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--epsilon", type=float, default=3.0)
    parser.add_argument("--data-dir")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("grid", nargs="*")
    arguments = parser.parse_intermixed_args()
    data = load(arguments.data, arguments.data_dir)
    found = []
    for setting in combinations(arguments.grid):
        recipe = dataclasses.replace(preset(arguments.data), **setting)
        runs = [score(recipe, data, arguments.epsilon, seed) for seed in range(arguments.seeds)]
        mean = [sum(r[0][i] for r in runs) / len(runs) for i in range(len(RADII))]
        found.append((sum(mean), setting, mean, runs[0][1]))
        shown = " ".join(f"{100 * m:.1f}" for m in mean)
        print(f"{shown}  {runs[0][1]:.0f}s  {setting}", flush=True)
    best = max(found, key=lambda row: row[0])
    print("best:", best[1], [round(100 * m, 1) for m in best[2]])


if __name__ == "__main__":
    main()
