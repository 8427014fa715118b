"""A denoiser that is an averaged operator, with each activation, and plug-and-play deblurring with it.

usage: python examples/denoiser.py [--data-dir DIR] [--sigma 0.1] [--steps 400] [--lr 1e-3] [--plot FILE.png] [--quick]

The denoiser is D = (I + R) / 2, where R is three 3 x 3 convolutions of certified norm at most 1 with biases, and an
activation between them: R is 1-Lipschitz, so D is firmly nonexpansive. It is trained on noisy grey images of CIFAR-10
(2,000 of the training images) and judged on 200 test images; without --data-dir on handwritten digits of 8 x 8 pixels.

Plug-and-play: y = H x + noise with a circular blur H, |H| = 1; x <- D_t(x - H^T (H x - y)) with D_t = (1 - t) I + t D.
The gradient step is 1/2-averaged, D_t too for t in (0, 1], and a composition of averaged operators is averaged: the
iteration converges to a fixed point wherever there is one, and |x_(k+1) - x_k| never grows. The strength t is chosen
for each denoiser on 20 images of the training data that it was not trained on.
Source: Ducotterd and others, 2024 (arXiv 2210.16222), and Ryu and others, 2019 (arXiv 1905.05406) for the iteration.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from spline_nets import ACTIVATIONS as COMMON
from spline_nets import groups, project
from torch import Tensor, nn

import dplip
from dplip import nn as dn
from dplip.data import load

ACTIVATIONS = {**COMMON, "spline": lambda width: dn.LinearSpline(width, 21, 0.5, "identity")}
"""The same activations, with splines that start with R as the identity and reach as far as these responses do."""
STRENGTHS = (0.03, 0.1, 0.3, 1.0)
PATCH = 16
"""Side of the square patches that training sees."""


def images(data_dir: str | None) -> tuple[Tensor, Tensor]:
    """Grey images of the training and the test data, shape (count, 1, height, width), in [0, 1]."""
    data = load("cifar10" if data_dir else "digits", data_dir)
    parts = (data.train.tensors[0], data.test.tensors[0])
    return tuple(p.float().reshape(len(p), *data.input_shape).mean(1, keepdim=True) for p in parts)


@torch.no_grad()
def near_identity(convolution: nn.Conv2d, spread: float = 0.02) -> None:
    """Start a convolution as the identity (or as copies, or their average), and a little of what it was.

    A kernel is scaled to norm 1, not projected onto it: of a random start, which stretches few directions far, that
    leaves a map which loses most of the image, and training has to recover it first.
    """
    out, inside = convolution.weight.shape[:2]
    middle = torch.eye(out) if out == inside else torch.full((out, inside), max(out, inside) ** -0.5)
    convolution.weight.mul_(spread)
    convolution.weight[:, :, 1, 1] += middle
    nn.init.zeros_(convolution.bias)


class Denoiser(nn.Module):
    """D = (I + R) / 2 with a 1-Lipschitz R."""

    def __init__(self, activation: Callable[[int], nn.Module], channels: int = 16) -> None:
        super().__init__()
        convolutions = [
            dn.SpectralConv2d(a, b, 3, padding=1, bias=True)
            for a, b in ((1, channels), (channels, channels), (channels, 1))
        ]
        for convolution in convolutions:
            near_identity(convolution)
        self.residual = nn.Sequential(
            convolutions[0], activation(channels), convolutions[1], activation(channels), convolutions[2]
        )

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.residual(x)) / 2


def psnr(x: Tensor, truth: Tensor) -> float:
    """The mean over images of the peak signal-to-noise ratio in dB, for a peak of 1."""
    errors = (x - truth).square().flatten(1).mean(1)
    return float((-10 * errors.log10()).mean())


def train(
    activation: Callable[[int], nn.Module], clean: Tensor, sigma: float, steps: int, seed: int, lr: float = 1e-3
) -> Denoiser:
    torch.manual_seed(seed)
    model = Denoiser(activation)
    project(model)
    patch = [min(PATCH, n) for n in clean.shape[2:]]
    optimizer = torch.optim.Adam(groups(model, lr, 20.0))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        top, left = (int(torch.randint(n - side + 1, ())) for n, side in zip(clean.shape[2:], patch, strict=True))
        x = clean[torch.randint(len(clean), (32,)), :, top : top + patch[0], left : left + patch[1]]
        optimizer.zero_grad()
        (model(x + sigma * torch.randn_like(x)) - x).square().mean().backward()
        optimizer.step()
        schedule.step()
        project(model)
    dplip.project(model)
    return model


def noisy(x: Tensor, sigma: float) -> Tensor:
    return x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))


class Blur:
    """Convolution with a Gaussian of standard deviation 1.2 pixels on the torus: symmetric, with norm 1."""

    def __init__(self, size: tuple[int, int]) -> None:
        axes = [torch.minimum(torch.arange(n), n - torch.arange(n)).double() for n in size]
        kernel = torch.exp(-(axes[0][:, None].square() + axes[1].square()) / (2 * 1.2**2))
        self.symbol = torch.fft.rfft2(kernel / kernel.sum())

    def __call__(self, x: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(x.double()) * self.symbol, s=x.shape[-2:]).to(x.dtype)


@torch.no_grad()
def deblur(denoiser: Denoiser, y: Tensor, blur: Blur, strength: float, iterations: int) -> tuple[Tensor, list[float]]:
    """The last iterate, and the root mean square of every change."""
    x, changes = y, []
    for _ in range(iterations):
        z = x - blur(blur(x) - y)
        new = (1 - strength) * z + strength * denoiser(z)
        changes.append(float((new - x).square().mean().sqrt()))
        x = new
    return x, changes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="the folder of CIFAR-10")
    parser.add_argument("--sigma", type=float, default=0.1, help="standard deviation of the noise")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate; that of splines is 20 times it")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--plot", help="draw images and convergence here")
    parser.add_argument("--json", help="write the figures here")
    parser.add_argument("--activations", nargs="*", default=list(ACTIVATIONS))
    parser.add_argument("--quick", action="store_true", help="one seed of 20 steps each")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds, arguments.steps, arguments.iterations = 1, 20, 30
    train_images, test_images = images(arguments.data_dir)
    clean, held_out, test = train_images[:2000], train_images[-20:], test_images[:200]
    blur = Blur((test.shape[2], test.shape[3]))
    noise = 0.02
    held_out_blurred, test_blurred = noisy(blur(held_out), noise), noisy(blur(test[:50]), noise)
    inputs = {"denoised": psnr(noisy(test, arguments.sigma), test), "deblurred": psnr(test_blurred, test[:50])}
    print(f"{'input':<16} noisy {inputs['denoised']:.2f} dB, blurred {inputs['deblurred']:.2f} dB", flush=True)
    results: dict[str, dict[str, Any]] = {}
    pictures: dict[str, tuple[Tensor, Tensor]] = {}
    for name in arguments.activations:
        started = time.perf_counter()
        runs = [
            train(ACTIVATIONS[name], clean, arguments.sigma, arguments.steps, seed, arguments.lr)
            for seed in range(arguments.seeds)
        ]
        with torch.no_grad():
            denoised = [psnr(model(noisy(test, arguments.sigma)), test) for model in runs]
            constant = max(dplip.lipschitz(model.residual, tuple(test.shape[1:])) for model in runs)
        model = runs[0]
        tried = {t: psnr(deblur(model, held_out_blurred, blur, t, 100)[0], held_out) for t in STRENGTHS}
        strength = max(tried, key=lambda t: tried[t])
        restored, changes = deblur(model, test_blurred, blur, strength, arguments.iterations)
        results[name] = {
            "denoised": denoised,
            "deblurred": psnr(restored, test[:50]),
            "strength": strength,
            "changes": changes,
            "lipschitz": constant,
        }
        pictures[name] = (model(noisy(test[:4], arguments.sigma)).detach(), restored[:4])
        growth = max(b / a for a, b in itertools.pairwise(changes))
        print(
            f"{name:<16} denoised {statistics.mean(denoised):.2f} dB ({min(denoised):.2f} to {max(denoised):.2f}), "
            f"deblurred {results[name]['deblurred']:.2f} dB at strength {strength:g}, last change {changes[-1]:.1e}, "
            f"largest growth of a change {growth:.4f}, Lipschitz {constant:.4f}, {time.perf_counter() - started:.0f} s",
            flush=True,
        )
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"sigma": arguments.sigma, "steps": arguments.steps, "inputs": inputs, "rows": results}, file)
    if arguments.plot:
        draw(results, pictures, test[:4], noisy(test, arguments.sigma)[:4], test_blurred[:4], arguments.plot)


def draw(
    results: dict[str, dict[str, Any]],
    pictures: dict[str, tuple[Tensor, Tensor]],
    truth: Tensor,
    noise: Tensor,
    blurred: Tensor,
    path: str,
) -> None:
    """Denoised and deblurred images of the first test images, and how fast the iteration converges."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [name for name in ("ReLU", "spline") if name in pictures]
    columns = [("truth", truth), ("noisy", noise)] + [(f"{n}, denoised", pictures[n][0]) for n in names]
    columns += [("blurred", blurred)] + [(f"{n}, deblurred", pictures[n][1]) for n in names]
    figure = plt.figure(figsize=(13, 5.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(8, 5))
    grid = left.subplots(4, len(columns))
    for row in range(4):
        for column, (title, shown) in enumerate(columns):
            axes = grid[row, column]
            axes.imshow(shown[row, 0], cmap="gray", vmin=0, vmax=1)
            axes.set_axis_off()
            if row == 0:
                axes.set_title(title.replace(", ", "\n"), fontsize=8)
    axes = right.subplots()
    for name, result in results.items():
        axes.plot(range(1, 1 + len(result["changes"])), result["changes"], label=name)
    axes.set(xscale="log", yscale="log", xlabel="iteration", ylabel="root mean square change of a pixel")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=100)
    print(f"picture {path}")


if __name__ == "__main__":
    main()
