"""A public network inside a private model: its weights are frozen, and no bound of its output is claimed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dplip.norms import Norms
from dplip.rules import Pullback, rule


class Frozen(nn.Module):
    """A module as it is, in evaluation mode for good and never trained, such as a network pre-trained on public data.

    Its layers need no rule: batch normalisation, attention and whatever else the algebra refuses may be inside. Put a
    :class:`BallProjection` behind it and train what follows; ``DPLipTrainer(precompute=True)`` then runs it once per
    example.

    Args:
        module: one tensor of examples to one tensor, batch first. Its parameters are frozen in place.

    Shape: the module's.

    Guarantee: a fixed function of one example, given that the module in evaluation mode computes each example's output
    from that example and its weights alone (a probe refuses a module that is seen to mix the examples of a batch) and
    that no private data went into the weights. Nothing bounds its output or its derivative: what is trained behind it
    needs a bound of its own, nothing may be trained before it, and a certificate is infinitely wide.
    Source: Tramer and Boneh, "Differentially private learning needs better features (or much more data)", 2021.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Frozen:
        """Set the mode of this layer, and leave its module in evaluation mode."""
        super().train(mode)
        self.module.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)


@rule(Frozen)
def frozen(module: Frozen, x: Norms) -> tuple[Norms, Pullback]:
    weight = next((t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()), torch.zeros(0))
    with torch.no_grad():
        example = module(torch.zeros(1, *x.shape, dtype=weight.dtype, device=weight.device))

    def pullback(v: Norms) -> Any:
        return (Norms(x.shape),), {}

    return Norms(tuple(example.shape[1:])), pullback
