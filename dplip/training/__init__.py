"""Private training: the optimizer, which takes private steps, the engine and the trainer."""

from dplip.training.adam import CorrectedAdam
from dplip.training.engine import PrivacyEngine
from dplip.training.feature_extractor import features, split_extractor
from dplip.training.optimizer import DPLipOptimizer
from dplip.training.trainer import DPLipTrainer

__all__ = ["CorrectedAdam", "DPLipOptimizer", "DPLipTrainer", "PrivacyEngine", "features", "split_extractor"]
