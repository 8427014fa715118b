"""A small table and its schema."""

import numpy as np
import pandas as pd

from dplip.data import Column, Schema

SCHEMA = Schema(
    target=Column("bought", "boolean"),
    columns=(
        Column("age", "numeric", 18, 98, monotone=1),
        Column("colour", "categorical", levels=("red", "green", "7")),
        Column("price", "numeric", 0, 1000, log=True, monotone=-1, missing=True),
        Column("member", "boolean", monotone=1),
    ),
)


def frame(rows: int = 400, seed: int = 0) -> pd.DataFrame:
    g = np.random.default_rng(seed)
    age, price = g.integers(18, 90, rows), np.exp(g.uniform(0, 6.5, rows)).round(2)
    member, colour = g.random(rows) < 0.5, g.choice(["red", "green", "7"], rows)
    chance = 1 / (1 + np.exp(-((age - 50) / 8 - (np.log(price) - 3) + 2 * member)))
    return pd.DataFrame(
        {"age": age, "colour": colour, "price": price, "member": member, "bought": g.random(rows) < chance}
    )
