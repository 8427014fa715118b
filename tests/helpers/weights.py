"""Weights of every size and spectrum, and the norms that constraints bound."""

import torch
from torch import Tensor, nn

vector_norm = torch.linalg.vector_norm


def singular(weight: Tensor) -> Tensor:
    return torch.linalg.svdvals(weight.detach().double().flatten(1))


def sized(shape: tuple[int, ...], kind: str, seed: int = 0) -> Tensor:
    """Weights that projections meet: random, near and far from the set, degenerate, and of every scale."""
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(shape, generator=g)
    rows = w.flatten(1)
    if kind == "near orthogonal":
        nn.init.orthogonal_(rows)
        return (rows + 0.01 * torch.randn(rows.shape, generator=g)).reshape(shape)
    if kind == "rank deficient":
        rank = min(2, rows.shape[1])
        return (rows[:, :rank] @ torch.randn(rank, rows.shape[1], generator=g)).reshape(shape)
    if kind == "inside":
        return 1e-3 * w / vector_norm(w, 1)
    return w * {"random": 1.0, "huge": 1e6, "enormous": 1e25, "tiny": 1e-6}[kind]


def linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight.clone()
    return layer
