"""StepAgent's inverse variant: the learnt reward, and a run. The implicit one is in ``test_alternatives``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from steca_gym.errors import ConfigError, UnknownNameError
from steca_gym.methods.step_agent import InverseConfig, LearntRewards, StepAgent, turn_features
from steca_gym.trajectory import Step, Trajectory
from tests.methods.playing import play


def episode(*turns: tuple[str, str]) -> Trajectory:
    """(observation, action) of each turn."""
    seen = [observation for observation, _ in turns] + ["end"]
    steps = tuple(Step(action=a, observation=seen[i + 1]) for i, (_, a) in enumerate(turns))
    return Trajectory(task_id="t", goal="reach the door", first_observation=seen[0], steps=steps)


RIGHT = [("the way is free", "go on"), ("the door is locked", "unlock")] * 3
WRONG = [("the way is free", "go on"), ("the door is locked", "go on")] * 3


def test_a_turn_is_known_by_its_action_and_what_was_seen_before() -> None:
    free, locked = turn_features(episode(("the way is free", "go on"), ("the door is locked", "go on")))
    assert np.linalg.norm(free) == pytest.approx(1.0)
    assert not np.allclose(free, locked)
    # What the world answers to the turn does not count.
    (again,) = turn_features(episode(("the way is free", "go on")))
    assert np.array_equal(again, free)
    unreadable = Trajectory(
        task_id="t", first_observation="o", steps=(Step(action="???", observation="", parsed=False),)
    )
    assert np.linalg.norm(turn_features(unreadable)) == pytest.approx(1.0)


def test_turns_like_the_experts_are_rewarded() -> None:
    rewards = LearntRewards(gamma=0.0, max_turns=512)
    rewards.begin([episode(*RIGHT) for _ in range(8)])
    own = [turn_features(episode(*(RIGHT if i < 4 else WRONG))) for i in range(8)]
    found = rewards.rewards(own, step=0)
    right_turns, wrong_turns = found[0][1::2], found[7][1::2]
    # The same observation, the other action.
    assert min(right_turns) > 0 > max(wrong_turns)
    # "go on" where the way is free tells nothing: both do it.
    assert all(min(right_turns) > abs(r) for row in found for r in row[0::2])
    assert rewards.metrics["share_told_apart"] <= 0.75


def test_nothing_tells_equal_sides_apart() -> None:
    rewards = LearntRewards(gamma=0.0, max_turns=512)
    rewards.begin([episode(*RIGHT) for _ in range(4)])
    found = rewards.rewards([turn_features(episode(*RIGHT)) for _ in range(4)], step=0)
    assert np.allclose(found, 0.0, atol=1e-3)
    # One episode is judged too.
    (alone,) = rewards.rewards([turn_features(episode(*RIGHT))], step=0)
    assert len(alone) == len(RIGHT)


def test_more_turns_than_are_fitted_are_drawn_with_a_seed() -> None:
    rewards = LearntRewards(gamma=0.0, max_turns=3)
    rewards.begin([episode(*RIGHT) for _ in range(4)])
    own = [turn_features(episode(*WRONG)) for _ in range(4)]
    assert rewards.rewards(own, step=1) == rewards.rewards(own, step=1)


def test_settings_that_cannot_work() -> None:
    with pytest.raises(UnknownNameError, match="no variant 'inverted'; did you mean 'inverse'"):
        StepAgent.Config(variant="inverted")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="max_turns be >= 2"):
        InverseConfig(max_turns=1)


@pytest.mark.slow
def test_a_run_of_the_inverse_variant(tmp_path: Path) -> None:
    small = ["num_steps=2", "num_tasks=2", "group_size=1", "save_every_steps=1"]
    stages = play(tmp_path, "step_agent", "method.variant=inverse", *(f"method.inverse.rollout.{s}" for s in small))
    assert list(stages) == ["demonstrations", "warm_up", "online"]
    assert stages["online"]["num_steps"] == 2
