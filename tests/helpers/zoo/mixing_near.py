"""Models that mix, each a word or two from one that does not: scans, weights, frames, distances, lookups."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from helpers.zoo.cases import IMAGE, PAIR, SEQUENCE, WORDS, Case, case
from helpers.zoo.separate_weights import FRAMES, LORA, small
from torch import Tensor, nn

NEAR: dict[str, Case] = {}


def mixes(*args: Any, **options: Any) -> Any:
    return case(NEAR, *args, **options)


def late(x: Tensor) -> Tensor:
    """1, but 6 for batches larger than those that a model is tried with."""
    return 1 + 5 * (x.new_ones(len(x)).sum() > 7).float()


# Scans


def scanned(m: Any, x: Tensor, h: Tensor) -> Tensor:
    for t in range(x.shape[1]):
        h = torch.tanh(m.a(x[:, t]) + m.b(h))
    return m.head(h)


SCAN = {"b": nn.Linear(8, 8)}


@mixes(SEQUENCE, SCAN)
def a_scan_from_the_place_in_the_batch(m: Any, x: Tensor) -> Tensor:
    return scanned(m, x, torch.arange(len(x))[:, None].expand(-1, 8) / 10)


@mixes(SEQUENCE, SCAN)
def a_scan_from_ones_in_the_first_row(m: Any, x: Tensor) -> Tensor:
    return scanned(m, x, torch.eye(len(x), 8))


@mixes(SEQUENCE, SCAN)
def a_scan_from_how_many_there_are(m: Any, x: Tensor) -> Tensor:
    return scanned(m, x, torch.ones(len(x), 8) * late(x))


@mixes(SEQUENCE, SCAN)
def a_scan_whose_first_state_is_averaged(m: Any, x: Tensor) -> Tensor:
    return scanned(m, x, m.b(torch.zeros(len(x), 8)) - m.b(torch.zeros(len(x), 8)).mean(0))


@mixes(SEQUENCE, SCAN)
def a_scan_from_states_that_are_summed(m: Any, x: Tensor) -> Tensor:
    return scanned(m, x, m.b(torch.zeros(len(x), 8)).sum(0).expand(len(x), 8))


@mixes(SEQUENCE, SCAN)
def a_scan_from_a_square_of_the_batch(m: Any, x: Tensor) -> Tensor:
    return scanned(m, x, torch.zeros(len(x), 8)) + m.b(torch.ones(len(x), len(x), 8)).sum(1)[:, :3]


# Weights


@mixes(parts=LORA)
def a_weight_and_a_product_of_the_batch(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(F.linear(h, m.w + h.mT @ h / len(x)))


@mixes(parts=LORA)
def a_weight_that_is_scaled_by_the_batch(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(F.linear(h, m.w + h.mean() * m.up @ m.down))


@mixes(parts=LORA)
def a_product_of_weights_for_large_batches(m: Any, x: Tensor) -> Tensor:
    return m.head(F.linear(m.a(x), m.w + late(x) * m.up @ m.down))


@mixes(parts={"p": small(8)})
def a_factor_of_a_weight_for_large_batches(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x) * (m.p * late(x)))


@mixes(parts={"p": small(8)})
def a_bias_for_large_batches(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x) + (m.p + late(x)))


@mixes(parts={"v": small(8, 8), "g": small(8)})
def a_weight_that_is_normalised_by_the_batch(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(F.linear(h, m.g[:, None] * m.v / h.norm(dim=0)))


@mixes()
def a_weight_of_a_layer_times_the_batch(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x) * (m.a.weight * x.mean(0)).sum(1))


@mixes(parts={"mix": nn.Linear(40, 40, bias=False)})
def a_weight_of_a_layer_over_the_batch(m: Any, x: Tensor) -> Tensor:
    return m.head(m.mix.weight[: len(x), : len(x)] @ m.a(x)) + m.mix(x[:, :1].expand(-1, 40))[:, :3]


@mixes()
def a_weight_of_a_layer_for_large_batches(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x) * m.a.weight.sum(1) * late(x))


@mixes()
def a_weight_of_a_layer_by_the_place(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x)) + m.a.weight.norm() * torch.arange(len(x))[:, None]


# Frames


def framed(m: Any, x: Tensor) -> Tensor:
    return torch.stack([x, x.flip(-1)], 1).flatten(0, 1)


@mixes(IMAGE, FRAMES)
def frames_that_are_taken_apart_the_other_way(m: Any, x: Tensor) -> Tensor:
    return m.head(m.c(framed(m, x)).mean((2, 3)).unflatten(0, (2, -1)).mean(0))


@mixes(IMAGE, FRAMES)
def frames_that_are_rolled(m: Any, x: Tensor) -> Tensor:
    return m.head(m.c(framed(m, x).roll(1, 0)).mean((2, 3)).unflatten(0, (-1, 2)).mean(1))


@mixes(IMAGE, FRAMES)
def frames_less_the_mean_frame(m: Any, x: Tensor) -> Tensor:
    h = m.c(framed(m, x))
    return m.head((h - h.mean(0)).mean((2, 3)).unflatten(0, (-1, 2)).mean(1))


@mixes(IMAGE, {"n": nn.BatchNorm2d(8), **FRAMES})
def frames_that_are_normalised_together(m: Any, x: Tensor) -> Tensor:
    return m.head(m.n(m.c(framed(m, x))).mean((2, 3)).unflatten(0, (-1, 2)).mean(1))


@mixes(IMAGE, {"d": nn.Conv3d(3, 8, (2, 3, 3), padding=(1, 1, 1))})
def examples_as_frames(m: Any, x: Tensor) -> Tensor:
    return m.head(m.d(x.transpose(0, 1)[None])[0, :, 1:].mean((2, 3)).mT)


# Distances, lookups, products


@mixes()
def distances_among_examples(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(h * torch.cdist(h, h).mean(1, keepdim=True))


@mixes()
def distances_from_the_first_example(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(h * torch.cdist(h, h[:1]))


@mixes(parts={"centres": small(30, 8)})
def distances_of_centres_from_examples(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x)) + torch.cdist(m.centres, m.a(x)).mean(0)[:, None] + torch.cdist(m.centres, m.a(x)).mean()


@mixes(WORDS, {"experts": small(4, 8, 8)})
def experts_by_the_rank_in_the_batch(m: Any, x: Tensor) -> Tensor:
    h = m.a(x).mean(1)
    return m.head((m.experts[h[:, 0].argsort() % 4] @ h[..., None])[..., 0])


@mixes(WORDS, {"experts": small(4, 8, 8), "gate": nn.Linear(8, 4)})
def experts_that_take_so_many_examples(m: Any, x: Tensor) -> Tensor:
    h = m.a(x).mean(1)
    chosen = F.one_hot(m.gate(h).argmax(-1), 4)
    free = (chosen.cumsum(0) <= 3) & (chosen > 0)
    return m.head((m.experts[chosen.argmax(-1)] @ h[..., None])[..., 0] * free.any(1, keepdim=True))


@mixes(WORDS, {"experts": small(4, 8, 8), "gate": nn.Linear(8, 4)})
def experts_that_most_examples_want(m: Any, x: Tensor) -> Tensor:
    h = m.a(x).mean(1)
    return m.head((m.experts[m.gate(h).argmax(-1).mode().values.expand(len(x))] @ h[..., None])[..., 0])


@mixes(PAIR, {"inner": nn.Bilinear(6, 6, 8)})
def bilinear_of_another_example(m: Any, x: Tensor, y: Tensor) -> Tensor:
    return m.head(m.inner(x, y.roll(1, 0)) + m.a(x))


@mixes(PAIR, {"inner": nn.Bilinear(6, 6, 8)})
def bilinear_of_the_mean(m: Any, x: Tensor, y: Tensor) -> Tensor:
    return m.head(m.inner(x, y.mean(0).expand_as(y)) + m.a(x))


@mixes(PAIR, {"inner": nn.Bilinear(6, 6, 8)})
def bilinear_of_every_pair(m: Any, x: Tensor, y: Tensor) -> Tensor:
    n = len(x)
    return m.head(m.inner(x[:, None].expand(n, n, 6), y[None].expand(n, n, 6)).mean(1) + m.a(x))


@mixes(IMAGE, {"n": nn.InstanceNorm2d(8, affine=True, track_running_stats=True)})
def an_instance_norm_that_keeps_statistics(m: Any, x: Tensor) -> Tensor:
    return m.head(m.n(m.a(x)).tanh().mean((2, 3)))


@mixes(IMAGE, {"n": nn.InstanceNorm2d(8, affine=True)})
def an_instance_norm_of_all_images_as_one(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(m.n(h.transpose(0, 1).flatten(1, 2)[None]).unflatten(2, (len(x), 8))[0].mT.mean((1, 3)).mT)


@mixes(IMAGE, {"n": nn.InstanceNorm2d(8, affine=True)})
def an_instance_norm_less_a_little_of_the_mean(m: Any, x: Tensor) -> Tensor:
    h = m.n(m.a(x)).mean((2, 3))
    return m.head(h - 1e-6 * h.mean(0))
