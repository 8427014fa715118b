"""LoRA with the first factor fixed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dplip.errors import ConfigurationError


@torch.no_grad()
def freeze_lora_a(model: nn.Module, orthonormal: bool = True) -> list[str]:
    """Freeze the factor A of every LoRA layer of peft, so that only B is trained.

    The product B A is the same for (B G^-1, G A) with any invertible G. Noise on both factors moves the product by
    |B| and |A| times the noise, and along this gauge it can make one factor small and the other large, where nothing in
    the loss holds them: the noise in the product has no bound. With A fixed and its rows orthonormal, noise N on B
    moves the product by N A, of the same norm.

    Args:
        model: a model with layers of ``peft.tuners.lora``.
        orthonormal: whether the rows of A are made orthonormal, and B changed so that the product stays (for linear
            layers with at least as many inputs as the rank).

    Returns:
        The names of the parameters that are frozen.

    Raises:
        ConfigurationError: there is no such layer.

    Source: PRISM, arXiv 2606.00944; A frozen: FFA-LoRA, arXiv 2403.12313.
    """
    frozen: list[str] = []
    modules: list[tuple[str, Any]] = list(model.named_modules())
    for path, module in modules:
        pairs: Any = getattr(module, "lora_A", None)
        for adapter in pairs if isinstance(pairs, nn.ModuleDict) else ():
            a, b = (factor[adapter].weight for factor in (pairs, module.lora_B))
            if orthonormal and a.ndim == 2 and len(a) <= a.shape[1]:
                q, r = torch.linalg.qr(a.mT.double())  # A = r^T q^T
                b.copy_(b.double() @ r.mT)
                a.copy_(q.mT)
            a.requires_grad_(False)
            frozen.append(f"{path}.lora_A.{adapter}.weight")
    if not frozen:
        raise ConfigurationError(
            "model: it has no LoRA layer of peft. Give what peft.get_peft_model returned; freeze factors of your own "
            "with requires_grad_(False)."
        )
    return frozen
