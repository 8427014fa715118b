"""Functions of rows that mix examples, or treat them by their place or by how many they are."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from helpers.separate import C, D, S, T, images, sequences, tokens, weight
from torch import Tensor, nn

RUNNING = torch.zeros(T, D)
BATCH_NORM, INSTANCE = nn.BatchNorm2d(C), nn.InstanceNorm2d(C, track_running_stats=True)


def cubes(rows: int) -> Tensor:
    """All sizes are the number of examples, so that shapes give nothing away."""
    return torch.randn(rows, rows, rows, generator=torch.Generator().manual_seed(rows))


def kept_in_a_buffer(x: Tensor) -> Tensor:
    RUNNING.copy_(x[:].mean(1, keepdim=True).expand_as(x)[..., :].transpose(0, 1)[:, 0])
    return x + RUNNING


def rows_into_a_constant(x: Tensor) -> Tensor:
    out = torch.zeros(T, D)
    out.copy_(x.detach()[0])
    return x + out


def hidden_by_a_view(x: Tensor) -> Tensor:
    out = torch.zeros(len(x), T, D)
    flat = out.view(-1)
    out[:, 0] = x[:, 0]
    return x + flat[: T * D].view(T, D)


def hidden_by_an_older_view(x: Tensor) -> Tensor:
    out = torch.zeros(len(x), T, D)
    seen = out.view(-1, len(x)).t()
    out.add_(x)
    return x + seen.reshape(len(x), T, D)


def written_then_counted(x: Tensor) -> Tensor:
    out = torch.zeros(len(x), 1, 1)
    view = out[:, 0, 0]
    view.copy_(torch.arange(len(x)))
    return x + out


def uncounted(x: Tensor) -> Tensor:
    out = torch.zeros(len(x), 1, 1)
    out.data.copy_(torch.arange(len(x)).view(-1, 1, 1))
    return x + out


def as_a_branch(x: Tensor) -> Tensor:
    return 2 * x if (x > 0).all() else x


def transposed_halves(x: Tensor) -> Tensor:
    return x.reshape(T, len(x), D).transpose(0, 1)


def written_across(x: Tensor) -> Tensor:
    out = torch.zeros(T, len(x), D)
    out.view(len(x), T, D).copy_(x)
    return out.transpose(0, 1) + x


def uneven(x: Tensor) -> Tensor:
    out = torch.arange(len(x)).float()[:, None].repeat(1, D)
    out[:, 0] = x[:, 0, 0]
    return out


MIX_SEQUENCES = {
    "mean over the batch": lambda x: x - x.mean(0),
    "mean of all": lambda x: x - x.mean(),
    "flip": lambda x: x + x.flip(0),
    "gram": lambda x: (x[:, 0].T @ x[:, 0]) @ x[:, 0].T,
    "cumsum": lambda x: x.cumsum(0),
    "permuted": lambda x: x[torch.randperm(len(x))],
    "softmax": lambda x: x.softmax(0),
    "norm of all": lambda x: x / x.norm(),
    "first example": lambda x: x + x[0],
    "last example": lambda x: x + x[-1:],
    "roll": lambda x: x + x.roll(1, 0),
    "roll of all": lambda x: x.roll(1),
    "sorted": lambda x: x.sort(0)[0],
    "max": lambda x: x - x.amax(0, keepdim=True),
    "similarity": lambda x: x[:, 0] @ x[:, 0].T,
    "attention over the batch": lambda x: F.scaled_dot_product_attention(
        x.transpose(0, 1), x.transpose(0, 1), x.transpose(0, 1)
    ).transpose(0, 1),
    "attention, axes mistaken": lambda x: nn.MultiheadAttention(D, 2)(x, x, x)[0],
    "lstm, axes mistaken": lambda x: nn.LSTM(D, D)(x)[0],
    "einsum": lambda x: torch.einsum("btd,ctd->bcd", x, x).sum(1),
    "view": lambda x: x.reshape(2, -1).softmax(-1).reshape(x.shape),
    "view as time": transposed_halves,
    "regrouped": lambda x: x.view(T, -1, D).mean(1, keepdim=True) + x.view(T, -1, D),
    "flattened": lambda x: x.view(-1).cumsum(0).view(x.shape),
    "item": lambda x: x * x.sum((1, 2))[0].item(),
    "item of all": lambda x: x * x.max().item(),
    "branch": as_a_branch,
    "float": lambda x: x * float(x.mean()),
    "bool": lambda x: x if bool(x.mean() > 9) else x + 1,
    "tolist": lambda x: x * torch.tensor(x.sum((1, 2)).tolist()).sum(),
    "numpy": lambda x: x + torch.from_numpy(x.detach().numpy()[::-1].copy()),
    "array": lambda x: x + torch.from_numpy(np.asarray(x.detach()).copy()),
    "dlpack": lambda x: x + torch.utils.dlpack.from_dlpack(x.detach()),
    "storage": lambda x: x + x.untyped_storage().nbytes(),
    "pointer": lambda x: x + x.data_ptr() % 7,
    "as_strided": lambda x: x.as_strided(x.shape, (D, len(x) * D, 1)),
    "hook": lambda x: _hooked(x),
    "data": lambda x: _data(x),
    "argsort": lambda x: x[x[:, 0, 0].argsort()],
    "nonzero": lambda x: x + x.nonzero().shape[0],
    "masked select": lambda x: x * x[x > 0].mean(),
    "unique": lambda x: x + len(x.unique()),
    "first two": lambda x: x[:2],
    "loop": lambda x: torch.stack([row * 2 for row in x]),
    "split": lambda x: torch.cat(x.split(1, 0)),
    "cat": lambda x: torch.cat([x, x]),
    "repeat": lambda x: x.repeat(2, 1, 1),
    "interleaved": lambda x: x.repeat_interleave(2, 0),
    "by place": lambda x: x + torch.arange(len(x)).view(-1, 1, 1),
    "by linspace": lambda x: x * torch.linspace(0, 1, len(x))[:, None, None],
    "by a permutation": lambda x: x * torch.randperm(len(x)).view(-1, 1, 1),
    "own index permuted": lambda x: x[torch.arange(len(x)).flip(0), 0],
    "index of examples": lambda x: x[:, x[:, 0, 0].argsort() % T],
    "gather over the batch": lambda x: x.gather(0, torch.zeros(x.shape, dtype=torch.long)),
    "triangle of the batch": lambda x: x[:, 0].tril(),
    "scattered": lambda x: torch.zeros_like(x).index_add(0, torch.zeros(len(x), dtype=torch.long), x),
    "kept in a buffer": kept_in_a_buffer,
    "rows into a constant": rows_into_a_constant,
    "hidden by a view": hidden_by_a_view,
    "hidden by an older view": hidden_by_an_older_view,
    "written by place": written_then_counted,
    "written out of sight": uncounted,
    "written across": written_across,
    "written into uneven": uneven,
    "out": lambda x: torch.add(x.detach(), x.detach(), out=torch.empty(x.shape)),
    "set": lambda x: torch.empty(0).set_(x.detach()) + 1,
    "squared sum": lambda x: x / (x * x).sum().sqrt(),
    "covariance": lambda x: torch.cov(x[:, 0].T) @ x.mT,
    "crossed": lambda x: (x[:, None, 0] - x[None, :, 0]).sum(0),
    "distances": lambda x: torch.cdist(x[:, 0], x[:, 0]),
    "diff": lambda x: x.diff(dim=0, prepend=x[:1]),
    "pad": lambda x: F.pad(x, (0, 0, 0, 0, 1, 0))[:-1],
    "unfold": lambda x: x.unfold(0, 2, 1).sum(-1),
    "fft": lambda x: torch.fft.fft(x, dim=0).real,
    "fft of all": lambda x: torch.fft.fftn(x).real,
    "quantile": lambda x: x - x.median(),
    "one hot of as many as there are": lambda x: F.one_hot((x[:, 0] > 0).long()),
    "layer norm over the batch": lambda x: F.layer_norm(x.transpose(0, 2), (x.shape[0],)),
    "batch in the middle, summed": lambda x: x.transpose(0, 1).sum(1),
    "conv over the batch": lambda x: F.conv1d(x.permute(1, 2, 0), torch.ones(3, D, 1).expand(3, D, 2)),
    "weights by attention": lambda x: torch.bmm(x.transpose(0, 1), x.transpose(0, 1).mT),
    "heads mistaken": lambda x: x.transpose(0, 1).reshape(len(x), T, D),
    "loss": lambda x: F.mse_loss(x, x.flip(1)),
    "standardized": lambda x: (x - x.mean((0, 1))) / x.std((0, 1)),
    "outer": lambda x: torch.outer(x[:, 0, 0], x[:, 0, 0]),
    "random order": lambda x: x[torch.rand(len(x)).argsort()],
}

MIX_IMAGES = {
    "batch norm": lambda x: BATCH_NORM(x),
    "batch norm of channels": lambda x: F.batch_norm(x.permute(1, 2, 0, 3), None, None, None, None, True),
    "printed": lambda x: x * len(str(x)),
    "functional batch norm": lambda x: F.batch_norm(x, None, None, training=True),
    "instance norm by batch norm": lambda x: INSTANCE(x),
    "regrouped group norm": lambda x: F.group_norm(x.transpose(0, 1), 1).transpose(0, 1),
    "mean of channels": lambda x: x - x.mean((0, 2, 3), keepdim=True),
    "conv over the batch": lambda x: F.conv2d(x.transpose(0, 1), torch.ones(3, x.shape[0], 1, 1)),
    "pool of the batch": lambda x: F.avg_pool1d(x.permute(1, 2, 3, 0).flatten(0, 1), 2),
    "conv without a batch": lambda x: F.conv2d(x[:, 0], torch.ones(1, x.shape[0], 1, 1)),
    "shuffled": lambda x: F.channel_shuffle(x.transpose(0, 1), 1).reshape(x.shape[0], -1),
    "flattened wrongly": lambda x: x.permute(1, 0, 2, 3).flatten(1),
    "folded": lambda x: x.reshape(1, -1, S, S).mean(1),
}

MIX_TOKENS = {
    "embedding of the batch": lambda ids: F.embedding(torch.arange(len(ids)), weight) + ids.sum(1, keepdim=True),
    "packed": lambda ids: F.embedding_bag(ids, weight.repeat(2, 1)),
    "table of examples": lambda ids: F.embedding(torch.zeros(T, dtype=torch.long), ids.float()),
    "counts": lambda ids: ids.float() / torch.bincount(ids.flatten()).max(),
    "vocabulary": lambda ids: ids + ids.max(),
}

COUNTED = {
    "divided by the number": lambda x: x / len(x),
    "times the number": lambda x: x * len(x),
    "counted tensor": lambda x: x * torch.ones(len(x)).sum(),
    "last place": lambda x: x + torch.arange(len(x))[-1],
    "full of it": lambda x: x + torch.full((T, D), float(len(x))),
    "feature by number": lambda x: x[:, : len(x) % 4 + 1].sum(1),
    "column by number": lambda x: x[..., len(x)],
    "weight by number": lambda x: x * weight[len(x)],
    "table by number": lambda x: x @ [weight, weight.T][len(x) // 6],
    "branch by number": lambda x: x.relu() if len(x) < 6 else x.abs(),
    "power of the number": lambda x: x.abs() ** len(x),
    "longest dimension": lambda x: x.unsqueeze(1).expand(-1, len(x), -1, -1).sum(1),
    "random of all": lambda x: x * torch.rand(len(x)).mean(),
    "eye": lambda x: x * torch.eye(len(x)).sum(),
    "tensor of it": lambda x: x / torch.tensor(float(len(x))),
    "padded": lambda x: F.pad(x, (0, len(x))),
    "dropout by number": lambda x: F.dropout(x, 1 / len(x)),
    "clamped": lambda x: x.clamp(max=len(x)),
    "rows of a weight": lambda x: x * weight[: len(x)].mean(),
    "counter": lambda x: x * torch.arange(len(x)).max(),
    "steps": lambda x: x * torch.linspace(0, 1, len(x))[1],
    "extra operator": lambda x: x.relu().relu() if len(x) == 7 else x.relu(),
}


def _hooked(x: Tensor) -> Tensor:
    y = x * 2
    y.register_hook(lambda g: g.flip(0))
    return y


def _data(x: Tensor) -> Tensor:
    y = torch.zeros(T, D)
    y.data = x[0]
    return x + y


CUBES = {
    "gram": lambda x: (x[:, 0].T @ x[:, 0]).T,
    "gram of the left": lambda x: torch.bmm(x.transpose(0, 2), x.transpose(0, 1)),
    "largest": lambda x: x.amax(0),
    "one": lambda x: x[0],
    "last": lambda x: x.unbind(0)[-1],
    "transposed": lambda x: x + x.transpose(0, 1),
    "sum": lambda x: x.sum(0) + x.sum(1),
    "attention": lambda x: F.scaled_dot_product_attention(*[x.transpose(0, 1)[None]] * 3)[0].transpose(0, 1),
    "linear": lambda x: F.linear(x.transpose(0, 2), x[:, 0]).transpose(0, 2),
    "index": lambda x: x[torch.arange(len(x)), :, x[:, 0].argmax(0)],
    "diagonal": lambda x: x.diagonal(),
    "put": lambda x: x.put(torch.tensor([0]), torch.tensor([1.0])),
    "convolution": lambda x: (
        F.conv1d(x[:, 0, None], torch.ones(5, 1, 5)) + F.conv1d(x.transpose(0, 1), torch.ones(5, 5, 5))
    ),
}

MIXED = [
    *((f"cube: {name}", cubes, f) for name, f in CUBES.items()),
    *((f"sequence: {name}", sequences, f) for name, f in MIX_SEQUENCES.items()),
    *((f"image: {name}", images, f) for name, f in MIX_IMAGES.items()),
    *((f"tokens: {name}", tokens, f) for name, f in MIX_TOKENS.items()),
]
