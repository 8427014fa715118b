"""scikit-learn estimators: private, monotone, and certified."""

from dplip.estimators.base import PrivateEstimator
from dplip.estimators.classifier import DPLipClassifier
from dplip.estimators.regressor import DPLipRegressor
from dplip.estimators.search import search_privacy

__all__ = ["DPLipClassifier", "DPLipRegressor", "PrivateEstimator", "search_privacy"]
