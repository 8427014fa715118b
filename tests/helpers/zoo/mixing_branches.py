"""Models in which the batch decides on a branch, or leaves the operators of torch."""

from __future__ import annotations

import random
import threading
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from helpers.zoo.cases import Case, case
from torch import Tensor
from torch.utils.checkpoint import checkpoint

BRANCHES: dict[str, Case] = {}


def mixes(*args: Any, **options: Any) -> Any:
    return case(BRANCHES, *args, **options)


def centred(h: Tensor) -> Tensor:
    return h - h.mean(0, keepdim=True)


@mixes()
def a_branch_on_the_sum(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(h.relu() if h.sum() > 0 else h.tanh())


@mixes()
def a_branch_on_any(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(h / 2 if (h > 2).any() else h)


@mixes()
def a_branch_on_finite_values(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(torch.nan_to_num(h) if not torch.isfinite(h).all() else h * float(h.abs().max() < 3))


@mixes()
def a_number_is_read(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x) * x.abs().max().item())


@mixes()
def a_number_of_one_row_is_read(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x) * float(x[0, 0]))


@mixes()
def a_list_is_read(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x) * sum(x[:, 0].tolist()))


@mixes()
def the_number_of_steps_is_read(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    while h.norm() > 1:
        h = h / 2
    return m.head(h)


@mixes()
def halting_when_all_have_halted(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    for _ in range(4):
        if torch.equal(h > 1, torch.zeros_like(h, dtype=torch.bool)):
            break
        h = h * 0.7
    return m.head(h)


@mixes()
def numpy_centres(m: Any, x: Tensor) -> Tensor:
    array = x.numpy()
    return m.head(m.a(torch.from_numpy(array - array.mean(0))))


@mixes()
def numpy_shares_the_memory(m: Any, x: Tensor) -> Tensor:
    x = x.clone()
    x.numpy()[:] -= x.numpy().mean(0)
    return m.head(m.a(x))


@mixes()
def numpy_by_protocol(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x) + float(np.mean(np.asarray(x))))


@mixes()
def dlpack_shares_the_memory(m: Any, x: Tensor) -> Tensor:
    other = np.from_dlpack(x.clone())
    return m.head(m.a(torch.from_numpy(other - other.mean(0))))


@mixes()
def a_thread_computes_the_mean(m: Any, x: Tensor) -> Tensor:
    h, found = m.a(x), []
    thread = threading.Thread(target=lambda: found.append(h.detach().mean(0)))
    thread.start()
    thread.join()
    return m.head(h - found[0])


@mixes()
def a_checkpoint_mixes(m: Any, x: Tensor) -> Tensor:
    return m.head(checkpoint(lambda x: centred(m.a(x)), x, use_reentrant=False))


@mixes()
def a_reentrant_checkpoint_mixes(m: Any, x: Tensor) -> Tensor:
    return m.head(checkpoint(centred, m.a(x), use_reentrant=True))


@mixes()
def a_vmap_over_features_mixes(m: Any, x: Tensor) -> Tensor:
    return m.head(torch.func.vmap(lambda column: column - column.mean(), in_dims=1, out_dims=1)(m.a(x)))


@mixes()
def a_gradient_inside_mixes(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    (g,) = torch.autograd.grad(h.sum(0).square().sum(), h, create_graph=True)
    return m.head(h - 0.1 * g)


@mixes()
def a_functional_gradient_mixes(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x - 0.1 * torch.func.grad(lambda x: x.sum(0).square().sum())(x)))


@mixes()
def complex_numbers_mix(m: Any, x: Tensor) -> Tensor:
    h = torch.complex(m.a(x), x[:, :1].expand(-1, 8))
    return m.head((h * h.mean(0).conj()).real)


@mixes()
def a_sparse_matrix_mixes(m: Any, x: Tensor) -> Tensor:
    n = len(x)
    where = torch.stack([torch.arange(n), (torch.arange(n) + 1) % n])
    return m.head(torch.sparse.mm(torch.sparse_coo_tensor(where, torch.ones(n), (n, n)), m.a(x)))


@mixes(steps=16)
def mixes_at_random(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(centred(h) if random.random() < 0.3 else h)


@mixes(steps=16)
def mixes_at_random_by_torch(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(centred(h) if torch.rand(()) < 0.3 else h)


@mixes()
def mixes_with_a_random_share(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(h - (torch.rand(()) < 0.3) * h.mean(0))


@mixes()
def mixes_only_in_training(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(centred(h) if m.training else h)


@mixes()
def mixes_only_with_gradients(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(centred(h) if torch.is_grad_enabled() else h)


@mixes()
def mixes_a_little(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(h - 1e-9 * h.mean(0))


@mixes()
def mixes_only_extreme_values(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(h - F.relu(h - 5).sum(0))
