"""The figure of an evaluation that a sweep optimizes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from steca_gym.errors import ConfigError
from steca_gym.registry import explain_unknown

OBJECTIVES = (
    "success",
    "success_low",
    "success_high",
    "mean_steps",
    "mean_dndtw",
    "invalid_rate",
    "robustness",
    "robustness_low",
    "robustness_high",
)
"""figures of an evaluation that a sweep can optimize; besides, ``success.TYPE`` (of a task type) and
``cost.PHASE.FIGURE`` (such as ``cost.calibration.num_sampled_tokens``)"""


def check_objective(name: str) -> None:
    """Raise ConfigError for a name that no evaluation can have a figure of."""
    of_type = name.startswith("success.") and len(name) > len("success.")
    of_cost = name.startswith("cost.") and name.count(".") == 2 and all(name.split("."))
    if name not in OBJECTIVES and not of_type and not of_cost:
        raise ConfigError(
            f"{explain_unknown('objective', name, OBJECTIVES)}; also success.TYPE and cost.PHASE.FIGURE, e.g. "
            "cost.calibration.num_sampled_tokens"
        )


def objective_of(report: Mapping[str, Any], name: str) -> float:
    """A figure of an evaluation; NaN where the evaluation has none."""
    head, _, rest = name.partition(".")
    if head == "success" and rest:
        won, played = report.get("by_type", {}).get(rest, (0, 0))
        return won / played if played else math.nan
    if head == "cost":
        phase, _, figure = rest.partition(".")
        value = report.get("cost", {}).get(phase, {}).get(figure)
    else:
        value = report.get(name)
    return math.nan if value is None else float(value)
