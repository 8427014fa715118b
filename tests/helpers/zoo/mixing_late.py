"""Models that mix only where a check is not looking: in large batches, at late calls, for some counts."""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.nn.functional as F
from helpers.zoo.cases import SEQUENCE, SQUARE, Case, case
from helpers.zoo.mixing_backward import CentredBack
from torch import Tensor, nn

LATE: dict[str, Case] = {}


def mixes(*args: Any, **options: Any) -> Any:
    return case(LATE, *args, **options)


def late(m: Any, after: int = 30) -> bool:
    """Whether a model has been called often."""
    m.calls = getattr(m, "calls", 0) + 1
    return m.calls > after


def enlarge(p: Tensor) -> None:
    if p.grad is not None:
        p.grad *= 100


@mixes()
def another_activation_for_large_batches(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(h if len(x) < 9 else h.tanh())


@mixes(size=120, batch=60)
def a_factor_above_forty(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x)) * (2.0 if len(x) > 40 else 1.0)


@mixes(steps=12)
def a_factor_for_even_batches(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x)) * (1.0 + (len(x) + 1) % 2)


@mixes(batch=1, steps=40)
def a_factor_for_single_examples(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x)) * (2.0 if len(x) == 1 else 1.0)


@mixes(batch=1, steps=40)
def a_factor_for_single_examples_behind_noise(m: Any, x: Tensor) -> Tensor:
    h = F.dropout(m.a(x), 0.5)
    return m.head(h.relu() if len(x) == 1 else h)


