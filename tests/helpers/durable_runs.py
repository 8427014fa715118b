"""A small run with a folder, which is stopped and resumed."""

from pathlib import Path

import torch
from helpers import trainers
from helpers.models import orthogonal
from helpers.runs import interrupted

from dplip import DPLipTrainer


def trainer(folder: Path, optimizer: str = "SGD", **arguments) -> DPLipTrainer:
    """Four epochs of four steps."""
    torch.manual_seed(0)
    model = orthogonal()
    more = {"momentum": 0.9} if optimizer == "SGD" else {}
    moves = getattr(torch.optim, optimizer)(model.parameters(), lr=0.1, **more)
    return trainers.trainer(model, optimizer=moves, output_dir=folder, **{"checkpoint_every": 3, **arguments})


def at(folder: Path, step: int = 6, **arguments) -> DPLipTrainer:
    """A run that crashed one step after its checkpoint at ``step``."""
    return interrupted(trainer(folder, **arguments), step + 1)
