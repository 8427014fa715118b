"""Differentially private training of Lipschitz networks: one set of bounds for privacy and for robustness."""

from dplip import losses, models, nn
from dplip.accounting import create_accountant
from dplip.calibration import get_noise_multiplier
from dplip.certify import certify, lipschitz
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
from dplip.engine import PrivacyEngine
from dplip.errors import (
    BudgetExceededError,
    CheckpointError,
    ConfigurationError,
    DPLipError,
    LedgerError,
    UnboundedInputError,
    UnboundedOperationError,
)
from dplip.monotonicity import certify_monotonic
from dplip.norms import Norms, OperatorNorms
from dplip.optimizer import DPLipOptimizer
from dplip.propagate import propagate
from dplip.rules.registry import rule
from dplip.sampling import FixedSizeLoader, PoissonLoader
from dplip.sensitivity import parameter_bounds, sensitivity
from dplip.trainer import DPLipTrainer

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """The estimators, on first use: scikit-learn is not loaded for those who do not want it."""
    if name in ("DPLipClassifier", "DPLipRegressor"):
        from dplip import estimators

        return getattr(estimators, name)
    raise AttributeError(f"module 'dplip' has no attribute {name!r}")


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
    "FixedSizeLoader",
    "FrobeniusBall",
    "LedgerError",
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
    "get_noise_multiplier",
    "lipschitz",
    "losses",
    "models",
    "nn",
    "parameter_bounds",
    "project",
    "propagate",
    "rule",
    "sensitivity",
]
