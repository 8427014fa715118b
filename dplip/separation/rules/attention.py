"""Attention: queries, keys and values of shape (batch, heads, places, features)."""

from __future__ import annotations

from dplip.separation.call import Call, Carried, Dimensions, Seen, right, rule
from dplip.separation.rows import Label


@rule(
    "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable", "_scaled_dot_product_attention_math",
    "scaled_dot_product_attention",
)  # fmt: skip
def attention(call: Call) -> Carried:
    """Each place of the first two dimensions attends to places of its own."""
    rank = len(call.shape)
    lead = {k: k for k in range(rank - 2)}
    parts: list[tuple[Seen, Dimensions]] = [(call[n], lead) for n in ("query", "key", "value")]
    for name in ("attn_mask", "attn_bias"):
        mask = call.get(name)
        if mask is not None:  # a grouped query has more heads than the key, and no batch axis there
            parts.append((mask, {k: to for k, to in right(mask, rank).items() if to < rank - 2}))
    return Carried(parts, outputs=2)


@rule("_fused_sdp_choice", "_linalg_check_errors")
def choice(call: Call) -> list[Label]:
    """Which kernel runs, by shapes and settings alone; or whether one failed, which raises an error."""
    return []