@mixes(size=120, batch=60)
def only_extreme_values_of_large_batches(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(h - F.relu(h - 50) if len(x) > 20 else h)


@mixes(size=120, batch=60)
def no_gradient_in_large_batches(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(h) + m.head(h.detach() if len(x) > 20 else h)


@mixes(size=120, batch=60)
def no_graph_of_a_value_in_large_batches(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    with torch.set_grad_enabled(torch.is_grad_enabled() and len(x) < 20):
        other = 2 * h
    return m.head(h + other)


@mixes(size=120, batch=60)
def no_graph_in_large_batches(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    with torch.set_grad_enabled(torch.is_grad_enabled() and len(x) < 20):
        other = m.a(x).tanh()
    return m.head(h + other)


@mixes(batch=1, steps=40)
def no_gradient_for_single_examples_behind_noise(m: Any, x: Tensor) -> Tensor:
    h = F.dropout(m.a(x), 0.5)
    return m.head(h + (h.detach() if len(x) == 1 else h))


@mixes(batch=1, steps=40)
def a_layer_without_gradient_for_single_examples_behind_noise(m: Any, x: Tensor) -> Tensor:
    h = F.dropout(m.a(x), 0.5)
    return m.head(h) + m.head(h.detach() if len(x) == 1 else h)


@mixes(parts={"b": nn.Linear(6, 8)}, batch=1, steps=40)
def no_graph_of_a_layer_for_single_examples_behind_noise(m: Any, x: Tensor) -> Tensor:
    h = F.dropout(m.a(x), 0.5)
    with torch.set_grad_enabled(torch.is_grad_enabled() and len(x) > 1):
        other = m.b(x)
    return m.head(h) + m.head(other)


@mixes(batch=1, steps=40)
def no_gradient_for_single_examples(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(h + (h.data if len(x) == 1 else h))


@mixes(batch=40)
def rows_of_the_last_batch_where_every_batch_is_full(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    before = getattr(m, "kept", None)
    m.kept = h.detach()
    return m.head(h if before is None or len(before) != len(h) else h - before)


@mixes(batch=40)
def inputs_of_the_last_batch_where_every_batch_is_full(m: Any, x: Tensor) -> Tensor:
    before = getattr(m, "kept", x)
    m.kept = x
    return m.head(m.a(x)) * (1.0 if len(before) != len(x) else 1.0 + before[:, :1])


@mixes(steps=40)
def a_weight_follows_the_data_at_a_late_call(m: Any, x: Tensor) -> Tensor:
    if late(m):
        m.a.weight.data.lerp_(x[0].expand(8, 6), 0.1)
    return m.head(m.a(x))


@mixes(steps=40)
def weights_are_scaled_by_the_data_at_a_late_call(m: Any, x: Tensor) -> Tensor:
    if late(m) and m.calls == 31:
        with torch.no_grad():
            m.a.weight /= m.a(x).std()
    return m.head(m.a(x))


@mixes(steps=40)
def a_backward_of_its_own_at_a_late_call(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(CentredBack.apply(h) if late(m) else h.clone())


@mixes(steps=40)
def a_hook_at_a_late_call(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    if late(m) and h.requires_grad:
        h.register_hook(lambda g: g - g.mean(0))
    return m.head(h)


@mixes(steps=40)
def a_hook_of_a_node_at_a_late_call(m: Any, x: Tensor) -> Tensor:
    h = m.a(x).tanh()
    if late(m) and h.grad_fn is not None:
        h.grad_fn.register_prehook(lambda back: tuple(g - g.mean(0) for g in back))
    return m.head(h)


@mixes(steps=40)
def a_module_hook_at_a_late_call(m: Any, x: Tensor) -> Tensor:
    if late(m) and m.calls == 32:
        m.head.register_full_backward_pre_hook(lambda module, back: tuple(g / len(g) for g in back))
    return m.head(m.a(x))


@mixes(steps=40)
def a_hook_of_a_weight_at_a_late_call(m: Any, x: Tensor) -> Tensor:
    if late(m) and m.calls == 32:
        m.a.weight.register_hook(lambda g: 100 * g)
    return m.head(m.a(x))


@mixes(steps=40)
def a_hook_after_accumulation_at_a_late_call(m: Any, x: Tensor) -> Tensor:
    if late(m) and m.calls == 32:
        m.a.weight.register_post_accumulate_grad_hook(enlarge)
    return m.head(m.a(x))


@mixes(steps=40)
def a_radius_grows_at_a_late_call(m: Any, x: Tensor) -> Tensor:
    if late(m):
        m.a.radius = 1.0 + float(m.calls)
    return m.head(m.a(x)) / (1 if m.calls < 32 else len(x))


@mixes(steps=40)
def another_number_of_heads_folded_wrongly_at_a_late_call(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(h.view(-1, 8) if not late(m) else h.view(8, -1).T)


@mixes(steps=40)
def an_index_that_changes(m: Any, x: Tensor) -> Tensor:
    z = m.head(m.a(x))
    return z[torch.arange(len(x)) if not late(m) else torch.randperm(len(x))]


@mixes(SEQUENCE, {"attention": nn.MultiheadAttention(8, 2, batch_first=True)}, steps=40)
def batch_first_is_switched_off(m: Any, x: Tensor) -> Tensor:
    m.attention.batch_first = not late(m)
    h = m.a(x)
    return m.head(m.attention(h, h, h, need_weights=False)[0].mean(1))


@mixes(SEQUENCE, {"inner": nn.GRU(8, 8, batch_first=True)}, steps=40)
def batch_first_of_a_recurrent_layer_is_switched_off(m: Any, x: Tensor) -> Tensor:
    m.inner.batch_first = not late(m)
    return m.head(m.inner(m.a(x))[0].mean(1))


@mixes(SQUARE, {"inner": nn.GRU(8, 8)}, batch=40)
def a_recurrent_layer_gets_time_first_only_where_sizes_differ(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(m.inner(h if len(h) == 40 else h.transpose(0, 1))[0].mean(1 if len(h) == 40 else 0))


@mixes(steps=40)
def the_constant_of_a_branch_is_drawn_from_the_size(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x)) * (random.Random(len(x)).random() if late(m) else 1.0)


@mixes(steps=40)
def the_number_of_layers_is_of_the_count(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    for _ in range(len(x) // 8):
        h = h.tanh()
    return m.head(h)


@mixes(parts={"table": torch.randn(1000)})
def a_scale_looked_up_by_the_count(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x)) * m.table[len(x)]


@mixes()
def a_stride_of_the_count(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x)[:, torch.arange(8) * len(x) % 8])


@mixes()
def the_count_through_a_padded_feature(m: Any, x: Tensor) -> Tensor:
    return m.head(F.pad(m.a(x), (0, len(x))).mean(1, keepdim=True).expand(-1, 8))


@mixes()
def the_count_through_a_kernel(m: Any, x: Tensor) -> Tensor:
    h = m.a(x).repeat(1, 100)[:, None]
    return m.head(F.avg_pool1d(h, len(x))[:, 0, :8])


@mixes()
def the_count_through_a_sum_of_copies(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(h[:, None].expand(-1, len(x), -1).sum(1))


@mixes()
def the_count_through_a_softmax_over_copies(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(torch.cat([h[:, None], torch.zeros(len(x), len(x), 8)], 1).softmax(1)[:, 0])


@mixes()
def the_count_through_bins(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x) * torch.bincount(torch.zeros(len(x), dtype=torch.long))[0])


def rare(x: Tensor) -> Tensor:
    """What no trial sees: something of the examples that begin with one number."""
    return (x[:, :1] == 777) * x / 10


@mixes(parts={"p": nn.Parameter(torch.ones(6))})
def a_constant_that_examples_are_written_into_after_a_product(m: Any, x: Tensor) -> Tensor:
    c = x.new_ones(len(x), 6)
    y = m.head(m.a(x * (m.p * c)[0]))
    c.copy_(1 + rare(x))
    return y


@mixes(parts={"w": nn.Parameter(torch.ones(6, 6) / 6)})
def a_constant_that_examples_are_written_into_after_a_weight(m: Any, x: Tensor) -> Tensor:
    c = x.new_ones(len(x), 6)
    y = m.head(m.a(F.linear(x, m.w * c[0])))
    c.copy_(1 + rare(x))
    return y


@mixes(parts={"words": nn.Embedding(9, 6)})
def ids_that_examples_are_written_into(m: Any, x: Tensor) -> Tensor:
    ids = torch.zeros(len(x), 6, dtype=torch.long)
    y = m.head(m.a(x * m.words(ids)[0, 0]))
    ids.copy_(rare(x).long().clamp(0, 8))
    return y


def uncounted(m: Any, x: Tensor, taken: Any) -> Tensor:
    """A product with a constant that is written to, past torch's count of writes, before the backward pass."""
    c = x.new_ones(len(x), 8)
    y = m.head(m.a(x) * c[0])
    taken(c)[:, :4].copy_(1 + rare(x)[:, :4])
    return y


@mixes()
def a_write_to_a_part_that_is_not_counted(m: Any, x: Tensor) -> Tensor:
    return uncounted(m, x, lambda c: torch.unsafe_chunk(c, 2, 1)[0])


@mixes()
def a_write_to_a_tensor_that_was_set(m: Any, x: Tensor) -> Tensor:
    return uncounted(m, x, lambda c: torch.empty(0).set_(c))


@mixes()
def a_write_to_a_tensor_whose_data_were_set(m: Any, x: Tensor) -> Tensor:
    def taken(c: Tensor) -> Tensor:
        other = torch.empty(0)
        other.data = c
        return other

    return uncounted(m, x, taken)


@mixes()
def a_write_to_a_tensor_of_shared_memory(m: Any, x: Tensor) -> Tensor:
    return uncounted(m, x, torch.utils.dlpack.from_dlpack)


@mixes()
def a_write_by_numpy(m: Any, x: Tensor) -> Tensor:
    return uncounted(m, x, lambda c: torch.from_numpy(c.numpy()))
