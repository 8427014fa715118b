"""The mode that a model runs in."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import nn

from dplip.runtime.precision import full_precision

KINDS = ("cpu", "cuda", "mps", "xpu", "hpu", "mtia", "maia", "xla")
"""The devices that torch.autocast knows."""


class evaluation:
    """Evaluation mode, full precision and no autocast inside the block, and each module's own mode again after it."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __enter__(self) -> None:
        self.modes = [(m, m.training) for m in self.model.modules()]
        with ExitStack() as settings:
            settings.enter_context(full_precision())
            for kind in KINDS:
                if torch.is_autocast_enabled(kind):
                    settings.enter_context(torch.autocast(kind, enabled=False))
            self.settings = settings.pop_all()
        self.model.eval()

    def __exit__(self, *_: object) -> None:
        for module, mode in self.modes:
            module.training = mode
        self.settings.close()
