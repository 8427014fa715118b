"""A small run with a folder, which is stopped and resumed."""

from pathlib import Path

import torch
from helpers.models import orthogonal
from helpers.runs import examples, interrupted

from dplip import DPLipTrainer
from dplip.losses import CrossEntropy

TRAIN, HELD_OUT = examples(80), examples(40, seed=1)


def trainer(folder: Path, optimizer: str = "SGD", **arguments) -> DPLipTrainer:
    """Four epochs of four steps."""
    torch.manual_seed(0)
    model = orthogonal()
    more = {"momentum": 0.9} if optimizer == "SGD" else {}
    given = {"batch_size": 20, "epochs": 4, "target_epsilon": 4.0, "checkpoint_every": 3, **arguments}
    return DPLipTrainer(
        model,
        loss=CrossEntropy(8.0, normalize=True),
        optimizer=getattr(torch.optim, optimizer)(model.parameters(), lr=0.1, **more),
        train_dataset=TRAIN,
        eval_dataset=HELD_OUT,
        output_dir=folder,
        progress=False,
        **given,
    )


def at(folder: Path, step: int = 6, **arguments) -> DPLipTrainer:
    """A run that crashed one step after its checkpoint at ``step``."""
    return interrupted(trainer(folder, **arguments), step + 1)
