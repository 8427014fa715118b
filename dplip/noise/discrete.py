"""Discrete noise: the sum is rounded to a grid, and an exact discrete Gaussian is added to it in integers.

Why this is the mechanism that is accounted for:

1. *Grid.* A parameter of d entries whose noise has deviation s gets a grid of spacing g, a power of two at most
   ``e s / sqrt(d)``. Rounding moves each of two neighbouring sums by at most ``g sqrt(d) / 2``, so in units of s they
   come to lie at most e further apart. Over L parameters the joint distance grows from 1 / sigma to at most
   ``1 / sigma + e sqrt(L)`` (Minkowski). Drawing with ``s (1 + t)`` makes up for it if ``e sqrt(L) sigma <= t``.
2. *Integers.* From then on all is integer: sums and noise are multiples of g, exactly representable in 63 bits; what
   follows (the conversion to floats) is post-processing. No low-order bit depends on the sum in another way.
3. *Noise.* Two discrete Gaussians on Z^d of deviation S whose centres are integer points D apart have, at every order
   a, the Renyi divergence a D^2 / (2 S^2) at most (Canonne, Kamath, Steinke 2020, arXiv 2004.00010, proposition 5), as
   continuous ones have. For the subsampled mixture the moment is a sum over Z^d of e^{-|x|^2 / 2 S^2} times ((1 - q)
   + q e^{(2 <c, x> - D^2) / 2 S^2})^a. At a whole order a the power expands into Gaussians around the integer points
   j c, which have all the same sum: the moment is the continuous one exactly. At other orders, by Poisson's
   summation, it is the integral up to the dual vectors k != 0. Split k along c and across. Across, the integrand is
   Gaussian and gives e^{-2 pi^2 S^2 |k_across|^2}; along, it is analytic up to h = min(1, sigma) S and gives e^{1/2 -
   2 pi h |k_along|}. Where |k_along| <= 1/2, |k_across|^2 >= |k|^2 - 1/4 >= 3 |k|^2 / 4, and those k sum to some 2 d
   e^{-3 pi^2 S^2 / 2}. The others lie in slabs of thickness 1 / S across the axis, where |k_across|^2 >= |k - p|^2 -
   1 / S^2 around the slab's point p on it: each sums to e^{2 pi^2} (1 + 4 e^{-2 pi^2 S^2})^d at most (a theta
   function is largest unshifted), and together to e^{21 - pi h} (2 / min(1, sigma)) times that power. With h > 100
   all of it is below e^-250 relatively. Where parameters differ in S, scale each coordinate and take the least S.
   So the RDP of a step is that of the continuous Gaussian, and the accountant "rdp" applies. The reversed direction is
   the smaller one by the reflection x -> c - x, which maps the lattice to itself (Mironov, Talwar, Zhang 2019,
   1908.10530, theorem 5). Replacing an example is bounded by these two
   (dplip.accounting.replace_one). Numerical accountants (PRV, PLD) compose continuous losses and are refused.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dplip.errors import ConfigurationError
from dplip.noise.gaussian import GaussianNoise
from dplip.validate import require_magnitude

_LOOSENESS = 1e-5  # t: the relative increase of the noise, for the grid
_BITS = 62  # sums and noise stay below 2^62 grid units


class SecureNoise(GaussianNoise):
    """Discrete Gaussian noise from OpenDP, exact and with the operating system's entropy; the extra ``secure``.

    Args:
        noise_multiplier: sigma of the mechanism that the deviations were split from.
        parameters: L, the number of parameters.

    Raises:
        ConfigurationError: OpenDP is not installed.

    Guarantee: with the noise of :func:`dplip.noise.split`, a step is as private in RDP as its event says, whatever
    floats do. There is no seed. Sampling takes a time that depends on the draws: an adversary who times a
    step to microseconds is not defended against.

    Source: Canonne, Kamath, Steinke 2020 (arXiv 2004.00010), by way of OpenDP.
    """

    def __init__(self, noise_multiplier: float, parameters: int) -> None:
        super().__init__()
        self._noise_multiplier, self._parameters = noise_multiplier, parameters
        self._samplers: dict[float, Callable[[list[int]], list[int]]] = {}
        self._dp = _opendp()

    @torch.no_grad()
    def add_(self, tensor: Tensor, std: float) -> Tensor:
        """Replace the sum by its rounding to the grid plus fresh discrete noise; std 0 adds nothing.

        Raises:
            ConfigurationError: the sum does not fit the grid, which a sum within its sensitivity always does.
        """
        return self.add_to_part_(tensor, std, tensor.numel())

    @torch.no_grad()
    def add_to_part_(self, tensor: Tensor, std: float, size: int) -> Tensor:
        """The same for some entries of a parameter that has ``size`` of them, on the grid of the whole."""
        require_magnitude("std", std)
        if not tensor.is_floating_point():
            raise ConfigurationError(f"tensor.dtype={tensor.dtype}: Gaussian noise is real; pass a float tensor.")
        if std == 0:
            return tensor
        std *= 1 + _LOOSENESS
        grid = self.grid(std, size)
        scale = std / grid
        if scale < 100 / min(1.0, self._noise_multiplier):
            raise ConfigurationError(
                f"scale={scale}: a grid this coarse is not covered. Use a smaller noise multiplier."
            )
        units = (tensor.double() / grid).round()
        if not bool((units.abs() < 2.0**_BITS).all()):
            raise ConfigurationError(
                "The summed gradient is not finite, or too large for the grid. Put BallProjection first in the model."
            )
        whole = self._sampler(scale)(units.to(torch.int64).flatten().tolist())
        noisy = torch.tensor(whole, dtype=torch.float64).mul_(grid).reshape(tensor.shape)
        return tensor.copy_(noisy)

    def grid(self, std: float, size: int) -> float:
        """The spacing for a parameter of so many entries: a power of two."""
        sigma = max(self._noise_multiplier, 1e-3)
        finest = _LOOSENESS / (sigma * math.sqrt(self._parameters)) * std / math.sqrt(size)
        return 2.0 ** math.floor(math.log2(finest))

    def _sampler(self, scale: float) -> Callable[[list[int]], list[int]]:
        if scale not in self._samplers:
            self._samplers.clear()
            dp = self._dp
            space = dp.vector_domain(dp.atom_domain(T="i64")), dp.l2_distance(T="f64")
            self._samplers[scale] = dp.m.make_gaussian(*space, scale=scale)
        return self._samplers[scale]

    def __reduce__(self) -> tuple[Any, ...]:
        return (SecureNoise, (self._noise_multiplier, self._parameters))


def secure_noise(noise_multiplier: float, model: nn.Module) -> SecureNoise:
    """The noise of all trainable parameters of a model, and of the slack coordinates beside them."""
    slack = sum(getattr(m, "slack", None) is not None for m in model.modules())
    return SecureNoise(noise_multiplier, max(1, slack + sum(p.requires_grad for p in model.parameters())))


def noise_of(noise_multiplier: float, model: nn.Module, seed: int | None, secure: bool) -> GaussianNoise:
    """The noise of a model's steps: secure, or a Gaussian of fresh entropy or of a stream of the seed's own."""
    if secure:
        return secure_noise(noise_multiplier, model)
    return GaussianNoise(None if seed is None else seed + 1)


def check_secure(accountant: str, seed: int | None, sampling: str = "poisson") -> None:
    """Refuse settings that secure noise does not support.

    Raises:
        ConfigurationError: a seed, an accountant of continuous losses, or batches that the proof above does not cover.
    """
    if seed is not None:
        raise ConfigurationError(
            f"seed={seed}: secure noise comes from the operating system alone. Leave the seed out."
        )
    if sampling != "poisson":
        raise ConfigurationError(
            f"sampling={sampling!r}: that discrete noise costs what continuous noise costs is proved for Poisson "
            "batches and full ones. Use 'poisson'."
        )
    if accountant != "rdp":
        raise ConfigurationError(
            f"accountant={accountant!r}: it composes continuous losses, and secure noise is discrete. Use 'rdp'."
        )


def _opendp() -> Any:
    try:
        dp = importlib.import_module("opendp.prelude")
    except ImportError:
        raise ConfigurationError("secure=True: OpenDP is not installed: pip install 'dplip[secure]'.") from None
    dp.enable_features("contrib")
    return dp
