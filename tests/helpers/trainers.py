"""A small trainer and its data."""

import torch
from helpers.epsilons import DELTA
from helpers.models import orthogonal, plain
from helpers.runs import HELD_OUT, TRAIN
from torch import nn

from dplip import DPLipTrainer
from dplip.losses import CrossEntropy


def trainer(model: nn.Module | None = None, lr: float = 0.2, **arguments) -> DPLipTrainer:
    """Four epochs of four steps on points in six dimensions."""
    if model is None:
        torch.manual_seed(0)
        model = orthogonal()
    given = {
        "loss": CrossEntropy(8.0, normalize=True),
        "optimizer": torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9),
        "train_dataset": TRAIN,
        "eval_dataset": HELD_OUT,
        "batch_size": 20,
        "epochs": 4,
        "target_epsilon": 4.0,
        "target_delta": DELTA,
        "progress": False,
        **arguments,
    }
    if given.get("noise_multiplier") is not None:
        given["target_epsilon"] = None
    return DPLipTrainer(model, **given)


def weights(run: DPLipTrainer) -> list[torch.Tensor]:
    return [p.detach().clone() for p in run.model.parameters()]


def plain_seeded() -> nn.Module:
    torch.manual_seed(0)
    return plain()
