"""scikit-learn estimators: private, monotone, and certified, for a binary target or a number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, clone, is_classifier
from sklearn.model_selection import KFold, RepeatedKFold, check_cv
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import _check_feature_names_in, check_is_fitted, validate_data
from torch import Tensor
from torch.utils.data import TensorDataset

from dplip.accounting import NEIGHBORING, GaussianEvent, create_accountant
from dplip.calibration import get_noise_multiplier
from dplip.certify import certify, evaluation
from dplip.errors import ConfigurationError
from dplip.losses import BinaryCrossEntropy, Huber, Loss
from dplip.models_tabular import monotone_network
from dplip.monotonicity import Monotonicity, certify_monotonic, feature_radii
from dplip.nn import TabularInput
from dplip.sampling import PoissonLoader
from dplip.trainer import DPLipTrainer


class PrivateEstimator(BaseEstimator):  # type: ignore[misc]
    """What both estimators share: the network, the private run, and its statements.

    Args:
        epsilon: the budget of one call of ``fit``; inf: no noise, not private.
        delta: of every epsilon.
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

    def __init__(
        self,
        *,
        epsilon: float = 1.0,
        delta: float = 1e-5,
        low: float | Sequence[float] = -4.0,
        high: float | Sequence[float] = 4.0,
        groups: Sequence[int] = (),
        monotone: Sequence[int] | Mapping[str, int] | None = None,
        chain: str = "inf",
        widths: Sequence[int] = (16,),
        clamp: float = 1.0,
        scale: float = 16.0,
        lr: float = 0.02,
        batch_size: int = 256,
        epochs: int = 20,
        neighboring: str = "add_remove",
        accountant: str = "rdp",
        public_size: int | None = None,
        random_state: Any = None,
    ) -> None:
        self.epsilon, self.delta, self.low, self.high, self.groups = epsilon, delta, low, high, groups
        self.monotone, self.chain, self.widths, self.clamp, self.scale = monotone, chain, widths, clamp, scale
        self.lr, self.batch_size, self.epochs = lr, batch_size, epochs
        self.neighboring, self.accountant, self.public_size = neighboring, accountant, public_size
        self.random_state = random_state

    def planned_event(self, rows: int) -> tuple[GaussianEvent, int]:
        """What each step of a fit on so many rows spends, and the number of steps."""
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
        seed = None if self.random_state is None else int(check_random_state(self.random_state).randint(2**31 - 1))
        with torch.random.fork_rng():
            torch.seed() if seed is None else torch.manual_seed(seed)
            model = monotone_network(
                TabularInput(low, high, self.groups),
                directions,
                chain=self.chain,
                widths=tuple(self.widths),
                clamp=self.clamp,
            )
            optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=self.lr)
            trainer = DPLipTrainer(
                model,
                loss=loss,
                optimizer=optimizer,
                train_dataset=TensorDataset(_float32(X), y),
                batch_size=min(self.batch_size, self.public_size or rows),
                epochs=self.epochs,
                target_epsilon=self.epsilon,
                target_delta=self.delta,
                neighboring=self.neighboring,
                accountant=self.accountant,
                public_size=self.public_size,
                seed=seed,
                progress=False,
            )
            trainer.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, trainer.steps)
            trainer.fit()
        self.model_ = model.eval()
        self.epsilon_ = trainer.get_epsilon()
        self.event_, self.n_iter_, self.seeded_ = trainer.optimizer.event, trainer.steps, seed is not None
        self.rows_ = rows
        names = tuple(str(n) for n in _check_feature_names_in(self))
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
        return _float32(validate_data(self, X, reset=False, dtype=np.float64))

    def _scores(self, X: Any) -> Any:
        rows = self._rows(X)
        with evaluation(self.model_), torch.no_grad():
            return self.model_(rows)[:, 0].double().numpy()


