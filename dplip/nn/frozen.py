"""A frozen public network inside a private model, with no bound of its output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dplip.norms import Norms
from dplip.rules import Pullback, rule


class Frozen(nn.Module):
    """A module that is never trained and always in evaluation mode, such as a network pre-trained on public data.

    Its layers need no rule, so it may hold batch normalisation or attention. Put a :class:`BallProjection` behind it
    and train the layers after that; ``DPLipTrainer(precompute=True)`` then runs it once per example.

    Args:
        module: a map from one tensor of examples to one tensor, batch first. Its parameters are frozen in place.

    Shape: the module's.

    Guarantee: a fixed function of one example, given that the module in evaluation mode computes each example's output
    from that example and its weights alone (a probe refuses a module that mixes the examples of a test batch) and that
    the weights depend on no private data. Its output and its derivative have no bound: layers behind it need a bound
    of their own, no layer before it can be trained, and a certificate is infinitely wide.
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
