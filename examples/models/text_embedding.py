"""Text classification by an embedding bag: from which library is a docstring? Beside Opacus.

usage: python examples/models/text_embedding.py [--epsilon 3] [--epochs 20]

The text is that of dplip's own dependencies (shipped_text.py). Words are numbered by a public hash; a vocabulary that
is counted on the private text would be a release of its own. Bags are filled up to one public length with the number
0, which ``padding_idx=0`` leaves out.
"""

from __future__ import annotations

import torch
from beside import Task, beside, options
from shipped_text import LIBRARIES, WORDS, sentences, split
from torch import nn
from torch.utils.data import TensorDataset

import dplip

LENGTH = 32


def bag_of_words() -> nn.Sequential:
    return nn.Sequential(
        nn.EmbeddingBag(WORDS, 32, mode="mean", padding_idx=0),
        nn.Linear(32, 32),
        nn.ReLU(),
        nn.Linear(32, len(LIBRARIES)),
    )


def main() -> None:
    arguments = options(__doc__, epochs=20, lr=1e-2).parse_args()
    rows, labels = sentences(LENGTH)
    filled = [row + [0] * (LENGTH - len(row)) for row in rows]
    parts = zip(split(filled), split(labels), strict=True)
    train, test = (TensorDataset(torch.tensor(x), torch.tensor(y)) for x, y in parts)
    beside(Task(bag_of_words, train, test, dplip.losses.CrossEntropy(), 256), arguments)


if __name__ == "__main__":
    main()
