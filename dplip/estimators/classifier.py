"""The scikit-learn classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import validate_data

from dplip.estimators.base import PrivateEstimator
from dplip.losses import BinaryCrossEntropy


@dataclass(kw_only=True, eq=False, repr=False)
class DPLipClassifier(ClassifierMixin, PrivateEstimator):  # type: ignore[misc]
    """A private binary classifier whose score is provably monotone in the features that are named.

    Args:
        classes: the two labels, which are public; None: those that occur, which are then treated as public.
        others: those of :class:`PrivateEstimator`.

    Attributes:
        classes_: the two labels; a positive score means the second.
        epsilon_: what the fit spent at ``delta``. A fit on other data, or again on the same, spends as much again.
        event_, n_iter_: what each step spent, and the number of steps.
        model_: the trained torch module. monotonicity_: its certificate.
        seeded_: whether the run could be repeated, and so is not private.
    """

    classes: Sequence[Any] | None = None

    def fit(self, X: Any, y: Any) -> DPLipClassifier:
        """Train once, spending ``epsilon``; returns the estimator."""
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        if self.classes is None and type_of_target(y) == "multiclass":
            raise ValueError(
                f"Only binary classification is supported. The type of the target is {type_of_target(y)}, with "
                f"{len(np.unique(y))} classes. Ask for one of them at a time (sklearn.multiclass.OneVsRestClassifier, "
                "which spends epsilon for each), or train a model of your own: dplip.DPLipTrainer with "
                "dplip.losses.CrossEntropy."
            )
        self.classes_ = np.unique(y) if self.classes is None else np.asarray(self.classes)
        if len(self.classes_) != 2:
            raise ValueError(
                f"classes={self.classes_.tolist()}: {len(self.classes_)} class, and a binary classifier needs two. "
                "If y lacks one of them, name both by classes=."
            )
        others = np.setdiff1d(y, self.classes_)
        if len(others):
            raise ValueError(
                f"classes={self.classes_.tolist()}: y holds {others[0]} besides. A binary classifier has two."
            )
        target = torch.from_numpy((y == self.classes_[1]).astype(np.int64))
        self._train(X, target, BinaryCrossEntropy(self.scale))
        return self

    def decision_function(self, X: Any) -> Any:
        """The score of each row, whose sign decides."""
        return self._scores(X)

    def predict(self, X: Any) -> Any:
        """The class of each row."""
        second = self._scores(X) > 0
        return self.classes_[second.astype(int)]

    def predict_proba(self, X: Any) -> Any:
        """The probabilities of the two classes, shape (rows, 2)."""
        second = 1 / (1 + np.exp(-np.clip(self.scale * self._scores(X), -500, 500)))
        return np.stack([1 - second, second], axis=1)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags
