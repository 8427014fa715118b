"""Differentially private training of Lipschitz networks: one set of bounds for privacy and for robustness."""

import importlib

from dplip import distributed, losses, models, nn
from dplip.accounting import create_accountant, get_noise_multiplier
from dplip.certificates import certify, certify_monotonic, lipschitz
from dplip.constraints import (
    ColumnL1Ball,
    EntryBall,
    FrobeniusBall,
    Orthogonal,
    RowL1Ball,
    RowL2Ball,
    SpectralBall,
    constrain,
    project,
)
from dplip.errors import (
    BudgetExceededError,
    CheckpointError,
    ConfigurationError,
    DPLipError,
    GroupError,
    LedgerError,
    MixedExamplesError,
    UnboundedInputError,
    UnboundedOperationError,
)
from dplip.nn.bounded import fix
from dplip.norms import Norms, OperatorNorms
from dplip.propagation import propagate
from dplip.rules import rule
from dplip.runtime.example import Example
from dplip.sampling import FixedSizeLoader, PoissonLoader
from dplip.sensitivities import parameter_bounds, sensitivity
from dplip.training import DPLipOptimizer, DPLipTrainer, PrivacyEngine

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """What is loaded on first use: the audits, finished runs, and the estimators with scikit-learn."""
    if name in ("audit", "estimators", "reports", "runs"):
        return importlib.import_module(f"dplip.{name}")
    if name in ("DPLipClassifier", "DPLipRegressor"):
        return getattr(importlib.import_module("dplip.estimators"), name)
    if name == "load_run":
        return importlib.import_module("dplip.runs").load_run
    raise AttributeError(f"module 'dplip' has no attribute {name!r}: docs/api.md lists its names")


__all__ = [
    "BudgetExceededError",
    "CheckpointError",
    "ColumnL1Ball",
    "ConfigurationError",
    "DPLipClassifier",
    "DPLipError",
    "DPLipOptimizer",
    "DPLipRegressor",
    "DPLipTrainer",
    "EntryBall",
    "Example",
    "FixedSizeLoader",
    "FrobeniusBall",
    "GroupError",
    "LedgerError",
    "MixedExamplesError",
    "Norms",
    "OperatorNorms",
    "Orthogonal",
    "PoissonLoader",
    "PrivacyEngine",
    "RowL1Ball",
    "RowL2Ball",
    "SpectralBall",
    "UnboundedInputError",
    "UnboundedOperationError",
    "certify",
    "certify_monotonic",
    "constrain",
    "create_accountant",
    "distributed",
    "fix",
    "get_noise_multiplier",
    "lipschitz",
    "load_run",
    "losses",
    "models",
    "nn",
    "parameter_bounds",
    "project",
    "propagate",
    "rule",
    "sensitivity",
]
