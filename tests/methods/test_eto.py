"""ETO: the pairs, and a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from steca_gym.cli.composing import compose
from steca_gym.errors import ConfigError, DataError
from steca_gym.methods.eto import ETO, TrainOnOutcomePairs, outcome_pairs
from steca_gym.methods.stages import PreferenceConfig
from steca_gym.runs.context import read_config
from steca_gym.trajectory import Step, Trajectory
from tests.methods.playing import play


def episode(task: str, *actions: str, score: float, first: str = "start") -> Trajectory:
    steps = tuple(Step(action=a, observation=f"after {a}") for a in actions)
    status = "terminated" if score == 1 else "truncated"
    return Trajectory(task_id=task, first_observation=first, steps=steps, score=score, won=score == 1, status=status)


def test_the_better_episode_of_a_task_is_chosen() -> None:
    experts = [episode("a", "x", "y", score=1.0), episode("b", "x", score=0.5)]
    own = [
        episode("a", "z", score=0.0),
        episode("a", "y", score=1.0),  # as good as the expert's
        episode("b", "z", score=1.0),  # better than the expert's
        episode("c", "z", score=0.0),  # no demonstration
        episode("a", "z", score=0.0, first="another start"),
        episode("a", score=0.0),  # broke before its first turn
    ]
    pairs = outcome_pairs(experts, own)
    assert [(p.chosen.actions, p.rejected.actions, p.kind) for p in pairs] == [
        (("x", "y"), ("z",), "outcome"),
        (("z",), ("x",), "outcome"),
    ]
    # Whole episodes are compared: every turn of both sides is trained.
    assert all(s.trainable for p in pairs for s in (*p.chosen.steps, *p.rejected.steps))
    assert all(len(p.prefix) == 0 for p in pairs)


def test_the_preference_training_is_the_agents_but_for_the_learning_rate() -> None:
    config, _ = read_config(compose(["method=eto", "agent.train.learning_rate=0.02", "agent.train.max_steps=7"]))
    settings = PreferenceConfig(beta=0.3, learning_rate_scale=0.25).training(config)
    assert (settings.beta, settings.learning_rate, settings.max_steps) == (0.3, 0.005, 7)
    assert settings.per_device_batch_size == config.agent.train["per_device_batch_size"]  # type: ignore[index]
    assert settings.seed == config.seed


def test_settings_that_cannot_work() -> None:
    with pytest.raises(ConfigError, match="beta and learning_rate_scale must be > 0"):
        PreferenceConfig(beta=0.0)
    with pytest.raises(ConfigError, match="gives equal episodes"):
        ETO.Config(num_samples=2, temperature=0.0)


@pytest.mark.slow
def test_a_run(tmp_path: Path) -> None:
    stages = play(tmp_path, "eto", "exploration.num_rounds=2")
    assert list(stages) == ["demonstrations", "warm_up", "own_episodes", "train", "own_episodes.1", "train.1"]
    assert stages["train"]["num_outcome"] == 8 - stages["own_episodes"]["num_won"]
    assert stages["train"]["num_steps"] == 2
    assert 0 <= stages["train"]["reward_accuracy"] <= 1


def test_no_pair_is_one_line() -> None:
    class Nothing(TrainOnOutcomePairs):
        def pairs(self, context: object) -> list[object]:  # type: ignore[override]
            return []

    with pytest.raises(DataError, match="no preference pairs: the agent did as well as the expert"):
        Nothing(0, PreferenceConfig()).fit(None, Path(), {})  # type: ignore[arg-type]


def test_rounds_have_distinct_samples() -> None:
    stages = ETO(dataclasses.replace(ETO.Config(), num_rounds=2)).stages()
    assert [s.name for s in stages] == [
        "demonstrations",
        "warm_up",
        "own_episodes",
        "train",
        "own_episodes.1",
        "train.1",
    ]
