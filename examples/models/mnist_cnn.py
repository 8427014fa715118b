"""A small convolutional network on handwritten digits, private by bounded layers, beside Opacus.

usage: python examples/models/mnist_cnn.py --data mnist --data-dir DIR [--epsilon 3] [--epochs 10]
           [--batch 512] [--radius 1 | auto] [--mode hooks | ghost] [--seeds 3] [--lr 1e-3 3e-3]

The tanh network of Papernot et al. (arXiv 2007.14191). ``--data digits`` needs no files: it ships with scikit-learn.
"""

from __future__ import annotations

import dataclasses

import torch
from beside import Task, beside, options
from torch import nn

import dplip
from dplip.data import load


def cnn(input_shape: tuple[int, ...]) -> nn.Sequential:
    """Two convolutions and two linear layers, with a smaller first kernel for smaller images."""
    channels, size, _ = input_shape
    kernel, stride = (8, 2) if size >= 28 else (3, 1)
    features = [
        nn.Conv2d(channels, 16, kernel, stride, padding=kernel // 2),
        nn.Tanh(),
        nn.MaxPool2d(2, 1),
        nn.Conv2d(16, 32, 4, 2),
        nn.Tanh(),
        nn.MaxPool2d(2, 1),
        nn.Flatten(),
    ]
    units = nn.Sequential(*features)(torch.zeros(1, *input_shape)).shape[1]
    return nn.Sequential(*features, nn.Linear(units, 32), nn.Tanh(), nn.Linear(32, 10))


def main() -> None:
    parser = options(__doc__, epochs=10, lr=2e-3)
    parser.add_argument("--data", choices=("digits", "mnist", "fashion-mnist", "cifar10"), default="digits")
    parser.add_argument("--data-dir")
    parser.add_argument("--batch", type=int, help="expected batch size; by default 128 for digits, else 512")
    parser.add_argument("--radius", default="1", help="of dplip's bounded layers: a number or auto")
    parser.add_argument("--mode", choices=("hooks", "ghost"), default="hooks", help="of Opacus")
    arguments = parser.parse_args()
    data = load(arguments.data, arguments.data_dir)
    batch_size = arguments.batch or (128 if arguments.data == "digits" else 512)
    radius = arguments.radius if arguments.radius == "auto" else float(arguments.radius)
    loss = dplip.losses.CrossEntropy()
    task = Task(lambda: cnn(data.input_shape), data.train, data.test, loss, batch_size)
    beside(dataclasses.replace(task, radius=radius, mode=arguments.mode), arguments)


if __name__ == "__main__":
    main()
