"""Models in which an example's result depends on its place, or on how many there are."""

from __future__ import annotations

import math
import random
from typing import Any

import torch
import torch.nn.functional as F
from helpers.zoo.cases import IMAGE, PAIR, SEQUENCE, SQUARE, WORDS, Case, case
from torch import Tensor, nn

PLACES: dict[str, Case] = {}


def mixes(*args: Any, **options: Any) -> Any:
    return case(PLACES, *args, **options)


# How many


@mixes()
def divided_by_the_count(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x)) / len(x)


@mixes()
def divided_by_the_root_of_the_size(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x) / math.sqrt(x.numel()))


@mixes()
def a_temperature_of_the_count(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x)) * torch.tensor(float(x.shape[0])).log1p()


@mixes()
def the_count_as_ones_summed(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x)) / torch.ones_like(x[:, 0]).sum()


@mixes()
def the_count_as_a_feature(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x) + torch.full((len(x), 1), len(x) / 10))


@mixes(size=120, batch=60)
def mixes_only_more_than_forty(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(h - h.mean(0) if len(x) > 40 else h)


@mixes(size=120, batch=60)
def scales_only_more_than_forty(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x)) * (2.0 if len(x) > 40 else 1.0)


@mixes(steps=12)
def scales_only_odd_batches(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x)) * (1.0 + len(x) % 2)


@mixes()
def unbiased_by_the_count(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x) * (len(x) / (len(x) + 1)))


@mixes()
def dropout_whose_rate_is_of_the_count(m: Any, x: Tensor) -> Tensor:
    return m.head(F.dropout(m.a(x), p=1 / (1 + len(x))))


# Which place


@mixes(parts={"places": torch.randn(1000, 8)})
def fixed_places_over_the_batch(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x) + m.places[: len(x)])


@mixes(parts={"places": nn.Embedding(1000, 8)})
def learned_places_over_the_batch(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x) + m.places(torch.arange(len(x))))


@mixes(SEQUENCE)
def sinusoids_along_the_wrong_axis(m: Any, x: Tensor) -> Tensor:
    places = torch.arange(x.size(0))[:, None, None] / 10.0 ** torch.arange(8)
    return m.head((m.a(x) + places.sin()).mean(1))


@mixes()
def arange_over_the_batch(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x)) * torch.arange(1.0, len(x) + 1)[:, None]


@mixes()
def linspace_over_the_batch(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x)) * torch.linspace(0, 1, len(x))[:, None]


@mixes()
def the_place_by_a_cumulated_one(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x)) * torch.ones(len(x), 1).cumsum(0)


@mixes()
def the_place_by_nonzero(m: Any, x: Tensor) -> Tensor:
    place = torch.ones(len(x)).nonzero()
    return m.head(m.a(x)) * torch.cos(place.float())


@mixes(SEQUENCE)
def a_causal_mask_over_examples(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    q = h.transpose(0, 1)
    return m.head(F.scaled_dot_product_attention(q, q, q, is_causal=True).mean(0))


@mixes()
def every_other_row_is_masked(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x) * (torch.arange(len(x)) % 2)[:, None])


@mixes()
def the_first_row_is_special(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(torch.cat([h[:1].tanh(), h[1:]]))


@mixes()
def the_first_row_is_the_query(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(h * (h @ h[0])[:, None].sigmoid())


@mixes()
def two_halves_go_two_ways(m: Any, x: Tensor) -> Tensor:
    first, *rest = m.a(x).chunk(2)
    return m.head(torch.cat([first.tanh(), *[h.relu() for h in rest]]))


@mixes(parts={"b": nn.Linear(6, 8)})
def rows_take_turns_among_layers(m: Any, x: Tensor) -> Tensor:
    return m.head(torch.stack([(m.a, m.b)[i % 2](row) for i, row in enumerate(x)]))


@mixes(parts={"noise": torch.randn(1000, 8)})
def noise_from_a_fixed_table(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x) + m.noise.narrow(0, 0, x.shape[0]))


@mixes()
def an_identity_of_the_batch_is_read(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x) + torch.eye(len(x), 8))


