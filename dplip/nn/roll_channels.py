"""Token mixing by moves: groups of channels that are rolled by one place."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dplip.errors import ConfigurationError
from dplip.norms import Norms
from dplip.rules import Pullback, rule
from dplip.rules.shape import example_axis, moved


class RollChannels(nn.Module):
    """Roll groups of channels by one place along other axes: a permutation, by which neighbouring places are mixed.

    The channels are cut into ``2 len(along) + 1`` nearly equal groups: one rolled forward and one back along each axis,
    and a last one that stays.

    Args:
        along: axes to roll along, after the batch: (2, 3) for the places of an image, (1,) for those of a sequence.
        dim: the axis of the channels: 1 for an image, 2 for tokens.

    Guarantee: 1-Lipschitz in every lp norm, and it keeps every norm: each entry is moved, and none is lost.
    Source: Wu et al., "Shift: a zero FLOP, zero parameter alternative to spatial convolutions", CVPR 2018 (arXiv
    1711.08141), which pads where this rolls.
    """

    def __init__(self, along: int | tuple[int, ...] = (2, 3), dim: int = 1) -> None:
        super().__init__()
        along = (along,) if isinstance(along, int) else tuple(along)
        if not along or dim == 0 or 0 in along or dim in along or len(set(along)) < len(along):
            raise ConfigurationError(
                f"along={along}, dim={dim}: give one axis of channels and other axes to roll along, none of them the "
                "batch (0)."
            )
        self.along, self.dim = along, dim

    def forward(self, x: Tensor) -> Tensor:
        *rolled, kept = x.tensor_split(2 * len(self.along) + 1, self.dim)
        moves = ((axis, step) for axis in self.along for step in (1, -1))
        parts = [part.roll(step, axis) for part, (axis, step) in zip(rolled, moves, strict=True)]
        return torch.cat((*parts, kept), self.dim)

    def extra_repr(self) -> str:
        return f"along={self.along}, dim={self.dim}"


@rule(RollChannels)
def roll_channels(module: RollChannels, x: Norms) -> tuple[Norms, Pullback]:
    for axis in (*module.along, module.dim):
        example_axis(axis, x)
    return moved(x, x.shape)
