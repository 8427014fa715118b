"""Models whose examples meet by their order, by an index, or by what they are routed to."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from helpers.zoo.cases import LENGTHS, WORDS, Case, case
from torch import Tensor, nn

ORDER: dict[str, Case] = {}


def mixes(*args: Any, **options: Any) -> Any:
    return case(ORDER, *args, **options)


# Order, indices, routing


@mixes()
def sorted_over_examples(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x).sort(0).values)


@mixes()
def rank_in_the_batch(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(h + h.detach().argsort(0).argsort(0).float() / 10)


@mixes()
def only_the_best_three_pass(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    best = h.norm(dim=1).topk(min(3, len(h))).indices
    return m.head(torch.zeros_like(h).index_copy(0, best, h[best]))


@mixes()
def the_best_example_is_added_to_all(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(h + h[h.sum(1).argmax()])


@mixes()
def hard_examples_are_weighted_by_the_threshold_of_the_batch(m: Any, x: Tensor) -> Tensor:
    z = m.head(m.a(x))
    worth = z.detach().logsumexp(1)
    return z * (worth >= worth.mean()).float()[:, None]


@mixes(parts={"gate": nn.Linear(8, 4), "experts": nn.ModuleList([nn.Linear(8, 8) for _ in range(4)])})
def experts_with_a_capacity(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    share = m.gate(h).softmax(1)
    hot = F.one_hot(share.argmax(1), 4)
    kept = hot * (hot.cumsum(0) <= 3)  # three examples an expert
    outs = torch.stack([e(h) for e in m.experts], 1)
    return m.head(h + ((share * kept)[..., None] * outs).sum(1))


@mixes(parts={"gate": nn.Linear(8, 4), "experts": nn.ModuleList([nn.Linear(8, 8) for _ in range(4)])})
def experts_that_choose_examples(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    share, chosen = m.gate(h).softmax(1).T.topk(1, dim=1)
    out = h
    for i, expert in enumerate(m.experts):
        out = out.index_add(0, chosen[i], share[i][:, None] * expert(h[chosen[i]]))
    return m.head(out)


@mixes(parts={"gate": nn.Linear(8, 4)})
def load_balancing_scales_the_gate(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    share = m.gate(h).softmax(1)
    return m.head(h * (share / share.sum(0)).sum(1, keepdim=True))


@mixes(WORDS)
def words_weighted_by_their_count_in_the_batch(m: Any, x: Tensor) -> Tensor:
    count = torch.bincount(x.flatten(), minlength=20)
    return m.head((m.a(x) / (1.0 + count[x])[..., None]).mean(1))


@mixes()
def histogram_of_the_batch(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(h + torch.histc(h.detach(), 8) / 100)


@mixes(WORDS)
def unique_words_of_the_batch(m: Any, x: Tensor) -> Tensor:
    words, where = torch.unique(x, return_inverse=True)
    h = m.a(words)
    return m.head((h - h.mean(0))[where].mean(1))


@mixes(WORDS)
def examples_gathered_by_a_word(m: Any, x: Tensor) -> Tensor:
    h = m.a(x).mean(1)
    return m.head(h + h[x[:, 0] % len(x)])


@mixes(WORDS)
def scattered_into_the_row_of_another(m: Any, x: Tensor) -> Tensor:
    h = m.a(x).mean(1)
    return m.head(h + torch.zeros_like(h).scatter_add(0, (x[:, :1] % len(x)).expand(-1, 8), h))


@mixes()
def graph_over_the_batch(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    near = (torch.cdist(x, x) < 3).float()
    return m.head(near @ h / near.sum(1, keepdim=True))


@mixes(LENGTHS)
def cropped_to_the_longest_of_the_batch(m: Any, x: Tensor, lengths: Tensor) -> Tensor:
    return m.head(m.a(x[:, : int(lengths.max())]).mean(1))


@mixes(LENGTHS)
def weighted_by_length_over_the_sum_of_lengths(m: Any, x: Tensor, lengths: Tensor) -> Tensor:
    return m.head(m.a(x).mean(1) * (lengths / lengths.sum())[:, None])


@mixes(LENGTHS)
def words_of_all_in_one_row_split_wrongly(m: Any, x: Tensor, lengths: Tensor) -> Tensor:
    keep = torch.arange(6) < lengths[:, None]
    flat = m.a(x[keep])
    pooled = torch.zeros(len(x), 8).index_add(0, torch.arange(len(flat)) % len(x), flat)
    return m.head(pooled)


@mixes(LENGTHS)
def ragged_rows_as_a_nested_tensor_whose_values_are_centred(m: Any, x: Tensor, lengths: Tensor) -> Tensor:
    rows = [row[: int(n)] for row, n in zip(m.a(x), lengths, strict=True)]
    nested: Any = torch.nested.nested_tensor(rows, layout=torch.jagged)
    flat = nested.values()
    padded = torch.nested.nested_tensor_from_jagged(flat - flat.mean(0), nested.offsets()).to_padded_tensor(0.0)
    return m.head(padded.sum(1))
