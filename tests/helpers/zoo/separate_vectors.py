"""Models of vectors, images and graphs whose examples stay apart, as people train them."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from helpers.zoo.cases import GRAPH, IMAGE, PAIR, Case, case
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dplip.losses import ELBO, BinaryCrossEntropy, Huber

VECTORS: dict[str, Case] = {}


def apart(*args: Any, **options: Any) -> Any:
    return case(VECTORS, *args, **options)


def conv(inputs: int, width: int, size: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, width, size, padding=size // 2, **options)


def pooled(h: Tensor) -> Tensor:
    return h.mean((2, 3))


# Vectors


@apart(parts={"inner": nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Dropout(0.2), nn.Linear(8, 8), nn.LayerNorm(8))})
def mlp(m: Any, x: Tensor) -> Tensor:
    return m.head(m.inner(m.a(x).relu()))


@apart(parts={"blocks": nn.ModuleList([nn.Linear(8, 8) for _ in range(4)])})
def residual_mlp_with_stochastic_depth(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    for block in m.blocks:
        kept = torch.empty(len(h), 1).bernoulli_(0.8) / 0.8
        h = h + kept * F.silu(block(h))
    return m.head(h)


@apart(parts={"gate": nn.Linear(8, 8), "inner": nn.Linear(8, 8)})
def highway(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    t = m.gate(h).sigmoid()
    return m.head(t * m.inner(h).relu() + (1 - t) * h)


@apart(parts={"b": nn.Linear(6, 8)})
def gated_linear_unit(m: Any, x: Tensor) -> Tensor:
    return m.head(F.glu(torch.cat([m.a(x), m.b(x)], -1)))


@apart(parts={"gate": nn.Linear(8, 4), "experts": nn.ModuleList([nn.Linear(8, 8) for _ in range(4)])})
def mixture_of_experts(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(torch.einsum("be,ebd->bd", m.gate(h).softmax(-1), torch.stack([e(h) for e in m.experts])))


@apart(parts={"gate": nn.Linear(8, 4), "experts": nn.ModuleList([nn.Linear(8, 8) for _ in range(4)])})
def two_best_experts_of_each_example(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    share = m.gate(h)
    best = share.topk(2, dim=-1).indices
    hot = torch.zeros_like(share).scatter(-1, best, 1.0)
    outs = torch.stack([e(h) for e in m.experts], 1)
    return m.head((share.masked_fill(hot == 0, -1e9).softmax(-1)[..., None] * outs).sum(1))


@apart(parts={"maker": nn.Linear(6, 8 * 3)})
def hypernetwork(m: Any, x: Tensor) -> Tensor:
    weight = m.maker(x).view(-1, 3, 8)
    return torch.bmm(weight, m.a(x)[..., None]).squeeze(-1) + m.head(m.a(x))


@apart(PAIR, {"film": nn.Linear(6, 16)})
def film(m: Any, x: Tensor, condition: Tensor) -> Tensor:
    scale, shift = m.film(condition).chunk(2, dim=-1)
    return m.head(m.a(x) * (1 + scale) + shift)


@apart(PAIR)
def siamese(m: Any, x: Tensor, y: Tensor) -> Tensor:
    g, h = m.a(x), m.a(y)
    return m.head((g - h).abs() * F.cosine_similarity(g, h)[:, None])


@apart(PAIR)
def siamese_in_one_pass(m: Any, x: Tensor, y: Tensor) -> Tensor:
    g, h = m.a(torch.stack([x, y], 1)).unbind(1)
    return m.head(g * h)


@apart(PAIR)
def siamese_in_one_batch(m: Any, x: Tensor, y: Tensor) -> Tensor:
    g, h = m.a(torch.cat([x, y])).chunk(2)
    return m.head(g * h)


@apart(PAIR, {"inner": nn.Bilinear(6, 6, 8)})
def bilinear(m: Any, x: Tensor, y: Tensor) -> Tensor:
    return m.head(m.inner(x, y) + m.a(x))


@apart(parts={"u": nn.Linear(6, 8), "v": nn.Linear(6, 8)})
def factorisation_machine(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x) + 0.5 * (m.u(x) ** 2 - m.v(x**2)))


@apart(parts={"cross": nn.ModuleList([nn.Linear(8, 8) for _ in range(2)])})
def deep_and_cross(m: Any, x: Tensor) -> Tensor:
    first = h = m.a(x)
    for layer in m.cross:
        h = first * layer(h) + h
    return m.head(h)


@apart(parts={"centres": nn.Parameter(torch.randn(5, 6)), "head": nn.Linear(5, 3), "a": nn.Identity()})
def radial_basis_functions(m: Any, x: Tensor) -> Tensor:
    return m.head(torch.exp(-(x[:, None] - m.centres).square().sum(-1) / 4))


@apart(parts={"frequencies": torch.randn(6, 4)})
def fourier_features(m: Any, x: Tensor) -> Tensor:
    angles = 2 * math.pi * x @ m.frequencies
    return m.head(m.a(x) + torch.cat([angles.sin(), angles.cos()], -1))


@apart(parts={"scale": nn.Parameter(torch.ones(8)), "shift": nn.Parameter(torch.zeros(8))})
def a_scale_and_shift_of_ones_own(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    h = (h - h.mean(-1, keepdim=True)) / (h.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    return m.head(h * m.scale + m.shift)


@apart(parts={"inner": nn.Sequential(nn.Linear(8, 8), nn.PReLU(), nn.AlphaDropout(0.1), nn.SELU(), nn.Hardswish())})
def activations(m: Any, x: Tensor) -> Tensor:
    return m.head(F.mish(F.softplus(m.inner(m.a(x)))).clamp(-3, 3))


@apart()
def one_mask_for_all(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)  # the mask is public randomness
    return m.head(h * torch.empty(1, 8).bernoulli_(0.8) / 0.8)


@apart()
def noise_of_each_example(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x + 0.1 * torch.randn_like(x)) + 0.1 * torch.rand(len(x), 8))


@apart()
def gumbel_softmax(m: Any, x: Tensor) -> Tensor:
    return m.head(F.gumbel_softmax(m.a(x), hard=True, dim=-1))


@apart()
def an_index_for_each_example(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    best = h.argmax(-1)
    return m.head(h + F.one_hot(best, 8) * h.gather(1, best[:, None]))


@apart()
def vector_quantised(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    near = torch.cdist(h, torch.eye(8)).argmin(1)
    quantised = F.embedding(near, torch.eye(8))
    return m.head(h + (quantised - h).detach())


@apart()
def a_solver_for_each_example(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    matrix = h[:, :, None] * h[:, None, :] + torch.eye(8)
    return m.head(torch.linalg.solve(matrix, h[..., None])[..., 0])


@apart()
def sorted_within_examples(m: Any, x: Tensor) -> Tensor:
    h = m.a(x).sort(-1).values
    return m.head(h.cumsum(-1) + h.flip(-1) - h.median(-1, keepdim=True).values)


@apart()
def spectrum_within_examples(m: Any, x: Tensor) -> Tensor:
    return m.head(torch.fft.fft(m.a(x), dim=-1).abs())


@apart()
def vmap_over_examples(m: Any, x: Tensor) -> Tensor:
    return m.head(torch.func.vmap(lambda h: h / (1 + h.norm()))(m.a(x)))


@apart()
def checkpointed(m: Any, x: Tensor) -> Tensor:
    return m.head(checkpoint(lambda h: torch.tanh(h) * h, m.a(x), use_reentrant=False))


@apart()
def a_branch_on_the_mode(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    if m.training:
        h = h + 0.01 * torch.randn_like(h)
    assert h.shape[1] == 8 and x.ndim == 2
    return m.head(h)


@apart(parts={"down": nn.Linear(6, 8), "up": nn.Linear(4, 6), "a": nn.Identity(), "head": nn.Identity()},
       loss=lambda: ELBO(Huber(), 2.0), target=lambda item, i: item)  # fmt: skip
def variational_autoencoder(m: Any, x: Tensor) -> Any:
    mean, log_variance = m.down(x).chunk(2, -1)
    return m.up(mean + torch.randn_like(mean) * (log_variance / 2).exp()), mean, log_variance


@apart(parts={"head": nn.Linear(8, 6)}, loss=lambda: Huber(max_gradient=1.0), target=lambda item, i: item)
def autoencoder(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x).tanh())


@apart(loss=BinaryCrossEntropy, target=lambda item, i: (item[:3] > 0).float())
def several_labels(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x).tanh())


# Images


@apart(IMAGE, {"inner": nn.Sequential(conv(8, 8), nn.Tanh(), nn.MaxPool2d(2), conv(8, 8), nn.ReLU(inplace=True))})
def cnn(m: Any, x: Tensor) -> Tensor:
    return m.head(torch.flatten(F.adaptive_avg_pool2d(m.inner(m.a(x)), 1), 1))


@apart(IMAGE, {"one": conv(8, 8), "two": conv(8, 8), "n1": nn.GroupNorm(4, 8), "n2": nn.GroupNorm(4, 8),
               "short": conv(8, 8, 1, stride=2)})  # fmt: skip
def resnet(m: Any, x: Tensor) -> Tensor:
    x = m.a(x)
    h = m.n2(m.two(m.n1(m.one(x)).relu()))[:, :, ::2, ::2]
    return m.head(pooled((h + m.short(x)).relu()))


@apart(IMAGE, {"layers": nn.ModuleList([conv(8 + 4 * i, 4) for i in range(3)]), "head": nn.Linear(20, 3)})
def densenet(m: Any, x: Tensor) -> Tensor:
    found = [m.a(x)]
    for layer in m.layers:
        found.append(layer(torch.cat(found, 1)).relu())
    return m.head(pooled(torch.cat(found, 1)))


@apart(IMAGE, {"one": conv(8, 4, 1), "three": conv(8, 4), "five": conv(8, 4, 5), "pool": nn.AvgPool2d(3, 1, 1),
               "head": nn.Linear(20, 3)})  # fmt: skip
def inception(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(pooled(torch.cat([m.one(h), m.three(h), m.five(h), m.pool(h)], 1)))


@apart(IMAGE, {"squeeze": nn.Linear(8, 2), "excite": nn.Linear(2, 8)})
def squeeze_and_excitation(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(pooled(h * m.excite(m.squeeze(pooled(h)).relu()).sigmoid()[:, :, None, None]))


@apart(IMAGE, {"depth": conv(8, 8, groups=8), "point": conv(8, 8, 1), "n": nn.InstanceNorm2d(8, affine=True)})
def mobilenet(m: Any, x: Tensor) -> Tensor:
    return m.head(pooled(F.hardswish(m.n(m.point(F.relu6(m.depth(m.a(x))))))))


@apart(IMAGE, {"depth": conv(8, 8, 5, groups=8), "n": nn.LayerNorm(8), "up": nn.Linear(8, 16), "down": nn.Linear(16, 8),
               "scale": nn.Parameter(0.1 * torch.ones(8))})  # fmt: skip
def convnext(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    y = m.scale * m.down(F.gelu(m.up(m.n(m.depth(h).permute(0, 2, 3, 1)))))
    return m.head(pooled(h + y.permute(0, 3, 1, 2)))


@apart(IMAGE, {"down": conv(8, 8, stride=2), "up": nn.ConvTranspose2d(8, 8, 2, stride=2), "out": conv(16, 8, 1)})
def u_net(m: Any, x: Tensor) -> Tensor:
    first = m.a(x).relu()
    up = m.up(m.down(first).relu())
    return m.head(pooled(m.out(torch.cat([first, up], 1))))


@apart(IMAGE, {"down": conv(8, 8, stride=2)})
def upsampled(m: Any, x: Tensor) -> Tensor:
    h = F.interpolate(m.down(m.a(x)), scale_factor=2, mode="bilinear", align_corners=False)
    return m.head(pooled(h + F.interpolate(h[..., ::2, ::2], size=(8, 8))))


@apart(IMAGE, {"inner": conv(2, 8)})
def pixel_shuffle_and_pads(m: Any, x: Tensor) -> Tensor:
    h = F.pad(F.pixel_shuffle(m.a(x), 2), (1, 1, 1, 1), mode="reflect")
    return m.head(pooled(m.inner(h)))


@apart(IMAGE, {"grid": nn.Linear(8, 6)})
def spatial_transformer(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    theta = m.grid(pooled(h)).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(h.shape), align_corners=False)
    return m.head(pooled(F.grid_sample(h, grid, align_corners=False)))


@apart(IMAGE, {"inner": nn.Linear(3 * 16, 8)})
def patches_by_unfold(m: Any, x: Tensor) -> Tensor:
    patches = F.unfold(x, 4, stride=4).transpose(1, 2)
    return m.head(m.inner(patches).mean(1) + pooled(m.a(x)))


@apart(IMAGE, {"mix": nn.Linear(64, 64), "n": nn.LayerNorm(8), "channels": nn.Linear(8, 8)})
def mlp_mixer(m: Any, x: Tensor) -> Tensor:
    h = m.a(x).flatten(2).transpose(1, 2)
    h = h + m.mix(m.n(h).transpose(1, 2)).transpose(1, 2)
    return m.head((h + m.channels(h)).mean(1))


@apart(IMAGE, {"patch": nn.Conv2d(3, 8, 4, 4), "token": nn.Parameter(torch.zeros(1, 1, 8)),
               "places": nn.Parameter(torch.randn(1, 5, 8)), "a": nn.Identity(),
               "inner": nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=True, norm_first=True)})  # fmt: skip
def vision_transformer(m: Any, x: Tensor) -> Tensor:
    h = m.patch(x).flatten(2).transpose(1, 2)
    h = torch.cat([m.token.expand(len(x), -1, -1), h], 1) + m.places
    return m.head(m.inner(h)[:, 0])


@apart(IMAGE, {"qkv": nn.Linear(8, 24)})
def shifted_windows(m: Any, x: Tensor) -> Tensor:
    h = m.a(x).permute(0, 2, 3, 1).roll((-2, -2), (1, 2))
    n, height, width, c = h.shape
    windows = h.view(n, height // 4, 4, width // 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
    q, k, v = m.qkv(windows).chunk(3, -1)
    out = (q @ k.transpose(-2, -1) / c**0.5).softmax(-1) @ v
    out = out.view(n, height // 4, width // 4, 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(n, height, width, c)
    return m.head(out.roll((2, 2), (1, 2)).mean((1, 2)))


@apart(IMAGE, {"capsules": nn.Parameter(0.1 * torch.randn(8, 3, 64, 4)), "head": nn.Identity()})
def capsules_with_routing(m: Any, x: Tensor) -> Tensor:
    votes = torch.einsum("bip,iopd->biod", m.a(x).flatten(2), m.capsules)
    logits = torch.zeros(votes.shape[:3])
    for _ in range(2):
        v = (logits.softmax(2)[..., None] * votes).sum(1)
        v = v * v.norm(dim=-1, keepdim=True) / (1 + v.square().sum(-1, keepdim=True))
        logits = logits + (votes * v[:, None]).sum(-1)
    return v.norm(dim=-1)


@apart(IMAGE, {"drop": nn.Dropout2d(0.2)})
def dropped_channels(m: Any, x: Tensor) -> Tensor:
    return m.head(pooled(m.drop(m.a(x))))


@apart(IMAGE)
def a_flip_for_each_example(m: Any, x: Tensor) -> Tensor:
    flipped = torch.rand(len(x), 1, 1, 1) < 0.5
    return m.head(pooled(m.a(torch.where(flipped, x.flip(-1), x)) ** 2))


@apart(IMAGE)
def frames_as_more_examples_and_back(m: Any, x: Tensor) -> Tensor:
    h = x.unflatten(2, (2, 4)).permute(0, 2, 1, 3, 4).flatten(0, 1)
    return m.head(pooled(m.a(h)).unflatten(0, (-1, 2)).mean(1))


# Sets and graphs


@apart(GRAPH, {"inner": nn.Linear(8, 8)})
def graph_convolution(m: Any, x: Tensor, adjacency: Tensor) -> Tensor:
    near = adjacency + torch.eye(5)
    near = near / near.sum(-1, keepdim=True)
    return m.head((near @ m.inner((near @ m.a(x)).relu())).mean(1))


@apart(GRAPH, {"left": nn.Linear(8, 1), "right": nn.Linear(8, 1)})
def graph_attention(m: Any, x: Tensor, adjacency: Tensor) -> Tensor:
    h = m.a(x)
    scores = F.leaky_relu(m.left(h) + m.right(h).transpose(1, 2)).masked_fill(adjacency == 0, -1e9)
    return m.head((scores.softmax(-1) @ h).max(1).values)


@apart(GRAPH, {"message": nn.Linear(16, 8)})
def message_passing(m: Any, x: Tensor, adjacency: Tensor) -> Tensor:
    h = m.a(x)
    pairs = torch.cat([h[:, :, None].expand(-1, 5, 5, 8), h[:, None].expand(-1, 5, 5, 8)], -1)
    return m.head((m.message(pairs).relu() * adjacency[..., None]).sum(2).mean(1))


@apart(GRAPH, {"rho": nn.Linear(8, 8)})
def deep_sets(m: Any, x: Tensor, adjacency: Tensor) -> Tensor:
    mask = adjacency[:, 0]
    return m.head(m.rho((m.a(x).relu() * mask.unsqueeze(-1)).sum(1)).relu())
