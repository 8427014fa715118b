"""Compiled loops for the distances, built once a process if the machine has a C compiler."""

from __future__ import annotations

import ctypes
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

LANES = 32
"""Rows that the compiled loops process at once."""

MOST = 32
"""The most order statistics that the compiled loops can keep."""

WORTH = 2_000_000
"""The least number of differences for which the compiled loops are used, since building them takes a second."""


@cache
def library() -> ctypes.CDLL | None:
    """The compiled loops; None without a C compiler, or with DPLIP_KERNEL=0 in the environment."""
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    if compiler is None or os.environ.get("DPLIP_KERNEL") == "0":
        return None
    source = Path(__file__).with_name("distance.c")
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "distance.so"
        # No -ffast-math: the comparisons stay those of IEEE arithmetic, NaN included.
        flags = ["-O3", "-march=native", "-ffp-contract=off", "-shared", "-fPIC"]
        try:
            subprocess.run([compiler, *flags, str(source), "-o", str(built), "-lm"], check=True, capture_output=True)
            return ctypes.CDLL(str(built))
        except (OSError, subprocess.CalledProcessError):
            return None


def usable(x: Tensor, points: Tensor) -> bool:
    """Whether the compiled loops support these tensors and are worthwhile for their size."""
    plain = all(t.dtype == torch.float32 and t.device.type == "cpu" for t in (x, points))
    return plain and x.shape[0] * points.numel() >= WORTH and library() is not None


def columns(x: Tensor) -> Tensor:
    """The transpose of x, padded with zero columns to a multiple of ``LANES``."""
    n, d = x.shape
    wide = x.new_zeros(d, -(-n // LANES) * LANES)
    wide[:, :n] = x.detach().T
    return wide


def winners(x: Tensor, points: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
    """The values and the codes ``sign * (position + 1)`` of the largest ``keep_i |x_i - w_ji|``, each (n, m)."""
    wide, kept = columns(x), None if keep is None else columns(keep)
    n, m = wide.shape[1], points.shape[0]
    points = points.detach().contiguous()
    values, code = x.new_empty(m, n), torch.empty(m, n, dtype=torch.int32)
    sizes = (n, m, x.shape[1])
    _run("winners", n, (wide, kept, points, values, code), sizes)
    return values[:, : len(x)].T, code[:, : len(x)].T


def ranked(above: Tensor, below: Tensor, points: Tensor, omega: Tensor) -> Tensor:
    """``sum_k omega_k z_(k)`` of the differences ``max(a_i - w_ji, w_ji - b_i, 0)``, shape (n, m)."""
    a = columns(above)
    b = a if below is above else columns(below)
    n, m = a.shape[1], points.shape[0]
    points = points.detach().contiguous()
    values = above.new_empty(m, n)
    _run("ranked", n, (a, b, points, omega.contiguous(), values), (n, m, above.shape[1], len(omega)))
    return values[:, : len(above)].T


def squarings(p: float) -> int | None:
    """k if p = 2^k with k from 1 to 12, which the compiled power mean supports; else None."""
    k = int(math.log2(p)) if 2 <= p <= 2**12 else 0
    return k if k and 2.0**k == p else None


def means(x: Tensor, points: Tensor, keep: Tensor | None, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The power means of exponent 2^k, shape (n, m), and two tensors (m, n) for the backward pass."""
    wide, kept = columns(x), None if keep is None else columns(keep)
    n, m = wide.shape[1], points.shape[0]
    values, top, total = (x.new_empty(m, n) for _ in range(3))
    _run("means", n, (wide, kept, points.detach().contiguous(), values, top, total), (n, m, x.shape[1], k))
    return values[:, : len(x)].T, top, total


def means_backward(
    x: Tensor, points: Tensor, keep: Tensor | None, k: int, g: Tensor, top: Tensor, total: Tensor
) -> tuple[Tensor, Tensor]:
    """The cotangents of x (n, d) and of the points (m, d)."""
    wide, kept = columns(x), None if keep is None else columns(keep)
    n, (m, d) = wide.shape[1], points.shape
    in_x = torch.zeros_like(wide)
    in_w = [x.new_zeros(m, d) for _ in range(_workers(n))]  # one for each thread, to avoid races
    tensors = (wide, kept, points.detach().contiguous(), columns(g), top, total, in_x, in_w)
    _run("means_backward", n, tensors, (n, m, d, k))
    return in_x[:, : len(x)].T, torch.stack(in_w).sum(0)


def _workers(n: int) -> int:
    return min(torch.get_num_threads(), max(1, n // LANES))


def _pointer(t: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if t is None else t.data_ptr())


def _run(name: str, n: int, tensors: tuple[Tensor | list[Tensor] | None, ...], sizes: tuple[int, ...]) -> None:
    """Run a compiled loop over all rows, split among as many threads as torch has (ctypes releases the GIL)."""
    function: Callable[..., Any] = getattr(library(), name)
    workers = _workers(n)
    edges = [n // LANES * k // workers * LANES for k in range(workers + 1)]

    def part(k: int) -> None:
        pointers = [_pointer(t[k] if isinstance(t, list) else t) for t in tensors]
        function(*pointers, *[ctypes.c_long(s) for s in (edges[k], edges[k + 1], *sizes)])

    if workers == 1:
        part(0)
        return
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(part, range(workers)))
