"""A picture of the synthetic images that the accuracy presets are whitened by.

usage: python examples/dead_leaves.py [--out docs/dead_leaves.png]
"""

from __future__ import annotations

import argparse

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from dplip.data.dead_leaves import dead_leaves

COLUMNS = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="docs/dead_leaves.png")
    arguments = parser.parse_args()
    rows = [dead_leaves(COLUMNS, 28).expand(-1, 3, -1, -1), dead_leaves(COLUMNS, 32, channels=3)]
    figure, axes = plt.subplots(len(rows), COLUMNS, figsize=(COLUMNS, len(rows)))
    for line, images in zip(axes, rows, strict=True):
        for axis, image in zip(line, images, strict=True):
            axis.imshow(image.permute(1, 2, 0))
            axis.axis("off")
    figure.savefig(arguments.out, dpi=60, bbox_inches="tight")


if __name__ == "__main__":
    main()
