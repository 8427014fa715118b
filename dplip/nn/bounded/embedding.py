"""Embeddings that bound each example's gradient of the table, without a dense gradient for each example.

An example's gradient of the table has, in row i, the sum of the cotangents v_t of the positions t that look up row i.
These sums, of all (example, row) pairs at once, take at most the memory of v. Their norms give the norm of the
example's gradient, exactly. They are scaled, and summed over the examples row by row.

Proof of the rounding: what an example adds are its sums as computed, whose norm is taken as computed; they depend on no
other example, since each is a sum by itself, in the order of the positions. The examples are summed in blocks of
:data:`dplip.nn.sums.BLOCK`, which are added up in a tree, as :func:`dplip.nn.sums.apart` charges for.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dplip.errors import ConfigurationError
from dplip.nn.bounded.convert import bounds
from dplip.nn.bounded.enforcing import (
    Enforcing,
    Radius,
    Within,
    checked_radius,
    nothing,
    require_in_front,
    scaled_rows,
    sent,
)
from dplip.nn.bounded.parameter import derived
from dplip.nn.bounded.unwritten import Unwritten
from dplip.nn.bounded.use import trained
from dplip.nn.gradient_ball import row_norms
from dplip.nn.sums import BLOCK
from dplip.separation import current, examples_first

REFUSED = {
    "max_norm": "rows are rescaled while the model runs, without noise",
    "scale_grad_by_freq": "an example's gradient would depend on how often others have its words",
    "sparse": "the noise of a private step falls on every row",
}


class _Bounded(nn.Module):
    """What both layers have in common. Tables are bounded parameters too, since many models use them elsewhere."""

    used_elsewhere = True

    def __init__(self, *arguments: Any, radius: float = 1.0, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.radius = checked_radius(radius)
        self.check_settings()

    def check_settings(self) -> None:
        """Refuse what the bound does not cover."""
        for name, reason in REFUSED.items():
            value = getattr(self, name)
            if value not in (None, False):
                raise ConfigurationError(
                    f"{type(self).__name__}({name}={value}): {reason}. Set layer.{name} = "
                    f"{None if name == 'max_norm' else False}."
                )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, radius={self.radius:g}"


@bounds(nn.Embedding)
class BoundedEmbedding(_Bounded, nn.Embedding):
    """``nn.Embedding`` that bounds each example's gradient of the table by ``radius`` in l2.

    Args:
        num_embeddings, embedding_dim, padding_idx: as for ``nn.Embedding``; ``padding_idx`` gets no gradient.
        radius: the largest l2 norm of one example's gradient, over all its positions.

    Raises:
        ConfigurationError: for ``max_norm``, ``scale_grad_by_freq`` and ``sparse``.

    Guarantee: in training mode the bound holds for every input and cotangent, and an example whose gradient is finite
    and within the radius adds all of it. In evaluation mode the layer is ``nn.Embedding``.
    """

    def forward(self, ids: Tensor) -> Tensor:
        if self.training:
            return rows_of(ids, self.weight, self.padding_idx, self.radius)
        with torch._C.DisableTorchFunctionSubclass():  # the table is a bounded parameter, for its other uses
            return super().forward(ids)


@bounds(nn.EmbeddingBag)
class BoundedEmbeddingBag(_Bounded, nn.EmbeddingBag):
    """``nn.EmbeddingBag`` that bounds each example's gradient of the table by ``radius`` in l2.

    Args:
        num_embeddings, embedding_dim, mode, padding_idx: as for ``nn.EmbeddingBag``.
        radius: the largest l2 norm of one example's gradient, over its bag.

    Shape: ids (examples, positions), and weights likewise; no offsets.

    Raises:
        ConfigurationError: for offsets, ``max_norm``, ``scale_grad_by_freq`` and ``sparse``.

    Guarantee: that of :class:`BoundedEmbedding`.
    """

    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        if not trained(self, input):
            with torch._C.DisableTorchFunctionSubclass():
                return super().forward(input, offsets, per_sample_weights)
        if offsets is not None or input.ndim != 2:
            raise ConfigurationError(
                f"BoundedEmbeddingBag: ids of shape {tuple(input.shape)}"
                f"{' with offsets' if offsets is not None else ''}, in which examples have no axis of their own. Give "
                "ids of shape (examples, positions), padded with padding_idx."
            )
        if per_sample_weights is not None and self.mode != "sum":
            raise ConfigurationError(f"per_sample_weights with mode={self.mode!r}: torch has weights for 'sum' alone.")
        weights = () if per_sample_weights is None else (per_sample_weights,)
        return examples_first(self._bag, input, *weights)

    def _bag(self, ids: Tensor, weights: Tensor | None = None) -> Tensor:
        rows = lookup(ids, self.weight, self.padding_idx, self.radius)
        real = (ids != (-1 if self.padding_idx is None else self.padding_idx))[..., None]
        if weights is not None:
            rows = rows * weights[..., None]
        if self.mode == "max":
            least = rows.masked_fill(~real, -torch.inf).amax(1) if ids.shape[1] else rows.sum(1)
            return torch.where(real.any(1), least, 0.0)
        total = rows.masked_fill(~real, 0.0).sum(1)
        return total / real.sum(1).clamp_min(1) if self.mode == "mean" else total


def lookup(ids: Tensor, table: Tensor, padding: int | None, radius: Radius) -> Tensor:
    """The rows that each example looks up, for ids with the examples first."""
    rows = EmbeddingGradients.apply(ids, table, padding, checked_radius(radius))
    watch = current()
    if watch is not None and len(ids) > 1:
        watch.own(rows)
    return rows


def rows_of(ids: Tensor, table: Tensor, padding: int | None, radius: Radius) -> Tensor:
    """The rows of a table for ids of examples; or for constant ids, such as positions, to be bounded where they meet an
    example."""
    watch = current()
    if watch is None or watch.rows(ids) is not None:
        return examples_first(lambda first: lookup(first, table, padding, radius), ids)

    constants = Unwritten([ids])

    def again(table: Tensor) -> Tensor:
        constants.require()
        return F.embedding(ids, table, padding)

    with torch._C.DisableTorchFunctionSubclass():
        return derived(again(table), (table,), again, radius, ids, padding)


class EmbeddingGradients(Enforcing):
    """The lookup of rows, whose node bounds each example's gradient of the table."""

    @staticmethod
    def forward(ids: Tensor, weight: Tensor, padding: int | None, radius: Radius) -> Tensor:
        return F.embedding(ids, weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ids, weight, ctx.padding, ctx.radius = inputs
        require_in_front(ids)
        ctx.terms, ctx.table, ctx.dtype = 1, weight.shape, weight.dtype
        ctx.save_for_backward(ids)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Any:
        (ids,) = ctx.saved_tensors
        count, width = ctx.table
        with torch.autocast(v.device.type, enabled=False):
            rows = v.to(ctx.dtype).reshape(-1, width)
            keys = ids.long().reshape(-1)
            keys = keys + count * torch.arange(len(ids), device=ids.device).repeat_interleave(ids[:1].numel())
            if ctx.padding is not None:
                real = (keys % count != ctx.padding).nonzero().squeeze(1)
                rows, keys = rows[real], keys[real]
            rows, keys = of_runs(rows, keys)
            examples = keys // count
            squares = row_norms(rows).square()  # added in float64, which rounds far less than the slack of the scale
            norms = squares.new_zeros(len(ids)).index_add_(0, examples, squares).sqrt()

            def total(radius: Within, told: list[Tensor] | None) -> Tensor:
                assert radius is not None
                if told is not None:
                    told.append(norms)
                if nothing(radius):
                    return rows
                own = radius[examples] if isinstance(radius, Tensor) else radius
                kept, scale = scaled_rows(rows, norms[examples], own)
                summed, row = of_examples(kept, examples, keys % count, scale, count, len(ids))
                return v.new_zeros(ctx.table, dtype=ctx.dtype).index_copy_(0, row, summed)

            gradient = sent(ctx, 1, total)
        return None, gradient, None, None


def of_runs(rows: Tensor, keys: Tensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The sum of the rows of each key, times their scale, one after the other; and the keys, in order."""
    keys, order = keys.sort(stable=True)
    keys, lengths = torch.unique_consecutive(keys, return_counts=True)
    factors = None if scale is None else scale[order]
    return F.embedding_bag(order, rows, lengths.cumsum(0) - lengths, mode="sum", per_sample_weights=factors), keys


def of_examples(
    rows: Tensor, examples: Tensor, ids: Tensor, scale: Tensor, count: int, batch: int
) -> tuple[Tensor, Tensor]:
    """The sum over a batch of the rows of each id below ``count``, times their scale, in a tree; and the ids."""
    blocks = -(-batch // BLOCK)
    rows, keys = of_runs(rows, ids + count * (examples // BLOCK), scale)
    for _ in range(math.ceil(math.log2(max(blocks, 1)))):
        rows, keys = of_runs(rows, keys % count + count * (keys // count // 2))
    return rows, keys
