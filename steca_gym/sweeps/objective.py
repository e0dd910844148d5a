"""The figure of an evaluation that a sweep optimizes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

OBJECTIVES = ("success", "success_low", "mean_steps", "mean_dndtw", "invalid_rate", "robustness")
"""figures of an evaluation that a sweep can optimize"""


def objective_of(report: Mapping[str, Any], name: str) -> float:
    """A figure of an evaluation; NaN where the evaluation has none."""
    value = report.get(name)
    return math.nan if value is None else float(value)
