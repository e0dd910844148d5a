"""The agent's own turns along demonstrations, and the two methods that train on them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from steca_gym.agent import Prompt, TurnRequest, render_turn
from steca_gym.calibration.schedule import drive_all
from steca_gym.collectors import Collector
from steca_gym.errors import ConfigError
from steca_gym.methods.alternatives import Asked, ask_along
from steca_gym.methods.early_experience import QUESTION, EarlyExperience, prediction_sample
from steca_gym.methods.step_agent import turn_pairs
from steca_gym.training.samples import IGNORED, encode_sample
from steca_gym.trajectory import Step, Trajectory, WeightedTrajectory
from tests.calibration_world import PolicyAgent, make_corridor, room_of
from tests.fakes import tiny_tokenizer
from tests.methods.playing import play
from tests.methods.test_ipr import demonstration


def asked(policy: PolicyAgent, num_samples: int) -> Asked:
    with Collector(make_corridor, policy) as collector:
        procedure = ask_along(
            demonstration(), num_samples=num_samples, temperature=1.0, round_index=0, max_new_tokens=8, seed=0
        )
        (result,) = drive_all(collector, [procedure])
    assert isinstance(result, Asked)
    return result


def test_only_turns_that_differ_are_kept_each_once() -> None:
    expert_thought = "the next room is ahead"

    def policy(request: TurnRequest, rng: random.Random) -> str:
        if "room 1" in room_of(request):
            return "detour" if rng.random() < 0.5 else "lock"
        return "jump" if "room 4" in room_of(request) else render_turn(expert_thought, "go on")

    found = asked(PolicyAgent(policy), num_samples=12)
    assert not found.error
    assert [(len(t), t.actions[-1]) for t in found.alternatives] == [(2, "detour"), (2, "lock"), (5, "jump")]
    detour = found.alternatives[0]
    assert [s.trainable for s in detour.steps] == [False, True]
    assert detour.steps[-1].observation == "You are in room 0."


def test_the_experts_turn_is_preferred_to_the_agents() -> None:
    def steps(*actions: str) -> tuple[Step, ...]:
        return tuple(Step(action=a, observation=f"after {a}") for a in actions)

    expert = Trajectory(task_id="t", first_observation="o", steps=steps("a", "b", "c"), score=1.0, won=True)
    (pair,) = turn_pairs([expert], [Trajectory(task_id="t", first_observation="o", steps=steps("a", "x"))])
    assert pair.chosen.actions == ("a", "b") and pair.rejected.actions == ("a", "x") and pair.kind == "turn"
    assert [s.trainable for s in pair.chosen.steps] == [s.trainable for s in pair.rejected.steps] == [False, True]


def test_a_prediction_trains_the_worlds_answer_alone() -> None:
    steps = (Step(action="right", observation="You are in room 1."), Step(action="jump", observation="You fall."))
    played = Trajectory(task_id="t", first_observation="You are in room 0.", steps=steps)
    sample = prediction_sample(played)
    contents = [m.content for m in sample.messages(Prompt())][:4]
    assert contents == [
        "You are in room 0.",
        render_turn("", "right"),
        "You are in room 1." + QUESTION.format(action="jump"),
        "You fall.",
    ]
    tokenizer = tiny_tokenizer()
    encoded = encode_sample(tokenizer, WeightedTrajectory(trajectory=sample), Prompt())
    trained = tokenizer.decode(
        [i for i, label in zip(encoded.input_ids, encoded.labels, strict=True) if label != IGNORED]
    )
    assert trained.strip() == "You fall.<|im_end|>"
    # Without a history the question follows the task.
    first = prediction_sample(Trajectory(task_id="t", first_observation="Go.", steps=steps[:1]))
    assert first.first_observation == "Go." + QUESTION.format(action="right")
    assert [s.turn_text() for s in first.steps] == ["You are in room 1."]


def test_settings_that_cannot_work() -> None:
    with pytest.raises(ConfigError, match="prediction_weight must be a finite number > 0, got 0"):
        EarlyExperience.Config(prediction_weight=0.0)


@pytest.mark.slow
def test_a_run_of_early_experience(tmp_path: Path) -> None:
    stages = play(tmp_path, "early_experience", "method.num_samples=1", "exploration.num_experts=3")
    assert list(stages) == ["demonstrations", "warm_up", "alternatives", "train"]
    assert stages["train"]["num_prediction"] == stages["alternatives"]["num_alternatives"] > 0
    assert stages["train"]["num_expert"] == 8


@pytest.mark.slow
def test_a_run_of_step_agent(tmp_path: Path) -> None:
    stages = play(tmp_path, "step_agent", "exploration.num_experts=3")
    assert list(stages) == ["demonstrations", "warm_up", "alternatives", "train"]
    assert stages["train"]["num_turn"] == stages["alternatives"]["num_alternatives"] > 0
