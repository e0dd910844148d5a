"""Calibration as data: a deviation, its evidence, the corrected trajectory and the verdict on it.

(Skeleton: the functions that find, reflect, splice and execute are filled in here.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from steca_gym.trajectory import Step, Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A step reward with its evidence."""

    mean: float
    """estimated outcome in [0, 1]"""
    low: float
    high: float
    """interval at the estimator's stated level"""
    outcomes: tuple[float, ...] = ()
    """the Monte Carlo outcomes behind it"""


Verdict = Literal["deviated", "kept", "tie", "undecided", "same_action"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepVerdict:
    """What was found at one step of an expert trajectory."""

    step: int
    """t, 0-based: the agent acted in the state before expert step t"""
    expert_action: str
    agent_action: str
    verdict: Verdict
    expert_reward: Estimate | None
    """r_s(s_{t-1}, a_{t-1}): value of the state that the expert's step before led to"""
    agent_reward: Estimate | None
    """r_s(s_t, a_hat_t)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reflection:
    """The thought that notices a wrong action and leads to the right one."""

    text: str
    source: str
    """who wrote it: "template", "agent:NAME", "openai:MODEL", "person:NAME" """


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """A corrected trajectory with everything that led to it."""

    calibration_id: str
    task_id: str
    expert_id: str
    """trajectory_id of the expert trajectory"""
    step: int
    """t of the deviation, 0-based"""
    deviated: Step
    """the wrong turn and what the world answered"""
    expert_action: str
    reflection: Reflection
    verdicts: tuple[StepVerdict, ...]
    """the step-reward timeline up to the deviation"""
    trajectory: Trajectory
    """e_{1:t-1}, a_hat_t, (reflection, a_t), e_{t+1:n} as executed; trainable behind the deviation only"""
    failed_rest: Trajectory | None
    """the agent's own failed trajectory from the deviation on (whole, prefix included), for the weight"""
    status: Literal["accepted", "refused"]
    reason: str
    """why it was refused, or how it was repaired; empty when executed as spliced"""
    repaired: bool = False
    round: int = 0
