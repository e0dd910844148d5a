"""E2CL: which errors are learnt from, and what each teaches."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from steca_gym.agent import render_turn
from steca_gym.errors import ConfigError
from steca_gym.methods.dagger import DAgger
from steca_gym.methods.e2cl import E2CL, TeacherFree, error_samples, is_correction
from steca_gym.runs import RunFolder
from steca_gym.trajectory import Step, Trajectory
from tests.methods.playing import play
from tests.methods.test_dagger import shape, turn


def step(action: str, *, valid: bool = True) -> Step:
    answer = f"after {action}" if valid else "Nothing happens."
    return Step(action=action, observation=answer, text=render_turn("", action), valid=valid)


def played(*steps: Step) -> Trajectory:
    return Trajectory(task_id="t", first_observation="start", steps=steps)


def test_a_refused_action_teaches_the_answer_and_the_experts_turn() -> None:
    refused = played(step("a"), step("bad", valid=False))
    feedback, correction = error_samples(refused, step("right"))
    assert shape(feedback) == "a NOTHING HAPPENS."
    assert feedback.steps[0].observation == "after a\n\nWhat will you see after this action?\nAction: bad"
    assert not is_correction(feedback)
    # The refused turn and its answer are history; the expert's turn alone is trained.
    assert shape(correction) == "a bad RIGHT" and is_correction(correction)
    assert [s.source for s in correction.steps] == ["agent", "deviation", "expert"]
    assert correction.steps[1].observation == "Nothing happens." and correction.steps[2].observation == ""
    assert correction.status == "running" and not correction.won
    assert error_samples(refused, None) == [feedback]


def test_of_a_free_episode_the_first_refused_actions_count() -> None:
    stage = TeacherFree(0, DAgger.Config(), max_errors=2)
    bad = step("bad", valid=False)
    episode = played(step("a"), bad, bad, step("c"), bad)
    labels = [turn("a"), turn("x"), turn("y", thought="why"), None, turn("z")]
    made = stage.make_samples(episode, labels, None)
    assert [shape(s) for s in made] == ["a NOTHING HAPPENS.", "a bad Y", "a bad NOTHING HAPPENS."]
    assert made[1].steps[-1].turn_text() == render_turn("why", "y")  # the state after the refusal is the one before it
    # The second refusal leads to a state in which the expert has no turn.
    assert stage.make_samples(played(step("a")), [turn("a")], None) == []
    # A refused last turn has no state after it.
    assert [shape(s) for s in stage.make_samples(played(bad), [turn("a")], None)] == ["NOTHING HAPPENS."]


def test_the_loss_is_the_weighted_sum_of_the_three_parts() -> None:
    """By hand: a demonstration of 2 trained tokens, feedback of 1 at weight 0.5, a correction of 1 at weight 2."""
    nll = {"expert": [0.7, 0.3], "feedback": [1.1], "correction": [0.2]}
    config = E2CL.Config(feedback_weight=0.5, correction_weight=2.0)
    weights = {"expert": 1.0, "feedback": config.feedback_weight, "correction": config.correction_weight}
    total = sum(weights[kind] * sum(tokens) for kind, tokens in nll.items())
    assert math.isclose(total, 1.0 + 0.55 + 0.4)
    # The trainer's own loss on the same numbers, before it divides by the number of tokens.
    from steca_gym.training.weighted_sft import _weighted_nll

    rows = [len(tokens) for tokens in nll.values()]
    covered = torch.zeros((3, 2), dtype=torch.bool)
    for row, count in enumerate(rows):
        covered[row, :count] = True
    values = torch.tensor([x for tokens in nll.values() for x in tokens])
    inputs = {"weights": torch.tensor(list(weights.values()))}
    assert float(_weighted_nll(inputs, values, covered)[0]) == pytest.approx(total)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_errors": 0}, "max_errors must be >= 1, got 0"),
        ({"feedback_weight": float("nan")}, "feedback_weight must be a finite number >= 0"),
        ({"correction_weight": -1.0}, "correction_weight must be a finite number >= 0, got -1.0"),
        ({"feedback_weight": 0.0, "correction_weight": 0.0}, "both 0; that is method=sft"),
        ({"num_rounds": 0}, "num_rounds"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        E2CL.Config(**settings)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_run(tmp_path: Path) -> None:
    stages = play(tmp_path, "e2cl", "exploration.num_rounds=2", "method.correction_weight=2", "method.max_errors=2")
    names = ["demonstrations", "warm_up"]
    names += ["alternatives", "teacher_free", "train", "alternatives.1", "teacher_free.1", "train.1"]
    assert list(stages) == names
    trained = stages["train"]
    assert trained["num_expert"] == 8
    with RunFolder(tmp_path).buffer() as buffer:
        tried = buffer.trajectories(kind="alternative", round_index=0)
        free = buffer.trajectories(kind="refused", round_index=0)
    refused = [t for t in tried if not t.steps[-1].valid]
    assert refused  # a model that has learnt next to nothing
    assert trained["num_feedback"] == len(refused) + sum(not is_correction(s) for s in free)
    assert trained["num_correction"] == len(refused) + sum(is_correction(s) for s in free)
    assert len(free) == stages["teacher_free"]["num_feedback"] + stages["teacher_free"]["num_corrections"]
