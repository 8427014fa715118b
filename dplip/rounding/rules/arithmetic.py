"""Rounding rules of sums, products and selections, and of operations that move entries and are exact."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dplip import nn as dn
from dplip.norms import Norms
from dplip.rounding.registry import EXACT, Roundings, T, rounding


def _copies(call: Any, *values: Any) -> float:
    size = math.prod(call.shape)
    return max([1.0, *(size / max(1, v.size) for v in values if isinstance(v, Norms))])


@rounding(operator.add, torch.add, T.add, operator.sub, torch.sub, torch.subtract, T.sub)
def add(call: Any, input: Any, other: Any, alpha: float = 1.0) -> Roundings:
    plain = alpha == 1.0 and all(isinstance(v, (Norms, Tensor)) for v in (input, other))  # no number is rounded
    return Roundings(
        terms=0.0 if plain else 2.0, output=1.0, back=_copies(call, input, other) - 1 + (0.0 if alpha == 1.0 else 2.0)
    )


@rounding(operator.mul, torch.mul, torch.multiply, T.mul, operator.truediv, torch.div, torch.divide)
@rounding(torch.true_divide, T.div)
def mul(call: Any, input: Any, other: Any) -> Roundings:
    # The number, its inverse and the product round; each entry of the output is an input entry times a factor.
    return Roundings(output=4.0, back=4 + _copies(call, input, other))


@rounding(dn.Shift)
def shift(module: dn.Shift, x: Norms) -> Roundings:
    return Roundings(output=1.0, more=Norms(x.shape, linf=abs(module.offset)))


@rounding(dn.PrivateMean)
def private_mean(module: dn.PrivateMean, x: Norms) -> Roundings:
    return Roundings(output=1.0)


@rounding(T.expand)
def expand(call: Any, input: Norms, *sizes: Any) -> Roundings:
    return Roundings(back=_copies(call, input))


@rounding(torch.amax, T.amax, torch.amin, T.amin)
def extreme(call: Any, input: Norms, dim: Any = None, keepdim: bool = False) -> Roundings:
    return Roundings(back=2.0)


@rounding(torch.maximum, torch.minimum, T.maximum, T.minimum)
def larger(call: Any, input: Any, other: Any) -> Roundings:
    return Roundings(back=2.0)


def _moved(subject: Any, *arguments: Any, **named: Any) -> Roundings:
    """Moving, selecting, negating and zeroing entries, which is exact."""
    return EXACT


rounding(nn.Identity, nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle)(_moved)
rounding(nn.ZeroPad1d, nn.ZeroPad2d, dn.Mirror, dn.GroupSort, dn.FullSort, nn.ReLU, F.relu, torch.relu)(_moved)
rounding(T.relu, torch.abs, T.abs, operator.abs, operator.neg, torch.neg, T.neg, F.pad, operator.getitem)(_moved)
rounding(T.view, T.reshape, torch.reshape, torch.flatten, T.flatten, T.unflatten, torch.unflatten)(_moved)
rounding(T.unsqueeze, torch.unsqueeze, T.contiguous, T.clone, torch.clone, torch.permute, T.permute)(_moved)
rounding(torch.transpose, T.transpose, torch.swapaxes, T.swapaxes, torch.squeeze, T.squeeze, torch.flip)(_moved)
rounding(T.flip, torch.narrow, T.narrow, torch.select, T.select, F.pixel_shuffle, F.pixel_unshuffle)(_moved)
rounding(torch.cat, torch.concat, torch.concatenate, torch.stack, torch.chunk, T.chunk, torch.split)(_moved)
rounding(T.split, T.unbind, torch.unbind, dn.GradientBall, torch.roll, T.roll, dn.RollChannels)(_moved)


@rounding(T.float, T.double)
def retyped(call: Any, input: Norms) -> Roundings:
    return Roundings(output=1.0, back=1.0, diagonal=True)
