"""The scikit-learn estimators: their checks, and what they say of privacy and monotonicity."""

import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import check_classifiers_train, parametrize_with_checks

import dplip
from dplip import DPLipClassifier, DPLipRegressor
from dplip.estimators import PrivateEstimator, search_privacy

PRIVATE = DPLipClassifier(epochs=1, batch_size=64)
"""With noise, at the default epsilon of 1."""

FREE = {"epsilon": math.inf, "epochs": 8, "batch_size": 32, "lr": 0.1}
"""Without noise, so that the checks that ask for accuracy can be passed; the code is the same."""

FORBIDDEN = {
    "check_classifiers_train": "asks for an accuracy of 0.83 from a few hundred rows: the noise hides it",
}
"""The checks that privacy forbids, each with its reason."""


def expected_failures(estimator):
    return {} if math.isinf(estimator.epsilon) else FORBIDDEN


@parametrize_with_checks([PRIVATE, DPLipRegressor(**FREE)], expected_failed_checks=expected_failures)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


def test_what_privacy_forbids_passes_without_noise():
    check_classifiers_train("DPLipClassifier", DPLipClassifier(**FREE))


def test_parameters_are_named_once_and_scikit_learn_reads_them():
    shared = set(PrivateEstimator().get_params())
    assert set(DPLipClassifier().get_params()) == shared | {"classes"}
    assert set(DPLipRegressor().get_params()) == shared | {"target_low", "target_high", "residual"}
    assert (DPLipClassifier().scale, DPLipRegressor().scale) == (16.0, 1.0)
    model = DPLipRegressor(monotone={"age": 1}, epsilon=2.0)
    assert repr(model) == "DPLipRegressor(epsilon=2.0, monotone={'age': 1})"
    assert clone(model).get_params() == model.get_params() and clone(model) != model
    with pytest.raises(TypeError):
        DPLipClassifier(2.0)
    with pytest.raises(ValueError, match="tau"):
        model.set_params(tau=1)


def rows(count: int = 600, seed: int = 0) -> tuple[pd.DataFrame, np.ndarray]:
    g = np.random.default_rng(seed)
    x = pd.DataFrame(g.uniform(-3, 3, (count, 3)), columns=["age", "price", "size"])
    return x, np.where(x["age"] - x["price"] + g.normal(0, 1, count) > 0, "yes", "no")


def test_a_private_classifier_says_what_it_spent_and_is_monotone():
    x, y = rows(3000)
    model = DPLipClassifier(epsilon=2.0, monotone={"age": 1, "price": -1}, epochs=10, random_state=0).fit(x, y)
    assert 1.9 < model.epsilon_ <= 2.0
    assert model.seeded_ and model.event_.noise_multiplier > 0
    assert model.score(*rows(500, 1)) > 0.8
    assert list(model.classes_) == ["no", "yes"]
    certificate = model.monotonicity_
    assert certificate.margin > 0 and "age" in str(certificate)
    older = x.assign(age=x["age"] + 1)
    assert (model.decision_function(older) >= model.decision_function(x)).all()
    p = model.predict_proba(x)
    np.testing.assert_allclose(p.sum(1), 1)
    assert ((p[:, 1] > 0.5) == (model.predict(x) == "yes")).all()
    radii, one_sided = model.certified_radius(x, norm=1), model.feature_radii(x)
    assert radii.shape == (3000,) and one_sided.shape == (3000, 3, 2)
    likely = model.predict(x) == "yes"
    assert np.isinf(one_sided[likely, 0, 0]).all() and np.isinf(one_sided[likely, 1, 1]).all()
    assert (one_sided.min((1, 2)) >= radii - 1e-9).all()


def test_without_a_seed_runs_differ_and_say_that_they_are_not_seeded():
    x, y = rows(200)
    first, second = (clone(PRIVATE).fit(x, y) for _ in range(2))
    assert not first.seeded_
    assert (first.decision_function(x) != second.decision_function(x)).any()
    seeded = [clone(PRIVATE).set_params(random_state=3).fit(x, y).decision_function(x) for _ in range(2)]
    np.testing.assert_array_equal(*seeded)


def test_fitting_leaves_the_global_generators_alone():
    x, y = rows(100)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    clone(PRIVATE).set_params(random_state=0).fit(x, y)
    assert torch.equal(torch.rand(3), expected)


def test_ranges_are_public_and_never_read_off_the_data():
    x, y = rows(200)
    huge = x.copy()
    huge.iloc[0] = 1e9
    for data in (x, huge):
        model = clone(PRIVATE).set_params(random_state=0).fit(data, y)
        assert model.model_[0].high.tolist() == [4.0, 4.0, 4.0]
    with pytest.raises(dplip.ConfigurationError, match="low"):
        clone(PRIVATE).set_params(low=[0.0, 1.0]).fit(x, y)
    with pytest.raises(dplip.ConfigurationError, match="monotone"):
        clone(PRIVATE).set_params(monotone={"weight": 1}).fit(x, y)
    with pytest.raises(dplip.ConfigurationError, match="monotone"):
        clone(PRIVATE).set_params(monotone=[1]).fit(x, y)


def test_public_classes_may_be_named():
    x, _ = rows(100)
    model = clone(PRIVATE).set_params(classes=["no", "yes"]).fit(x, np.array(["no"] * 100))
    assert list(model.classes_) == ["no", "yes"]
    with pytest.raises(ValueError, match="y holds maybe besides"):
        clone(PRIVATE).set_params(classes=["no", "yes"]).fit(x, np.array(["maybe"] * 100))


def test_a_regressor_stays_in_the_targets_range_and_its_direction():
    x, _ = rows(600)
    y = 20 + 5 * x["age"].to_numpy()
    model = DPLipRegressor(**FREE, target_low=0, target_high=40, monotone={"age": 1}, random_state=0).fit(x, y)
    assert model.score(x, y) > 0.8
    assert model.monotonicity_.margin > 0
    assert (model.predict(x.assign(age=x["age"] + 0.5)) >= model.predict(x)).all()
    with pytest.raises(dplip.ConfigurationError, match="target_low"):
        clone(model).set_params(target_low=50).fit(x, y)


def test_a_search_in_a_pipeline_says_what_all_its_fits_spent():
    x, y = rows(120)
    pipeline = make_pipeline(FunctionTransformer(), DPLipClassifier(epsilon=1.0, epochs=2, batch_size=60))
    search = GridSearchCV(pipeline, {"dplipclassifier__lr": [0.01, 0.05]}, cv=KFold(2)).fit(x, y)
    spent = search_privacy(search)
    assert spent["fits"] == 5 and spent["neighboring"] == "replace_one" and "not accounted" in spent["selection"]
    # Five fits of epsilon 1 under add-remove, each of twice the sensitivity under replace-one.
    assert 2 < spent["epsilon"] < 25
    assert spent["epsilon"] > 2 * search.best_estimator_[-1].epsilon_
    one = GridSearchCV(pipeline, {"dplipclassifier__lr": [0.01]}, cv=KFold(2)).fit(x, y)
    assert search_privacy(one)["epsilon"] < spent["epsilon"]
    assert len(cross_val_score(pipeline, x, y, cv=2)) == 2
    stratified = GridSearchCV(pipeline, {"dplipclassifier__lr": [0.01]}, cv=2).fit(x, y)
    with pytest.raises(dplip.ConfigurationError, match="KFold"):  # one label moves other rows between its folds
        search_privacy(stratified)


def test_importing_the_library_loads_neither_scikit_learn_nor_pandas():
    code = "import sys, dplip; print('sklearn' in sys.modules, 'pandas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
