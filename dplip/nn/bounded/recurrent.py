"""Recurrent layers that bound each example's gradient of their weights (see :mod:`dplip.nn.bounded.recurrence`)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from dplip.errors import ConfigurationError, MixedExamplesError
from dplip.nn.bounded.convert import bounds
from dplip.nn.bounded.enforcing import Radius, checked_radius
from dplip.nn.bounded.recurrence import Elman, Gru, Lstm
from dplip.nn.bounded.use import trained
from dplip.separation import current


class Sequences(nn.RNNBase):
    """Base of the recurrent layers.

    Args:
        input_size, hidden_size, num_layers, ...: as for torch's layer; the keys of the ``state_dict`` are the same.
        radius: the largest l2 norm of one example's gradient of each weight and each bias, over all its steps.

    Shape: as for torch's layer, padded or packed. ``lengths=`` (examples,) says how many steps each padded sequence
        has; what lies beyond is not read, its output is 0, and the last state is that of the last step.

    Raises:
        ConfigurationError: in training mode, for an input without an axis of examples or steps.

    Guarantee: in training mode the bound holds for every input, length, cotangent and weight, and an example whose
    gradient is finite and within the radius adds all of it. In evaluation mode, without lengths, the layer is torch's.
    It computes in the type of its weights, under ``torch.autocast`` too.
    """

    def __init__(self, *arguments: Any, radius: float = 1.0, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.radius = checked_radius(radius)

    def forward(self, input: Any, hx: Any = None, lengths: Tensor | None = None) -> Any:
        packed = isinstance(input, PackedSequence)
        states = () if hx is None else hx if isinstance(hx, tuple) else (hx,)
        if lengths is None and not any(trained(self, t) for t in (input.data if packed else input, *states)):
            return super().forward(input, hx)
        if packed:
            return self._packed(input, hx)
        if input.ndim != 3 or not input.shape[1 if self.batch_first else 0]:
            raise ConfigurationError(
                f"{type(self).__name__}: the input has shape {tuple(input.shape)}, without an axis of examples or a "
                "step. Give it a batch: one example as x.unsqueeze(0) with batch_first=True, of at least one step."
            )
        self.check_input(input, None)
        if hx is not None:
            self.check_forward_args(input, hx, None)
        x = input if self.batch_first else input.transpose(0, 1)
        y, last = self._run(x, states, None if lengths is None else self._alive(x, lengths))
        return y if self.batch_first else y.transpose(0, 1), last

    def _packed(self, input: PackedSequence, hx: Any) -> Any:
        """Sequences that are sorted by length stay so: they are padded, and packed as they were."""
        x, lengths = pad_packed_sequence(PackedSequence(input.data, input.batch_sizes), batch_first=True)
        hx = None if hx is None else self.permute_hidden(hx, input.sorted_indices)
        states = () if hx is None else hx if isinstance(hx, tuple) else (hx,)
        y, last = self._run(x, states, self._alive(x, lengths))
        data = pack_padded_sequence(y, lengths, batch_first=True).data
        output = PackedSequence(data, input.batch_sizes, input.sorted_indices, input.unsorted_indices)
        return output, self.permute_hidden(last, input.unsorted_indices)

    def _alive(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Which steps lie within each sequence (sequences, steps)."""
        if lengths.shape != x.shape[:1] or lengths.is_floating_point():
            raise ConfigurationError(
                f"lengths has shape {tuple(lengths.shape)} and type {lengths.dtype}: give one whole number for each of "
                f"the {len(x)} sequences."
            )
        return torch.arange(x.shape[1], device=x.device)[None] < lengths.to(x.device)[:, None]

    def _run(self, x: Tensor, states: tuple[Tensor, ...], alive: Tensor | None) -> Any:
        """All layers and directions, over (sequences, steps, features)."""
        each = sequences_of_one(x, *(s.transpose(0, 1) for s in states))
        ends: list[tuple[Tensor, ...]] = []
        for layer in range(self.num_layers):
            outputs = []
            for direction in range(1 + self.bidirectional):
                suffix = f"_l{layer}{'_reverse' * direction}"
                first = tuple(s[len(ends)] for s in states)
                turned = x.flip(1) if direction else x
                on = alive.flip(1) if direction and alive is not None else alive
                with torch.autocast(x.device.type, enabled=False):
                    y, *last = self._sequence(turned, first, suffix, on, each)
                outputs.append(y.flip(1) if direction else y)
                ends.append(tuple(last))
            x = torch.cat(outputs, 2) if self.bidirectional else outputs[0]
            if layer < self.num_layers - 1:
                x = F.dropout(x, self.dropout, self.training)
        last = [torch.stack(kind) for kind in zip(*ends, strict=True)]
        y = x if alive is None else x.masked_fill(~alive[..., None], 0.0)
        return y, last[0] if len(last) == 1 else tuple(last)

    def _sequence(self, x: Tensor, first: tuple[Tensor, ...], suffix: str, alive: Tensor | None, each: int) -> Any:
        """One layer in one direction: the output of all steps, and the last states."""
        w, u, b, c, p = (getattr(self, f"{n}{suffix}", None) for n in _NAMES)
        sizes = (self.proj_size or self.hidden_size, self.hidden_size)
        return recurrence(self.mode, x, first, sizes, (w, u, b, c, p), alive, each, checked_radius(self.radius))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, radius={self.radius:g}"


