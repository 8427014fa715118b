"""Models whose weights are functions of parameters or are used outside of their layers; their examples stay apart."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from helpers.zoo.cases import IMAGE, PAIR, SEQUENCE, SQUARE, WORDS, Case, case
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

WEIGHTS: dict[str, Case] = {}


def apart(*args: Any, **options: Any) -> Any:
    return case(WEIGHTS, *args, **options)


def small(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) / 4)


LORA = {"w": small(8, 8), "down": small(2, 8), "up": small(8, 2)}
FRAMES = {"c": nn.Conv2d(3, 8, 3, padding=1), "g": nn.GroupNorm(2, 8)}


@apart(parts=LORA)
def lora_as_one_weight(m: Any, x: Tensor) -> Tensor:
    return m.head(F.linear(m.a(x), m.w + 0.5 * m.up @ m.down))


@apart(SEQUENCE, LORA)
def lora_as_one_weight_of_a_sequence(m: Any, x: Tensor) -> Tensor:
    return m.head((m.a(x) @ (m.w + m.up @ m.down).mT).mean(1))


@apart(parts={"n": weight_norm(nn.Linear(8, 8))})
def weight_normalised(m: Any, x: Tensor) -> Tensor:
    return m.head(m.n(m.a(x)).relu())


@apart(IMAGE, {"n": weight_norm(nn.Conv2d(8, 8, 3))})
def weight_normalised_convolution(m: Any, x: Tensor) -> Tensor:
    return m.head(m.n(m.a(x)).mean((2, 3)))


@apart(parts={"v": small(8, 8), "g": small(8)})
def weight_normalised_by_hand(m: Any, x: Tensor) -> Tensor:
    return m.head(F.linear(m.a(x), m.g[:, None] * m.v / m.v.norm(dim=1, keepdim=True)))


@apart(parts={"k": small(8, 4), "l": small(2, 2)})
def a_product_of_kronecker(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x) @ torch.einsum("ij,kl->ikjl", m.k, m.l).reshape(16, 8)[:8])


@apart()
def a_weight_as_data(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x) * m.a.weight.sum(1))


@apart()
def a_weight_as_data_of_the_other_layer(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x).tanh() @ m.head.weight.T @ m.head.weight)


@apart()
def a_penalty_of_the_weights_is_added_to_the_scores(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x).tanh()) + m.a.weight.norm()


@apart(SEQUENCE, {"proj": nn.Linear(8, 24)})
def projections_by_function(m: Any, x: Tensor) -> Tensor:
    q, k, v = F.linear(m.a(x), m.proj.weight, m.proj.bias).chunk(3, -1)
    return m.head(F.scaled_dot_product_attention(q, k, v).mean(1))


@apart(WORDS, {"experts": small(4, 8, 8), "gate": nn.Linear(8, 4)})
def experts_looked_up(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    weight, expert = m.gate(h).softmax(-1).max(-1)
    return m.head(((m.experts[expert] @ h[..., None])[..., 0] * weight[..., None]).mean(1))


@apart(parts={"centres": small(30, 8), "head": nn.Linear(30, 3)})
def radial_basis(m: Any, x: Tensor) -> Tensor:
    return m.head(torch.exp(-torch.cdist(m.a(x), m.centres)))


@apart(PAIR, {"table": small(3, 6, 6)})
def bilinear_by_function(m: Any, x: Tensor, y: Tensor) -> Tensor:
    return F.bilinear(x, y, m.table) + m.head(m.a(x))


@apart(IMAGE, FRAMES)
def frames_in_front(m: Any, x: Tensor) -> Tensor:
    frames = torch.stack([x, x.flip(-1), x.mT]).flatten(0, 1)
    return m.head(m.g(m.c(frames)).relu().mean((2, 3)).unflatten(0, (3, -1)).mean(0) + m.a(x).mean((2, 3)))


@apart(IMAGE, {"n": nn.InstanceNorm2d(8, affine=True)})
def an_instance_norm_behind_a_bias(m: Any, x: Tensor) -> Tensor:
    return m.head(m.n(m.a(x)).tanh().mean((2, 3)))


@apart(IMAGE, {"gates": nn.Conv2d(16, 8, 3, padding=1)})
def a_convolutional_recurrence(m: Any, x: Tensor) -> Tensor:
    h, inner = torch.zeros(len(x), 8, 8, 8), m.a(x)
    for _ in range(2):
        h = torch.tanh(m.gates(torch.cat([inner, h], 1)))
    return m.head(h.mean((2, 3)))


@apart(SQUARE)
def distances_among_forty_points(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head((h * torch.exp(-torch.cdist(h, h)).sum(-1, keepdim=True)).mean(1))


@apart(parts={"points": torch.randn(5, 8)}, size=120, batch=60)
def distances_from_fixed_points_in_large_batches(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(h * torch.cdist(h, m.points).sum(1, keepdim=True))
