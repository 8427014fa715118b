"""Train a model of patches, or of a sequence of tokens with attention, privately, and certify its predictions.

usage: python examples/certified_sequences.py [--mixing rolls|attention] [--epsilon 8] [--epochs 40] [--seed 0]
       python examples/certified_sequences.py --data mnist --data-dir DIR --epsilon 3 --epochs 8 --batch-size 3000 \\
           --radius 10

An image is cut into patches, which are the tokens. They are mixed by moves (``RollChannels``) or by attention
(``DistanceAttention``), and turned by orthogonal maps with sorting between them. Every layer is 1-Lipschitz in l2, so
the model is, and a margin of scores is a radius. It prints the accuracy on held-out images, the certified accuracy at
four radii, and which share of 1,000 predictions an attack changes just inside their radius (none may be) and at three
times it.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

import dplip
from dplip import nn as dn
from dplip.certificates import certified_accuracy, correct_radii
from dplip.data import Data, load


class Tokens(nn.Module):
    """A map of patches (batch, channels, height, width) as a sequence (batch, places, channels)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


def rolls(channels: int, patch: int, blocks: int) -> list[nn.Module]:
    """Patches, then moves and orthogonal maps of the channels."""
    width = channels * patch**2
    layers: list[nn.Module] = [dn.OrthogonalConv2d(channels, width, patch)]
    for _ in range(blocks):
        layers += [dn.RollChannels(), dn.OrthogonalConv2d(width, width, bias=True), dn.GroupSort(2)]
    return layers


def attention(channels: int, patch: int, blocks: int) -> list[nn.Module]:
    """Patches as tokens, then attention and orthogonal maps of the features."""
    width = channels * patch**2
    layers: list[nn.Module] = [dn.OrthogonalConv2d(channels, width, patch), Tokens()]
    for _ in range(blocks):
        layers += [dn.DistanceAttention(heads=2, scale=0.2), dn.RollChannels(along=(1,), dim=2)]
        layers += [dn.OrthogonalLinear(width, width, bias=True), dn.GroupSort(2, dim=2)]
    return layers


MIXING = {"rolls": rolls, "attention": attention}


def model_of(data: Data, mixing: str, radius: float, blocks: int = 1) -> nn.Sequential:
    """Raw pixels to scores, 1-Lipschitz in l2; the input is projected onto the ball."""
    channels, height, _ = data.input_shape
    patch = 2 if height < 28 else 4
    layers = [dn.Shift(0.2), dn.BallProjection(radius), *MIXING[mixing](channels, patch, blocks), nn.Flatten()]
    with torch.no_grad():
        size = nn.Sequential(*layers)(torch.zeros(1, *data.input_shape)).shape[1]
    return nn.Sequential(*layers, dn.OrthogonalLinear(size, data.num_classes))


def changed(model: nn.Module, x: Tensor, radius: Tensor, steps: int = 20) -> float:
    """The share of predictions that ascent towards the runner-up changes within the radii."""
    before = model(x).argmax(1)
    move = torch.zeros_like(x)
    for _ in range(steps):
        move.requires_grad_()
        z = model(x + move)
        own = z.gather(1, before[:, None])
        rival = z.scatter(1, before[:, None], -torch.inf).amax(1, keepdim=True)
        (up,) = torch.autograd.grad((rival - own).sum(), move)
        with torch.no_grad():
            size = radius.reshape(-1, 1, 1, 1).to(x.dtype)
            move = move + 0.5 * size * up / up.flatten(1).norm(dim=1).reshape(size.shape).clamp_min(1e-30)
            move = move * (size / move.flatten(1).norm(dim=1).reshape(size.shape).clamp_min(1e-30)).clamp_max(1)
    return float((model(x + move).argmax(1) != before).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help="digits, mnist, fashion-mnist or cifar10")
    parser.add_argument("--data-dir", default=None, help="folder of the published files")
    parser.add_argument("--mixing", choices=sorted(MIXING), default="rolls")
    parser.add_argument("--epsilon", type=float, default=8.0)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--radius", type=float, default=5.0, help="of the ball that inputs are projected onto")
    parser.add_argument("--temperature", type=float, default=8.0)
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    data = load(a.data, a.data_dir)
    torch.manual_seed(a.seed)
    model = model_of(data, a.mixing, a.radius, a.blocks)
    print(f"{a.mixing}: Lipschitz constant {dplip.lipschitz(model, data.input_shape):.6f}")
    trainer = dplip.DPLipTrainer(
        model,
        loss=dplip.losses.CrossEntropy(a.temperature, normalize=True),
        optimizer=torch.optim.SGD(model.parameters(), lr=a.lr, momentum=0.9),
        train_dataset=data.train,
        eval_dataset=data.test,
        batch_size=a.batch_size,
        epochs=a.epochs,
        target_epsilon=a.epsilon,
        ema_decay=0.9,
        progress=False,
    )
    trained = trainer.fit().model.eval()
    found = trainer.evaluate()
    radii = correct_radii(trained, data.test)
    at = (0.0, 36 / 255, 72 / 255, 108 / 255)
    print(f"epsilon {trainer.get_epsilon():.3f}, accuracy {found['accuracy']:.4f}")
    for r, share in zip(at, certified_accuracy(radii, at), strict=True):
        print(f"certified accuracy at {r:.3f}: {share:.4f}")
    x = torch.stack([data.test[i][0] for i in range(min(1000, len(data.test)))])
    certified = dplip.certify(trained, x)
    print(f"mean radius {float(certified.mean()):.3f}, positive for {float((certified > 0).float().mean()):.3f}")
    print(f"changed within 0.999 of the radius {changed(trained, x, 0.999 * certified):.4f}", end=", ")
    print(f"at three times the radius {changed(trained, x, 3 * certified):.4f}")


if __name__ == "__main__":
    main()
