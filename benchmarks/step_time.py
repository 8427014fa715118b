"""One private step beside one step of ordinary SGD on the same network, an MLP and a CNN, at batch 2,048.

usage: python benchmarks/step_time.py [--json -] [--batches 2048] [--threads 2] [--rounds 15] [--models mlp cnn]

A part of benchmarks/suite.py, whose options it takes: see there what the figures are.
"""

from __future__ import annotations

import sys

import suite


def main(given: list[str] | None = None) -> None:
    options = ["--parts", "steps", "--batches", "2048", "--threads", "2", "--methods", "dplip"]
    suite.main(options + (sys.argv[1:] if given is None else given))


if __name__ == "__main__":
    main()
