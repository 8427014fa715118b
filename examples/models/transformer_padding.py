"""A small transformer encoder on sentences of different lengths, with padding masks, beside Opacus.

usage: python examples/models/transformer_padding.py [--epsilon 8] [--epochs 20]

``dplip.data.Padding`` brings every sentence to one public length and adds its mask. The longest sentence of a batch
would not do: it would tell of one example, and change what is computed for the others.
"""

from __future__ import annotations

from typing import Any

import torch
from beside import Task, beside, options
from shipped_text import LIBRARIES, WORDS, sentences, split
from torch import Tensor, nn

import dplip
from dplip.data import Padding

LENGTH = 24


class Encoder(nn.Module):
    """Words and positions, one layer of attention that leaves padding out, and the mean over the words."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, width, padding_idx=0)
        self.positions = nn.Parameter(0.02 * torch.randn(LENGTH, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(width, len(LIBRARIES))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.encoder(self.words(ids) + self.positions, src_key_padding_mask=mask == 0)
        return self.head((x * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True))


def with_mask(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    (ids, mask), y = batch
    return model(ids, mask), y


def main() -> None:
    arguments = options(__doc__, epochs=20, lr=5e-3, epsilon=8.0).parse_args()
    rows, labels = sentences(LENGTH)
    train, test = split(list(zip(rows, labels, strict=True)))
    loss = dplip.losses.CrossEntropy()
    beside(Task(Encoder, train, test, loss, 256, with_mask, Padding(LENGTH)), arguments)


if __name__ == "__main__":
    main()
