"""A sample of every rule."""

from helpers.samples_layers import CONVOLUTIONS, DISTANCES, LINEAR, MONOTONE, OTHERS, SPLINES
from helpers.samples_operations import ARITHMETIC, DROPOUT, ELEMENTWISE, POOLING, SHAPES

SAMPLES = [
    *ELEMENTWISE,
    *DROPOUT,
    *LINEAR,
    *CONVOLUTIONS,
    *ARITHMETIC,
    *SHAPES,
    *POOLING,
    *OTHERS,
    *DISTANCES,
    *MONOTONE,
    *SPLINES,
]
