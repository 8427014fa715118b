"""Monotone networks on tables, with noise and without, and two private baselines on the same split and budget.

usage: python benchmarks/tabular.py plain   --data-dir DIR [--seeds 3] [NAME ...]
       python benchmarks/tabular.py private --data-dir DIR [--seeds 3] [--epsilon 1 3] [--diffprivlib PYTHON] [NAME ...]
       python benchmarks/tabular.py tune    --data-dir DIR --method METHOD --epsilon E NAME FIELD=VALUE;VALUE ...

DIR is what benchmarks/tabular_data.py writes. Recipes are those of dplip.models.tabular_preset, chosen by `tune` on a
fifth of the training rows held out; `plain` and `private` read the test rows at the end only. `plain` adds what the
papers report: the best epoch and, for classes, the best of 100 thresholds *on the test rows*.

Methods: inf, one, two (dplip's chains), opacus (clipped DP-SGD with Adam on an unconstrained ReLU network of the same
widths, same inputs), diffprivlib (its logistic regression, pure epsilon; diffprivlib 0.6.6 does not run with the
scikit-learn that dplip is tested with, so PYTHON names an interpreter that has it: pip install diffprivlib
'scikit-learn<1.7').
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import itertools
import json
import math
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from dplip import certify_monotonic
from dplip.data import Table, holdout, load_table
from dplip.models import TabularPreset, tabular_preset
from dplip.models.monotone import CHAINS
from dplip.runtime.mode import evaluation
from dplip.training.schedules import Annealing

DELTA = 1e-5


@dataclasses.dataclass(frozen=True)
class Clipped:
    """The recipe of the clipped baseline."""

    lr: float = 0.03
    max_grad_norm: float = 1.0
    batch_size: int = 2048
    epochs: int = 40
    widths: tuple[int, ...] = (16, 16)


@dataclasses.dataclass(frozen=True)
class Logistic:
    """The recipe of the logistic regression."""

    C: float = 1.0


OPACUS = {"adult": Clipped(), "compas": Clipped(lr=0.06, batch_size=512, epochs=80, widths=(8,))}
DIFFPRIVLIB = {"adult": Logistic(0.03), "compas": Logistic(0.1)}


def score(table: Table, z: Tensor, scale: float, best_threshold: bool = False) -> float:
    """Accuracy; or the MSE in the target's own units, and for blog the RMSE of the target divided by 8."""
    y = table.test.tensors[1]
    if table.schema.regression:
        error = float(((z - y) * table.schema.target.half * scale).double().square().mean())
        return math.sqrt(error) / 8 if table.name == "blog" else error
    cuts = torch.linspace(float(z.min()), float(z.max()), 100) if best_threshold else torch.zeros(1)
    return max(float(((z > cut) == (y == 1)).double().mean()) for cut in cuts)


def monotone(table: Table, recipe: TabularPreset, epsilon: float, seed: int, watch: bool = False) -> dict[str, float]:
    torch.manual_seed(seed)
    trainer = recipe.trainer(
        table, eval_dataset=None, target_epsilon=epsilon, target_delta=DELTA, seed=seed, progress=False
    )
    model = trainer.model

    def scored(best_threshold: bool = False) -> float:
        with evaluation(model), torch.no_grad():
            return score(recipe.prepared(table), model(table.test.tensors[0])[:, 0], recipe.scale, best_threshold)

    seen: list[float] = []
    if watch:
        # As the papers do: the test rows are looked at after every epoch, which changes nothing.
        every = trainer.loader.steps_per_epoch

        def look(done: float) -> None:
            if done > 0 and round(done * trainer.steps) % every == 0:
                seen.append(scored(True))

        trainer.scheduler = Annealing(trainer.optimizer.original, trainer.steps, look)
    trainer.fit()
    proof = certify_monotonic(model, table.schema.directions, table.schema.features)
    found = {"score": scored(), "margin": proof.margin, "epsilon": trainer.get_epsilon()}
    found["parameters"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if watch:
        found["best"] = (min if table.schema.regression else max)(seen)
    return found


def scaled_rows(table: Table) -> tuple[Tensor, Tensor]:
    """The features as the monotone network's first layer gives them."""
    first = tabular_preset(table.name, private=True).model(table.schema)[0]
    with torch.no_grad():
        return first(table.train.tensors[0]), first(table.test.tensors[0])


def clipped(table: Table, recipe: Clipped, epsilon: float, seed: int) -> dict[str, float]:
    from opacus import PrivacyEngine

    torch.manual_seed(seed)
    train, test = scaled_rows(table)
    sizes = (train.shape[1], *recipe.widths, 1)
    layers = [layer for n, m in itertools.pairwise(sizes) for layer in (nn.Linear(n, m), nn.ReLU())][:-1]
    model = nn.Sequential(*layers)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.lr)
    data = TensorDataset(train, table.train.tensors[1].float())
    engine = PrivacyEngine(accountant="rdp")
    model, optimizer, loader = engine.make_private_with_epsilon(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(data, batch_size=min(recipe.batch_size, len(data))),
        target_epsilon=epsilon,
        target_delta=DELTA,
        epochs=recipe.epochs,
        max_grad_norm=recipe.max_grad_norm,
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.epochs * len(loader))
    for _ in range(recipe.epochs):
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.binary_cross_entropy_with_logits(model(x)[:, 0], y).backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        z = model(test)[:, 0]
    return {"score": score(table, z, 1.0), "epsilon": engine.get_epsilon(DELTA)}


