"""Agents without a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from steca_gym.agents.scripted import ExpertAgent, RandomAgent, ReplayAgent

from steca_gym.agent import Agent, Message, TurnRequest
from steca_gym.cli import main
from steca_gym.errors import AgentError, DataError

CONF = ["--config-dir", str(Path(__file__).parents[1] / "conf")]


def request(seed: int = 0, turn: int = 0, **more: object) -> TurnRequest:
    messages = (Message("user", "A room."),)
    return TurnRequest(episode_id="e", messages=messages, seed=seed, turn=turn, **more)  # type: ignore[arg-type]


def test_the_expert_says_why() -> None:
    agent = ExpertAgent()
    assert isinstance(agent, Agent) and agent.needs == {"expert_action"}
    (turn,) = agent.act([request(expert_action="look", expert_thought="it is dark")])
    assert turn.text == "Thought: it is dark\nAction: look"
    with pytest.raises(AgentError, match="no expert action at turn 0"):
        agent.act([request()])


def test_random_draws_are_decided_by_seed_and_turn() -> None:
    agent, actions = RandomAgent(), ("a", "b", "c", "d")
    said = [agent.act([request(s, t, admissible_actions=actions)])[0].text for s in range(6) for t in range(6)]
    assert said == [agent.act([request(s, t, admissible_actions=actions)])[0].text for s in range(6) for t in range(6)]
    assert {s[-1] for s in said} == set(actions)
    with pytest.raises(AgentError, match="no admissible actions"):
        agent.act([request(admissible_actions=())])


def test_a_replay_repeats_and_says_when_nothing_was_recorded() -> None:
    agent = ReplayAgent.from_mapping({"A room.": ["look"]})
    assert agent.act([request()])[0].text == "Action: look"
    with pytest.raises(AgentError, match="nothing was recorded"):
        ReplayAgent.from_mapping({"A hall.": ["look"]}).act([request()])
    with pytest.raises(DataError, match="no recordings at '/nowhere'.*steca export"):
        ReplayAgent.from_file("/nowhere")


def test_an_exported_evaluation_is_played_again(tmp_path: Path) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    command = [*CONF, "env=corridor", "evaluation.stress=false"]
    assert main(["evaluate", *command, "agent=stumbling", f"run_dir={first}"]) == 0
    assert main(["export", f"run={first}"]) == 0
    recorded = f"agent.engine.path={first}/export/trajectories.jsonl"
    assert main(["evaluate", *command, "agent=replay", recorded, f"run_dir={again}"]) == 0
    games = [json.loads((f / "evaluation.json").read_text())["games"] for f in (first, again)]
    assert games[0] == games[1]
