"""What trackers get of a calibration."""

from __future__ import annotations

import pytest

from steca_gym.calibration import ExpertResult
from steca_gym.calibration.records import StepVerdict
from steca_gym.methods.steca.tracked import (
    NUM_CHARTS,
    TIMELINE_COLUMNS,
    continuation_success,
    timeline_rows,
    timelines,
)
from steca_gym.statistics import wilson
from steca_gym.step_rewards.values import Estimate


def estimate(*outcomes: float) -> Estimate:
    return Estimate(mean=sum(outcomes) / len(outcomes), low=0.0, high=1.0, outcomes=outcomes)


def verdict(step: int, before: Estimate | None, after: Estimate | None) -> StepVerdict:
    return StepVerdict(
        step=step, expert_action="a", agent_action="b", verdict="kept", expert_reward=before, agent_reward=after
    )


def result(name: str, *verdicts: StepVerdict) -> ExpertResult:
    return ExpertResult(expert_id=name, task_id=f"task {name}", verdicts=verdicts)


def test_a_timeline_has_both_values_over_the_steps() -> None:
    one = result("e1", verdict(0, None, estimate(1, 0)), verdict(2, estimate(1, 1), estimate(0, 0)))
    (chart,) = timelines([one, result("e2", verdict(0, estimate(1), None))]).values()
    assert chart.title == "chance of success, task e1" and chart.x_label == "step"
    assert chart.lines == {
        "value before the step": [(2.0, 1.0)],
        "value after the agent's own action": [(0.0, 0.5), (2.0, 0.0)],
    }
    rows = [dict(zip(TIMELINE_COLUMNS, row, strict=True)) for row in timeline_rows([one])]
    assert [r["value before"] for r in rows] == [None, 1.0] and [r["samples"] for r in rows] == [2, 4]


def test_charts_are_bounded_in_number() -> None:
    many = [result(str(i), verdict(0, estimate(1), estimate(0))) for i in range(NUM_CHARTS + 5)]
    assert list(timelines(many)) == [str(i) for i in range(NUM_CHARTS)]


def test_continuation_success_is_of_the_demonstrations_states_only() -> None:
    found = continuation_success([result("e", verdict(0, estimate(1, 0, 0), estimate(1, 1)), verdict(1, None, None))])
    low, high = wilson(1, 3)
    assert found == pytest.approx(
        {"continuation_success": 1 / 3, "continuation_success_low": low, "continuation_success_high": high}
    )
    assert continuation_success([result("e", verdict(0, None, estimate(1)))]) == {}
