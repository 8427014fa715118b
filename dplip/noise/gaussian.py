"""Gaussian noise: a secret source of draws, each of which is used once."""

from __future__ import annotations

import math
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dplip.errors import ConfigurationError
from dplip.runtime.secret import Secret
from dplip.validate import require_magnitude

_PAIRS = 1 << 16  # pairs drawn at a time on CPU: all their arrays stay in the cache
_PAIRS_ELSEWHERE = 1 << 17
_AHEAD = 8  # blocks made ahead: a million draws, 4 MB


class GaussianNoise(Secret):
    """A source of Gaussian noise of its own, seeded from the operating system.

    Neither ``torch.manual_seed`` nor ``numpy.random.seed`` touches it. A copy, an unpickled object and a forked process
    draw afresh: the generator's state is never stored.

    Args:
        seed: fixes the draws, for tests and demonstrations: whoever knows it can subtract the noise. A seeded source
            cannot be copied or used after a fork, as that would repeat its draws.

    Attributes:
        masks: another secret source, for the model's own draws in a private step.

    Guarantee: every draw is used once. On CPU they come from SFC64 with 128 bits of seed, where PyTorch's own
    generator has 32, and reach 7.5 standard deviations, where PyTorch's float32 normal ends at 5.8. The
    generator is statistical, not cryptographic, and the draws are floating-point numbers.

    Source: Box and Muller 1958.
    """

    def __init__(self, seed: int | None = None) -> None:
        self.masks = Secret(seed, 1)
        super().__init__(seed)

    def restart(self, seed: int | None) -> None:
        self.masks.restart(seed)
        super().restart(seed)

    def separate(self, rank: int) -> None:
        self.masks.separate(rank)
        super().separate(rank)

    def add_to_part_(self, part: Tensor, std: float, size: int) -> Tensor:
        """Add noise to some entries of a tensor that has ``size`` of them; each gets what :meth:`add_` would add."""
        return self.add_(part, std)

    @torch.no_grad()
    def add_(self, tensor: Tensor, std: float) -> Tensor:
        """Add fresh N(0, std^2) noise to every entry in place and return the tensor; std 0 adds nothing.

        Draws are in the tensor's dtype, and in float32 for narrower ones.

        Raises:
            ConfigurationError: std is negative or not finite, or the tensor is not of a float type.
        """
        require_magnitude("std", std)
        if not tensor.is_floating_point():
            raise ConfigurationError(
                f"tensor.dtype={tensor.dtype}: Gaussian noise is real; convert the tensor to a float type"
            )
        if std == 0:
            return tensor
        if not tensor.is_contiguous():
            zeros = torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device)
            return tensor.add_(self.add_(zeros, std))
        bits = self.bits  # read first: a forked process starts afresh here, without old blocks
        dtype = torch.promote_types(tensor.dtype, torch.float32)
        if dtype == torch.float32:
            std = float(np.nextafter(np.float32(std), np.float32(math.inf)))  # add_ might round it down
        key = (tensor.device, dtype)
        flat, start = tensor.view(-1), 0
        with self._one_taker:  # two threads might take the same draws
            if key not in self._pools:
                self._pools[key] = self._pool(bits, tensor.device, dtype)
            while start < flat.numel():
                draws = self._pools[key].take(flat.numel() - start)
                flat[start : start + draws.numel()].add_(draws, alpha=std)
                start += draws.numel()
        return tensor

    def __reduce__(self) -> tuple[Any, ...]:
        super().__reduce__()  # refuses a seeded one
        return (GaussianNoise, ())

    def _pool(self, bits: np.random.SFC64, device: torch.device, dtype: torch.dtype) -> _Pool:
        if device.type == "cpu":
            return _OnCpu(bits, dtype, made_ahead=not self.seeded)
        return _Elsewhere(bits, device, dtype)

    def _start(self) -> None:
        super()._start()
        self._pools: dict[tuple[torch.device, torch.dtype], _Pool] = {}
        self._one_taker = Lock()  # a new one after a fork, which may come while it is taken


