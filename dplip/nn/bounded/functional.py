"""Lookups, normalisations and convolutions by functions, whose parameters are bounded ones: as in the layers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dplip.nn.bounded.convolution import ConvolutionGradients, by_examples
from dplip.nn.bounded.derivations import alone, basic, named, part
from dplip.nn.bounded.embedding import rows_of
from dplip.nn.bounded.meetings import affine, applied, combined, linear, met, of_examples
from dplip.nn.bounded.parameter import handles, made_of, own
from dplip.nn.bounded.weights import Convolved
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
    """Rows of a table by ids of examples, or matrices of a stack; else entries of a parameter."""
    table, ids = args
    if not own(table):
        return NotImplemented
    if isinstance(ids, Tensor) and of_examples(ids) and current() is not None:
        if table.ndim < 2 or ids.is_floating_point() or ids.dtype == torch.bool:
            return NotImplemented
        flat = table if table.ndim == 2 else part(Tensor.flatten, (table, 1), {})
        rows = embedding(F.embedding, (torch.where(ids < 0, ids + len(table), ids), flat), {})
        return rows if rows is NotImplemented or table.ndim == 2 else rows.unflatten(-1, table.shape[1:])
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


@handles(torch.cdist)
def distances(function: Any, args: Any, kwargs: Any) -> Any:
    """Distances of values from the rows of a parameter."""
    x, centres, *rest = args
    if own(x):
        return distances(function, (centres, x, *rest), kwargs).mT if of_examples(centres) else NotImplemented
    if not of_examples(x):
        return NotImplemented
    points = x.unsqueeze(1) if x.ndim == 2 else x
    copies = met(centres, points)
    if copies is NotImplemented:
        return NotImplemented
    found: Tensor = function(points, copies, *rest, **kwargs)
    return found.squeeze(1) if x.ndim == 2 else found


@handles(F.bilinear)
def bilinear(function: Any, args: Any, kwargs: Any) -> Any:
    """A linear map of the products of two values' features, whose norm is exact as that of every linear map."""

    def bounded(input1: Any, input2: Any, weight: Any, bias: Any = None) -> Any:
        if not (own(weight) and of_examples(input1) and of_examples(input2)):
            return NotImplemented
        products = (input1[..., :, None] * input2[..., None, :]).flatten(-2)
        return linear(F.linear, (products, part(Tensor.flatten, (weight, 1), {}), bias), {})

    return bounded(*args, **kwargs)


CONVOLUTIONS: dict[Any, Any] = {F.conv1d: nn.Conv1d, F.conv2d: nn.Conv2d, F.conv3d: nn.Conv3d}


@handles(*CONVOLUTIONS)
def convolution(function: Any, args: Any, kwargs: Any) -> Any:
    """A layer's map with the weight that is given."""

    def bounded(input: Any, weight: Any, bias: Any = None, *rest: Any, **named: Any) -> Any:
        if not own(weight):
            y = function(input, weight, None, *rest, **named)
        elif weight.dtype != input.dtype or not of_examples(input):
            return NotImplemented
        else:
            settings = dict(zip(("stride", "padding", "dilation", "groups"), rest, strict=False)) | named
            channels, taps = weight.shape[1] * settings.get("groups", 1), tuple(weight.shape[2:])
            layer = CONVOLUTIONS[function](channels, len(weight), taps, bias=False, device="meta", **settings)
            (p, *_), how, radius = made_of(weight)

            def convolved(x: Tensor, settings: Any) -> Tensor:
                if how is None:
                    return ConvolutionGradients.apply(x, p, None, None, radius, None, settings)
                return applied(Convolved(settings), weight, x)

            y = by_examples(convolved, layer, input, (0,) * len(taps))
        return affine(y, None, by_channel(bias, y))

    return bounded(*args, **kwargs)
