"""Functions of rows that do not mix examples, and functions that do, for the watch over a forward pass."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

T, D, C, S, V = 6, 8, 4, 8, 11


def sequences(rows: int) -> Tensor:
    return torch.randn(rows, T, D, generator=torch.Generator().manual_seed(rows))


def images(rows: int) -> Tensor:
    return torch.randn(rows, C, S, S, generator=torch.Generator().manual_seed(rows))


def vectors(rows: int) -> Tensor:
    return torch.randn(rows, D, generator=torch.Generator().manual_seed(rows))


def tokens(rows: int) -> Tensor:
    return torch.randint(1, V, (rows, T), generator=torch.Generator().manual_seed(rows))


def made(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    return module


weight = torch.randn(D, D, generator=torch.Generator().manual_seed(1)) / 3


class Cell(nn.Module):
    """A recurrent network of linear layers, step by step, whose outputs are written into a tensor."""

    def __init__(self, batch_second: bool = False) -> None:
        super().__init__()
        self.x, self.h, self.batch_second = nn.Linear(D, 3 * D), nn.Linear(D, 3 * D), batch_second

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1) if self.batch_second else x
        steps = x.unbind(0 if self.batch_second else 1)
        h = x.new_zeros(len(steps[0]), D)
        out = x.new_zeros(x.shape)
        for i, step in enumerate(steps):
            r, z, n = self.x(step).chunk(3, -1)
            a, b, c = self.h(h).chunk(3, -1)
            z = torch.sigmoid(z + b)
            h = (1 - z) * torch.tanh(n + torch.sigmoid(r + a) * c) + z * h
            if self.batch_second:
                out[i] = h
            else:
                out[:, i] = h
        return out.transpose(0, 1) if self.batch_second else out


class Windows(nn.Module):
    """Attention within windows of an image, shifted, as in Swin."""

    def __init__(self, size: int = 4, shift: int = 2) -> None:
        super().__init__()
        self.size, self.shift, self.qkv, self.out = size, shift, nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.register_buffer("bias", torch.randn(2, size * size, size * size))

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        b, h, w, c = x.shape
        n = self.size
        x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        x = x.view(b, h // n, n, w // n, n, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, n * n, c)
        q, k, v = self.qkv(x).reshape(-1, n * n, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) / math.sqrt(c) + self.bias
        mask = x.new_zeros(h // n * (w // n), n * n, n * n)
        scores = scores.view(b, -1, 2, n * n, n * n) + mask[None, :, None]
        x = (scores.view(-1, 2, n * n, n * n).softmax(-1) @ v).transpose(1, 2).reshape(-1, n * n, c)
        x = self.out(x).view(b, h // n, w // n, n, n, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        return torch.roll(x, (self.shift, self.shift), (1, 2)).permute(0, 3, 1, 2)


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.middle, self.up = (
            nn.Conv2d(C, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Conv2d(16, C, 1),
        )
        self.transposed, self.norm = nn.ConvTranspose2d(8, 8, 2, stride=2), nn.GroupNorm(2, 8)

    def forward(self, x: Tensor) -> Tensor:
        a = F.silu(self.norm(self.down(x)))
        b = F.leaky_relu(self.middle(F.max_pool2d(a, 2)), inplace=True)
        c = F.interpolate(F.avg_pool2d(b, 2), scale_factor=4, mode="bilinear") + self.transposed(b)
        return self.up(torch.cat([a, c], 1))


class Translator(nn.Module):
    """Token embeddings, positions, padding mask, attention, and the last token of each example."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(V, D, padding_idx=0), nn.Embedding(T, D)
        self.mixer = nn.MultiheadAttention(D, 2, batch_first=True)
        self.norm, self.out = nn.LayerNorm(D), nn.Linear(D, V)

    def forward(self, ids: Tensor) -> Tensor:
        padding = ids < 2
        x = self.tokens(ids) + self.places(torch.arange(T).expand(len(ids), -1))
        causal = nn.Transformer.generate_square_subsequent_mask(T).bool()
        y = self.mixer(x, x, x, key_padding_mask=padding & (torch.arange(T) > 0), attn_mask=causal, need_weights=False)[
            0
        ]
        x = self.norm(x + y)
        last = (~padding).long().cumsum(1).argmax(1)
        return self.out(x[torch.arange(len(ids)), last])


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, g):
        return 2 * g


def heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (2, D // 2)).transpose(1, 2)


def written_where(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[:, 1:] = x[:, :-1]
    out[:, :, 0] += x.mean(1)[:, :1]
    return out


def in_place(x: Tensor) -> Tensor:
    y = x.clone()
    y.mul_(2).add_(1)
    y[..., 0].zero_()
    y[y > 1] = 0.5
    return y.masked_fill_(y < 0, 0)


def by_heads(x: Tensor) -> Tensor:
    q = heads(x).reshape(-1, T, D // 2)
    return (torch.bmm(q, q.mT).softmax(-1) @ q).view(len(x), 2, T, D // 2).transpose(1, 2).reshape(len(x), T, D)


def repeated_positions(x: Tensor) -> Tensor:
    flat = x.reshape(-1, D)
    return (flat + torch.arange(T).float().repeat(len(x))[:, None]).view(x.shape)


GRU = made(nn.GRU(D, 5, 2, batch_first=True, bidirectional=True))
LSTM, FIRST = made(nn.LSTM(D, 5, batch_first=True)), made(nn.LSTM(D, 5))
MHA, MHA_FIRST = made(nn.MultiheadAttention(D, 2, batch_first=True)), made(nn.MultiheadAttention(D, 2))
ENCODER = made(nn.TransformerEncoderLayer(D, 2, 16, 0.0))
DECODER = made(nn.TransformerDecoderLayer(D, 2, 16, 0.0, batch_first=True))
BILINEAR = made(nn.Bilinear(D, D, 3))

SEQUENCES = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gate": lambda x: F.silu(x) * x,
    "glu": lambda x: F.glu(x, -1),
    "softmax": lambda x: x.softmax(-1),
    "softmax over time": lambda x: x.softmax(1),
    "logsumexp": lambda x: x.logsumexp(2),
    "layer norm": lambda x: F.layer_norm(x, (D,)),
    "layer norm over both": lambda x: F.layer_norm(x, (T, D)),
    "rms norm": lambda x: F.rms_norm(x, (D,)),
    "matrix": lambda x: x @ weight,
    "linear": lambda x: F.linear(x, weight),
    "left matrix": lambda x: weight[:T, :T] @ x,
    "pairs": lambda x: x @ x.mT,
    "einsum": lambda x: torch.einsum("btd,bsd->bts", x, x),
    "einsum with a weight": lambda x: torch.einsum("btd,de->bet", x, weight),
    "cat": lambda x: torch.cat([x, x], 1),
    "stack": lambda x: torch.stack([x, x], 1),
    "chunk": lambda x: x.chunk(2, -1)[1],
    "mean": lambda x: x.mean(1),
    "var": lambda x: x.var((1, 2)),
    "max": lambda x: x.max(1)[0],
    "amax": lambda x: x.amax((1, 2)),
    "norm": lambda x: x / x.norm(dim=-1, keepdim=True),
    "pad": lambda x: F.pad(x, (1, 1, 2, 0)),
    "roll": lambda x: x.roll(1, 1),
    "flip": lambda x: x.flip(1),
    "cumsum": lambda x: x.cumsum(1),
    "sort": lambda x: x.sort(-1)[0],
    "gather": lambda x: x.gather(1, x.argsort(1)),
    "topk": lambda x: x.topk(2, -1)[0],
    "fft": lambda x: torch.fft.rfft(x).abs(),
    "masked": lambda x: x.masked_fill(x > 0, -1.0),
    "where": lambda x: torch.where(x > 0, x, -0.1 * x),
    "time first": lambda x: F.relu(x.transpose(0, 1) @ weight).transpose(0, 1),
    "flattened tokens": lambda x: F.relu(x.flatten(0, 1) @ weight).view(len(x), T, D),
    "time first, flattened": lambda x: (x.transpose(0, 1).reshape(-1, D) @ weight).view(T, len(x), D).transpose(0, 1),
    "all of one": lambda x: x.flatten(1),
    "by size": lambda x: x.view(x.size(0), -1, 2),
    "last": lambda x: x[:, -1],
    "first and all": lambda x: x[:, :1] + x[:],
    "slice of the whole batch": lambda x: x[: len(x), 1::2],
    "columns by list": lambda x: x[:, [2, 0, 1]],
    "index_select": lambda x: x.index_select(1, torch.tensor([1, 1])),
    "one place of each": lambda x: x[torch.arange(len(x)), x.mean(2).argmax(1)],
    "one entry of each": lambda x: x[torch.arange(len(x)), 0, x.mean(1).argmax(1)],
    "places of each": lambda x: x[torch.arange(len(x))[:, None], x.mean(2).argsort(1)],
    "unsqueezed": lambda x: (x.unsqueeze(2) - x.unsqueeze(1)).abs().sum(-1),
    "distances": lambda x: torch.cdist(x, x),
    "three outputs": lambda x: sum(x.unbind(1)),
    "attention": lambda x: F.scaled_dot_product_attention(heads(x), heads(x), heads(x)),
    "causal attention": lambda x: F.scaled_dot_product_attention(heads(x), heads(x), heads(x), is_causal=True),
    "masked attention": lambda x: F.scaled_dot_product_attention(
        x[:, None], x[:, None], x[:, None], attn_mask=(x @ x.mT > 0)[:, None] | torch.eye(T).bool()
    ),
    "merged heads": by_heads,
    "class token": lambda x: torch.cat([weight[:1].expand(len(x), 1, D), x], 1),
    "learned queries": lambda x: weight[:3].expand(len(x), -1, -1) @ x.mT,
    "positions": lambda x: x + torch.arange(T)[:, None],
    "positions for all": lambda x: x + torch.arange(T).float()[None, :, None].expand(len(x), -1, -1),
    "repeated positions": repeated_positions,
    "rows written": written_where,
    "in place": in_place,
    "causal mask": lambda x: ((x @ x.mT).masked_fill(torch.ones(T, T).triu(1).bool(), -1e9)).softmax(-1) @ x,
    "one hot": lambda x: F.one_hot(x.argmax(-1), D).float(),
    "numbers of a shape": lambda x: x / math.sqrt(x.shape[-1]),
    "conv1d": lambda x: F.conv1d(x, weight[:T, :T, None]),
    "unfolded": lambda x: x.unfold(1, 3, 1).sum(-1),
    "scatter": lambda x: torch.zeros(len(x), D).scatter_add(1, x.argmax(-1), x.mean(-1)),
    "clone": lambda x: x.clone().contiguous(),
    "custom function": Twice.apply,
    "checkpoint": lambda x: checkpoint(lambda a: F.relu(a @ weight), x, use_reentrant=False),
    "vmap": lambda x: torch.vmap(lambda a: (a @ weight).relu())(x),
    "squeezed": lambda x: x[:, :, :1].squeeze(-1),
    "other type": lambda x: x.double().sum(-1).float(),
    "autocast": lambda x: _autocast(x),
    "no grad": lambda x: _no_grad(x),
    "empty branch": lambda x: x if x.shape[1] > 3 else x.mean(0, keepdim=True),
    "detached": lambda x: x - x.detach().amax(-1, keepdim=True),
    "cell": made(Cell()),
    "cell, time first": made(Cell(True)),
    "gru": lambda x: GRU(x)[0],
    "lstm": lambda x: LSTM(x)[0][:, -1],
    "lstm, time first": lambda x: FIRST(x.transpose(0, 1))[1][0][-1],
    "attention module": lambda x: MHA(x, x, x)[0],
    "attention module, time first": lambda x: MHA_FIRST(*[x.transpose(0, 1)] * 3)[0].transpose(0, 1),
    "transformer": made(nn.TransformerEncoder(nn.TransformerEncoderLayer(D, 2, 16, 0.0, batch_first=True), 2)),
    "transformer, time first": lambda x: ENCODER(x.transpose(0, 1)).transpose(0, 1),
    "bilinear": lambda x: BILINEAR(x, x),
    "decoder": lambda x: DECODER(x[:, :3], x),
    "cosine": lambda x: F.cosine_similarity(x, x.flip(1), dim=-1),
}


def _autocast(x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return (x @ weight).float()


def _no_grad(x: Tensor) -> Tensor:
    with torch.no_grad():
        return x @ weight


IMAGES = {
    "group norm": lambda x: F.group_norm(x, 2),
    "conv": made(nn.Conv2d(C, 5, 3, 2)),
    "depthwise": made(nn.Conv2d(C, C, 3, groups=C)),
    "transposed conv": made(nn.ConvTranspose2d(C, 3, 3, 2)),
    "max pool": lambda x: F.max_pool2d(x, 2),
    "avg pool": lambda x: F.avg_pool2d(x, 2),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, 3),
    "global": lambda x: x.mean((2, 3)),
    "interpolate": lambda x: F.interpolate(x, scale_factor=2),
    "bilinear": lambda x: F.interpolate(x, size=(5, 5), mode="bilinear"),
    "unfold": lambda x: F.unfold(x, 3),
    "fold": lambda x: F.fold(F.unfold(x, 2, stride=2), (S, S), 2, stride=2),
    "instance norm": lambda x: F.instance_norm(x, weight=weight[0, :C], bias=weight[1, :C]),
    "instance norm, batch second": lambda x: F.instance_norm(x.transpose(0, 1)).transpose(0, 1),
    "rows by a public mask": lambda x: x[:, :, torch.eye(S).bool()] + x[:, :, torch.arange(S) > -1, 0],
    "solved": lambda x: torch.linalg.solve(x @ x.mT + torch.eye(S), x),
    "pixel shuffle": lambda x: F.pixel_shuffle(x, 2),
    "pixel unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "reflection": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "channels shuffled": lambda x: F.channel_shuffle(x, 2),
    "batch norm in eval": nn.BatchNorm2d(C).eval(),
    "local response": lambda x: F.local_response_norm(x, 3),
    "prelu": made(nn.PReLU(C)),
    "windows": made(Windows()),
    "u-net": made(UNet()),
    "grid": lambda x: F.grid_sample(x, _grid(x), align_corners=False),
    "patches": lambda x: x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(len(x), 4, -1),
    "patches by reshape": lambda x: (
        x.reshape(len(x), C, 2, 4, 2, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16 * C).view(len(x), 4, -1)
    ),
    "squeeze and excite": lambda x: x * x.mean((2, 3), keepdim=True).sigmoid(),
    "flatten": lambda x: torch.flatten(x, 1),
    "upsample nearest 3d": lambda x: F.interpolate(x[:, None], scale_factor=(1, 2, 2)),
    "conv3d": lambda x: F.conv3d(x[:, None], torch.ones(2, 1, 2, 2, 2)),
    "planes as a batch": lambda x: F.conv2d(x.reshape(-1, 1, S, S), torch.ones(1, 1, 3, 3)).view(
        len(x), C, S - 2, S - 2
    ),
}


def _grid(x: Tensor) -> Tensor:
    return F.affine_grid(torch.eye(2, 3).expand(len(x), 2, 3), list(x.shape), align_corners=False)


TOKENS = {
    "embedding": lambda ids: F.embedding(ids, weight.repeat(2, 1)),
    "translator": made(Translator()),
    "padding": lambda ids: ids.ne(0).float().cumsum(1),
    "shifted": lambda ids: torch.cat([ids[:, 1:], ids[:, :1]], 1).float(),
}

RANDOM = {
    "dropout": (sequences, lambda x: F.dropout(x, 0.3)),
    "dropout of planes": (images, F.dropout2d),
    "alpha dropout": (sequences, F.alpha_dropout),
    "noise": (sequences, lambda x: x + torch.randn_like(x)),
    "noise of each example": (sequences, lambda x: x * torch.rand(len(x), 1, 1)),
    "drop path": (sequences, lambda x: x * x.new_empty(len(x), 1, 1).bernoulli_(0.8).div_(0.8)),
    "bernoulli": (sequences, lambda x: torch.bernoulli(x.sigmoid())),
    "gumbel": (sequences, lambda x: F.gumbel_softmax(x, hard=True)),
    "attention with dropout": (sequences, lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.2)),
    "shared noise": (sequences, lambda x: x + torch.randn(T, D)),
    "transformer": (sequences, nn.TransformerEncoderLayer(D, 2, 16, batch_first=True)),
    "normal": (sequences, lambda x: torch.normal(x, 1.0)),
}

SEPARATE = [
    *((f"sequence: {name}", sequences, f) for name, f in SEQUENCES.items()),
    *((f"image: {name}", images, f) for name, f in IMAGES.items()),
    *((f"tokens: {name}", tokens, f) for name, f in TOKENS.items()),
]
