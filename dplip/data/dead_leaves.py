"""Synthetic images that resemble no data set: shapes that cover each other, each with a colour and a texture."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]

LEAVES = 8
"""Number of shapes of an image, each of which is drawn with probability 0.6."""


def dead_leaves(count: int, size: int, channels: int = 1, seed: int = 0) -> Tensor:
    """Random images of ellipses, rectangles and diamonds before a black ground: (count, channels, size, size).

    Pixels are float32 in [0, 1]. The same arguments give the same images everywhere, up to rounding: the generator is
    numpy's ``RandomState``, whose streams are frozen.

    Guarantee: a function of its arguments alone, so whatever is computed from it costs no privacy.
    Source: Lee, Mumford, Huang, "Occlusion models for natural images", 2001; Baradad et al., "Learning to see by
    looking at noise", 2021.
    """
    chance = np.random.RandomState(seed)
    axis = (np.arange(size) + 0.5) / size * 2 - 1
    images = np.zeros((count, channels, size, size))

    def uniform(low: float = 0.0, high: float = 1.0) -> Array:
        return low + (high - low) * chance.random_sample((count, 1, 1))

    from scipy.special import expit  # late: it takes a quarter of a second

    for _ in range(LEAVES):
        x, y = axis[None, :] - uniform(-0.8, 0.8), axis[:, None] - uniform(-0.8, 0.8)
        angle, kind = uniform(0.0, math.pi), uniform()
        a, b = 0.08 + 0.9 * uniform() ** 1.5, 0.08 + 0.9 * uniform() ** 1.5
        u = abs(x * np.cos(angle) + y * np.sin(angle)) / a
        v = abs(y * np.cos(angle) - x * np.sin(angle)) / b
        distance = np.where(kind < 1 / 3, np.hypot(u, v), np.where(kind < 2 / 3, np.maximum(u, v), u + v))
        inside = expit((1 - distance) * np.minimum(a, b) * size * 0.75)  # an edge about a pixel wide
        inside *= uniform() < 0.6
        colour = uniform()[:, None] + 0.3 * (channels > 1) * chance.standard_normal((count, channels, 1, 1))
        leaf = np.clip(colour + (0.25 * uniform() * _texture(chance, count, size))[:, None], 0.0, 1.0)
        images += inside[:, None] * (leaf - images)
    return torch.from_numpy(images).float().clamp(0.0, 1.0)


def _texture(chance: np.random.RandomState, count: int, size: int) -> Array:
    """Noise whose amplitude falls as one over the frequency, as in natural images, of deviation 1."""
    frequency = np.fft.fftfreq(size)
    distance = np.hypot(frequency[:, None], frequency[None, :])
    distance[0, 0] = np.inf
    noise = np.fft.ifft2(np.fft.fft2(chance.standard_normal((count, size, size))) / distance).real
    return noise / noise.std((1, 2), keepdims=True)
