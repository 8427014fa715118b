"""An LSTM that reads letters: from which library is the name of a function or class? Beside Opacus.

usage: python examples/models/lstm_characters.py [--epsilon 3] [--epochs 10]

The whole sequence is one use of the LSTM's weights, so a long name costs no more noise than a short one. Opacus puts a
``DPLSTM`` of its own in the place of ``nn.LSTM``; here the layer stays torch's, and so do the keys of its weights.
"""

from __future__ import annotations

import torch
from beside import Task, beside, options
from shipped_text import LIBRARIES, names, split
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import dplip

LENGTH = 20


class Reader(nn.Module):
    """The mean of an LSTM's states over a name's letters, and a linear layer."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.letters = nn.Embedding(128, 32, padding_idx=0)
        self.lstm = nn.LSTM(32, width, batch_first=True)
        self.head = nn.Linear(width, len(LIBRARIES))

    def forward(self, ids: Tensor) -> Tensor:
        states, _ = self.lstm(self.letters(ids))
        there = (ids != 0)[:, :, None]
        return self.head((states * there).sum(1) / there.sum(1).clamp_min(1))


def main() -> None:
    arguments = options(__doc__, epochs=10, lr=5e-3).parse_args()
    rows, labels = names(LENGTH)
    parts = zip(split(rows), split(labels), strict=True)
    train, test = (TensorDataset(torch.tensor(x).clamp_max(127), torch.tensor(y)) for x, y in parts)
    beside(Task(Reader, train, test, dplip.losses.CrossEntropy(), 256), arguments)


if __name__ == "__main__":
    main()
