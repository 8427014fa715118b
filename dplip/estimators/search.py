"""The privacy of a search over settings, of all its fits together."""

from __future__ import annotations

from typing import Any

from sklearn.base import clone, is_classifier
from sklearn.model_selection import KFold, RepeatedKFold, check_cv

from dplip.accounting import NEIGHBORING, GaussianEvent, create_accountant
from dplip.errors import ConfigurationError
from dplip.estimators.base import PrivateEstimator


def search_privacy(search: Any) -> dict[str, Any]:
    """What a finished ``GridSearchCV`` or similar search spent, over a pipeline that ends in one of these estimators.

    Returns:
        ``epsilon`` at ``delta`` of all its fits together, ``fits``, ``neighboring`` (always replace-one: under add and
        remove a change of one row moves others between folds), and ``selection``, which says that the scores by
        which the best was chosen are exact functions of held-out private rows, and covered by no epsilon.

    Each fit is charged in full to every row, though with k folds a row is in k - 1 training parts. Its noise and steps
    are those that its parameters imply for the smallest training part of k folds of equal size.

    Raises:
        ConfigurationError: folds other than those of ``KFold`` and ``RepeatedKFold``: of other sizes, or chosen by the
            values of the rows, so that changing one row moves others (as ``cv=5`` does for a classifier).
    """
    folds = check_cv(search.cv, classifier=is_classifier(search.estimator), y=[0, 1])
    if type(folds) not in (KFold, RepeatedKFold):
        raise ConfigurationError(
            f"cv={search.cv!r}: its folds ({type(folds).__name__}) may depend on other rows than their own, or differ "
            "in size, and then no figure holds for all of them. Use cv=KFold(5)."
        )
    best = private_part(search.best_estimator_)
    rows, splits = best.rows_, int(search.n_splits_)
    least = rows - -(-rows // splits) if splits > 1 else rows
    accountant = create_accountant("rdp", "replace_one")  # the others have no theorem for Poisson batches
    fits = 0
    plans = [
        (private_part(clone(search.estimator).set_params(**p)), splits, least) for p in search.cv_results_["params"]
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


def private_part(estimator: Any) -> Any:
    if isinstance(estimator, PrivateEstimator):
        return estimator
    steps = getattr(estimator, "steps", None)
    if not steps:
        raise ConfigurationError(
            f"{type(estimator).__name__}: search over a DPLip estimator, or a Pipeline that ends in one."
        )
    return private_part(steps[-1][1])
