"""A classifier of digits that was trained without privacy."""

import pytest
import torch
from helpers.models import orthogonal
from torch import Tensor, nn

import dplip
import dplip.nn as dn
from dplip.data import load
from dplip.losses import CrossEntropy


def trained(model: nn.Module, x: Tensor, y: Tensor, steps: int = 60, lr: float = 0.5) -> nn.Module:
    """A few seconds of training without privacy, with the constraints kept."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    loss = CrossEntropy(16.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = torch.randint(0, len(x), (128,), generator=generator)
        optimizer.zero_grad()
        (loss(model(x[rows]), y[rows]) / len(rows)).backward()
        optimizer.step()
        dplip.project(model)
    return model.eval()


@pytest.fixture(scope="session")
def digits() -> tuple[nn.Module, Tensor, Tensor]:
    data = load("digits")
    torch.manual_seed(0)
    model = nn.Sequential(dn.Shift(0.5), nn.Flatten(), orthogonal(64, 32, 10, radius=4.0))
    trained(model, *data.train.tensors)
    x, y = (t[:100] for t in data.test.tensors)
    assert float((model(x).argmax(1) == y).float().mean()) > 0.85
    return model, x, y
