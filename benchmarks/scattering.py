"""Accuracy of the scattering presets, whose features are computed once for all runs on a data set.

usage: python benchmarks/scattering.py fashion-mnist:3 fashion-mnist:1 --data-dir DIR [--seeds 3] [--json FILE]
       python benchmarks/scattering.py fashion-mnist:3 --data-dir DIR --held-out lr=0.02,0.05 temperature=1,4 ...

What `dplip train --preset accuracy` does, but for the order: the fixed front end runs once over the data, and every run
trains the rest of the model on its values. Without --held-out the runs are on all the training data and the test data
is used for the table. With it, combinations of the given values (fields of dplip.models.ScatteringPreset)
are trained on nine tenths of the training data and judged on the rest; the test data is not read.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import statistics
import time

import torch
from torch.utils.data import TensorDataset
from tune import combinations

from dplip.data import Data, holdout, load
from dplip.models import ImageRecipe, preset
from dplip.training.feature_extractor import features, split_extractor


def trained_accuracy(recipe: ImageRecipe, data: Data, parts: list[TensorDataset], epsilon: float, seed: int) -> float:
    """Of one run of the rest of the recipe's model on values of its front end; ``parts``: to train on, to judge on."""
    torch.manual_seed(seed)
    model = recipe.model(data.input_shape, data.num_classes)
    _, rest = split_extractor(model, recipe.loss(), data.input_shape)
    trainer = recipe.trainer(
        data,
        rest,
        train_dataset=parts[0],
        eval_dataset=parts[1],
        target_epsilon=epsilon,
        precompute=False,
        progress=False,
        seed=seed,
    )
    return 100 * trainer.fit().evaluate()["accuracy"]


def values(recipe: ImageRecipe, data: Data, parts: list[TensorDataset], progress: bool) -> list[TensorDataset]:
    fixed, _ = split_extractor(recipe.model(data.input_shape, data.num_classes), recipe.loss(), data.input_shape)
    return [features(fixed, part, progress) for part in parts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="NAME:EPSILON")
    parser.add_argument("--data-dir")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--held-out", nargs="*", metavar="FIELD=VALUE,...")
    parser.add_argument("--json", help="write the figures here")
    parser.add_argument("--progress", action="store_true")
    arguments = parser.parse_args()
    settings = combinations(arguments.held_out or [])
    rows = []
    for name, runs in itertools.groupby(arguments.runs, lambda run: run.split(":")[0]):
        data, recipe = load(name, arguments.data_dir), preset(name, "scattering")
        split = [data.train, data.test] if arguments.held_out is None else list(holdout(data.train, 0.1, seed=0))
        started = time.perf_counter()
        parts = values(recipe, data, split, arguments.progress)
        print(f"{name}: features in {time.perf_counter() - started:.0f} s", flush=True)
        for run, setting in itertools.product(runs, settings):
            epsilon, started = float(run.split(":")[1]), time.perf_counter()
            made = dataclasses.replace(recipe, **setting)
            reached = []
            for seed in range(arguments.seeds):
                reached.append(trained_accuracy(made, data, parts, epsilon, seed))
                print(f"  {run} {setting or ''} seed {seed}: {reached[-1]:.2f}", flush=True)
            seconds = (time.perf_counter() - started) / arguments.seeds
            spread = statistics.stdev(reached) if len(reached) > 1 else 0.0
            rows.append({"run": run, "setting": setting, "accuracy": reached, "seconds": seconds})
            shown = f"{statistics.mean(reached):.2f} (std {spread:.2f}), {seconds:.0f} s a run"
            print(f"{run} {setting or ''} {shown}", flush=True)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(rows, file, indent=2)


if __name__ == "__main__":
    main()
