"""What the spline examples share: activations, learning rates, the projection after a step, small picture files."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import dplip
from dplip import nn as dn
from dplip.nn.splines.spline import Spline
from dplip.norms import NormCache


class Absolute(nn.Module):
    """The absolute value of every entry."""

    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


def prelu(width: int) -> nn.Module:
    """PReLU with slopes kept within [-1, 1]."""
    return dplip.constrain(nn.PReLU(width), "weight", dplip.EntryBall(1.0))


def spline(width: int) -> Spline:
    return dn.LinearSpline(width, 21, 1.0, "maxmin")


ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {
    "ReLU": lambda width: nn.ReLU(),
    "absolute value": lambda width: Absolute(),
    "PReLU": prelu,
    "GroupSort": lambda width: dn.GroupSort(2),
    "Householder": dn.Householder,
    "spline": spline,
}

NORMS = NormCache()


def groups(model: nn.Module, lr: float, spline_lr: float = 4.0) -> list[dict[str, Any]]:
    """Parameter groups with the learning rate ``lr``, and ``spline_lr`` times it for splines."""
    own = [p for m in model.modules() if isinstance(m, Spline) for p in m.parameters()]
    others = [p for p in model.parameters() if all(p is not q for q in own)]
    return [{"params": others, "lr": lr}, *([{"params": own, "lr": spline_lr * lr}] if own else [])]


@torch.no_grad()
def project(model: nn.Module) -> None:
    """Put every constrained weight back into its set; Bjorck's iteration does it where it certifies itself."""
    with NORMS:
        dplip.project(model)


def save(figure: Any, path: str, colours: int = 256) -> None:
    """Write a figure as a PNG file of few colours, which is half the size."""
    from PIL import Image

    file = io.BytesIO()
    figure.savefig(file, dpi=110)
    Image.open(file).convert("RGB").quantize(colours).save(path, optimize=True)
    print(f"picture {path}")
