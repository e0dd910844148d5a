"""Will step-level calibration help in a world with an agent, and what will it cost? Answered by probe episodes."""

from steca_gym.diagnosis.measures import DiagnosisSettings, Measures, Share, measure
from steca_gym.diagnosis.verdict import Diagnosis, Forecast, Reason, diagnose, forecast, judge_measures

__all__ = [
    "Diagnosis",
    "DiagnosisSettings",
    "Forecast",
    "Measures",
    "Reason",
    "Share",
    "diagnose",
    "forecast",
    "judge_measures",
    "measure",
]