_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")


def recurrence(
    mode: str,
    x: Tensor,
    first: tuple[Tensor, ...],
    sizes: tuple[int, ...],
    weights: tuple[Any, ...],
    alive: Tensor | None,
    each: int,
    radius: Radius,
) -> Any:
    """The recurrence of torch's name for it, in the weights' type, from states of zeros where none are given."""
    dtype = weights[0].dtype
    x = x.to(dtype)
    if not first:
        first = tuple(x.new_zeros(len(x), size) for size in sizes[: 2 if mode == "LSTM" else 1])
    first = tuple(s.to(dtype) for s in first)
    if mode == "LSTM":
        return Lstm.apply(x, *first, *weights, alive, each, radius)
    function = Gru if mode == "GRU" else Elman
    return function.apply(x, *first, *weights[:4], alive, each, radius, mode == "RNN_RELU")


def sequences_of_one(*tensors: Tensor) -> int:
    """How many neighbours along axis 0 belong to one example: one, unless a watch says otherwise.

    Raises:
        MixedExamplesError: a watch finds the examples in another place.
    """
    watch = current()
    if watch is None:
        return 1
    found = {r for r in map(watch.rows, tensors) if r is not None}
    if len(found) != 1 or any(r.axis or r.outer != 1 for r in found):
        raise MixedExamplesError(
            f"A recurrent layer's input and state have their examples at {found or 'no place'}. It needs them along "
            "its batch axis, several sequences of one example next to each other. Set batch_first to match the input, "
            "and freeze a layer that computes with constants alone."
        )
    return found.pop().inner


@bounds(nn.RNN)
class BoundedRNN(Sequences, nn.RNN):
    """``nn.RNN`` that bounds each example's gradient of each weight and bias by ``radius`` in l2.

    Arguments, shapes and guarantee: those of :class:`dplip.nn.bounded.recurrent.Sequences`.
    """


@bounds(nn.LSTM)
class BoundedLSTM(Sequences, nn.LSTM):
    """``nn.LSTM`` that bounds each example's gradient of each weight and bias by ``radius`` in l2.

    Arguments, shapes and guarantee: those of :class:`dplip.nn.bounded.recurrent.Sequences`.
    """


@bounds(nn.GRU)
class BoundedGRU(Sequences, nn.GRU):
    """``nn.GRU`` that bounds each example's gradient of each weight and bias by ``radius`` in l2.

    Arguments, shapes and guarantee: those of :class:`dplip.nn.bounded.recurrent.Sequences`.
    """
