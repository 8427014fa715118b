"""Evaluation of a model: its mode, and the precision of its products."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from dplip.runtime.precision import full_precision

AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu", "hpu", "mtia", "maia", "xla")
"""The devices that torch.autocast knows."""


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, full precision and no autocast inside the block, and each module's own mode again after it."""
    modes = [(m, m.training) for m in model.modules()]
    with ExitStack() as settings:
        settings.enter_context(full_precision())
        for kind in AUTOCAST_DEVICES:
            if torch.is_autocast_enabled(kind):
                settings.enter_context(torch.autocast(kind, enabled=False))
        model.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode
