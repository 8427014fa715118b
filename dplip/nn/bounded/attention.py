"""Attention that bounds each example's gradient of its projections.

What lies between the projections has no parameters, and a true gradient, so no bound of it is needed.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from dplip.errors import ConfigurationError
from dplip.nn.bounded.convert import bound_gradients, bounds
from dplip.nn.bounded.enforcing import checked_radius
from dplip.nn.bounded.linear import BoundedLinear, LinearGradients
from dplip.nn.bounded.use import at_examples, trained
from dplip.separation import examples_first

bounds(NonDynamicallyQuantizableLinear)(BoundedLinear)  # the class of torch's ``out_proj``, a linear map like others


@bounds(nn.MultiheadAttention)
class BoundedMultiheadAttention(nn.MultiheadAttention):
    """``nn.MultiheadAttention`` that bounds each example's gradient of its projections, each by ``radius`` in l2.

    Args:
        embed_dim, num_heads, dropout, ...: as for ``nn.MultiheadAttention``; the keys of the ``state_dict`` are the
            same.
        radius: the largest l2 norm of one example's gradient in one use of a projection, or of its bias. Query, key and
            value that are one tensor make one use of ``in_proj_weight``; different ones use a part of it each.

    Shape: query, key, value (examples, places, features) with ``batch_first=True``, else (places, examples, features).

    Raises:
        ConfigurationError: in training mode, for inputs without an axis of examples.

    Guarantee: in training mode the bound of a use holds for every input, mask, cotangent and weight. In evaluation mode
    the layer is ``nn.MultiheadAttention``.
    """

    def __init__(self, *arguments: Any, radius: float = 1.0, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.radius = checked_radius(radius)
        bound_gradients(self.out_proj, radius)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        if not any(trained(self, t) for t in (query, key, value)):
            return super().forward(
                *(query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal)
            )
        if query.ndim != 3:
            raise ConfigurationError(
                f"{type(self).__name__}: the query has shape {tuple(query.shape)}, without an axis of examples. Give "
                "it a batch of one: unsqueeze query, key and value."
            )
        if is_causal and attn_mask is None:
            raise ConfigurationError(
                "is_causal=True without attn_mask: torch takes it as a hint about the mask. Give the mask too, as by "
                "nn.Transformer.generate_square_subsequent_mask(places)."
            )
        causal = is_causal and key_padding_mask is None and not need_weights  # the mask's own entries are not read
        q, k, v = self._projected(query, key, value)
        if self.bias_k is not None and self.bias_v is not None:
            k, v = self._with_row(k, self.bias_k), self._with_row(v, self.bias_v)
        if self.add_zero_attn:
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        mask = self._mask(None if causal else attn_mask, key_padding_mask, query.dtype, len(q), key.shape, k.shape[1])
        q, k, v = (t.unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2) for t in (q, k, v))
        weights = None
        if need_weights:
            scores = (q / math.sqrt(self.head_dim)) @ k.mT
            weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
            weights = F.dropout(weights, self.dropout, self.training)
            out = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            out = F.scaled_dot_product_attention(q, k, v, mask, self.dropout, causal)
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        return out if self.batch_first else out.transpose(0, 1), weights

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, with the examples in front."""
        front = {id(t): t if self.batch_first else t.transpose(0, 1) for t in (query, key, value)}
        q, k, v = (front[id(t)] for t in (query, key, value))
        if self._qkv_same_embed_dim and q is k and k is v:
            return self._linear(q, k, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=2)  # type: ignore[return-value]
        n, bias = self.embed_dim, self.in_proj_bias
        biases = [None if bias is None else bias[i * n : (i + 1) * n] for i in range(3)]
        if not self._qkv_same_embed_dim:
            weights: list[Tensor] = [self.q_proj_weight, self.k_proj_weight, self.v_proj_weight]
        elif k is v:  # as between an encoder and a decoder: one use of the other two thirds
            ours = self._linear(q, k, self.in_proj_weight[:n], biases[0])
            theirs = self._linear(k, q, self.in_proj_weight[n:], None if bias is None else bias[n:])
            return ours, *theirs.chunk(2, dim=2)  # type: ignore[return-value]
        else:
            weights = [self.in_proj_weight[i * n : (i + 1) * n] for i in range(3)]
        return tuple(self._linear(t, u, *w) for t, u, *w in zip((q, k, v), (k, q, q), weights, biases, strict=True))  # type: ignore[return-value]

    def _linear(self, x: Tensor, other: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """A bounded use of a projection. An input that depends on no example has them where the other input does."""

        def bounded(_: Tensor, x: Tensor) -> Tensor:
            return LinearGradients.apply(x, weight, bias, None, checked_radius(self.radius), None)

        place = x if trained(self, x) else other.flatten(1).sum(1)[:, None, None].expand_as(x)
        return examples_first(bounded, place, x, expand=True)

    def _with_row(self, x: Tensor, row: Tensor) -> Tensor:
        """Keys or values, and one more that is a parameter."""
        return torch.cat([x, at_examples(row, x[:, :1], self.radius, row.shape).to(x.dtype)], dim=1)

    def _mask(
        self, mask: Tensor | None, padding: Tensor | None, dtype: torch.dtype, batch: int, given: Any, keys: int
    ) -> Tensor | None:
        """Both masks as one that is added to the scores (batch, heads, queries, keys)."""
        places = given[1] if self.batch_first else given[0]
        if padding is not None:
            if padding.shape != (batch, places):
                raise ConfigurationError(
                    f"key_padding_mask has shape {tuple(padding.shape)}: give (examples, keys) = {(batch, places)}."
                )
            padding = _added(padding, dtype)[:, None, None]
        if mask is not None:
            if (
                mask.ndim not in (2, 3)
                or mask.shape[-1] != places
                or (mask.ndim == 3 and len(mask) != batch * self.num_heads)
            ):
                raise ConfigurationError(
                    f"attn_mask has shape {tuple(mask.shape)}: give (queries, keys) or (examples * heads, queries, "
                    f"keys), of {places} keys, {batch} examples and {self.num_heads} heads."
                )
            mask = _added(mask, dtype)
            mask = mask[None, None] if mask.ndim == 2 else mask.unflatten(0, (batch, self.num_heads))
        both = padding if mask is None else mask if padding is None else mask + padding
        # Rows that are appended to the keys are seen by all.
        return both if both is None or keys == places else F.pad(both, (0, keys - places))

    def extra_repr(self) -> str:
        return f"radius={self.radius:g}"


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask of what is left out, as what is added to the scores."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -math.inf)
