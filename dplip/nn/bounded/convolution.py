"""Convolutions that bound each example's gradient of the weight (see :mod:`dplip.nn.bounded.linear`).

An example's gradient is a product of its cotangent with the patches that the kernel reads. It is formed by itself, and
scaled by its own norm before the sum over examples. Padding other than by given numbers of zeros is an operation of its
own, before a convolution without padding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dplip.errors import ConfigurationError, MixedExamplesError
from dplip.nn.bounded.convert import bounds
from dplip.nn.bounded.enforcing import (
    Radius,
    Summed,
    Within,
    bounded_rule,
    checked_radius,
    of_bias,
    sent,
    some_of,
    sum_into_radius,
)
from dplip.nn.bounded.slack import slack_of
from dplip.nn.gradient_ball import row_norms
from dplip.nn.sums import Total, of_convolution
from dplip.norms import Norms
from dplip.rules import ENFORCED, SUMMATIONS, Pullback, Summation, rule
from dplip.rules.convolution import convolution
from dplip.separation import Rows, current, examples_first


class _Bounded(nn.modules.conv._ConvNd):
    """What bounded convolutions share: they are torch's in evaluation mode."""

    slack: Tensor | None = None

    def __init__(self, *arguments: Any, radius: float = 1.0, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.radius = checked_radius(radius)

    def _bounded(self, x: Tensor, output_padding: tuple[int, ...]) -> Tensor:
        def bounded(x: Tensor, settings: Any) -> Tensor:
            return ConvolutionGradients.apply(x, self.weight, self.bias, None, self.radius, self.slack, settings)

        return by_examples(bounded, self, x, output_padding)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, radius={self.radius:g}"


class _Forward(_Bounded):
    def _of(self, x: Tensor) -> Tensor:
        if not self.training:
            return self._conv_forward(x, self.weight, self.bias)
        return self._bounded(x, (0,) * len(self.kernel_size))


class _Transposed(_Bounded):
    def _of(self, x: Tensor, output_size: list[int] | None) -> Tensor:
        if not self.training:
            return super().forward(x, output_size)
        axes = len(self.kernel_size)
        padding: Any = self._output_padding(  # type: ignore[operator]
            x, output_size, list(self.stride), list(self.padding), list(self.kernel_size), axes, list(self.dilation)
        )
        return self._bounded(x, tuple(padding))


@bounds(nn.Conv1d)
class BoundedConv1d(_Forward, nn.Conv1d):
    """``nn.Conv1d`` that bounds each example's gradient of its weight, and of its bias, by ``radius`` in l2.

    Args:
        arguments, keywords: as for ``nn.Conv1d``.
        radius: the largest l2 norm of one example's gradient of the weight; likewise of the bias.

    Shape: as for ``nn.Conv1d``, with an axis of examples in front.

    Guarantee: as for :class:`BoundedLinear`, with groups, strides, dilation and every padding.
    """

    def forward(self, input: Tensor) -> Tensor:
        return self._of(input)


@bounds(nn.Conv2d)
class BoundedConv2d(_Forward, nn.Conv2d):
    """``nn.Conv2d`` that bounds each example's gradients: see :class:`BoundedConv1d`."""

    def forward(self, input: Tensor) -> Tensor:
        return self._of(input)


@bounds(nn.Conv3d)
class BoundedConv3d(_Forward, nn.Conv3d):
    """``nn.Conv3d`` that bounds each example's gradients: see :class:`BoundedConv1d`."""

    def forward(self, input: Tensor) -> Tensor:
        return self._of(input)


@bounds(nn.ConvTranspose1d)
class BoundedConvTranspose1d(_Transposed, nn.ConvTranspose1d):
    """``nn.ConvTranspose1d`` that bounds each example's gradients: see :class:`BoundedConv1d`."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return self._of(input, output_size)


@bounds(nn.ConvTranspose2d)
class BoundedConvTranspose2d(_Transposed, nn.ConvTranspose2d):
    """``nn.ConvTranspose2d`` that bounds each example's gradients: see :class:`BoundedConv1d`."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return self._of(input, output_size)


@bounds(nn.ConvTranspose3d)
class BoundedConvTranspose3d(_Transposed, nn.ConvTranspose3d):
    """``nn.ConvTranspose3d`` that bounds each example's gradients: see :class:`BoundedConv1d`."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return self._of(input, output_size)


def settings_of(module: Any, x: Tensor, output_padding: tuple[int, ...]) -> tuple[Tensor, Any]:
    """The input, padded if the convolution does not pad with numbers of zeros, and the arguments of a convolution."""
    padding = module.padding
    if module.padding_mode != "zeros" or isinstance(padding, str):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x, padding = F.pad(x, module._reversed_padding_repeated_twice, mode=mode), (0,) * len(module.kernel_size)
    return x, (module.stride, padding, module.dilation, module.transposed, output_padding, module.groups)


def by_examples(function: Callable[..., Tensor], layer: Any, x: Tensor, output_padding: tuple[int, ...]) -> Tensor:
    """A convolution of a batch whose examples have one or more images each, such as the frames of a film.

    Args:
        function: takes the images, (examples, ..., channels, *spatial), and the arguments of a convolution.
        layer: a convolution.
        x: (images, channels, *spatial).
    """
    axes = len(layer.kernel_size) + 1
    if x.ndim != axes + 1:
        raise ConfigurationError(
            f"x: a tensor of shape {tuple(x.shape)} has no axis of examples for {type(layer).__name__}. Give "
            f"(examples, channels, *spatial), one example as x[None]."
        )
    watch = current()
    rows = Rows(0) if watch is None else watch.rows(x)
    if rows is not None and rows.axis != 0:
        raise MixedExamplesError(
            f"{type(layer).__name__}: the examples are {rows} of a tensor of shape {tuple(x.shape)}, and each one's "
            "gradient cannot be bounded. Give (examples, channels, *spatial), or freeze the layer."
        )

    def in_front(x: Tensor) -> Tensor:
        lead = x.shape[:-axes]
        images, settings = settings_of(layer, flat(x, axes), output_padding)
        return function(images if len(lead) == 1 else images.unflatten(0, lead), settings)

    found: Tensor = examples_first(in_front, x)
    return found


def flat(x: Tensor, axes: int) -> Tensor:
    """Images one after the other, whosever they are; the last ``axes`` axes are an image's."""
    return x.flatten(0, x.ndim - axes - 1)


class ConvolutionGradients(Summed):
    """A convolution, transposed or not, whose node bounds the gradients of weight and bias.

    Shape: (examples, ..., channels, *spatial); what lies between are images of one example.
    """

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        output: Tensor | None,
        radius: Radius | None,
        slack: Tensor | None,
        settings: Any,
    ) -> Tensor:
        if output is not None:
            return output
        return convolved(x, weight, bias, settings)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        Summed.setup_context(ctx, inputs, output)
        ctx.terms = 1  # the positions of an example are summed before the examples

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias, _, _, for_slack, _ = ctx.needs_input_grad
        (settings,) = ctx.geometry
        gradient = bias = below = slack = None
        told: list[Tensor] | None = [] if for_slack else None
        with torch.autocast(v.device.type, enabled=False):
            if for_weight or for_bias:
                given, back = x.to(weight.dtype), v.to(weight.dtype)  # which has as many digits
                kernel = partial(of_kernel, given, back, weight, settings)
                gradient = sent(ctx, 1, kernel, told) if for_weight else None
                # The slack belongs to the weight, or to the bias beside a frozen one.
                shift = partial(_of_bias, back, weight.ndim - 1)
                bias = sent(ctx, 2, shift, None if for_weight else told) if for_bias else None
                slack = slack_of(ctx.radius, told) if told else None
            if for_x:
                below = below_convolution(v, x, weight, settings)
        return below, gradient, bias, None, None, slack, None


