"""A denoiser that is an averaged operator, with each activation, and plug-and-play deblurring with it.

usage: python examples/denoiser.py [--data-dir DIR] [--sigma 0.1] [--steps 1000] [--seeds 3] [--plot FILE.png] [--quick]

The denoiser is D = (I + R) / 2 with a 1-Lipschitz R, so that it is firmly nonexpansive. R analyses the image with a
learned tight frame (16 kernels of 3 x 3 that keep its norm), applies an activation, an orthogonal mixing of channels
and an activation, and synthesises with the adjoint of another such frame. It starts as the cosine transform and its
adjoint: as the identity, but for the activations. Why splines: D is soft thresholding in a frame, a classical denoiser,
where each activation of R has the slopes 1, -1, 1. No absolute value, PReLU or ReLU has three pieces.
It is trained on noisy grey images of CIFAR-10 (2,500 of the training images) and judged on 200 test images; without
--data-dir on handwritten digits of 8 x 8 pixels.

Plug-and-play: y = H x + noise with a circular blur H, |H| = 1; x <- D_s(x - t H^T (H x - y)). The gradient step is
t/2-averaged for t in (0, 2). D_s(x) = s D(x / s), for noise s times as strong, is firmly nonexpansive too. So the
iteration is averaged: it converges to a fixed point wherever there is one, and |x_(k+1) - x_k| never grows. The step t
and the scale s are chosen for each model on 20 images of the training data that it was not trained on.
Source: Ducotterd and others, 2024 (arXiv 2210.16222), and Ryu and others, 2019 (arXiv 1905.05406) for the iteration.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from spline_nets import ACTIVATIONS, groups, project, save
from torch import Tensor, nn

import dplip
from dplip import nn as dn
from dplip.constraints import Constraint
from dplip.data import load

UNIT = 0.1
"""The noise for which a denoiser of scale 1 is made."""

STEPS = (1.0, 1.9)
SCALES = (0.12, 0.18, 0.25, 0.35, 0.5, 0.7, 1.0, 1.4)

ALL = {**ACTIVATIONS, "spline": lambda width: dn.LinearSpline(width, 31, 0.2, "identity")}
"""The same activations, with knots where the coefficients of noise and of edges lie."""


def images(data_dir: str | None, train: int = 5000, test: int = 200) -> tuple[Tensor, Tensor]:
    """Grey images of the training and the test data, shape (count, 1, height, width), in [0, 1]."""
    data = load("cifar10" if data_dir else "digits", data_dir)
    parts = (data.train.tensors[0][:train], data.test.tensors[0][:test])
    grey = [p.float().reshape(len(p), *data.input_shape).mean(1, keepdim=True) for p in parts]
    return grey[0], grey[1]


class TightFrame(Constraint):
    """Kernels of one input or one output channel whose squared frequency responses add up to 1 at every frequency.

    Proof: with the kernels as the rows of K, shape (channels, taps), and e the vector of the taps' phases at a
    frequency, the sum of squares is |K e|^2 = |e|^2 / taps = 1, where sqrt(taps) K has orthonormal columns.
    """

    def project(self, weight: Tensor, layer: nn.Module) -> None:
        rows = weight.detach().double().flatten(2).flatten(0, 1)
        u, _, v = torch.linalg.svd(rows, full_matrices=False)
        weight.detach().copy_((u @ v / math.sqrt(rows.shape[1])).reshape(weight.shape))


def cosines(taps: int) -> Tensor:
    """The two-dimensional cosine transform, an orthogonal matrix (taps^2, taps^2); its first row is constant."""
    k = torch.arange(taps)
    one = torch.cos(math.pi * k[:, None] * (k + 0.5) / taps)
    one = one / one.norm(dim=1, keepdim=True)
    return torch.kron(one, one)


class Denoiser(nn.Module):
    """D = (I + R) / 2 with a 1-Lipschitz R, around the grey value 1/2."""

    def __init__(self, activation: Callable[[int], nn.Module], channels: int = 16, taps: int = 3) -> None:
        super().__init__()
        # All coefficients of the zero-padded image are kept: so the frame keeps norms at the border too.
        analysis = nn.Conv2d(1, channels, taps, padding=taps - 1)
        mixing = nn.Conv2d(channels, channels, 1)
        synthesis = nn.Conv2d(channels, 1, taps)
        with torch.no_grad():
            # Cosines, and for the channels that are left a little of everything; no mixing; then the adjoint.
            frame = torch.cat((cosines(taps), 0.05 * torch.randn(channels - taps**2, taps**2)))
            analysis.weight.copy_(frame.reshape(analysis.weight.shape))
            synthesis.weight.copy_(frame.reshape(synthesis.weight.shape).flip(2, 3))
            mixing.weight.copy_(torch.eye(channels)[:, :, None, None])
            for layer in (analysis, mixing, synthesis):
                layer.get_parameter("bias").zero_()
        dplip.constrain(analysis, "weight", TightFrame())
        dplip.constrain(mixing, "weight", dplip.Orthogonal())
        dplip.constrain(synthesis, "weight", TightFrame())
        self.residual = nn.Sequential(analysis, activation(channels), mixing, activation(channels), synthesis)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        """D_s(x) = s D(x / s) around 1/2, for noise of standard deviation ``UNIT`` times s."""
        centred = (x - 0.5) / scale
        return 0.5 + scale * (centred + self.residual(centred)) / 2


def psnr(x: Tensor, truth: Tensor) -> float:
    """The mean over images of the peak signal-to-noise ratio in dB, for a peak of 1."""
    errors = (x - truth).square().flatten(1).mean(1)
    return float((-10 * errors.log10()).mean())


def train(activation: Callable[[int], nn.Module], clean: Tensor, sigma: float, steps: int, seed: int) -> Denoiser:
    torch.manual_seed(seed)
    model = Denoiser(activation)
    optimizer = torch.optim.Adam(groups(model, 2e-2))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        x = clean[torch.randint(len(clean), (8,))]
        optimizer.zero_grad()
        loss = (model(x + sigma * torch.randn_like(x), sigma / UNIT) - x).square().mean() / sigma**2
        loss.backward()
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
def deblur(
    denoiser: Denoiser, y: Tensor, blur: Blur, step: float, scale: float, iterations: int
) -> tuple[Tensor, list[float]]:
    """The last iterate, and the root mean square of every change."""
    x, changes = y, []
    for _ in range(iterations):
        new = denoiser(x - step * blur(blur(x) - y), scale)
        changes.append(float((new - x).square().mean().sqrt()))
        x = new
    return x, changes


def tune(model: Denoiser, y: Tensor, truth: Tensor, blur: Blur, iterations: int) -> tuple[float, float]:
    """The step and the scale that restore these images best."""
    tried = {
        (t, s): psnr(deblur(model, y, blur, t, s, iterations)[0], truth) for t, s in itertools.product(STEPS, SCALES)
    }
    return max(tried, key=lambda pair: tried[pair])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="the folder of CIFAR-10")
    parser.add_argument("--sigma", type=float, default=0.1, help="standard deviation of the noise")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--plot", help="draw images and convergence here")
    parser.add_argument("--json", help="write the figures here")
    parser.add_argument("--activations", nargs="*", default=list(ALL))
    parser.add_argument("--held-out", action="store_true", help="judge on held-out training images, to choose settings")
    parser.add_argument("--quick", action="store_true", help="one seed of 20 steps each")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds, arguments.steps, arguments.iterations = 1, 20, 30
    known, test = images(arguments.data_dir)
    clean, held_out = known[: len(known) // 2], known[-20:]
    if arguments.held_out:
        test = known[-220:-20]
    blur, sigma, noise = Blur((test.shape[2], test.shape[3])), arguments.sigma, 0.02
    inputs, sharp = noisy(test, sigma), test[:50]
    blurred, held_out_blurred = noisy(blur(sharp), noise), noisy(blur(held_out), noise)
    before = {"denoised": psnr(inputs, test), "deblurred": psnr(blurred, sharp)}
    print(f"{'input':<16} noisy {before['denoised']:.2f} dB, blurred {before['deblurred']:.2f} dB", flush=True)
    rows: dict[str, dict[str, Any]] = {}
    pictures: dict[str, tuple[Tensor, Tensor]] = {}
    for name in arguments.activations:
        started = time.perf_counter()
        models = [train(ALL[name], clean, sigma, arguments.steps, seed) for seed in range(arguments.seeds)]
        with torch.no_grad():
            denoised = [model(inputs, sigma / UNIT) for model in models]
        chosen = [tune(model, held_out_blurred, held_out, blur, arguments.iterations // 2) for model in models]
        restored = [
            deblur(model, blurred, blur, *pair, arguments.iterations)
            for model, pair in zip(models, chosen, strict=True)
        ]
        rows[name] = {
            "denoised": [psnr(x, test) for x in denoised],
            "deblurred": [psnr(x, sharp) for x, _ in restored],
            "step and scale": chosen,
            "changes": restored[0][1],
            # Above the rounding of float32.
            "growth": max(b / a for _, changes in restored for a, b in itertools.pairwise(changes) if a > 1e-6),
            "lipschitz": max(dplip.lipschitz(model.residual, tuple(test.shape[1:])) for model in models),
        }
        pictures[name] = (denoised[0][:3], restored[0][0][:3])
        print(report(name, rows[name]) + f", {time.perf_counter() - started:.0f} s", flush=True)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"sigma": sigma, "steps": arguments.steps, "inputs": before, "rows": rows}, file, indent=2)
    if arguments.plot:
        draw(rows, pictures, test[:3], inputs[:3], blurred[:3], arguments.plot)


def report(name: str, row: dict[str, Any]) -> str:
    parts = [
        f"{task} {statistics.mean(row[task]):.2f} dB ({min(row[task]):.2f} to {max(row[task]):.2f})"
        for task in ("denoised", "deblurred")
    ]
    steps = " ".join(f"{t:g}/{s:g}" for t, s in row["step and scale"])
    return (
        f"{name:<16} {', '.join(parts)} at step/scale {steps}, last change {row['changes'][-1]:.1e}, "
        f"largest growth of a change {row['growth']:.4f}, Lipschitz {row['lipschitz']:.4f}"
    )


def draw(
    results: dict[str, dict[str, Any]],
    pictures: dict[str, tuple[Tensor, Tensor]],
    truth: Tensor,
    noise: Tensor,
    blurred: Tensor,
    path: str,
) -> None:
    """Denoised and deblurred images of the first test images, and how fast the iteration converges."""
    from matplotlib.figure import Figure

    names = [name for name in ("ReLU", "spline") if name in pictures]
    columns = [("truth", truth), ("noisy", noise)] + [(f"{n}, denoised", pictures[n][0]) for n in names]
    columns += [("blurred", blurred)] + [(f"{n}, deblurred", pictures[n][1]) for n in names]
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    halves: Any = figure.subfigures(1, 2, width_ratios=(8, 5))
    left, right = halves
    grid = left.subplots(3, len(columns))
    for row in range(3):
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
    save(figure, path)


if __name__ == "__main__":
    main()
