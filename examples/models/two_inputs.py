"""A model of two inputs, an image and a row of numbers, from a data set of dictionaries; beside Opacus.

usage: python examples/models/two_inputs.py [--epsilon 8] [--epochs 20]

Digits of scikit-learn: the image goes through a convolution, and the ink of each of its rows and columns, as a table
would have it, through a linear layer. The names in the dictionaries are those that ``forward`` takes.
"""

from __future__ import annotations

from typing import Any

import torch
from beside import Task, beside, options
from torch import Tensor, nn
from torch.utils.data import Dataset

import dplip
from dplip.data import load


class TwoBranches(nn.Module):
    """A branch for each input, and one layer for both."""

    def __init__(self) -> None:
        super().__init__()
        self.pixels = nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1), nn.Tanh(), nn.Flatten(), nn.Linear(256, 32))
        self.numbers = nn.Linear(16, 32)
        self.head = nn.Linear(64, 10)

    def forward(self, image: Tensor, table: Tensor) -> Tensor:
        return self.head(torch.tanh(torch.cat([self.pixels(image), self.numbers(table)], 1)))


def records(data: Dataset) -> list[dict[str, Any]]:
    pairs = [(torch.as_tensor(x), int(y)) for x, y in data]  # type: ignore[attr-defined]
    return [{"image": x, "table": torch.cat([x[0].sum(0), x[0].sum(1)]) / 8, "labels": y} for x, y in pairs]


def by_name(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return model(image=batch["image"], table=batch["table"]), batch["labels"]


def main() -> None:
    arguments = options(__doc__, epochs=20, lr=3e-3, epsilon=8.0).parse_args()
    data = load("digits")
    train, test = records(data.train), records(data.test)
    beside(Task(TwoBranches, train, test, dplip.losses.CrossEntropy(), 128, by_name), arguments)


if __name__ == "__main__":
    main()
