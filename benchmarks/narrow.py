"""Networks with few noisy weights beside the certified preset of Fashion-MNIST, on held-out training images.

usage: python benchmarks/narrow.py [--data-dir DIR] [--epsilon 3] [--seeds 1] [--kinds patches pyramid low-rank ...]

Each starts as the preset does (shift, private mean, ball) and is trained by its recipe; the test images are never read.

- preset: the 20 x 20 lowest frequencies, 128 units;
- patches: a learned convolution whose stride is its kernel (4 x 4 to 8 channels, 128 weights), then 128 units;
- pyramid: two of them (2 x 2 to 4 and to 16 channels), then 64 units;
- low-rank: the preset with a first layer of rank 32, as a product of two.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from dataclasses import dataclass

from torch import nn
from tune import score

from dplip.data import load
from dplip.models import Preset, preset
from dplip.nn import (
    BallProjection,
    GroupSort,
    LowPass,
    OrthogonalLinear,
    PrivateMean,
    Shift,
    SpectralConv2d,
)
from dplip.training.evaluation import RADII

CONVOLUTIONS = {"patches": [(1, 8, 4)], "pyramid": [(1, 4, 2), (4, 16, 2)]}
"""Channels in and out, and the kernel, which is the stride too."""


@dataclass(frozen=True)
class Narrow(Preset):
    """The preset's recipe for another network."""

    kind: str = "patches"

    def model(self, input_shape: tuple[int, ...], classes: int) -> nn.Sequential:
        start: list[nn.Module] = [Shift(self.offset)]
        shape, learned = input_shape, []
        if self.kind == "low-rank":
            assert isinstance(self.frequencies, int)
            shape = (1, self.frequencies, self.frequencies)
            start.append(LowPass(input_shape[1], input_shape[2], self.frequencies))
            learned = [nn.Flatten(), self.bounded(OrthogonalLinear(math.prod(shape), 32), 0)]
            sizes = (32, self.widths[0])
        else:
            side = input_shape[-1]
            for place, (a, b, kernel) in enumerate(CONVOLUTIONS[self.kind]):
                patches = SpectralConv2d(a, b, kernel, stride=kernel)
                learned += [self.bounded(patches, place), GroupSort(2)]  # type: ignore[arg-type]
                side //= kernel
            learned.append(nn.Flatten())
            sizes = (b * side**2, self.widths[0])
        last = len(self.widths) - 1
        learned += [self.bounded(OrthogonalLinear(*sizes), last), GroupSort(2)]
        learned.append(self.bounded(OrthogonalLinear(sizes[1], classes), last + 1))
        assert self.mean_radius is not None
        return nn.Sequential(*start, PrivateMean(shape, self.mean_radius), BallProjection(self.radius), *learned)


def recipe(kind: str) -> Preset:
    """The preset, or its recipe for one of the other networks; ``widths`` counts the layers that are bounded."""
    own = preset("fashion-mnist")
    assert isinstance(own, Preset)
    if kind == "preset":
        return own
    layers = 2 if kind == "pyramid" else 1
    units = 64 if kind == "pyramid" else 128
    fields = {f.name: getattr(own, f.name) for f in dataclasses.fields(own)}
    fields |= {"widths": (units,) * (layers + 1), "gradient_radii": (3.0,) * (layers + 1) + (2.0,)}
    return Narrow(**fields, kind=kind)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir")
    parser.add_argument("--epsilon", type=float, default=3.0)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--kinds", nargs="+", default=["preset", *CONVOLUTIONS, "low-rank"])
    arguments = parser.parse_args()
    data = load("fashion-mnist", arguments.data_dir)
    print("| network | noisy weights | accuracy | certified at 36/255, 72/255, 108/255 |\n| --- | --- | --- | --- |")
    for kind in arguments.kinds:
        chosen = recipe(kind)
        weights = sum(p.numel() for p in chosen.model(data.input_shape, data.num_classes).parameters())
        runs = [score(chosen, data, arguments.epsilon, seed)[0] for seed in range(arguments.seeds)]
        clean, *certified = (100 * sum(run[i] for run in runs) / len(runs) for i in range(len(RADII)))
        print(f"| {kind} | {weights:,} | {clean:.1f} | {', '.join(f'{c:.1f}' for c in certified)} |", flush=True)


if __name__ == "__main__":
    main()
