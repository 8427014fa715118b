"""scikit-learn estimators: private, monotone, and certified, for a binary target or a number."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_feature_names_in, check_is_fitted, validate_data
from torch import Tensor
from torch.utils.data import TensorDataset

from dplip.accounting import GaussianEvent, get_noise_multiplier
from dplip.certificates import Monotonicity, certify, certify_monotonic, feature_radii
from dplip.errors import ConfigurationError
from dplip.losses import Loss
from dplip.models import TabularPreset
from dplip.nn import TabularInput
from dplip.runtime.mode import evaluation
from dplip.sampling import PoissonLoader


@dataclass(kw_only=True, eq=False, repr=False)  # only its __init__: equality and the text stay scikit-learn's
class PrivateEstimator(BaseEstimator):  # type: ignore[misc]
    """The base class of both estimators: the network, the private run and its certificates.

    Args:
        epsilon: the budget of one call of ``fit``; inf: no noise, not private.
        delta: the delta of every epsilon.
        low, high: **public** ranges of the features, numbers or one for each feature; values beyond them count as the
            nearest end. They must not be computed from the data.
        groups: sizes of the one-hot blocks that the last columns form; the others are numeric.
        monotone: -1, 0 or +1 for each feature, or by name, ``{"age": 1}``; None: no feature is constrained.
        chain: "inf", "one" or "two": the norms in which layers compose.
        widths: sizes of the hidden layers.
        clamp: largest absolute value of a hidden unit.
        scale: classification: temperature of the cross-entropy; regression: targets are scaled to [-1/scale, 1/scale].
        lr: learning rate of Adam, annealed to 0.
        batch_size: expected size of a Poisson batch, at most the public size.
        epochs: passes over the data.
        neighboring, accountant, public_size: as for :class:`DPLipTrainer`.
        random_state: None: noise from the operating system. A seed makes the run repeatable, **and so not private**:
            ``seeded_`` says so.
    """

    epsilon: float = 1.0
    delta: float = 1e-5
    low: float | Sequence[float] = -4.0
    high: float | Sequence[float] = 4.0
    groups: Sequence[int] = ()
    monotone: Sequence[int] | Mapping[str, int] | None = None
    chain: str = "inf"
    widths: Sequence[int] = (16,)
    clamp: float = 1.0
    scale: float = 16.0
    lr: float = 0.02
    batch_size: int = 256
    epochs: int = 20
    neighboring: str = "add_remove"
    accountant: str = "rdp"
    public_size: int | None = None
    random_state: Any = None

    def planned_event(self, rows: int) -> tuple[GaussianEvent, int]:
        """The event of each step of a fit on so many rows, and the number of steps."""
        batch = min(self.batch_size, self.public_size or rows)
        blank = TensorDataset(torch.zeros(rows, 1))
        loader = PoissonLoader(blank, batch_size=batch, public_size=self.public_size)
        steps = self.epochs * loader.steps_per_epoch
        if math.isinf(self.epsilon):
            return GaussianEvent(0.0, loader.sample_rate), steps
        sigma = get_noise_multiplier(
            target_epsilon=self.epsilon,
            target_delta=self.delta,
            sample_rate=loader.sample_rate,
            steps=steps,
            accountant=self.accountant,
            neighboring=self.neighboring,
        )
        return GaussianEvent(sigma, loader.sample_rate), steps

    def certified_radius(self, X: Any, norm: float = 2) -> Any:
        """The radius around each row, in the columns' own units, within which the prediction cannot change."""
        return certify(self.model_, self._rows(X), norm=norm).numpy()

    def feature_radii(self, X: Any) -> Any:
        """How far each feature alone may rise, or fall, before the prediction can change: (rows, features, 2)."""
        return feature_radii(self.model_, self._rows(X)).numpy()

    def _train(self, X: Any, y: Tensor, loss: Loss) -> None:
        features, rows = X.shape[1], len(X)
        directions = self._directions(features)
        numeric = features - sum(self.groups)
        low, high = (_each(name, getattr(self, name), numeric) for name in ("low", "high"))
        names = tuple(str(n) for n in _check_feature_names_in(self))
        _warn_of_ranges(X, low, high, names)
        seed = None if self.random_state is None else int(check_random_state(self.random_state).randint(2**31 - 1))
        recipe = TabularPreset(
            self.chain,
            tuple(self.widths),
            self.scale,
            lr=self.lr,
            batch_size=self.batch_size,
            epochs=self.epochs,
            clamp=self.clamp,
        )
        with torch.random.fork_rng():
            torch.seed() if seed is None else torch.manual_seed(seed)
            model = recipe.network(TabularInput(low, high, self.groups), directions)
            trainer = recipe.trainer_of(
                model,
                loss,
                train_dataset=TensorDataset(as_float32(X), y),
                target_epsilon=self.epsilon,
                target_delta=self.delta,
                neighboring=self.neighboring,
                accountant=self.accountant,
                public_size=self.public_size,
                seed=seed,
                progress=False,
            )
            trainer.fit()
        self.model_ = model.cpu().eval()  # rows are on the CPU
        self.epsilon_ = trainer.get_epsilon()
        self.event_, self.n_iter_, self.seeded_ = trainer.optimizer.event, trainer.steps, seed is not None
        self.rows_ = rows
        self.monotonicity_: Monotonicity = certify_monotonic(model, directions, names)

    def _directions(self, features: int) -> list[int]:
        if self.monotone is None:
            return [0] * features
        if not isinstance(self.monotone, Mapping):
            if len(self.monotone) != features:
                raise ConfigurationError(
                    f"monotone={list(self.monotone)}: give one direction for each of {features} features."
                )
            return [int(d) for d in self.monotone]
        names = [str(n) for n in getattr(self, "feature_names_in_", [f"x{i}" for i in range(features)])]
        unknown = sorted(set(self.monotone) - set(names))
        if unknown:
            raise ConfigurationError(f"monotone: {unknown} are not among the features {names}.")
        return [int(self.monotone.get(name, 0)) for name in names]

    def _rows(self, X: Any) -> Tensor:
        check_is_fitted(self)
        return as_float32(validate_data(self, X, reset=False, dtype=np.float64))

    def _scores(self, X: Any) -> Any:
        rows = self._rows(X)
        with evaluation(self.model_), torch.no_grad():
            return self.model_(rows)[:, 0].double().numpy()


def as_float32(values: Any) -> Tensor:
    """Values as float32, cut to [-1e38, 1e38], as the model clamps them to a public range anyway."""
    return torch.from_numpy(np.clip(np.asarray(values, dtype=np.float64), -1e38, 1e38).astype(np.float32))


def _warn_of_ranges(X: Any, low: list[float], high: list[float], names: Sequence[str]) -> None:
    """Warn of features of which every value counts as one and the same end of its range."""
    ranges = enumerate(zip(low, high, strict=True))
    beyond = [names[i] for i, (least, most) in ranges if X[:, i].min() > most or X[:, i].max() < least]
    if beyond:
        warnings.warn(
            f"low={low}, high={high}: all values of {', '.join(beyond)} lie beyond their range and count as its end, "
            "so that nothing is learned from them. Give low= and high= in the features' own units, one for each: "
            "public numbers, which are not computed from the data.",
            stacklevel=4,
        )


def _each(name: str, value: Any, count: int) -> list[float]:
    values = [float(value)] * count if np.ndim(value) == 0 else [float(v) for v in value]
    if len(values) != count:
        raise ConfigurationError(
            f"{name}: {len(values)} ends for {count} numeric features: give one number, or one each."
        )
    return values
