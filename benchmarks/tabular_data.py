"""Write the tables of the benchmark as CSV files with schemas, from arrays that hold them.

usage: python benchmarks/tabular_data.py NPZ_DIR OUT_DIR

NPZ_DIR holds adult.npz, compas.npz, heart_benchmark.npz, auto_mpg.npz and blogfeedback.npz, or some of them, each with
the arrays X, y, feature_names ("column=level" for one-hot columns), mono, is_onehot, lo, hi and split (0 train, 1 test;
auto_mpg: perm, of which the first 313 are for training). OUT_DIR gets NAME.csv, NAME.test.csv and NAME.schema.json, as
`dplip train --data NAME --data-dir OUT_DIR` reads them; auto-mpg-1 and auto-mpg-2 are the second and third split.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from dplip.data import Column, Schema, write_schema

LONG_TAILS = {"capital-gain", "capital-loss", "priors_count", "juv_fel_count", "juv_misd_count", "juv_other_count"}
TARGETS = {
    "adult": Column("income", "categorical", levels=("<=50K", ">50K")),
    "compas": Column("two_year_recid", "boolean"),
    "heart": Column("disease", "boolean"),
    "auto-mpg": Column("mpg", "numeric", low=5, high=50),
    "blog": Column("comments", "numeric", low=0, high=8),
}
FILES = {
    "adult": "adult",
    "compas": "compas",
    "heart": "heart_benchmark",
    "auto-mpg": "auto_mpg",
    "blog": "blogfeedback",
}


def table(name: str, arrays: dict[str, np.ndarray]) -> tuple[pd.DataFrame, Schema]:
    names = [str(n) for n in arrays["feature_names"]]
    x, one_hot = arrays["X"], np.array(["=" in n for n in names])
    frame, columns = {}, []
    for i in np.flatnonzero(~one_hot):
        frame[names[i]] = x[:, i]
        low, high, wide = float(arrays["lo"][i]), float(arrays["hi"][i]), name == "blog"
        high = high if high > low else low + 1.0
        log = names[i] in LONG_TAILS or (wide and low >= 0 and high > 20)
        columns.append(Column(names[i], "numeric", low, high, log=log, monotone=int(arrays["mono"][i])))
    for group in dict.fromkeys(names[i].split("=")[0] for i in np.flatnonzero(one_hot)):
        held = [i for i in np.flatnonzero(one_hot) if names[i].split("=")[0] == group]
        levels = np.array([names[i].split("=", 1)[1] for i in held])
        frame[group] = levels[x[:, held].argmax(1)]
        columns.append(Column(group, "categorical", levels=tuple(levels)))
    target = TARGETS[name]
    y = arrays["y"]
    frame[target.name] = np.array(target.levels)[y.astype(int)] if target.levels else y
    source = "observed" if name == "blog" else "public"
    return pd.DataFrame(frame), Schema(target, tuple(columns), source)


def splits(name: str, arrays: dict[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    if name == "auto-mpg":
        named = {0: "auto-mpg", 1: "auto-mpg-1", 2: "auto-mpg-2"}
        return {named[k]: (order[:313], order[313:]) for k, order in enumerate(arrays["perm"])}
    kept = arrays["y"] <= 8 if name == "blog" else np.ones(len(arrays["y"]), dtype=bool)
    train, test = (np.flatnonzero((arrays["split"] == k) & kept) for k in (0, 1))
    return {name: (train, test)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, file in FILES.items():
        path = arguments.source / f"{file}.npz"
        if not path.exists():
            continue
        with np.load(path) as held:
            arrays = dict(held)
        frame, schema = table(name, arrays)
        for part, (train, test) in splits(name, arrays).items():
            frame.iloc[train].to_csv(arguments.out / f"{part}.csv", index=False)
            frame.iloc[test].to_csv(arguments.out / f"{part}.test.csv", index=False)
            write_schema(arguments.out / f"{part}.schema.json", schema)
            print(f"{part}: {len(train)} rows for training, {len(test)} for testing, {len(schema.features)} features")


if __name__ == "__main__":
    main()
