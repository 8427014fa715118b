"""Per-example losses that declare the norms of their logit gradient."""

from dplip.losses.base import Loss
from dplip.losses.binary_cross_entropy import BinaryCrossEntropy
from dplip.losses.classification import Cosine, Hinge
from dplip.losses.clipped_hinge import ClippedHinge
from dplip.losses.cross_entropy import CrossEntropy
from dplip.losses.elbo import ELBO
from dplip.losses.heads import Heads
from dplip.losses.kantorovich_rubinstein import HKR, MulticlassKR
from dplip.losses.own import PerExample
from dplip.losses.regression import ClippedMSE, Huber, SmoothL1

__all__ = [
    "ELBO",
    "HKR",
    "BinaryCrossEntropy",
    "ClippedHinge",
    "ClippedMSE",
    "Cosine",
    "CrossEntropy",
    "Heads",
    "Hinge",
    "Huber",
    "Loss",
    "MulticlassKR",
    "PerExample",
    "SmoothL1",
]