class DPLipClassifier(ClassifierMixin, PrivateEstimator):  # type: ignore[misc]
    """A private binary classifier whose score is provably monotone in the features that are named.

    Args:
        classes: the two labels, which are public; None: those that occur, which are then treated as public.
        others: those of :class:`PrivateEstimator`.

    Attributes:
        classes_: the two labels; the score speaks for the second.
        epsilon_: what the fit spent at ``delta``. A fit on other data, or again on the same, spends as much again.
        event_, n_iter_: what each step spent, and the number of steps.
        model_: the trained torch module. monotonicity_: its certificate.
        seeded_: whether the run could be repeated, and so is not private.
    """

    def __init__(
        self,
        *,
        classes: Sequence[Any] | None = None,
        epsilon: float = 1.0,
        delta: float = 1e-5,
        low: float | Sequence[float] = -4.0,
        high: float | Sequence[float] = 4.0,
        groups: Sequence[int] = (),
        monotone: Sequence[int] | Mapping[str, int] | None = None,
        chain: str = "inf",
        widths: Sequence[int] = (16,),
        clamp: float = 1.0,
        scale: float = 16.0,
        lr: float = 0.02,
        batch_size: int = 256,
        epochs: int = 20,
        neighboring: str = "add_remove",
        accountant: str = "rdp",
        public_size: int | None = None,
        random_state: Any = None,
    ) -> None:
        self.classes = classes
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

    def fit(self, X: Any, y: Any) -> DPLipClassifier:
        """Train once, spending ``epsilon``; returns the estimator."""
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        if self.classes is None and type_of_target(y) == "multiclass":
            raise ValueError(f"Only binary classification is supported. The type of the target is {type_of_target(y)}.")
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
        self._train(X, _float32(target), Huber(self.residual))
        return self

    def predict(self, X: Any) -> Any:
        """The prediction for each row, within no more than the slopes allow."""
        middle, half = self._target()
        return middle + half * self.scale * self._scores(X)

    def _target(self) -> tuple[float, float]:
        return (self.target_low + self.target_high) / 2, (self.target_high - self.target_low) / 2


def search_privacy(search: Any) -> dict[str, Any]:
    """What a finished ``GridSearchCV`` (or its kin) over a pipeline that ends in one of these estimators spent.

    Returns:
        ``epsilon`` at ``delta`` of all its fits together, ``fits``, ``neighboring`` (always replace-one: under add and
        remove a change of one row moves others between folds), and ``selection``, which says that the scores by
        which the best was chosen are exact functions of held-out private rows, and covered by no epsilon.

    Each fit is charged in full to every row, though with k folds a row is in k - 1 training parts; with the noise and
    the steps that its parameters imply for the smallest training part of k folds of equal size.

    Raises:
        ConfigurationError: folds other than those of ``KFold`` and ``RepeatedKFold``: of other sizes, or chosen by the
            values of the rows, so that changing one row moves others (as a whole number does for a classifier).
    """
    folds = check_cv(search.cv, classifier=is_classifier(search.estimator), y=[0, 1])
    if type(folds) not in (KFold, RepeatedKFold):
        raise ConfigurationError(
            f"cv={search.cv!r}: its folds ({type(folds).__name__}) may depend on other rows than their own, or differ "
            "in size, and then no figure holds for all of them. Use cv=KFold(5)."
        )
    best = _private_part(search.best_estimator_)
    rows, splits = best.rows_, int(search.n_splits_)
    least = rows - -(-rows // splits) if splits > 1 else rows
    accountant = create_accountant("rdp", "replace_one")  # the others have no theorem for Poisson batches
    fits = 0
    plans = [
        (_private_part(clone(search.estimator).set_params(**p)), splits, least) for p in search.cv_results_["params"]
    ]
    for part, times, size in [*plans, (best, 1, rows)]:
        event, steps = part.planned_event(size)
        # Under replace-one two sums lie twice as far apart as under add-remove.
        sigma = event.noise_multiplier * NEIGHBORING[part.neighboring] / NEIGHBORING["replace_one"]
        accountant.count(GaussianEvent(sigma, event.sample_rate), times * steps)
        fits += times
    return {
        "epsilon": accountant.get_epsilon(best.delta),
        "delta": best.delta,
        "fits": fits,
        "neighboring": "replace_one",
        "selection": "not accounted: candidates were compared by exact scores on private rows",
    }


def _private_part(estimator: Any) -> Any:
    if isinstance(estimator, PrivateEstimator):
        return estimator
    steps = getattr(estimator, "steps", None)
    if not steps:
        raise ConfigurationError(
            f"{type(estimator).__name__}: search over a DPLip estimator, or a Pipeline that ends in one."
        )
    return _private_part(steps[-1][1])


def _each(name: str, value: Any, count: int) -> list[float]:
    values = [float(value)] * count if np.ndim(value) == 0 else [float(v) for v in value]
    if len(values) != count:
        raise ConfigurationError(
            f"{name}: {len(values)} ends for {count} numeric features: give one number, or one each."
        )
    return values


def _float32(values: Any) -> Tensor:
    """As float32, whose largest number stands for what is beyond it: the model clamps to a public range anyway."""
    return torch.from_numpy(np.clip(np.asarray(values, dtype=np.float64), -1e38, 1e38).astype(np.float32))
