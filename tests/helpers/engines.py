"""What an engine makes private, and one epoch of it."""

import torch
from helpers.models import orthogonal
from helpers.runs import examples
from torch import nn
from torch.utils.data import DataLoader

from dplip.losses import CrossEntropy


def parts(model: nn.Module | None = None, batch_size: int = 10, count: int = 40, lr: float = 0.1) -> dict:
    model = orthogonal() if model is None else model
    return {
        "module": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=lr),
        "data_loader": DataLoader(examples(count), batch_size=batch_size, shuffle=True),
        "criterion": CrossEntropy(),
    }


def epoch(model, optimizer, loader, criterion) -> int:
    """One pass as a user of Opacus writes it; returns the number of steps."""
    steps = 0
    for x, y in loader:
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()
        steps += 1
    return steps
