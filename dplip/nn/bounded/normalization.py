"""Normalisations by one example's own statistics that bound each example's gradient of their scale and shift.

The normalisation itself has no parameters, and a true gradient. Scale and shift are used by
:func:`dplip.nn.bounded.use.at_examples`, so the norm of an example's gradient is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from dplip.errors import ConfigurationError
from dplip.nn.bounded.convert import bounds
from dplip.nn.bounded.enforcing import Radius, checked_radius
from dplip.nn.bounded.use import at_examples, trained


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
        return scale_and_shift(self._normalized(x), self.weight, self.bias, self.radius, self._shape(x))

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
    if weight is not None:
        x = x * at_examples(weight, x, radius, shape)
    return x if bias is None else x + at_examples(bias, x, radius, shape)


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