def convolved(x: Tensor, weight: Tensor, bias: Tensor | None, settings: Any) -> Tensor:
    """A convolution of images (..., channels, *spatial)."""
    stride, padding, dilation, transposed, output_padding, groups = settings
    images = flat(x, weight.ndim - 1)
    if transposed:
        up = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[len(stride) - 1]
        y = up(images, weight, bias, stride, padding, output_padding, groups, dilation)
    else:
        y = (F.conv1d, F.conv2d, F.conv3d)[len(stride) - 1](images, weight, bias, stride, padding, dilation, groups)
    return y if images is x else y.unflatten(0, x.shape[: 1 - weight.ndim])


def below_convolution(v: Tensor, x: Tensor, weight: Tensor, settings: Any) -> Tensor:
    """The cotangent of the input."""
    axes = weight.ndim - 1
    sent = flat(v, axes)
    like = v.new_empty(1).expand(len(sent), *x.shape[-axes:])
    backward = torch.ops.aten.convolution_backward
    found: Tensor = backward(sent, like, weight.to(v.dtype), None, *settings, (True, False, False))[0]
    return found.reshape(x.shape)


def _of_bias(v: Tensor, axes: int, radius: Within, told: list[Tensor] | None) -> Tensor:
    """The same of the bias, whose terms are all positions of all images of an example."""
    by_image = v.reshape(len(v), math.prod(v.shape[1:-axes]), v.shape[-axes], math.prod(v.shape[1 - axes :]))
    return of_bias(by_image.movedim(2, 3).flatten(1, 2), radius, told)


def of_kernel(
    x: Tensor, v: Tensor, weight: Tensor, settings: Any, radius: Within, told: list[Tensor] | None = None
) -> Tensor:
    """The sum over examples of the kernel's gradients, each scaled into the radius (None: as it is).

    A transposed convolution is the transpose of a convolution C with the same kernel: ``<v, C^T x> = <C v, x>``. So its
    kernel's gradient is that of C for the input v and the cotangent x.

    The magnitudes of an example's terms add up to at most the product of the norms of the cotangent and of all patches
    (Cauchy-Schwarz), and each tap reads an entry at most once.
    """
    most = None if radius is None else math.sqrt(math.prod(weight.shape[2:])) * row_norms(x) * row_norms(v)

    def total(each: Tensor, some: slice) -> Tensor:
        return sum_into_radius(each, some_of(radius, some), None if most is None else most[some], told)

    return kernels(x, v, weight, settings, total).reshape(weight.shape)


def kernels(x: Tensor, v: Tensor, weight: Tensor, settings: Any, total: Total) -> Tensor:
    """The sum over examples of what ``total`` makes of each one's gradient of the kernel."""
    stride, padding, dilation, transposed, _, groups = settings
    axes, each = weight.ndim - 1, math.prod(x.shape[1 : 1 - weight.ndim])
    given, sent = (flat(t, axes) for t in ((v, x) if transposed else (x, v)))
    return of_convolution(given, sent, weight.shape[2:], stride, padding, dilation, groups, total, each)


@rule(BoundedConv1d, BoundedConv2d)
def bounded_convolution(module: BoundedConv1d | BoundedConv2d, x: Norms) -> tuple[Norms, Pullback]:
    return bounded_rule(convolution, module, x)


ENFORCED.add(bounded_convolution)
# The positions of one example are summed before the examples.
SUMMATIONS[convolution] = SUMMATIONS[bounded_convolution] = lambda _, output: Summation(blocked=True)
