"""Models with bare parameters, each of which meets the examples in some way of its own."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal, weight_norm

T, D = 4, 3


class Bare(nn.Module):
    """A function of the input, with parameters (and modules) of its own as attributes."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], **held: Any) -> None:
        super().__init__()
        self.function = function
        generator = torch.Generator().manual_seed(0)
        for name, value in held.items():
            random = nn.Parameter(torch.randn(value, generator=generator)) if isinstance(value, tuple) else value
            setattr(self, name, random)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def in_place(m: Any, x: Tensor) -> Tensor:
    y = x.clone()
    y += m.p
    y.mul_(m.q)
    return y


def token_in_front(m: Any, x: Tensor) -> Tensor:
    return torch.cat([m.c.expand(len(x), -1, -1), x], 1) + m.p


def masked(m: Any, x: Tensor) -> Tensor:
    hidden = (x[..., :1] > 0).to(x.dtype)
    return x * (1 - hidden) + m.p.expand(x.shape[0], T, -1) * hidden


def distances() -> Tensor:
    return (torch.arange(T)[:, None] - torch.arange(T)).abs()


def relative(m: Any, x: Tensor) -> Tensor:
    bias = m.p[distances().view(-1)].view(T, T, -1).permute(2, 0, 1).contiguous().unsqueeze(0)
    return (x @ x.mT)[:, None] + bias


def positions(m: Any, x: Tensor) -> Tensor:
    return x + m.e(torch.arange(x.shape[1])) + m.e(torch.zeros(x.shape[:2], dtype=torch.long))


def looked_up(x: Tensor) -> Tensor:
    return (x[..., 0] > 0).long()


def time_first(m: Any, x: Tensor) -> Tensor:
    return ((x.transpose(0, 1) + m.p) * m.q).transpose(0, 1)


def flattened(m: Any, x: Tensor) -> Tensor:
    return ((x.reshape(-1, D) + m.p) * m.q).reshape(x.shape)


def attention(m: Any, x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], attn_mask=m.p)


