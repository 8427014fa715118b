"""The scikit-learn regressor."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.base import RegressorMixin
from sklearn.utils.validation import validate_data

from dplip.data import Column
from dplip.data.tables import scaled_target
from dplip.errors import ConfigurationError
from dplip.estimators.base import PrivateEstimator, as_float32
from dplip.losses import Huber


@dataclass(kw_only=True, eq=False, repr=False)
class DPLipRegressor(RegressorMixin, PrivateEstimator):  # type: ignore[misc]
    """A private regressor whose prediction is provably monotone in the features that are named.

    Args:
        target_low, target_high: the **public** range of the target; values beyond it count as the nearest end.
        residual: the residual, in scaled targets, at which the Huber loss turns linear.
        others: those of :class:`PrivateEstimator`.

    Attributes:
        epsilon_, event_, n_iter_, model_, monotonicity_, seeded_: as for the classifier; the output of ``model_`` is
            the scaled target.
    """

    target_low: float = -4.0
    target_high: float = 4.0
    residual: float = 1.0
    scale: float = 1.0

    def fit(self, X: Any, y: Any) -> DPLipRegressor:
        """Train once, spending ``epsilon``; returns the estimator."""
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        if not -math.inf < self.target_low < self.target_high < math.inf:
            raise ConfigurationError(
                f"target_low={self.target_low}, target_high={self.target_high}: give a public range."
            )
        values = torch.from_numpy(np.array(y, dtype=np.float64))
        self._train(X, as_float32(scaled_target(values, self._target(), 1 / self.scale)), Huber(self.residual))
        return self

    def predict(self, X: Any) -> Any:
        """The prediction for each row, in the target's units."""
        target = self._target()
        return target.middle + target.half * self.scale * self._scores(X)

    def _target(self) -> Column:
        return Column("target", "numeric", float(self.target_low), float(self.target_high))
