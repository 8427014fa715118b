"""Certified accuracy in l-infinity, without noise and privately, beside accuracy under attack and a standard network.

usage: python benchmarks/linf_mnist.py [--data-dir DIR] [--epsilon 8] [--models sortnet standard ...] [--epochs N]
       [--held-out] [field=value ...] [--json FILE] [--quick]

Each model is trained through DPLipTrainer on MNIST's training images and judged once on its test images: clean
accuracy, accuracy certified at 0.1 and 0.3 by dplip.certify, and, on the first of them, accuracy under projected
gradient descent (foolbox, the extra ``attacks``), which has to lie between the two. --held-out trains on nine tenths
of the training images and judges on the other tenth, which is how recipes are chosen: ``field=value`` replaces a
field of the recipe. --quick: one epoch on the digits of scikit-learn.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler
from torch.utils.data import TensorDataset

import dplip
from dplip.certificates import certified_accuracy, correct_radii
from dplip.data import holdout, load
from dplip.losses import CrossEntropy, Loss
from dplip.models import ImageRecipe, preset
from dplip.models.windows import WINDOWS, clamp_about_zero
from dplip.nn import GroupSort

RADII = (0.1, 0.3)


@dataclass(frozen=True)
class StandardRecipe(ImageRecipe):
    """What SortNet is held against: linear layers whose rows have l1 norm at most 1, with sorting between them.

    Attributes:
        low, high: the range of a pixel that counts.
        widths: sizes of the hidden layers.
        temperature: of the cross-entropy.
    """

    low: float
    high: float
    widths: tuple[int, ...]
    temperature: float

    def model(self, input_shape: tuple[int, ...], classes: int) -> nn.Sequential:
        """Raw pixels to scores: 1-Lipschitz in l-infinity."""
        sizes = (math.prod(input_shape), *self.widths, classes)
        layers: list[nn.Module] = [*clamp_about_zero(self.low, self.high), nn.Flatten()]
        for i in range(len(sizes) - 1):
            layer = dplip.constrain(nn.Linear(sizes[i], sizes[i + 1]), "weight", dplip.RowL1Ball())
            layers += [dplip.constrain(layer, "bias", dplip.EntryBall()), GroupSort(2)]
        return nn.Sequential(*layers[:-1])

    def loss(self) -> CrossEntropy:
        return CrossEntropy(self.temperature)

    def optimizer(self, model: nn.Module) -> Optimizer:
        return torch.optim.Adam(model.parameters(), lr=self.lr)

    def scheduler(self, optimizer: Optimizer, model: nn.Module, loss: Loss, steps: int) -> LRScheduler:
        return CosineAnnealingLR(optimizer, steps)


STANDARD = StandardRecipe(0.0, 1.0, (256, 128), 16.0, lr=0.01, batch_size=512, epochs=10)
PRIVATE = StandardRecipe(0.0, 1.0, (256, 128), 16.0, lr=0.003, batch_size=8192, epochs=30, ema_decay=0.95)

RECIPES: Mapping[bool, Mapping[str, ImageRecipe]] = {
    False: {
        "sortnet": preset("mnist", "sortnet"),
        "standard": STANDARD,
        "standard-dead-zone": dataclasses.replace(STANDARD, low=0.3, high=0.7),
    },
    True: {
        "windows": WINDOWS["mnist"],
        "standard": PRIVATE,
        "standard-dead-zone": dataclasses.replace(PRIVATE, low=0.3, high=0.7),
    },
}
"""The models that are compared, by whether training is private."""


def train(recipe: ImageRecipe, data: TensorDataset, classes: int, epsilon: float, seed: int) -> tuple[nn.Module, float]:
    """The trained model in evaluation mode, and the seconds it took."""
    torch.manual_seed(seed)
    model = recipe.model(tuple(data.tensors[0].shape[1:]), classes)
    trainer = recipe.trainer_of(
        model,
        recipe.loss(),
        train_dataset=data,
        target_epsilon=None if math.isinf(epsilon) else epsilon,
        noise_multiplier=0.0 if math.isinf(epsilon) else None,
        progress=False,
        seed=seed,
    )
    started = time.perf_counter()
    trainer.fit()
    return model.eval(), time.perf_counter() - started


def attacked(model: nn.Module, x: Tensor, y: Tensor, radius: float, steps: int) -> Tensor:
    """Which inputs are classified wrongly, or can be within the radius as far as projected gradient descent finds."""
    import foolbox

    network = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")  # type: ignore[attr-defined]
    found: Tensor = foolbox.attacks.LinfPGD(steps=steps)(network, x, y, epsilons=radius)[2]
    return found


def judge(model: nn.Module, test: TensorDataset, images: int, steps: int) -> dict[str, Any]:
    """Clean and certified accuracy on all of the test data; on its first images the same with an attack between them.

    Raises:
        AssertionError: an attack succeeds inside a certified radius, or the three accuracies are out of order.
    """
    radii = correct_radii(model, test, math.inf)
    clean, *certified = certified_accuracy(radii, (0.0, *RADII))
    x, y = (t[:images] for t in test.tensors)
    first = radii[:images]
    rows = []
    for radius in RADII:
        broken = attacked(model, x, y, radius, steps).cpu() | (first < 0)  # an attack may also stand still
        held = first > radius
        assert not bool((broken & held).any()), f"an attack succeeds within a certified radius of {radius}"
        row = {"radius": radius, "certified": float(held.double().mean())}
        row |= {"attacked": float((~broken).double().mean()), "clean": float((first >= 0).double().mean())}
        assert row["certified"] <= row["attacked"] <= row["clean"], row
        rows.append(row)
    return {"clean": clean, "certified": dict(zip(map(str, RADII), certified, strict=True)), "first": rows}


def changed(recipe: ImageRecipe, settings: list[str], epochs: int | None) -> ImageRecipe:
    """The recipe with fields replaced, of those that it has."""
    fields = {f.name for f in dataclasses.fields(recipe)}
    pairs = dict(s.split("=", 1) for s in settings)
    if epochs is not None:
        pairs["epochs"] = str(epochs)
    return dataclasses.replace(recipe, **{k: json.loads(v) for k, v in pairs.items() if k in fields})


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="field=value")
    parser.add_argument("--data-dir")
    parser.add_argument("--epsilon", type=float, default=math.inf, help="at delta 1e-5; inf (the default): no noise")
    parser.add_argument("--models", nargs="+", help="of those that are compared; default: all")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--held-out", action="store_true", help="judge on a tenth of the training data")
    parser.add_argument("--images", type=int, default=1000, help="that are attacked")
    parser.add_argument("--attack-steps", type=int, default=40)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    given = parser.parse_intermixed_args(arguments)
    data = load("digits") if given.quick else load("mnist", given.data_dir)
    train_data, test = holdout(data.train, 0.1, seed=0) if given.held_out else (data.train, data.test)
    test = TensorDataset(*test[:])
    if given.quick:
        given.images, given.attack_steps, given.epochs = 50, 5, 1 if given.epochs is None else given.epochs
    recipes = RECIPES[math.isfinite(given.epsilon)]
    print("| model | clean | certified at 0.1, 0.3 | first images: clean | under PGD | certified | seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    rows = []
    for name in given.models or recipes:
        recipe = changed(recipes[name], given.settings, given.epochs)
        if given.quick:
            recipe = dataclasses.replace(recipe, batch_size=256)
        model, seconds = train(recipe, TensorDataset(*train_data[:]), data.num_classes, given.epsilon, given.seed)
        row: dict[str, Any] = {
            "model": name,
            "epsilon": str(given.epsilon),
            "recipe": dataclasses.asdict(recipe),
            "seconds": seconds,
        }
        row |= judge(model, test, given.images, given.attack_steps)
        rows.append(row)
        first = {key: ", ".join(f"{100 * r[key]:.1f}" for r in row["first"]) for key in ("attacked", "certified")}
        certified = ", ".join(f"{100 * c:.1f}" for c in row["certified"].values())
        print(
            f"| {name} | {100 * row['clean']:.1f} | {certified} | {100 * row['first'][0]['clean']:.1f} "
            f"| {first['attacked']} | {first['certified']} | {seconds:.0f} |",
            flush=True,
        )
        if given.json:
            given.json.write_text(json.dumps(rows, indent=2) + "\n")
    return rows


if __name__ == "__main__":
    main()
