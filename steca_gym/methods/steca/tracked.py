"""What trackers get of a calibration: its table with reflections, and the step values along each trajectory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from steca_gym.calibration import ExpertResult
from steca_gym.calibration.records import StepVerdict
from steca_gym.statistics import wilson
from steca_gym.step_rewards.values import Estimate
from steca_gym.tracking import Chart

NUM_CHARTS = 12
"""trajectories whose step values are drawn; all of them are in the table"""

CALIBRATION_COLUMNS = (
    "task",
    "step",
    "deviated action",
    "expert action",
    "reflection",
    "status",
    "reason",
    "kind",
    "value before",
    "value after",
    "observation",
    "reflection by",
    "calibration id",
    "expert trajectory id",
    "in the report",
)
"""the ids are those of `steca trace` and `steca review`; the link is one into the run's ``report.html``"""

TIMELINE_COLUMNS = (
    "task",
    "expert trajectory id",
    "step",
    "expert action",
    "agent action",
    "verdict",
    "value before",
    "value before, low",
    "value before, high",
    "value after",
    "value after, low",
    "value after, high",
    "samples",
)


def calibration_rows(results: Sequence[ExpertResult], *, folder: Path, stage: str) -> list[list[Any]]:
    """A row for each calibration, accepted or refused.

    Args:
        results: of the stage.
        folder: the run's folder, where `steca report` writes its page.
        stage: the stage's name.
    """
    page = (folder / "report.html").resolve().as_uri()
    rows: list[list[Any]] = []
    for result in results:
        for c in result.calibrations:
            verdict = next((v for v in c.verdicts if v.step == c.step), None)
            rows.append(
                [
                    c.task_id,
                    c.step,
                    c.deviated.action,
                    c.expert_action,
                    c.reflection.text,
                    c.status,
                    c.reason,
                    c.kind,
                    _mean(verdict.expert_reward if verdict else None),
                    _mean(verdict.agent_reward if verdict else None),
                    c.deviated.observation,
                    c.reflection.source,
                    c.calibration_id,
                    c.expert_id,
                    f"{page}#/t/0-{quote(result.expert_id)}-{quote(stage)}/{c.step + 1}",
                ]
            )
    return rows


def timeline_rows(results: Sequence[ExpertResult]) -> list[list[Any]]:
    """A row for each step at which the agent was asked."""
    return [
        [
            result.task_id,
            result.expert_id,
            v.step,
            v.expert_action,
            v.agent_action,
            v.verdict,
            *_interval(v.expert_reward),
            *_interval(v.agent_reward),
            _num_samples(v),
        ]
        for result in results
        for v in result.verdicts
    ]


def timelines(results: Sequence[ExpertResult]) -> dict[str, Chart]:
    """Step values over the steps, by trajectory id: before the step, and after the agent's own action.

    At most ``NUM_CHARTS``, those with a correction first; trajectories with fewer than two values are left out.
    """
    drawn: dict[str, Chart] = {}
    for result in sorted(results, key=lambda r: not any(c.status == "accepted" for c in r.calibrations)):
        before = [(float(v.step), v.expert_reward.mean) for v in result.verdicts if v.expert_reward is not None]
        after = [(float(v.step), v.agent_reward.mean) for v in result.verdicts if v.agent_reward is not None]
        if len(before) + len(after) < 2:
            continue
        lines = {"value before the step": before, "value after the agent's own action": after}
        drawn[result.expert_id] = Chart(
            title=f"chance of success, {result.task_id}",
            x_label="step",
            lines={label: points for label, points in lines.items() if points},
        )
        if len(drawn) == NUM_CHARTS:
            break
    return drawn


def continuation_success(results: Sequence[ExpertResult]) -> dict[str, float]:
    """How often the agent reaches the goal from the states of the demonstrations, with a 95 % interval.

    Of every Monte Carlo continuation from such a state; comparable between rounds that explore along the same
    trajectories. Empty where none was sampled.
    """
    outcomes = [o for r in results for v in r.verdicts if v.expert_reward for o in v.expert_reward.outcomes]
    if not outcomes:
        return {}
    low, high = wilson(sum(outcomes), len(outcomes))
    return {
        "continuation_success": sum(outcomes) / len(outcomes),
        "continuation_success_low": low,
        "continuation_success_high": high,
    }


def _mean(estimate: Estimate | None) -> float | None:
    return None if estimate is None else estimate.mean


def _interval(estimate: Estimate | None) -> tuple[float | None, float | None, float | None]:
    return (None, None, None) if estimate is None else (estimate.mean, estimate.low, estimate.high)


def _num_samples(verdict: StepVerdict) -> int:
    return sum(len(e.outcomes) for e in (verdict.expert_reward, verdict.agent_reward) if e is not None)
