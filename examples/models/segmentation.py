"""Segmentation, one class for each pixel, by a small network that narrows and widens; beside Opacus.

usage: python examples/models/segmentation.py [--epsilon 8] [--epochs 10]

Synthetic images, made here: a disc and a square in noise. One image is one example: its loss is the mean over its own
pixels, and all of them together are what privacy protects.
"""

from __future__ import annotations

import torch
from beside import Task, beside, options
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import dplip

SIZE = 24


def shapes(count: int, seed: int) -> TensorDataset:
    """Images (1, SIZE, SIZE) and the class of each pixel: 0 ground, 1 disc, 2 square."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.arange(SIZE)[None, :, None].float()
    columns = rows.mT
    middles = torch.randint(5, SIZE - 5, (4, count, 1, 1), generator=generator).float()
    sizes = 3 + 2 * torch.rand(2, count, 1, 1, generator=generator)
    disc = (rows - middles[0]).square() + (columns - middles[1]).square() <= sizes[0].square()
    square = torch.maximum((rows - middles[2]).abs(), (columns - middles[3]).abs()) <= sizes[1] * 0.9
    classes = torch.where(square, 2, disc.long())
    images = (classes > 0).float() + 0.3 * torch.randn(count, SIZE, SIZE, generator=generator)
    return TensorDataset(images[:, None], classes)


class Segmenter(nn.Module):
    """Two steps down, two steps up, and a way past them for what is fine."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.fine = nn.Conv2d(1, width, 3, 1, 1)
        self.down = nn.Sequential(
            nn.Conv2d(width, width, 4, 2, 1), nn.Tanh(), nn.Conv2d(width, width, 4, 2, 1), nn.Tanh()
        )
        up = nn.ConvTranspose2d(width, width, 4, 2, 1), nn.Tanh(), nn.ConvTranspose2d(width, width, 4, 2, 1), nn.Tanh()
        self.up = nn.Sequential(*up)
        self.head = nn.Conv2d(2 * width, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = torch.tanh(self.fine(x))
        return self.head(torch.cat([fine, self.up(self.down(fine))], 1))


def main() -> None:
    arguments = options(__doc__, epochs=10, lr=3e-3, epsilon=8.0).parse_args()
    task = Task(Segmenter, shapes(2000, 0), shapes(500, 1), dplip.losses.CrossEntropy(), 128)
    beside(task, arguments)


if __name__ == "__main__":
    main()
