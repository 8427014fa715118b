"""The wavelet scattering transform: fixed features of an image, with a certified Lipschitz constant."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from dplip.errors import ConfigurationError
from dplip.norms import Norms, OperatorNorms
from dplip.rules import Pullback, refuse_module, rule, through

Array = NDArray[Any]

ANGLES = 8
"""Orientations of the wavelets over half a turn; for a real image the other half gives the same moduli."""

TRANSFORM_SLACK = 1e-4
"""Relative slack for the float32 rounding of a transform, of some hundreds of additions."""

BORDER = 4
"""Width of the border of zeros around the image, in pixels; the filters wrap around the padded image."""


class Scattering2d(nn.Module):
    """Wavelet scattering of every channel: local means of the image and of its wavelet moduli of orders 1 and 2.

    With ``g`` a Gaussian and ``w`` Morlet wavelets of 2 scales and 8 angles (``*``: circular convolution of the image
    with a border of 4 zeros), the 81 maps are ``x * g``, ``|x * w1| * g`` and ``||x * w1| * w2| * g`` with w2 coarser
    than w1, each at every fourth pixel.

    Args:
        size: height and width of the square image, a multiple of 4.

    Shape: (batch, channels, size, size) to (batch, 81 channels, size / 4, size / 4).

    Guarantee: Lipschitz in l2 with the constant of :func:`scattering_lipschitz` (about 0.257), certified from the
    filters. The zero image maps to zero, so the output is bounded by that constant times the image's norm.
    Source: Bruna and Mallat, "Invariant scattering convolution networks", 2013; filters as in Kymatio (Andreux et al.,
    2020).
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        if size < 8 or size % 4:
            raise ConfigurationError(f"size={size}: images are square, of a side that is a multiple of 4, 8 or more.")
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        batch, channels = x.shape[:2]
        fine, coarse, mean, mean_of_half = filters(self.size, x.dtype, x.device)
        wide = F.pad(x.flatten(0, 1), (BORDER,) * 4)
        spectrum = torch.fft.fft2(wide)[:, None]
        first = torch.fft.ifft2(spectrum * fine).abs()
        slow = torch.fft.ifft2(_halved(spectrum * coarse)).abs()
        second = torch.fft.ifft2(_halved(torch.fft.fft2(first)[:, :, None] * coarse)).abs().flatten(1, 2)
        maps = [_local_means(wide[:, None], mean), _local_means(first, mean)]
        maps += [_local_means(slow, mean_of_half), _local_means(second, mean_of_half)]
        return torch.cat(maps, 1).reshape(batch, 81 * channels, self.size // 4, self.size // 4)

    def extra_repr(self) -> str:
        return f"size={self.size}"


@functools.cache
def filters(size: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """The filters for images of one size, computed in float64: wavelets and local means of two scales each."""
    full = size + 2 * BORDER
    window, at_half = _windows(full)
    made = (wavelets(full, 0), wavelets(full, 1), _means(window, 4, size), _means(at_half, 2, size))
    with torch.inference_mode(False):  # cached filters are used outside of inference mode too
        return tuple(torch.from_numpy(f).to(device, dtype) for f in made)


@functools.cache
def scattering_lipschitz(size: int) -> float:
    """An upper bound on the l2 Lipschitz constant of :class:`Scattering2d`, computed from the filters in float64.

    Proof: the modulus is 1-Lipschitz, so ``|S x - S y|^2`` is at most a quadratic form of d = x - y. The form is built
    from the last layer: the form of the maps after a wavelet is at most its largest eigenvalue times the square norm
    of the wavelet map's difference. Every form is a sum of terms ``|(d * h)[::s, ::s]|^2``, which in Fourier space
    couple only the frequencies that s merges; the average of a form over d(f) and conj(d(-f)) is the form on real
    signals. The means leave the border out, which can only lower the norm.
    """
    full = size + 2 * BORDER
    g, g_of_half = map(_spectrum, _windows(full))
    fine, coarse = wavelets(full, 0), wavelets(full, 1)
    after_coarse = _largest([(1.0, g_of_half, 2)], 2)
    slow = [(after_coarse, w, 2) for w in coarse]
    after_fine = _largest([(1.0, g, 4), *slow], 4)
    return math.sqrt(_largest([(1.0, g, 4), *slow, *((after_fine, w, 1) for w in fine)], 4)) * (1 + TRANSFORM_SLACK)


def _halved(spectrum: Tensor) -> Tensor:
    """The spectrum of every second pixel, along both axes."""
    n = spectrum.shape[-1] // 2
    low, high = spectrum[..., :n, :], spectrum[..., n:, :]
    return (low[..., :n] + low[..., n:] + high[..., :n] + high[..., n:]) * 0.25


def _local_means(maps: Tensor, mean: Tensor) -> Tensor:
    return mean @ maps @ mean.T


def _windows(n: int) -> tuple[Array, Array]:
    """A Gaussian of sum 1 and deviation 1.6 on a circle of n points, and its low band on n / 2 points."""
    x = np.arange(n)[:, None] + n * np.arange(-2, 2)
    values = np.exp(-0.5 * (x / 1.6) ** 2).sum(1)
    spectrum = np.fft.fft(values / values.sum())
    band = np.concatenate([spectrum[: n // 4], spectrum[n - n // 2 + n // 4 :]])
    return values / values.sum(), np.fft.ifft(band).real


def _means(window: Array, step: int, size: int) -> Array:
    """The matrix of local means: row k is the window centred at pixel 4 k of the image inside its border."""
    n, scale = len(window), 4 // step  # image pixels per point of the window
    centres = BORDER // scale + step * np.arange(size // 4)
    return window[(np.arange(n)[None, :] - centres[:, None]) % n]


def _spectrum(window: Array) -> Array:
    """The real Fourier transform of an even window along both axes."""
    axis = np.fft.fft(window).real
    return axis[:, None] * axis[None, :]


def wavelets(n: int, j: int) -> Array:
    """The real Fourier transforms of the Morlet wavelets of scale j on a torus of n by n pixels, shape (8, n, n)."""
    made = []
    for k in range(ANGLES):
        theta = (ANGLES // 2 - 1 - k) * math.pi / ANGLES
        envelope, wave = (_gabor(n, theta, 0.8 * 2**j, xi) for xi in (0.0, 0.75 * math.pi / 2**j))
        made.append(np.fft.fft2(wave - wave.sum() / envelope.sum() * envelope).real)  # the wavelet has mean 0
    return np.stack(made)


def _gabor(n: int, theta: float, sigma: float, xi: float) -> Array:
    """A periodic wave of frequency xi along theta under a Gaussian that is ANGLES / 4 times longer across theta."""
    slant = 4 / ANGLES
    rotation = np.array([[math.cos(theta), -math.sin(theta)], [math.sin(theta), math.cos(theta)]])
    curvature = rotation @ np.diag([1.0, slant**2]) @ rotation.T / (2 * sigma**2)
    axis = np.arange(-2 * n, 3 * n)
    x, y = np.meshgrid(axis, axis, indexing="ij")
    quadratic = curvature[0, 0] * x * x + 2 * curvature[0, 1] * x * y + curvature[1, 1] * y * y
    values = np.exp(-quadratic + 1j * xi * (x * math.cos(theta) + y * math.sin(theta)))
    return values.reshape(5, n, 5, n).sum((0, 2)) * slant / (2 * math.pi * sigma**2)


def _largest(terms: list[tuple[float, Array, int]], merged: int) -> float:
    """The largest eigenvalue, on real signals d, of the sum of ``weight * |(d * h)[::s, ::s]|^2``.

    ``terms`` holds (weight, spectrum of h, s) with s a divisor of ``merged``. Frequencies that differ by a multiple of
    n / s merge, with weight 1 / s^2, so the form is one matrix for each class of frequencies modulo n / ``merged``.
    """
    n = terms[0][1].shape[0]
    form: Array = np.zeros((n // merged,) * 2 + (merged**2,) * 2, dtype=complex)
    for weight, h, s in terms:
        mirrored = np.conj(np.roll(h[::-1, ::-1], (1, 1), (0, 1)))
        k = np.arange(merged)
        # In units of n / merged, a stride s merges members that differ by a multiple of merged / s.
        same = (k[:, None] - k[None, :]) % (merged // s) == 0
        meets = (same[:, None, :, None] & same[None, :, None, :]).reshape(merged**2, merged**2)
        for spectrum in (h, mirrored):
            members = spectrum.reshape(merged, n // merged, merged, n // merged).transpose(1, 3, 0, 2)
            v = members.reshape(n // merged, n // merged, merged**2)
            form += 0.5 * weight / s**2 * (np.conj(v)[..., :, None] * v[..., None, :]) * meets
    return float(np.linalg.eigvalsh(form).max())


@rule(Scattering2d)
def scattering(module: Scattering2d, x: Norms) -> tuple[Norms, Pullback]:
    if len(x.shape) != 3 or x.shape[1:] != (module.size,) * 2:
        refuse_module(module, f"is given one example of shape {x.shape}.", "Give it (channels, size, size).")
    shape = (81 * x.shape[0], module.size // 4, module.size // 4)
    # Channels are transformed separately, so the constant is that of one channel.
    return through(OperatorNorms(two_two=scattering_lipschitz(module.size)), x, shape)
