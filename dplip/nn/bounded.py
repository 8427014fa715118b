"""Linear layers and convolutions that bound each example's gradient of the weight, within one ordinary backward pass.

An example's gradient of a linear layer's weight is the outer product of its cotangent v and its input x, so its norm is
at most ``|v| |x|``, two norms that cost next to nothing. In training mode the weight's gradient is therefore the sum
over the examples of ``s v x^T`` with ``s = min(1, radius / (|v| |x|))``. No gradient per example is formed, and the
bound needs neither a bound of the input nor an operator norm. The layers below get the true cotangent.

Under ``torch.autocast`` the layer's output and the cotangent for the layers below are products in half precision; x and
v are converted to the weight's type, exactly, before their product (see :mod:`dplip.sensitivities.enforced`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from dplip.errors import ConfigurationError
from dplip.nn.gradient_ball import ROW_SLACK, row_norms, scale_into
from dplip.nn.sums import of_convolution, of_products, of_rows
from dplip.norms import Norms
from dplip.rules import ENFORCED, RULES, SUMMATIONS, SUMMED, Pullback, Summation, rule
from dplip.rules.convolution import convolution, most_reads
from dplip.rules.linear import AFFINE, by_position, linear
from dplip.validate import positive

M = TypeVar("M", bound=nn.Module)

LARGEST_NORM = 1e30
"""An example with a larger norm, or one that is not finite, adds no gradient: products with s lose their digits."""

SMALLEST = 1e-12
"""The smallest radius. A scaled entry below 2^-126 is off by 2^-150. Times the other factor, whose norm is at most 2^64
(a larger one has no finite square), the error is sqrt(d) 2^-86 for d entries, far less than ``ROW_SLACK`` of the
radius."""


def _radius(radius: float) -> float:
    if positive(radius) < SMALLEST:
        raise ConfigurationError(
            f"radius={radius}: a gradient this small loses its digits. Give at least {SMALLEST:g}, and a "
            "lower learning rate for smaller steps."
        )
    return float(radius)


class BoundedLinear(nn.Linear):
    """``nn.Linear`` that bounds each example's gradient of its weight, and of its bias, by ``radius`` in l2.

    Args:
        in_features, out_features, bias: as for ``nn.Linear``; the keys of the ``state_dict`` are the same.
        radius: the largest l2 norm of one example's gradient of the weight; likewise of the bias.

    Guarantee: in training mode the bound holds for every input, cotangent and weight (examples that are not finite, or
    of a norm beyond 1e30, contribute nothing). In evaluation mode the layer is ``nn.Linear``.
    Source: clipping by layer with the norm of an outer product, Goodfellow, 2015, arXiv 1510.01799.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, radius: float = 1.0) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.radius = _radius(radius)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return F.linear(x, self.weight, self.bias)
        return _Linear.apply(x, self.weight, self.bias, None, self.radius)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, radius={self.radius:g}"


