"""Calibration: find the deviation, splice, execute, reflect, and keep the evidence.

``calibrate`` does it all for many expert trajectories in one queue; ``explore``, ``detect``, ``execute`` and
``reflect`` are its parts. Knows no concrete environment, no concrete agent, no storage and no trainer.
"""

from steca_gym.calibration.correction import Correction, ExpertRepair, Repair, Repairer, execute, splice
from steca_gym.calibration.detection import Detection, detect
from steca_gym.calibration.exploration import Exploration, ExploredStep, Similarity, explore
from steca_gym.calibration.pipeline import calibrate, reflect
from steca_gym.calibration.records import (
    NO_REFLECTION,
    Calibration,
    CalibrationResult,
    Counts,
    ExpertRest,
    ExpertResult,
    Reflection,
    StepVerdict,
    result_from_json,
    result_to_json,
)
from steca_gym.calibration.settings import CalibrationSettings
from steca_gym.calibration.weights import (
    WeightSettings,
    calibration_weight,
    exploration_weight,
    weighted_samples,
)
from steca_gym.step_rewards.settings import StepRewardSettings
from steca_gym.step_rewards.values import Estimate, Verdict

__all__ = [
    "NO_REFLECTION",
    "Calibration",
    "CalibrationResult",
    "CalibrationSettings",
    "Correction",
    "Counts",
    "Detection",
    "Estimate",
    "ExpertRepair",
    "ExpertRest",
    "ExpertResult",
    "Exploration",
    "ExploredStep",
    "Reflection",
    "Repair",
    "Repairer",
    "Similarity",
    "StepRewardSettings",
    "StepVerdict",
    "Verdict",
    "WeightSettings",
    "calibrate",
    "calibration_weight",
    "detect",
    "execute",
    "exploration_weight",
    "explore",
    "reflect",
    "result_from_json",
    "result_to_json",
    "splice",
    "weighted_samples",
]
