"""A variational autoencoder of handwritten digits, beside Opacus.

usage: python examples/models/vae.py [--data digits | mnist] [--data-dir DIR] [--epsilon 3] [--epochs 40]

The model draws a code for each example by ``torch.randn_like``, as usual: in private steps, torch's generators are in a
secret state. The targets are the inputs, and the loss is that of the reconstruction and the divergence together.
"""

from __future__ import annotations

import torch
from beside import Task, beside, options
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

import dplip
from dplip.data import load


class Autoencoder(nn.Module):
    """One hidden layer on each side of a code of normal numbers."""

    def __init__(self, pixels: int, hidden: int = 64, code: int = 8) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(pixels, hidden), nn.Tanh(), nn.Linear(hidden, 2 * code))
        self.decoder = nn.Sequential(nn.Linear(code, hidden), nn.Tanh(), nn.Linear(hidden, pixels))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encoder(x).chunk(2, 1)
        drawn = mean + torch.randn_like(mean) * (log_variance / 2).exp() if self.training else mean
        return self.decoder(drawn), mean, log_variance


def reproduced(data: Dataset) -> TensorDataset:
    """Pixels as their own targets."""
    x = torch.stack([torch.as_tensor(x).flatten() for x, _ in data])  # type: ignore[attr-defined]
    return TensorDataset(x, x)


def main() -> None:
    parser = options(__doc__, epochs=40, lr=3e-3)
    parser.add_argument("--data", choices=("digits", "mnist", "fashion-mnist"), default="digits")
    parser.add_argument("--data-dir")
    arguments = parser.parse_args()
    data = load(arguments.data, arguments.data_dir)
    train, test = reproduced(data.train), reproduced(data.test)
    loss = dplip.losses.ELBO(dplip.losses.BinaryCrossEntropy(within="sum"), max_gradient=1.0)
    pixels = train.tensors[0].shape[1]
    beside(Task(lambda: Autoencoder(pixels), train, test, loss, 128), arguments)


if __name__ == "__main__":
    main()
