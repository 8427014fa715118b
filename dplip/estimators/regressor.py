"""The scikit-learn regressor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.utils.validation import validate_data

from dplip.errors import ConfigurationError
from dplip.estimators.base import PrivateEstimator, as_float32
from dplip.losses import Huber


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

    def __init__(
        self,
        *,
        target_low: float = -4.0,
        target_high: float = 4.0,
        residual: float = 1.0,
        epsilon: float = 1.0,
        delta: float = 1e-5,
        low: float | Sequence[float] = -4.0,
        high: float | Sequence[float] = 4.0,
        groups: Sequence[int] = (),
        monotone: Sequence[int] | Mapping[str, int] | None = None,
        chain: str = "inf",
        widths: Sequence[int] = (16,),
        clamp: float = 1.0,
        scale: float = 1.0,
        lr: float = 0.02,
        batch_size: int = 256,
        epochs: int = 20,
        neighboring: str = "add_remove",
        accountant: str = "rdp",
        public_size: int | None = None,
        random_state: Any = None,
    ) -> None:
        self.target_low, self.target_high, self.residual = target_low, target_high, residual
        super().__init__(
            epsilon=epsilon,
            delta=delta,
            low=low,
            high=high,
            groups=groups,
            monotone=monotone,
            chain=chain,
            widths=widths,
            clamp=clamp,
            scale=scale,
            lr=lr,
            batch_size=batch_size,
            epochs=epochs,
            neighboring=neighboring,
            accountant=accountant,
            public_size=public_size,
            random_state=random_state,
        )

    def fit(self, X: Any, y: Any) -> DPLipRegressor:
        """Train once, spending ``epsilon``; returns the estimator."""
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        if not -math.inf < self.target_low < self.target_high < math.inf:
            raise ConfigurationError(
                f"target_low={self.target_low}, target_high={self.target_high}: give a public range."
            )
        middle, half = self._target()
        target = np.clip((np.asarray(y, dtype=np.float64) - middle) / half, -1, 1) / self.scale
        self._train(X, as_float32(target), Huber(self.residual))
        return self

    def predict(self, X: Any) -> Any:
        """The prediction for each row, within no more than the slopes allow."""
        middle, half = self._target()
        return middle + half * self.scale * self._scores(X)

    def _target(self) -> tuple[float, float]:
        return (self.target_low + self.target_high) / 2, (self.target_high - self.target_low) / 2