@mixes()
def a_triangle_over_the_batch(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x).tril())


@mixes()
def a_diagonal_is_filled(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x).fill_diagonal_(0.0))


# Rows come out elsewhere


@mixes()
def rows_are_flipped(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x)).flip(0)


@mixes()
def rows_are_reversed_by_an_index(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x))[torch.arange(len(x) - 1, -1, -1)]


@mixes()
def rows_are_rolled(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x)).roll(1, 0)


@mixes()
def rows_are_shuffled(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x[torch.randperm(len(x))]))


@mixes()
def rows_are_shuffled_by_python(m: Any, x: Tensor) -> Tensor:
    order = list(range(len(x)))
    random.shuffle(order)
    return m.head(torch.stack([m.a(x)[i] for i in order]))


@mixes()
def rows_are_sorted_by_their_sum(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x[x.sum(1).argsort()]))


@mixes()
def the_first_row_is_repeated(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x[:1])).expand(len(x), 3)


@mixes(PAIR)
def two_inputs_are_paired_wrongly(m: Any, x: Tensor, y: Tensor) -> Tensor:
    return m.head(m.a(torch.cat([x, y]))[: 2 * len(x) : 2])


# Views that cut examples


@mixes(SEQUENCE)
def time_and_batch_are_swapped_by_a_view(m: Any, x: Tensor) -> Tensor:
    h = m.a(x).reshape(5, -1, 8)  # meant transpose(0, 1)
    return m.head(h.mean(0))


@mixes(SQUARE, batch=40)
def time_and_batch_are_swapped_where_sizes_coincide(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x).transpose(0, 1).mean(1))


@mixes(SQUARE, batch=40)
def the_mean_is_over_the_axis_of_forty_that_comes_first(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x).mean(list(x.shape).index(40)))


@mixes(SQUARE, batch=40)
def swaps_only_where_the_count_is_the_time(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head((h.transpose(0, 1) if len(h) == h.shape[1] else h).mean(1))


@mixes(SEQUENCE)
def positions_come_back_in_another_order(m: Any, x: Tensor) -> Tensor:
    h = m.a(x).transpose(0, 1).reshape(-1, 8)
    return m.head(h.reshape(len(x), 5, 8).mean(1))


@mixes(SEQUENCE)
def pairs_of_positions_across_examples(m: Any, x: Tensor) -> Tensor:
    h = m.a(x).reshape(-1, 8)
    return m.head((h + h.roll(1, 0)).reshape(len(x), 5, 8).mean(1))


@mixes(IMAGE)
def channels_and_batch_are_swapped_by_a_view(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x).reshape(8, -1, 64).mean(2).T)


@mixes()
def transposed_by_a_view(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x).reshape(8, -1).T)


@mixes()
def flattened_and_cut_off_by_one(m: Any, x: Tensor) -> Tensor:
    return m.head(F.pad(m.a(x).flatten()[1:], (0, 1)).reshape(-1, 8))


@mixes()
def windows_over_the_batch(m: Any, x: Tensor) -> Tensor:
    return m.head(F.pad(m.a(x), (0, 0, 0, 1)).unfold(0, 2, 1).mean(-1))


@mixes()
def as_strided_over_rows(m: Any, x: Tensor) -> Tensor:
    h = F.pad(m.a(x), (0, 0, 0, 1)).contiguous()
    return m.head(h.as_strided((len(x), 8), (8, 1), 4))


@mixes()
def written_into_a_view_of_the_next_row(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    out = h.clone()
    out[1:].add_(h[:-1])
    return m.head(out)


@mixes()
def written_into_the_input_behind_a_view(m: Any, x: Tensor) -> Tensor:
    flat = x.clone().view(-1)
    rows = flat.view(-1, 6)
    flat[6:] -= flat[:-6].clone()
    return m.head(m.a(rows))


@mixes(WORDS)
def an_embedding_bag_whose_offsets_are_wrong(m: Any, x: Tensor) -> Tensor:
    offsets = (torch.arange(len(x)) * 6 - 1).clamp_min(0)
    return m.head(F.embedding_bag(x.flatten(), m.a.weight, offsets))
