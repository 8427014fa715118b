"""Rules of operations that move, select or join entries: each output entry is one input entry, used once."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from dplip.errors import UnboundedOperationError
from dplip.norms import Norms
from dplip.rules.registry import Call, Pullback, refuse_module, rule


def example_axis(dim: Any, x: Norms) -> int:
    """The axis of one example that ``dim`` names in the batch; the batch axis is refused."""
    batched = len(x.shape) + 1
    if isinstance(dim, bool) or not isinstance(dim, int) or not -batched <= dim < batched or dim % batched == 0:
        raise UnboundedOperationError(
            f"dim={dim} is not one axis of an example, so examples may mix. Name axes after the first (the batch)."
        )
    return dim % batched - 1


def moved(x: Norms, shape: tuple[int, ...]) -> tuple[Norms, Pullback]:
    """The rule of entries of x, or some of them, or all with zeros between them, in another shape."""
    return x.reshape(shape), lambda v: ((v.reshape(x.shape),), {})


@rule(nn.Identity)
def identity(module: nn.Identity, x: Norms) -> tuple[Norms, Pullback]:
    return moved(x, x.shape)


# The walk has checked that the batch axis stays first, so a reshape regroups entries within each example.
@rule(torch.Tensor.view, torch.Tensor.reshape, torch.reshape, torch.flatten, torch.Tensor.flatten)
@rule(torch.Tensor.unflatten, torch.unflatten, torch.Tensor.unsqueeze, torch.unsqueeze)
@rule(torch.Tensor.contiguous, torch.Tensor.clone, torch.clone, torch.Tensor.float, torch.Tensor.double)
def reshape(call: Call, input: Norms, *sizes: Any, **named: Any) -> tuple[Norms, Pullback]:
    if any(isinstance(size, torch.dtype) for size in (*sizes, *named.values())):
        call.refuse("reads the bits of its input as another type.", "Convert with x.float() or x.double().")
    return moved(input, call.shape)


@rule(nn.Flatten)
def flatten_module(module: nn.Flatten, x: Norms) -> tuple[Norms, Pullback]:
    batched = len(x.shape) + 1
    first, last = module.start_dim % batched, module.end_dim % batched
    if first == 0:
        raise UnboundedOperationError(f"start_dim={module.start_dim} flattens the batch. Use start_dim=1.")
    inner = 1
    for s in x.shape[first - 1 : last]:
        inner *= s
    return moved(x, (*x.shape[: first - 1], inner, *x.shape[last:]))


@rule(nn.Unflatten)
def unflatten_module(module: nn.Unflatten, x: Norms) -> tuple[Norms, Pullback]:
    if not isinstance(module.dim, int):
        raise UnboundedOperationError(f"dim={module.dim!r} is a named axis. Use its number.")
    axis = example_axis(module.dim, x)
    sizes = tuple(torch.empty(x.shape[axis], device="meta").unflatten(0, tuple(module.unflattened_size)).shape)
    return moved(x, (*x.shape[:axis], *sizes, *x.shape[axis + 1 :]))


@rule(nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle, nn.ZeroPad1d, nn.ZeroPad2d)
def rearrange_module(module: nn.Module, x: Norms) -> tuple[Norms, Pullback]:
    if getattr(module, "value", 0.0) != 0.0:  # ConstantPad shares the forward of ZeroPad
        refuse_module(module, "pads with a constant.", "Pad with zeros.")
    return moved(x, tuple(module(torch.empty(1, *x.shape, device="meta")).shape[1:]))


@rule(F.pixel_shuffle, F.pixel_unshuffle, torch.pixel_shuffle, torch.pixel_unshuffle)
def rearrange(call: Call, input: Norms, factor: int) -> tuple[Norms, Pullback]:
    return moved(input, call.shape)


@rule(F.pad)
def pad(
    call: Call, input: Norms, pad: Any, mode: str = "constant", value: float | None = None
) -> tuple[Norms, Pullback]:
    if mode != "constant" or value:
        call.refuse(f"pads with mode={mode!r}, value={value}.", "Pad with zeros.")
    if len(pad) > 2 * len(input.shape):
        call.refuse("pads the batch axis, which moves examples.", "Pad the axes of one example.")
    return moved(input, call.shape)


@rule(torch.permute, torch.Tensor.permute)
def permute(call: Call, input: Norms, *dims: Any) -> tuple[Norms, Pullback]:
    flat = dims[0] if len(dims) == 1 and isinstance(dims[0], (tuple, list)) else dims
    if flat[0] != 0:
        call.refuse(f"moves the batch axis (dims={tuple(flat)}).", "Keep axis 0 first.")
    return moved(input, call.shape)


@rule(torch.transpose, torch.Tensor.transpose, torch.swapaxes, torch.Tensor.swapaxes)
def transpose(call: Call, input: Norms, dim0: int, dim1: int) -> tuple[Norms, Pullback]:
    example_axis(dim0, input)
    example_axis(dim1, input)
    return moved(input, call.shape)


@rule(torch.flip, torch.Tensor.flip)
def flip(call: Call, input: Norms, *dims: Any) -> tuple[Norms, Pullback]:
    for dim in dims[0] if len(dims) == 1 and isinstance(dims[0], (tuple, list)) else dims:
        example_axis(dim, input)
    return moved(input, call.shape)


@rule(torch.roll, torch.Tensor.roll)
def roll(call: Call, input: Norms, shifts: Any, dims: Any = None) -> tuple[Norms, Pullback]:
    axes = dims if isinstance(dims, (tuple, list)) else (dims,)
    if dims is None or not axes:
        call.refuse("without axes moves entries from one example to the next.", "Name the axes: x.roll(1, dims=2).")
    for axis in axes:
        example_axis(axis, input)
    return moved(input, call.shape)


@rule(torch.squeeze, torch.Tensor.squeeze)
def squeeze(call: Call, input: Norms, dim: Any = None) -> tuple[Norms, Pullback]:
    if dim is None:
        call.refuse("without an axis also removes the batch axis of a batch of one.", "Name the axis: squeeze(1).")
    example_axis(dim, input)
    return moved(input, call.shape)


@rule(torch.Tensor.expand)
def expand(call: Call, input: Norms, *sizes: Any) -> tuple[Norms, Pullback]:
    return input.repeat(call.shape), lambda v: ((v.sum_to(input.shape),), {})


@rule(operator.getitem)
def getitem(call: Call, value: Any, index: Any) -> tuple[Any, Pullback]:
    if isinstance(value, tuple):  # one of the parts of a split
        if not isinstance(index, int):
            call.refuse(f"selects parts by {index!r}.", "Select one part at a time.")
        zero = [Norms.zero(part.shape) for part in value]

        def select(v: Norms) -> Any:
            return (tuple(v if part is value[index] else none for part, none in zip(value, zero, strict=True)),), {}

        return value[index], select
    entries = index if isinstance(index, tuple) else (index,)
    basic = all(e is None or e is Ellipsis or isinstance(e, (int, slice)) for e in entries)
    kept = entries[0] == slice(None) or (
        entries[0] is Ellipsis and sum(e is not None for e in entries[1:]) <= len(value.shape)
    )
    if not basic or not kept:
        call.refuse(
            f"selects by {index!r}, which may pick or repeat examples.", "Write x[:, ...] with slices or integers."
        )
    return moved(value, call.shape)


@rule(torch.narrow, torch.Tensor.narrow, torch.select, torch.Tensor.select)
def narrow(call: Call, input: Norms, dim: int, start: int, length: int = 1) -> tuple[Norms, Pullback]:
    example_axis(dim, input)
    return moved(input, call.shape)


@rule(torch.cat, torch.concat, torch.concatenate, torch.stack)
def cat(call: Call, tensors: Any, dim: int = 0, axis: int | None = None) -> tuple[Norms, Pullback]:
    parts = list(tensors)
    if not all(isinstance(part, Norms) for part in parts):
        call.refuse("joins an example's value with a constant.", "Add the constant, or pad with zeros.")
    ndim = len(call.shape) + 1
    if (dim if axis is None else axis) % ndim == 0:
        call.refuse("joins along the batch axis.", "Join along dim=1 or later.")
    output = Norms.concatenate(parts, call.shape)
    return output, lambda v: (tuple(v.reshape(part.shape) for part in parts), {})


@rule(torch.chunk, torch.Tensor.chunk, torch.split, torch.Tensor.split, torch.Tensor.unbind, torch.unbind)
def split(call: Call, input: Norms, size: Any = None, dim: int = 0, **named: Any) -> tuple[Any, Pullback]:
    if call.function in (torch.Tensor.unbind, torch.unbind):
        dim = size if size is not None else dim
    example_axis(dim, input)
    parts = tuple(input.reshape(shape) for shape in call.shape)
    return parts, lambda v: ((Norms.concatenate(list(v), input.shape),), {})
