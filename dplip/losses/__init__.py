"""Per-example losses that declare the norms of their logit gradient."""

from dplip.losses.base import Loss
from dplip.losses.classification import BinaryCrossEntropy, Cosine, CrossEntropy, Hinge
from dplip.losses.clipped_hinge import ClippedHinge
from dplip.losses.kantorovich_rubinstein import HKR, MulticlassKR
from dplip.losses.regression import ClippedMSE, Huber

__all__ = [
    "HKR",
    "BinaryCrossEntropy",
    "ClippedHinge",
    "ClippedMSE",
    "Cosine",
    "CrossEntropy",
    "Hinge",
    "Huber",
    "Loss",
    "MulticlassKR",
]
