"""Lookups, normalisations and convolutions by functions, whose parameters are bounded ones: as in the layers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dplip.nn.bounded.convert import BOUNDED
from dplip.nn.bounded.derivations import alone, basic, named, part
from dplip.nn.bounded.embedding import rows_of
from dplip.nn.bounded.meetings import affine, combined, of_examples
from dplip.nn.bounded.parameter import handles, made_of, own
from dplip.separation import current


def by_channel(p: Any, x: Tensor) -> Any:
    """A parameter with an entry for each channel, in the shape that is broadcast with a batch."""
    shape = (-1, *[1] * (x.ndim - 2))
    if p is None or p.ndim != 1:
        return p
    return part(Tensor.view, (p, shape), {}) if own(p) else p.view(shape)


@handles(F.embedding)
def embedding(function: Any, args: Any, kwargs: Any) -> Any:
    def bounded(
        ids: Any, table: Any, padding_idx: Any = None, max_norm: Any = None, norm_type: Any = 2.0, *flags: Any
    ) -> Any:
        parameters, how, radius = made_of(table)
        if how is not None or max_norm is not None or any(flags) or table.dtype != parameters[0].dtype:
            return NotImplemented
        padding = padding_idx if padding_idx is None else padding_idx % len(table)
        return rows_of(ids, parameters[0], padding, radius)

    flags = [kwargs.pop(name) for name in ("scale_grad_by_freq", "sparse") if name in kwargs]
    return NotImplemented if any(flags) else bounded(*args, **kwargs)


@handles(Tensor.__getitem__)
def chosen(function: Any, args: Any, kwargs: Any) -> Any:
    """Rows of a table by ids of examples; else entries of a parameter."""
    table, ids = args
    if not own(table):
        return NotImplemented
    if isinstance(ids, Tensor) and of_examples(ids) and current() is not None:
        if table.ndim != 2 or ids.is_floating_point() or ids.dtype == torch.bool:
            return NotImplemented
        return embedding(F.embedding, (torch.where(ids < 0, ids + len(table), ids), table), {})
    return (part if basic(ids) else alone)(function, args, kwargs)


@handles(F.layer_norm)
def layer_norm(function: Any, args: Any, kwargs: Any) -> Any:
    def bounded(input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
        return affine(F.layer_norm(input, normalized_shape, None, None, eps), weight, bias)

    return bounded(*args, **kwargs)


@handles(F.rms_norm)
def rms_norm(function: Any, args: Any, kwargs: Any) -> Any:
    def bounded(input: Any, normalized_shape: Any, weight: Any = None, eps: float | None = None) -> Any:
        return affine(F.rms_norm(input, normalized_shape, None, eps), weight, None)

    return bounded(*args, **kwargs)


@handles(F.group_norm)
def group_norm(function: Any, args: Any, kwargs: Any) -> Any:
    def bounded(input: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
        y = F.group_norm(input, num_groups, None, None, eps)
        return affine(y, by_channel(weight, y), by_channel(bias, y))

    return bounded(*args, **kwargs)


@handles(F.batch_norm)
def batch_norm(function: Any, args: Any, kwargs: Any) -> Any:
    """With statistics that are constants; in training it mixes examples, which is refused where it runs."""

    def bounded(input: Any, mean: Any, var: Any, weight: Any = None, bias: Any = None, *rest: Any, **named: Any) -> Any:
        y = F.batch_norm(input, mean, var, None, None, *rest, **named)
        return affine(y, by_channel(weight, y), by_channel(bias, y))

    return bounded(*args, **kwargs)


@handles(*named("prelu"))
def prelu(function: Any, args: Any, kwargs: Any) -> Any:
    x, slopes = args
    if own(x) or kwargs:
        return NotImplemented
    return torch.where(x > 0, x, combined(torch.mul, x.clamp(max=0), by_channel(slopes, x)))


CONVOLUTIONS = {F.conv1d: nn.Conv1d, F.conv2d: nn.Conv2d, F.conv3d: nn.Conv3d}


@handles(*CONVOLUTIONS)
def convolution(function: Any, args: Any, kwargs: Any) -> Any:
    """A layer's map with the weight that is given."""
    kind: Any = BOUNDED.get(f"torch.nn.modules.conv.{CONVOLUTIONS[function].__name__}")

    def bounded(input: Any, weight: Any, bias: Any = None, *rest: Any, **named: Any) -> Any:
        (p, *more), how, radius = made_of(weight) if own(weight) else ((weight,), None, 0.0)
        if not own(weight):
            y = function(input, weight, None, *rest, **named)
        elif more or how is not None or kind is None or p.dtype != input.dtype or not of_examples(input):
            return NotImplemented
        else:
            settings = dict(zip(("stride", "padding", "dilation", "groups"), rest, strict=False)) | named
            channels = p.shape[1] * settings.get("groups", 1)
            layer = kind(channels, len(p), tuple(p.shape[2:]), bias=False, radius=radius, device="meta", **settings)
            del layer.weight
            layer.__dict__["weight"] = p
            y = layer(input)
        return affine(y, None, by_channel(bias, y))

    return bounded(*args, **kwargs)
