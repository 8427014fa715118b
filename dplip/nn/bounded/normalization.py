"""Normalisations by one example's own statistics that bound each example's gradient of their scale and shift.

The normalisation itself has no parameters, and a true gradient. Scale and shift follow in one node: an example's
gradient of the shift is the sum of its cotangents over the positions, that of the scale the sum of their products with
the normalised value, so both norms are exact (:func:`dplip.nn.bounded.enforcing.of_bias`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dplip.errors import ConfigurationError
from dplip.nn.bounded.convert import bounds
from dplip.nn.bounded.enforcing import (
    Enforcing,
    Radius,
    checked_radius,
    norms_of_positions,
    of_bias,
    require_in_front,
    sent,
)
from dplip.nn.bounded.use import trained
from dplip.separation import examples_first


class Normalization(nn.Module):
    """Base of the layers: torch's normalisation, then scale and shift of each example by itself.

    Args:
        radius: the largest l2 norm of one example's gradient of the scale; likewise of the shift.

    Guarantee: in training mode the bound holds for every input, cotangent and weight, and an example whose gradient is
    finite and within the radius adds all of it. In evaluation mode the layer is torch's.
    """

    weight: Any
    bias: Any

    def __init__(self, *arguments: Any, radius: float = 1.0, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.radius = checked_radius(radius)
        self.check_settings()

    def check_settings(self) -> None:
        """Refuse statistics of a batch."""
        if getattr(self, "track_running_stats", False):
            raise ConfigurationError(
                f"{type(self).__name__}(track_running_stats=True): statistics of a batch are kept without noise. Build "
                "it with track_running_stats=False, or call dplip.fix(model)."
            )

    def forward(self, x: Tensor) -> Tensor:
        if not trained(self, x):
            return super().forward(x)
        shape = self._shape(x)
        if x.ndim <= len(shape):
            raise ConfigurationError(
                f"{type(self).__name__}: an input of shape {tuple(x.shape)} has no axis of examples apart from that of "
                f"the scale, {list(shape)}. Give a batch, of one example as x[None]."
            )
        return scale_and_shift(self._normalized(x), self.weight, self.bias, self.radius, shape)

    def _normalized(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _shape(self, x: Tensor) -> Sequence[int]:
        """The shape of scale and shift when they are broadcast with the input."""
        return channels(self.weight, x)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, radius={self.radius:g}"


def channels(p: Tensor | None, x: Tensor) -> Sequence[int]:
    """The shape of a parameter with an entry for each channel, when it is broadcast with a batch."""
    return [] if p is None else [p.numel()] + [1] * (x.ndim - 2)


def scale_and_shift(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, radius: Radius, shape: Sequence[int]
) -> Tensor:
    """``x * weight + bias``, with a bounded gradient of both for each example."""
    if weight is None and bias is None:
        return x
    return examples_first(lambda first: ScaleAndShift.apply(first, weight, bias, tuple(shape), radius), x)


class ScaleAndShift(Enforcing):
    """The product with a scale and the sum with a shift, whose node bounds each example's gradient of both.

    Shape: x (examples, *before, *shape), for ``shape`` that of the parameters when they are broadcast: that of their
    entries, or (channels, 1, ...), and there x has positions in place of the ones.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor | None, bias: Tensor | None, shape: tuple[int, ...], radius: Radius
    ) -> Tensor:
        y = x if weight is None else x * weight.reshape(shape)
        return y if bias is None else y + bias.reshape(shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        x, weight, bias, ctx.shape, radius = inputs
        ctx.radius, ctx.terms = checked_radius(radius), 1  # the attribute may have been set
        require_in_front(x)
        parameter = bias if weight is None else weight
        ctx.own, ctx.dtype, ctx.input = parameter.shape, parameter.dtype, x.dtype
        ctx.save_for_backward(None if weight is None else x, weight)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias, _, _ = ctx.needs_input_grad
        with torch.autocast(v.device.type, enabled=False):
            below = (v if weight is None else v * weight.reshape(ctx.shape)).to(ctx.input) if for_x else None
            scale = _sent(ctx, 1, v * x) if for_weight else None
            shift = _sent(ctx, 1 + (weight is not None), v) if for_bias else None  # None has no edge
        return below, scale, shift, None, None


def _sent(ctx: Any, edge: int, terms: Tensor) -> Tensor | None:
    """The sum over examples of the terms' sums over positions, each scaled into the radius, for the parameter there."""
    at, entries = terms.ndim - len(ctx.shape), math.prod(ctx.shape)
    before, behind = math.prod(terms.shape[1:at]), math.prod(terms.shape[at:]) // max(entries, 1)
    sizes = len(terms), before, entries, behind
    each = terms.to(ctx.dtype).reshape(sizes).movedim(2, 3).reshape(len(terms), before * behind, entries)
    lengths = norms_of_positions(each) if behind == 1 else None
    found = sent(ctx, edge, partial(of_bias, each, lengths=lengths))
    return None if found is None else found.reshape(ctx.own)


class _OverEntries(Normalization):
    """Over the last axes, with a scale for each of their entries."""

    normalized_shape: tuple[int, ...]

    def _shape(self, x: Tensor) -> Sequence[int]:
        return self.normalized_shape


@bounds(nn.LayerNorm)
class BoundedLayerNorm(_OverEntries, nn.LayerNorm):
    """``nn.LayerNorm`` that bounds each example's gradient of scale and shift, each by ``radius`` in l2.

    Guarantee: that of :class:`dplip.nn.bounded.normalization.Normalization`, as for all the layers here.
    """

    def _normalized(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, None, None, self.eps)


@bounds(nn.RMSNorm)
class BoundedRMSNorm(_OverEntries, nn.RMSNorm):
    """``nn.RMSNorm`` that bounds each example's gradient of the scale by ``radius`` in l2.

    Guarantee: that of :class:`BoundedLayerNorm`.
    """

    bias = None

    def _normalized(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, None, self.eps)


@bounds(nn.GroupNorm)
class BoundedGroupNorm(Normalization, nn.GroupNorm):
    """``nn.GroupNorm`` that bounds each example's gradient of scale and shift, each by ``radius`` in l2.

    Guarantee: that of :class:`BoundedLayerNorm`.
    """

    def _normalized(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.num_groups, None, None, self.eps)


class _Instance(Normalization):
    """Over the positions of each channel."""

    def _normalized(self, x: Tensor) -> Tensor:
        layer: Any = self
        layer._check_input_dim(x)
        if x.ndim == layer._get_no_batch_dim():
            raise ConfigurationError(
                f"{type(self).__name__}: an input of shape {tuple(x.shape)} has no axis of examples. Give a batch, of "
                "one example as x[None]."
            )
        return F.group_norm(x, x.shape[1], None, None, layer.eps)  # the same, by an operator over one example alone


@bounds(nn.InstanceNorm1d)
class BoundedInstanceNorm1d(_Instance, nn.InstanceNorm1d):
    """``nn.InstanceNorm1d`` that bounds each example's gradient of scale and shift, each by ``radius`` in l2.

    Guarantee: that of :class:`BoundedLayerNorm`.
    """


@bounds(nn.InstanceNorm2d)
class BoundedInstanceNorm2d(_Instance, nn.InstanceNorm2d):
    """``nn.InstanceNorm2d`` that bounds each example's gradient of scale and shift, each by ``radius`` in l2.

    Guarantee: that of :class:`BoundedLayerNorm`.
    """


@bounds(nn.InstanceNorm3d)
class BoundedInstanceNorm3d(_Instance, nn.InstanceNorm3d):
    """``nn.InstanceNorm3d`` that bounds each example's gradient of scale and shift, each by ``radius`` in l2.

    Guarantee: that of :class:`BoundedLayerNorm`.
    """
