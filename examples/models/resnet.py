"""A residual network of the shape of ResNet-18 on small images, its BatchNorm made GroupNorm, beside Opacus.

usage: python examples/models/resnet.py [--data digits | mnist | cifar10] [--data-dir DIR] [--width 8]

Batch normalisation computes with the whole batch, so that one example changes all; group normalisation computes with
one example. ``dplip.fix`` puts it in, with the same scales and shifts. Sums of branches and the place of the layers in
the code are no matter: only the layers bound gradients.
"""

from __future__ import annotations

from beside import Task, beside, options
from torch import Tensor, nn
from torch.nn import functional as F

import dplip
from dplip.data import load


class Block(nn.Module):
    """Two convolutions, beside the identity or a convolution of one pixel."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)])
        self.short = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norms[0](self.first(x)))
        return F.relu(self.norms[1](self.second(y)) + self.short(x))


class ResNet(nn.Module):
    """Four stages of two blocks each, as in ResNet-18, narrower, and with two strides fewer, for small images."""

    def __init__(self, channels: int, width: int, classes: int = 10) -> None:
        super().__init__()
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        blocks = [
            Block(widths[stage] if first else widths[stage + 1], widths[stage + 1], 2 if first and stage > 1 else 1)
            for stage in range(4)
            for first in (True, False)
        ]
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def main() -> None:
    parser = options(__doc__, epochs=10, lr=1e-3, epsilon=8.0)
    parser.add_argument("--data", choices=("digits", "mnist", "fashion-mnist", "cifar10"), default="digits")
    parser.add_argument("--data-dir")
    parser.add_argument("--width", type=int, default=8)
    arguments = parser.parse_args()
    data = load(arguments.data, arguments.data_dir)
    batch_size = 128 if arguments.data == "digits" else 512
    loss = dplip.losses.CrossEntropy()

    def model() -> nn.Module:
        fixed, _ = dplip.fix(ResNet(data.input_shape[0], arguments.width))
        return fixed

    beside(Task(model, data.train, data.test, loss, batch_size), arguments)


if __name__ == "__main__":
    main()
