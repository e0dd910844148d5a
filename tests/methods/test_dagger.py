"""DAgger: which states are labelled, with what, and what is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
from steca_gym.agents.scripted import ExpertAgent

from steca_gym.agent import Prompt, Sampling, Turn, TurnRequest, render_turn
from steca_gym.collectors import Collector, EpisodeRequest
from steca_gym.env import TextEnv
from steca_gym.errors import ConfigError
from steca_gym.methods.dagger import DAgger, LabelledAgent, relabelled
from steca_gym.runs import RunFolder
from steca_gym.trajectory import Step, Trajectory
from tests.calibration_world import Corridor
from tests.fakes import FakeAgent
from tests.methods.playing import play


def turn(action: str, thought: str = "") -> Turn:
    return Turn(text=render_turn(thought, action))


def played(*actions: str) -> Trajectory:
    steps = tuple(Step(action=a, observation=f"after {a}", text=render_turn("", a)) for a in actions)
    return Trajectory(task_id="t", first_observation="start", steps=steps, score=1.0, won=True, status="terminated")


def shape(sample: Trajectory) -> str:
    """Actions in order; capital letters are trained."""
    return " ".join(s.action.upper() if s.trainable else s.action for s in sample.steps)


def test_each_labelled_state_is_trained_once_with_the_experts_turn() -> None:
    # Played a b c d; the expert agrees at a, c and d and would have said x in place of b.
    samples = relabelled(played("a", "b", "c", "d"), [turn("a"), turn("x"), turn("c"), turn("d")])
    assert [shape(s) for s in samples] == ["A X", "a b C D"]
    first, rest = samples
    assert first.steps[1].source == "expert" and first.steps[1].observation == ""
    assert rest.steps[1].source == "deviation"
    # A sample is a beginning, not a won episode.
    assert all(s.status == "running" and not s.won for s in samples)


def test_every_wrong_turn_gets_a_sample_of_its_own() -> None:
    samples = relabelled(played("b", "b", "c"), [turn("x"), turn("y"), turn("c")])
    assert [shape(s) for s in samples] == ["X", "b Y", "b b C"]


def test_states_without_a_label_are_history_only() -> None:
    samples = relabelled(played("a", "b", "c"), [turn("a"), None, turn("z")])
    assert [shape(s) for s in samples] == ["A b Z"]
    assert samples[0].steps[1].source == "agent"
    assert relabelled(played("a", "b"), [None, None]) == []
    # Nothing after the last trained turn.
    assert [shape(s) for s in relabelled(played("a", "b"), [turn("a"), None])] == ["A"]


def test_another_thought_is_another_turn() -> None:
    (sample,) = relabelled(played("a"), [turn("a", thought="because")])
    assert sample.steps[0].turn_text() == render_turn("because", "a") and sample.steps[0].source == "expert"


def collect(agent: LabelledAgent, *, seed: int = 3) -> Trajectory:
    with Collector(lambda: TextEnv(Corridor(), horizon=8), agent, prompt=Prompt(instruction="Walk.")) as collector:
        request = EpisodeRequest(task_id="walk-0", seed=seed, sampling=Sampling(temperature=0.0))
        return collector.run([request])[0].trajectory


def test_the_expert_labels_the_states_that_the_agent_visits() -> None:
    def answer(request: TurnRequest) -> str:
        return render_turn("", "lock" if request.turn == 1 else "go on")

    agent = LabelledAgent(FakeAgent(answer), ExpertAgent(), probability=0.0)
    episode = collect(agent)
    # After the locked door the agent keeps walking into it, and the expert says each time what to do.
    assert episode.actions == ("go on", "lock", *["go on"] * 6)
    labels = agent.take_labels(episode)
    assert [label and label.text.split("Action: ")[1] for label in labels] == ["go on", "go on", *["unlock"] * 6]
    assert agent.take_labels(episode) == [None] * 8


def test_a_state_that_the_expert_cannot_act_from_is_the_agents() -> None:
    agent = LabelledAgent(FakeAgent(lambda _: render_turn("", "jump")), ExpertAgent(), probability=1.0)
    episode = collect(agent)
    # The expert acts everywhere, so the agent is never asked.
    assert episode.won and agent.take_labels(episode)[0] is not None
    lost = LabelledAgent(FakeAgent(lambda _: render_turn("", "jump")), ExpertAgent(), probability=0.0)
    episode = collect(lost)
    labels = lost.take_labels(episode)
    assert labels[0] is not None and labels[1:] == [None] * 7


def test_the_mixture_depends_on_seed_and_turn_only() -> None:
    def actions(seed: int) -> tuple[str, ...]:
        agent = LabelledAgent(FakeAgent(lambda _: render_turn("", "wait")), ExpertAgent(), probability=0.5)
        return collect(agent, seed=seed).actions

    assert actions(3) == actions(3)
    said = [a for seed in range(40) for a in actions(seed)]
    assert 0.4 < said.count("wait") / len(said) < 0.6


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"beta": 1.0}, r"beta must lie in \[0, 1\), got 1.0"),
        ({"num_rounds": 0}, "must be >= 1"),
        ({"num_samples": 2, "beta": 0.0}, "gives equal episodes"),
        ({"temperature": float("nan")}, "temperature must be >= 0"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        DAgger.Config(**settings)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_run(tmp_path: Path) -> None:
    stages = play(tmp_path, "dagger", "exploration.num_rounds=2", "method.beta=0.25")
    assert list(stages) == ["demonstrations", "warm_up", "relabel", "train", "relabel.1", "train.1"]
    assert stages["relabel"]["num_episodes"] == 8
    assert stages["relabel"]["num_corrected"] > 0
    # The second round trains on the labels of both.
    with RunFolder(tmp_path).buffer() as buffer:
        rounds = [len(buffer.trajectories(kind="relabelled", round_index=r)) for r in (0, 1)]
    assert stages["train"]["num_relabelled"] == rounds[0]
    assert stages["train.1"]["num_relabelled"] == sum(rounds) and stages["train.1"]["num_expert"] == 8