class _Pool:
    """Standard normal draws for one device and dtype, each handed out once."""

    def __init__(self, bits: np.random.SFC64, device: torch.device, dtype: torch.dtype) -> None:
        self._bits = bits
        self._draws = torch.empty(0, dtype=dtype, device=device)
        self._used = 0

    def take(self, count: int) -> Tensor:
        """At most ``count`` draws that were never handed out before; good until the next call."""
        if self._used == self._draws.numel():
            self._draws, self._used = self._next(self._draws), 0
        draws = self._draws[self._used : self._used + count]
        self._used += draws.numel()
        return draws

    def _next(self, spent: Tensor) -> Tensor:
        """The next block of draws, which may take the memory of the spent one."""
        raise NotImplementedError


class _OnCpu(_Pool):
    """Blocks made by numpy in reused memory, as fresh memory costs as much as the draws.

    A secret source makes blocks ahead, in a thread beside the model; a seeded source makes them when they are taken.
    """

    def __init__(self, bits: np.random.SFC64, dtype: torch.dtype, made_ahead: bool) -> None:
        super().__init__(bits, torch.device("cpu"), dtype)
        self._shifted, self._radius = np.empty(_PAIRS, np.int64), torch.empty(_PAIRS, dtype=dtype).numpy()
        self._thread = ThreadPoolExecutor(1, "noise") if made_ahead else None
        self._ahead: deque[Future[Tensor]] = deque()

    def _next(self, spent: Tensor) -> Tensor:
        if self._thread is None:
            return self._block(spent)
        self._ahead.append(self._thread.submit(self._block, spent))
        while len(self._ahead) < _AHEAD:
            self._ahead.append(self._thread.submit(self._block, torch.empty(0, dtype=spent.dtype)))
        return self._ahead.popleft().result()

    def _block(self, spent: Tensor) -> Tensor:
        # Box-Muller: each word gives two independent draws, by 39 bits and a sign for the radius (|k + 1/2| is as
        # uniform for either sign of the shifted word k), and 24 bits for the angle.
        draws = spent if spent.numel() else torch.empty(2 * _PAIRS, dtype=spent.dtype)
        first, second = draws.view(2, -1).numpy()
        words, shifted, radius = self._bits.random_raw(_PAIRS).view(np.int64), self._shifted, self._radius
        np.right_shift(words, 24, out=shifted)
        np.copyto(radius, shifted, casting="same_kind")
        radius += 0.5
        np.abs(radius, out=radius)
        radius *= 2.0**-39  # uniform in (0, 1]
        np.log(radius, out=radius)
        radius *= -2
        np.sqrt(radius, out=radius)
        np.bitwise_and(words, 0xFFFFFF, out=shifted)
        np.copyto(second, shifted, casting="same_kind")
        second *= 2 * math.pi / 2**24
        np.cos(second, out=first)
        np.sin(second, out=second)
        first *= radius
        second *= radius
        return draws


class _Elsewhere(_Pool):
    """Blocks made by torch on the device itself, by the same method from words of 63 bits."""

    def __init__(self, bits: np.random.SFC64, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(bits, device, dtype)
        self._generator = torch.Generator(device).manual_seed(int(bits.random_raw()) >> 1)

    def _next(self, spent: Tensor) -> Tensor:
        words = torch.empty(_PAIRS_ELSEWHERE, dtype=torch.int64, device=spent.device)
        words.random_(generator=self._generator)
        radius = (words >> 24).to(spent.dtype).add_(0.5).mul_(2.0**-39)
        radius.log_().mul_(-2).sqrt_()
        angle = words.bitwise_and_(0xFFFFFF).to(spent.dtype).mul_(2 * math.pi / 2**24)
        return torch.cat([angle.cos().mul_(radius), angle.sin_().mul_(radius)])
