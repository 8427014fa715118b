"""A private layer behind a network that was trained on public data, beside a private network from scratch.

usage: python examples/pretrained.py [--data-dir DIR] [--epsilon 0.5 2 8] [--seeds 3] [--epochs 2]

Public: MNIST, on which a small convolutional network with batch normalisation is trained as usual. Private: the digits
that ship with scikit-learn, scans of 8 x 8 pixels by other hands, enlarged to MNIST's size. Printed, for each epsilon:
the accuracy of the private layer and of the preset from scratch; and that of the public network with no private data
at all. Runs are seeded, so they are repeatable and not private.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import dplip
from dplip.data import Data, load

WIDTH = 128


def backbone() -> nn.Sequential:
    """28 x 28 images to features, which the last normalisation brings to the mean 0 and variance 1 of public images."""
    layers: list[nn.Module] = []
    for channels, wider in ((1, 32), (32, 64), (64, WIDTH)):
        layers += [nn.Conv2d(channels, wider, 3, padding=1), nn.BatchNorm2d(wider), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(WIDTH, affine=False))


def pretrain(data: TensorDataset, epochs: int) -> nn.Sequential:
    """The backbone and a layer of scores, trained on public data without privacy."""
    model = nn.Sequential(backbone(), nn.Linear(WIDTH, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for x, y in DataLoader(data, batch_size=256, shuffle=True):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model.eval()


def enlarged(data: TensorDataset) -> TensorDataset:
    """Images of 8 x 8 pixels as MNIST's: 20 x 20, in a frame of 28 x 28."""
    images, labels = data.tensors
    large = F.interpolate(images, size=(20, 20), mode="bilinear")
    return TensorDataset(F.pad(large, (4, 4, 4, 4)), labels)


@torch.no_grad()
def accuracy(model: nn.Module, data: TensorDataset) -> float:
    images, labels = data.tensors
    return float((model(images).argmax(1) == labels).float().mean())


def behind(features: nn.Module, private: Data, epsilon: float, seed: int) -> float:
    """Test accuracy of a private linear layer behind frozen features."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        dplip.nn.Frozen(features), dplip.nn.BallProjection(8.0), nn.Linear(WIDTH, private.num_classes, bias=False)
    )
    train, test = enlarged(private.train), enlarged(private.test)
    trainer = dplip.DPLipTrainer(
        model,
        loss=dplip.losses.CrossEntropy(temperature=1.0, normalize=True),
        optimizer=torch.optim.SGD(model[-1].parameters(), lr=0.1, momentum=0.9),
        train_dataset=train,
        eval_dataset=test,
        batch_size=len(train),
        epochs=30,
        target_epsilon=epsilon,
        ema_decay=0.8,
        precompute=True,  # the frozen network runs once per example
        progress=False,
        seed=seed,
    )
    return trainer.fit().evaluate()["accuracy"]


def scratch(private: Data, epsilon: float, seed: int) -> float:
    """Test accuracy of the preset for these digits."""
    torch.manual_seed(seed)
    trainer = dplip.models.preset("digits").trainer(private, target_epsilon=epsilon, seed=seed, progress=False)
    return trainer.fit().evaluate()["accuracy"]


def shown(values: list[float]) -> str:
    spread = f" ({100 * statistics.stdev(values):.1f})" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--epsilon", type=float, nargs="+", default=[0.5, 2.0, 8.0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2, help="on the public data")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    public, private = load("mnist", arguments.data_dir), load("digits")
    network = pretrain(public.train, arguments.epochs)
    print(f"public network, no private data: {100 * accuracy(network, enlarged(private.test)):.1f}\n")
    print("| epsilon | private layer behind it | preset from scratch |\n| --- | --- | --- |")
    for epsilon in arguments.epsilon:
        cells = [
            shown([run(seed) for seed in range(arguments.seeds)])
            for run in (
                lambda seed, e=epsilon: behind(network[0], private, e, seed),
                lambda seed, e=epsilon: scratch(private, e, seed),
            )
        ]
        print(f"| {epsilon:g} | {cells[0]} | {cells[1]} |", flush=True)


if __name__ == "__main__":
    main()