SCRIPT = """
import sys, warnings
import numpy as np
warnings.filterwarnings("ignore")
from diffprivlib.models import LogisticRegression
held = np.load(sys.argv[1])
epsilon, norm, C = map(float, sys.argv[2:5])
model = LogisticRegression(epsilon=epsilon, data_norm=norm, C=C, max_iter=1000, random_state=int(sys.argv[5]))
model.fit(held["x"], held["y"])
print(model.score(held["x_test"], held["y_test"]))
"""


def logistic(table: Table, recipe: Logistic, epsilon: float, seed: int, python: str) -> dict[str, float]:
    train, test = (part.double().numpy() for part in scaled_rows(table))
    schema = table.schema
    norm = math.sqrt(len(schema.numeric) / 4 + len(schema.blocks)) * (1 + 1e-5)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.npz"
        np.savez(path, x=train, y=table.train.tensors[1], x_test=test, y_test=table.test.tensors[1])
        command = [python, "-c", SCRIPT, str(path), *map(str, (epsilon, norm, recipe.C, seed))]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {"score": float(done.stdout.split()[-1]), "epsilon": epsilon}


def run(method: str, table: Table, recipe: Any, epsilon: float, seed: int, python: str | None) -> dict[str, float]:
    if method == "opacus":
        return clipped(table, recipe, epsilon, seed)
    if method == "diffprivlib":
        return logistic(table, recipe, epsilon, seed, python or sys.executable)
    return monotone(table, recipe, epsilon, seed)


def recipe_of(method: str, name: str, private: bool) -> Any:
    if method in ("opacus", "diffprivlib") and name not in OPACUS:
        raise SystemExit(f"{method}: no recipe for {name}")
    if method == "opacus":
        return OPACUS[name]
    if method == "diffprivlib":
        return DIFFPRIVLIB[name]
    return dataclasses.replace(tabular_preset(name, private, name in ("auto-mpg", "blog")), chain=method)


def shown(values: list[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.4f} ± {spread:.4f}"


def splits(name: str, data_dir: Path, seeds: int) -> list[Table]:
    """The table for each seed: one split for all, but for auto-mpg, which has three."""
    if name != "auto-mpg":
        return [load_table(name, data_dir)] * seeds
    first = load_table(name, data_dir)
    others = [data_dir / f"auto-mpg-{k % 3}.csv" for k in range(1, seeds)]
    tables = [load_table(path) if path.stem != "auto-mpg-0" else first for path in others]
    return [first, *(dataclasses.replace(table, name=name) for table in tables)]


def plain(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for name in arguments.names or ["compas", "heart", "auto-mpg", "blog", "adult"]:
        tables = splits(name, arguments.data_dir, arguments.seeds)
        recipe = tabular_preset(name, private=False)
        runs = [monotone(table, recipe, math.inf, seed, watch=True) for seed, table in enumerate(tables)]
        last, best = ([r[key] for r in runs] for key in ("score", "best"))
        print(
            f"{name:<9} chain {recipe.chain}, {runs[0]['parameters']:.0f} parameters: last epoch {shown(last)}, "
            f"best epoch and threshold on test {shown(best)}, least margin {min(r['margin'] for r in runs):.3g}",
            flush=True,
        )
        rows.append({"data": name, "recipe": dataclasses.asdict(recipe), "last": last, "best": best})
    return rows


def private(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    methods = arguments.method or [*CHAINS, "opacus", *(["diffprivlib"] if arguments.diffprivlib else [])]
    for name, epsilon, method in itertools.product(arguments.names or ["adult", "compas"], arguments.epsilon, methods):
        table, recipe = load_table(name, arguments.data_dir), recipe_of(method, name, True)
        runs = [run(method, table, recipe, epsilon, seed, arguments.diffprivlib) for seed in range(arguments.seeds)]
        values = [r["score"] for r in runs]
        spent = max(r["epsilon"] for r in runs)
        print(f"{name:<7} epsilon {epsilon:g} (spent {spent:.3f}) {method:<12} {shown(values)}", flush=True)
        rows.append({"data": name, "epsilon": epsilon, "method": method, "scores": values, "spent": spent})
    return rows


def tune(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    name, *fields = arguments.names
    grid = {f.split("=")[0]: [ast.literal_eval(v) for v in f.split("=")[1].split(";")] for f in fields}
    (method,), (epsilon,) = arguments.method, arguments.epsilon
    table, rows = load_table(name, arguments.data_dir), []
    for values in itertools.product(*grid.values()):
        recipe = dataclasses.replace(
            recipe_of(method, name, math.isfinite(epsilon)), **dict(zip(grid, values, strict=True))
        )
        found = []
        for seed in range(arguments.seeds):
            train, held_out = holdout(table.train, 0.2, seed + 100)
            part = dataclasses.replace(table, train=train, test=held_out)
            found.append(run(method, part, recipe, epsilon, seed, arguments.diffprivlib)["score"])
        rows.append({"setting": dict(zip(grid, values, strict=True)), "scores": found})
        print(shown(found), rows[-1]["setting"], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["plain", "private", "tune"])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epsilon", type=float, nargs="+", default=[1.0, 3.0])
    parser.add_argument("--method", nargs="+")
    parser.add_argument("--diffprivlib", metavar="PYTHON", help="an interpreter that has diffprivlib")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    arguments = parser.parse_intermixed_args()
    rows = {"plain": plain, "private": private, "tune": tune}[arguments.part](arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
