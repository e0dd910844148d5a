"""IPR: step rewards by hand, the pairs, and a run."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from steca_gym.agents.scripted import ExpertAgent

from steca_gym.agent import TurnRequest
from steca_gym.calibration.schedule import drive_all
from steca_gym.collectors import Collector, EpisodeRequest
from steca_gym.errors import ConfigError
from steca_gym.methods.ipr import IPR, ComparedExpert, ComparedStep, compare_steps, step_pairs, worse_continuations
from steca_gym.trajectory import Step, Trajectory
from tests.calibration_world import LENGTH, PolicyAgent, make_corridor, room_of
from tests.methods.playing import play


def demonstration() -> Trajectory:
    with Collector(make_corridor, ExpertAgent()) as collector:
        return collector.run([EpisodeRequest(task_id="walk-0", seed=0)])[0].trajectory


def compared_with(policy: PolicyAgent, expert: Trajectory, **settings: float) -> ComparedExpert:
    config = IPR.Config(num_samples=3, **settings)  # type: ignore[arg-type]
    with Collector(make_corridor, policy) as collector:
        procedure = compare_steps(expert, config, round_index=0, max_new_tokens=8, seed=0)
        (result,) = drive_all(collector, [procedure])
    assert isinstance(result, ComparedExpert)
    return result


def test_step_rewards_are_mean_outcomes() -> None:
    def policy(request: TurnRequest, rng: random.Random) -> str:
        # Falls into the pit in room 2 when it gets there at turn 2, and waits in the last room.
        if "room 2" in room_of(request) and request.turn == 2:
            return "jump"
        return "wait" if f"room {LENGTH - 1}" in room_of(request) and request.turn == LENGTH - 1 else "go on"

    expert = demonstration()
    result = compared_with(PolicyAgent(policy), expert)
    assert not result.error
    # It does as the expert elsewhere: only these two steps are compared.
    jump, wait = result.steps
    assert (jump.step, jump.expert_reward, jump.agent_reward) == (2, 1.0, 0.0)
    # After the last step the expert's reward is its outcome; after waiting the agent still gets there.
    assert (wait.step, wait.expert_reward, wait.agent_reward) == (LENGTH - 1, 1.0, 1.0)
    (worse,) = worse_continuations(result, threshold=0.0)
    assert worse.actions[:3] == ("go on", "go on", "jump") and not worse.won
    # The agent's own part is trained on, to the end; the expert's prefix is not.
    assert [s.trainable for s in worse.steps] == [False, False] + [True] * (len(worse) - 2)


def test_a_pair_needs_more_than_the_threshold() -> None:
    continuation = Trajectory(task_id="t", first_observation="o", steps=(Step(action="a", observation=""),))
    step = ComparedStep(step=0, expert_reward=0.8, agent_reward=0.6, continuation=continuation)
    result = ComparedExpert(expert=continuation, steps=(step,))
    assert len(worse_continuations(result, 0.1)) == 1
    assert worse_continuations(result, 0.3) == []


def test_a_step_pair_prefers_the_experts_remaining_steps() -> None:
    def steps(*actions: str) -> tuple[Step, ...]:
        return tuple(Step(action=a, observation=f"after {a}") for a in actions)

    expert = Trajectory(task_id="t", first_observation="o", steps=steps("a", "b", "c"), score=1.0, won=True)
    own = Trajectory(task_id="t", first_observation="o", steps=steps("a", "x", "y", "z"))
    compared = ComparedStep(step=1, expert_reward=1.0, agent_reward=0.0, continuation=own)
    worse = worse_continuations(ComparedExpert(expert=expert, steps=(compared,)), 0.0)
    (pair,) = step_pairs([expert], worse)
    assert [s.action for s in pair.chosen_steps] == ["b", "c"] and len(pair.prefix) == 1
    assert [s.action for s in pair.rejected_steps] == ["x", "y", "z"] and pair.kind == "step"
    assert [s.trainable for s in pair.chosen.steps] == [False, True, True]


def test_settings_that_cannot_work() -> None:
    for settings, words in (
        ({"temperature": 0.0}, "temperature must be > 0"),
        ({"num_samples": 0}, "num_samples and max_steps must be >= 1"),
        ({"threshold": 1.0}, r"threshold must lie in \[0, 1\)"),
    ):
        with pytest.raises(ConfigError, match=words):
            IPR.Config(**settings)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_run(tmp_path: Path) -> None:
    stages = play(tmp_path, "ipr")
    assert list(stages) == ["demonstrations", "warm_up", "own_episodes", "step_pairs", "train"]
    assert stages["train"].get("num_step", 0) == stages["step_pairs"]["num_step_pairs"]
    assert stages["train"]["num_outcome"] == 8 - stages["own_episodes"]["num_won"]