class BoundedConv2d(nn.Conv2d):
    """``nn.Conv2d`` (zero padding) that bounds each example's gradient of its weight, and of its bias, in l2.

    An entry of the input is read by at most m (position, tap) pairs, so the gradient's norm is at most
    ``sqrt(m) |v| |x|`` (see :func:`dplip.rules.convolution.convolution`). That product is scaled down to the radius.

    Args:
        radius: the largest l2 norm of one example's gradient of the weight; likewise of the bias.

    Guarantee: as for :class:`BoundedLinear`.
    """

    def __init__(self, *arguments: Any, radius: float = 1.0, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.radius = _radius(radius)
        if self.padding_mode != "zeros" or isinstance(self.padding, str):
            raise ConfigurationError(
                f"padding={self.padding!r}, padding_mode={self.padding_mode!r}: give numbers of zeros."
            )

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self._conv_forward(x, self.weight, self.bias)
        settings = (self.stride, self.padding, self.dilation, self.groups)
        padding = tuple((int(p), int(p)) for p in self.padding)
        reuse = math.sqrt(most_reads(tuple(x.shape[2:]), self.kernel_size, self.stride, padding, self.dilation))
        return _Convolution.apply(x, self.weight, self.bias, None, self.radius, reuse, settings)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, radius={self.radius:g}"


def _bounded_rows(
    x: Tensor, v: Tensor, weight: Tensor, radius: float | None, reuse: float, positions: int
) -> tuple[Tensor, Tensor, Callable[[], Tensor]]:
    """Inputs and cotangents for the weight's gradient, and a function that gives the cotangents for the bias's.

    All are in the weight's type. With a radius, each example is scaled so that ``reuse |v| |x|`` and
    ``sqrt(positions) |v|`` lie within it.
    """
    x, v = x.to(weight.dtype), v.to(weight.dtype)  # exact: neither has more digits than the weight
    if radius is None:
        return x, v, lambda: v
    sizes, lengths = row_norms(x), row_norms(v)
    kept = torch.maximum(sizes, lengths) <= LARGEST_NORM  # False for NaN
    # The scaling is skipped only where it would change no row, so that a row never depends on the others.
    if not _all(kept & (reuse * sizes * lengths <= radius * (1 - ROW_SLACK))):
        if not _all(kept):
            x, v = (torch.where(kept.reshape(-1, *[1] * (t.ndim - 1)), t, 0.0) for t in (x, v))
            # The norms are not recomputed: a copy may differ in memory layout, which would change the rounding of all.
            sizes, lengths = (torch.where(kept, n, 0.0) for n in (sizes, lengths))
        norms, on_input = reuse * sizes * lengths, x.numel() < v.numel()  # scale the smaller of the two tensors
        inputs = x * scale_into(radius, norms, x) if on_input else x
        cotangents = v if on_input else v * scale_into(radius, norms, v)
    else:
        inputs, cotangents = x, v
    return inputs, cotangents, lambda: v * scale_into(radius, math.sqrt(positions) * lengths, v)


def _all(condition: Tensor) -> bool:
    """Whether the condition is known to hold for every example."""
    if torch.compiler.is_compiling():  # a compiled graph cannot branch on values
        return False
    try:
        return bool(condition.all())
    except RuntimeError:  # under vmap the value is not known
        return False


class _Summed(torch.autograd.Function):
    """A layer's map with a backward pass of sums in blocks; a given output is returned, and a radius scales rows."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        x, weight, _, given, ctx.radius, *ctx.geometry = inputs
        ctx.save_for_backward(x, weight)
        ctx.mark_dirty(*[given] * (given is not None))  # so that it is returned itself and not as a view


class _Linear(_Summed):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, output: Tensor | None, radius: float | None) -> Tensor:
        return F.linear(x, weight, bias) if output is None else output

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias, *_ = ctx.needs_input_grad
        gradient = bias = below = None
        with torch.autocast(v.device.type, enabled=False):
            if for_weight or for_bias:
                inputs, scaled, sent = _bounded_rows(x, v, weight, ctx.radius, 1.0, math.prod(v.shape[1:-1]))
                gradient = of_products(scaled.flatten(0, -2), inputs.flatten(0, -2)) if for_weight else None
                bias = of_rows(sent().flatten(0, -2)) if for_bias else None
                del inputs, scaled, sent  # frees the scaled copy before the next product
            below = v @ weight.to(v.dtype) if for_x else None
        return below, gradient, bias, None, None


class _Convolution(_Summed):
    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        output: Tensor | None,
        radius: float | None,
        reuse: float,
        settings: Any,
    ) -> Tensor:
        return F.conv2d(x, weight, bias, *settings) if output is None else output

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias, *_ = ctx.needs_input_grad
        (reuse, settings), shapes = ctx.geometry, (x.shape, weight.shape)
        if v.ndim == 3:  # a sequence is treated as an image of height 1
            x, weight, v = (t.unsqueeze(2) for t in (x, weight, v))
            settings = (*((n, *s) for n, s in zip((1, 0, 1), settings[:3], strict=True)), settings[3])
        gradient = bias = below = None
        with torch.autocast(v.device.type, enabled=False):
            if for_weight or for_bias:
                inputs, scaled, sent = _bounded_rows(x, v, weight, ctx.radius, reuse, math.prod(v.shape[2:]))
                if for_weight:
                    gradient = of_convolution(inputs, scaled, weight.shape[2:], *settings).reshape(shapes[1])
                bias = of_rows(sent().flatten(2).sum(2)) if for_bias else None
                del inputs, scaled, sent  # frees the scaled copy before the next product
            if for_x:
                below = conv2d_input(x.shape, weight.to(v.dtype), v, *settings).reshape(shapes[0])
        return below, gradient, bias, None, None, None, None


def summed(module: Any, args: tuple[Any, ...], output: Any) -> Any:
    """A forward hook for torch's layers: it keeps the output, and makes the backward pass sum in blocks."""
    bounded = type(module).forward in (BoundedLinear.forward, BoundedConv2d.forward)
    trained = any(p is not None and p.requires_grad for p in (module.weight, module.bias))
    done = bounded and module.training
    if done or not (trained and isinstance(output, Tensor) and output.requires_grad):
        return None
    if isinstance(module, nn.Linear):
        return _Linear.apply(args[0], module.weight, module.bias, output.detach(), None)
    x, padding = args[0], module.padding
    if module.padding_mode != "zeros" or isinstance(padding, str):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x, padding = F.pad(x, module._reversed_padding_repeated_twice, mode=mode), (0,) * (x.ndim - 2)
    settings = (module.stride, padding, module.dilation, module.groups)
    return _Convolution.apply(x, module.weight, module.bias, output.detach(), None, 1.0, settings)


SUMMED.update({nn.Linear.forward, BoundedLinear.forward})
SUMMED.update({nn.Conv1d.forward, nn.Conv2d.forward, BoundedConv2d.forward})


def _bounded(bounds: Callable[..., Any], module: Any, x: Norms) -> tuple[Norms, Pullback]:
    """The stock layer's bounds, with parameter bounds of at most the radius in training mode."""
    output, inner = bounds(module, x)
    radius = _radius(module.radius)  # checked again, since the attribute may have been set

    def pullback(v: Norms) -> Any:
        below, named = inner(v)
        if module.training:
            positions = output.size // module.weight.shape[0]
            # Each example was scaled to the radius before the sum over its positions, which rounds.
            named = {k: n & Norms(n.shape, l2=radius).summed(positions) for k, n in named.items()}
        return below, named

    return output, pullback


@rule(BoundedLinear)
def bounded_linear(module: BoundedLinear, x: Norms) -> tuple[Norms, Pullback]:
    return _bounded(linear, module, x)


@rule(BoundedConv2d)
def bounded_convolution(module: BoundedConv2d, x: Norms) -> tuple[Norms, Pullback]:
    return _bounded(convolution, module, x)


AFFINE.add(bounded_linear)
ENFORCED.update({bounded_linear, bounded_convolution})
SUMMATIONS[linear] = SUMMATIONS[bounded_linear] = lambda _, output: replace(by_position(_, output), blocked=True)
# The positions of one example are summed before the examples.
SUMMATIONS[convolution] = SUMMATIONS[bounded_convolution] = lambda _, output: Summation(blocked=True)


def bound_gradients(model: M, radius: float = 1.0) -> M:
    """Replace every ``nn.Linear`` and ``nn.Conv2d`` of a model by its bounded counterpart, in place.

    Args:
        model: any module; subclasses that change the forward pass of the two layers are left as they are.
        radius: the radius of every layer; set ``layer.radius`` afterwards for different ones.

    Returns:
        The model (a new layer, if it is itself one of the two), with the same parameter and constraint objects.
    """
    made: dict[nn.Module, nn.Module] = {}

    def counterpart(layer: nn.Module) -> nn.Module:
        if layer not in made:
            kind = {nn.Linear.forward: BoundedLinear, nn.Conv2d.forward: BoundedConv2d}.get(type(layer).forward)
            made[layer] = layer if kind is None or RULES.of_module(layer) is None else _converted(layer, kind, radius)
        return made[layer]

    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None:
                parent._modules[name] = counterpart(child)
    return cast(M, counterpart(model))


def _converted(layer: Any, kind: Any, radius: float) -> nn.Module:
    bias = layer.bias is not None
    if kind is BoundedLinear:
        new: nn.Module = BoundedLinear(layer.in_features, layer.out_features, bias, radius)
    else:
        sizes = (layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation)
        new = BoundedConv2d(*sizes, layer.groups, bias, layer.padding_mode, radius=radius)
    new._parameters = layer._parameters
    new._modules = layer._modules
    return new.train(layer.training)