# The gradient of each is a sum of as few terms as entries, so its norm is exact.
EXACT: dict[str, Callable[[], Bare]] = {
    "x + p": lambda: Bare(lambda m, x: x + m.p, p=(T, D)),
    "p + x": lambda: Bare(lambda m, x: m.p + x, p=(1, T, D)),
    "p * x": lambda: Bare(lambda m, x: m.p * x, p=(D,)),
    "x - p": lambda: Bare(lambda m, x: torch.sub(x, m.p, alpha=2), p=(D,)),
    "(1 + p) * x": lambda: Bare(lambda m, x: x * (1.0 + m.p), p=(D,)),
    "q - x / exp(p)": lambda: Bare(lambda m, x: m.q - x / m.p.exp(), p=(D,), q=(1,)),
    "a scalar": lambda: Bare(lambda m, x: x * m.p.sigmoid().clamp(max=0.9), p=()),
    "in place": lambda: Bare(in_place, p=(D,), q=(T, 1)),
    "a class token": lambda: Bare(token_in_front, c=(1, 1, D), p=(1, T + 1, D)),
    "repeat": lambda: Bare(lambda m, x: torch.cat([m.c.repeat(len(x), 1, 1), x], 1), c=(1, 2, D)),
    "broadcast_to": lambda: Bare(lambda m, x: torch.cat([torch.broadcast_to(m.c, (len(x), 1, D)), x], 1), c=(D,)),
    "expand_as": lambda: Bare(lambda m, x: x * m.p.expand_as(x), p=(D,)),
    "a mask token": lambda: Bare(masked, p=(1, 1, D)),
    "where": lambda: Bare(lambda m, x: torch.where(x > 0, m.p, x), p=(D,)),
    "a slice": lambda: Bare(lambda m, x: x + m.p[:, : x.shape[1]], p=(1, 9, D)),
    "an index with repeats": lambda: Bare(lambda m, x: x + m.p[torch.tensor([0, 1, 1, 0])], p=(9, D)),
    "positions by embedding": lambda: Bare(lambda m, x: x + m.e(torch.arange(x.shape[1])[None]), e=nn.Embedding(9, D)),
    "relative positions": lambda: Bare(relative, p=(9, 2)),
    "a mixture": lambda: Bare(lambda m, x: x * F.softmax(m.p, 0)[:, None], p=(T,)),
    "time first": lambda: Bare(time_first, p=(T, 1, D), q=(D,)),
    "flattened": lambda: Bare(flattened, p=(D,), q=(D,)),
    "a bias of attention": lambda: Bare(attention, p=(1, 1, T, T)),
    "layer_norm": lambda: Bare(lambda m, x: F.layer_norm(x, (D,), m.p, m.q), p=(D,), q=(D,)),
    "rms_norm": lambda: Bare(lambda m, x: F.rms_norm(x, (D,), m.p), p=(D,)),
    "group_norm": lambda: Bare(lambda m, x: F.group_norm(x, 2, m.p, m.q), p=(T,), q=(T,)),
    "frozen batch_norm": lambda: Bare(lambda m, x: m.norm.eval()(x), norm=nn.BatchNorm1d(T)),
    "prelu": lambda: Bare(lambda m, x: F.prelu(x, m.p), p=(T,)),
    "a stack of matrices": lambda: Bare(lambda m, x: x[:, None] @ m.p, p=(2, D, 4)),
    "einsum by head": lambda: Bare(lambda m, x: torch.einsum("btd,hde->bhte", x, m.p), p=(2, D, 2)),
    "einsum of a matrix": lambda: Bare(lambda m, x: torch.einsum("bd,de->be", x[:, 0], m.p), p=(D, 2)),
    "F.linear": lambda: Bare(lambda m, x: F.linear(x[:, 0], m.p, m.q), p=(2, D), q=(2,)),
    "x @ a @ b": lambda: Bare(lambda m, x: x[:, 0] @ m.p @ m.q, p=(D, 2), q=(2, 5)),
    "x @ p.T": lambda: Bare(lambda m, x: x[:, 0] @ m.p.T, p=(2, D)),
    "x @ a vector": lambda: Bare(lambda m, x: x[:, 0] @ m.p, p=(D,)),
    "addmm": lambda: Bare(lambda m, x: torch.addmm(m.q, x[:, 0], m.p), p=(D, 2), q=(2,)),
    "F.embedding": lambda: Bare(lambda m, x: F.embedding(looked_up(x), m.p), p=(9, D)),
    "p[ids]": lambda: Bare(lambda m, x: m.p[looked_up(x)], p=(9, D)),
    "a norm": lambda: Bare(lambda m, x: x * torch.linalg.vector_norm(m.p), p=(D,)),
    "x @ (w + b @ a)": lambda: Bare(lambda m, x: x @ (m.w + 0.5 * m.b @ m.a), w=(D, 5), b=(D, 2), a=(2, 5)),
    "F.linear of w + b @ a": lambda: Bare(lambda m, x: F.linear(x, m.w + m.b @ m.a), w=(5, D), b=(5, 1), a=(1, D)),
    "x @ (a @ b)": lambda: Bare(lambda m, x: x[:, 0] @ torch.mm(m.p, m.q), p=(D, 2), q=(2, 5)),
    "einsum of two parameters": lambda: Bare(lambda m, x: x @ torch.einsum("ij,jk", m.p, m.q), p=(D, 2), q=(2, 5)),
    "weight_norm": lambda: Bare(lambda m, x: m.n(x), n=weight_norm(nn.Linear(D, 5))),
    "weight_norm of a convolution": lambda: Bare(lambda m, x: m.n(x), n=weight_norm(nn.Conv1d(T, 6, 2, groups=2))),
    "a weight norm by hand": lambda: Bare(
        lambda m, x: F.linear(x, m.g[:, None] * m.v / m.v.norm(dim=1, keepdim=True)), v=(5, D), g=(5,)
    ),
    "orthogonal by exponentials": lambda: Bare(
        lambda m, x: m.o(x), o=orthogonal(nn.Linear(D, D), orthogonal_map="matrix_exp")
    ),
    "orthogonal by Cayley": lambda: Bare(lambda m, x: m.o(x), o=orthogonal(nn.Linear(D, D), orthogonal_map="cayley")),
    "bilinear": lambda: Bare(lambda m, x: F.bilinear(x[:, 0], x[:, 1], m.p, m.q), p=(2, D, D), q=(2,)),
    "nn.Bilinear": lambda: Bare(lambda m, x: m.b(x, x[:, :1].expand_as(x)), b=nn.Bilinear(D, D, 2)),
    "matrices by ids": lambda: Bare(lambda m, x: m.p[looked_up(x)] @ x[..., None], p=(9, 2, D)),
    "cdist": lambda: Bare(lambda m, x: torch.cdist(x, m.p), p=(30, D)),
    "cdist of vectors": lambda: Bare(lambda m, x: torch.cdist(x[:, 0], m.p), p=(5, D)),
    "cdist from a parameter": lambda: Bare(lambda m, x: torch.cdist(m.p, x), p=(5, D)),
    "interpolated": lambda: Bare(lambda m, x: x + F.interpolate(m.p, size=D, mode="linear"), p=(1, T, 2)),
}

OTHERS: dict[str, Callable[[], Bare]] = {
    "a product with its own": lambda: Bare(lambda m, x: x @ (m.p @ m.p.T), p=(D, 2)),
    "two uses": lambda: Bare(lambda m, x: x * m.p + m.p, p=(D,)),
    "a sum of two": lambda: Bare(lambda m, x: x + (m.p + m.q), p=(T, D), q=(D,)),
    "positions and types": lambda: Bare(positions, e=nn.Embedding(9, D)),
    "tied": lambda: Bare(lambda m, x: F.linear(m.e(looked_up(x)), m.e.weight), e=nn.Embedding(9, D)),
    "tied, transposed": lambda: Bare(lambda m, x: m.e(looked_up(x)) @ m.e.weight.T, e=nn.Embedding(9, D)),
    "chunks": lambda: Bare(lambda m, x: torch.cat([F.linear(x, w) for w in m.p.chunk(3)], -1), p=(6, D)),
    "tokens mixed": lambda: Bare(lambda m, x: m.p @ x, p=(6, T)),
    "tokens by einsum": lambda: Bare(lambda m, x: torch.einsum("btd,de->bte", x, m.p), p=(D, 2)),
    "conv2d": lambda: Bare(lambda m, x: F.conv2d(x[:, None], m.p, m.q, padding=1), p=(2, 1, 2, 2), q=(2,)),
}
