"""Small finished runs, in folders: on digits, on tables, and of a model of one's own."""

from pathlib import Path
from typing import Any

import torch
from helpers.tables import SCHEMA, frame
from torch import nn

import dplip
from dplip.cli.train import train
from dplip.data import Column, Schema, write_schema

QUICK: dict[str, Any] = {"epochs": 4, "progress": False, "epsilon": 8.0}


def digits(folder: Path, **options) -> Path:
    """A run of ``dplip train`` on digits."""
    train(data="digits", out=folder, **{**QUICK, **options})
    return folder


def table(folder: Path, **options) -> Path:
    """A run on a table with two classes; the table's files are in the folder above."""
    frame(400).to_csv(folder.parent / "shop.csv", index=False)
    frame(200, 1).to_csv(folder.parent / "shop.test.csv", index=False)
    write_schema(folder.parent / "shop.schema.json", SCHEMA)
    train(data=str(folder.parent / "shop.csv"), out=folder, **{**QUICK, "monotone": "age:+,price:-", **options})
    return folder


def regression(folder: Path) -> Path:
    """A run on a table whose target is a number."""
    rows = frame(400).assign(sum=lambda f: 3 * f["age"] + f["price"] / 10).drop(columns="bought")
    rows.to_csv(folder.parent / "sums.csv", index=False)
    write_schema(folder.parent / "sums.schema.json", Schema(Column("sum", "numeric", 50.0, 400.0), SCHEMA.columns))
    train(data=str(folder.parent / "sums.csv"), out=folder, **QUICK)
    return folder


def own_model() -> nn.Module:
    """A model whose layers bound their gradients; it has a certificate all the same."""
    torch.manual_seed(0)
    return dplip.nn.bound_gradients(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)))


class Untraced(nn.Module):
    """A model of code that has no trace, and so no certificate."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x):
        rows = torch.unbind(x, 1)
        return self.layer(torch.stack([torch.special.i0(row) for row in rows], 1))


def untraced_model() -> nn.Module:
    torch.manual_seed(0)
    return dplip.nn.bound_gradients(Untraced())
