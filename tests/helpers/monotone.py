"""Monotone chains of layers, and the search for a pair of inputs that violates a direction."""

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

import dplip
from dplip import nn as dn
from dplip.constraints import ColumnL1Ball, Constraint, EntryBall, RowL1Ball, RowL2Ball, SpectralBall, constrain

CHAINS: dict[str, tuple[Callable[[float], Constraint], Callable[[float], Constraint]]] = {
    "inf": (EntryBall, RowL1Ball),
    "one": (ColumnL1Ball, ColumnL1Ball),
    "two": (SpectralBall, SpectralBall),
    "two-inf": (RowL2Ball, RowL1Ball),
}
DIRECTIONS = [1, -1, 0, 1, 0, -1]
FEATURES = len(DIRECTIONS)


def chain(kind: str, widths: tuple[int, ...] = (FEATURES, 8, 8, 1), constants: float = 1.0, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for i, (n, m) in enumerate(itertools.pairwise(widths)):
        ball = CHAINS[kind][min(i, 1)](constants)
        layers += [constrain(nn.Linear(n, m), "weight", ball), dn.GroupSort(2 if m % 2 == 0 else 1)]
    return nn.Sequential(*layers[:-1])


@torch.no_grad()
def noisy(model: nn.Module, scale: float, seed: int = 0) -> None:
    """The weights after a step of huge noise: at the edge of their sets, mostly."""
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        if p.requires_grad:
            p.add_(scale * torch.randn(p.shape, generator=generator).to(p))
    dplip.project(model)


def gradients(model: nn.Module, x: Tensor) -> Tensor:
    """(outputs, batch, features)."""
    x = x.clone().requires_grad_()
    y = model(x)
    return torch.stack([torch.autograd.grad(y[:, j].sum(), x, retain_graph=True)[0] for j in range(y.shape[1])])


def steepest_violation(model: nn.Module, directions: Tensor, steps: int = 60, seed: int = 0) -> float:
    """The least slope, in the direction asked for, that gradient descent on the weights and the inputs finds."""
    generator = torch.Generator().manual_seed(seed)
    features = directions.shape[0]
    x = torch.randn(16, features, generator=generator, dtype=torch.float64).requires_grad_()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam([*trained, x], lr=0.1)
    least = math.inf
    active = directions.T[:, None] != 0
    for _ in range(steps):
        y = model(x)
        found = torch.stack([torch.autograd.grad(y[:, j].sum(), x, create_graph=True)[0] for j in range(y.shape[1])])
        ahead = torch.where(active, found * directions.T[:, None], math.inf)
        least = min(least, float(ahead.detach().min()))
        optimizer.zero_grad()
        torch.where(active, found * directions.T[:, None], 0.0).sum().backward()
        optimizer.step()
        dplip.project(model)
    return least
