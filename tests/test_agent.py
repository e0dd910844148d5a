"""Messages, sampling, and what a collector makes of turns: formats, several lines, answers of wrong types."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
from steca_gym.agents.scripted import ExpertAgent, RandomAgent

from steca_gym.agent import (
    Message,
    Sampling,
    Turn,
    TurnRequest,
    check_turn,
    check_turns,
    find_turn_format,
    render_turn,
)
from steca_gym.collectors import Collector, EpisodeRequest
from steca_gym.env import INVALID_TURN_OBSERVATION, Outcome, TextEnv
from steca_gym.errors import AgentError, ConfigError
from steca_gym.trajectory import Step, Trajectory, from_json, to_json
from tests.fakes import CorridorWorld, FakeAgent, StreamingFakeAgent, corridor

REQUEST = EpisodeRequest(task_id="corridor-1", seed=0, max_agent_turns=2)


def played(answer: Any, make_env: Any = None, request: EpisodeRequest = REQUEST, **options: Any) -> Trajectory:
    agent = answer if hasattr(answer, "act") else FakeAgent(lambda _: answer)
    with Collector(make_env or corridor(), agent, **options) as collector:
        (episode,) = collector.run([request])
    return episode.trajectory


# -- messages and sampling --------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [None, 5, [{"type": "text", "text": "x"}], b"x"])
def test_a_message_holds_text(content: Any) -> None:
    with pytest.raises(ConfigError, match="content must be a string"):
        Message("user", content)


@pytest.mark.parametrize(
    "wrong", [{"temperature": float("nan")}, {"temperature": float("inf")}, {"top_p": float("nan")}]
)
def test_sampling_is_finite(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Sampling(**wrong)  # type: ignore[arg-type]


def test_an_unknown_role_is_refused() -> None:
    with pytest.raises(ConfigError, match="role must be system, user or assistant, got 'wizard'"):
        Message("wizard", "x")  # type: ignore[arg-type]


# -- answers of the wrong type ----------------------------------------------------------------------------------

WRONG = [
    ("Action: go", "must answer with a Turn, got str"),
    (None, "must answer with a Turn, got NoneType"),
    (Turn(text=None), "text must be a string"),  # type: ignore[arg-type]
    (Turn(text="x", token_ids="123"), "token_ids must be a tuple"),  # type: ignore[arg-type]
    (Turn(text="x", token_ids=[1]), "token_ids must be a tuple"),  # type: ignore[arg-type]
    (Turn(text="x", token_ids=(1, -1)), "token_ids must be a tuple"),
    (Turn(text="x", token_ids=(1.0,)), "token_ids must be a tuple"),  # type: ignore[arg-type]
    (Turn(text="x", num_sampled_tokens="5"), "num_sampled_tokens must be a whole number"),  # type: ignore[arg-type]
    (Turn(text="x", num_sampled_tokens=10**400), "num_sampled_tokens must be a whole number from 0 to"),
    (Turn(text="x", num_sampled_tokens=10**5000), "num_sampled_tokens must be a whole number from 0 to"),
    (Turn(text="x", num_prompt_tokens_read=-1), "num_prompt_tokens_read must be a whole number"),
    (Turn(text="x", token_ids=(1,), log_probs="x"), "log_probs must be a tuple"),  # type: ignore[arg-type]
    (Turn(text="x", token_ids=(1,), log_probs=(float("nan"),)), "log_probs must be a tuple"),
    (Turn(text="x", token_ids=(1, 2), log_probs=(-0.5,)), "one per id"),
    (Turn(text="x", log_probs=(-0.5,)), "one per id"),
    (Turn(text="x", truncated=1), "truncated must be True or False"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("turn", "problem"), WRONG)
def test_an_answer_of_the_wrong_type_is_one_line(turn: Any, problem: str) -> None:
    with pytest.raises(AgentError, match=problem) as caught:
        check_turn(turn, "mine")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("turns", "problem"), [([], "0 turns for 2 requests"), (None, "must return a list"), ("ab", "list")]
)
def test_a_batch_of_the_wrong_size_or_type_is_one_line(turns: Any, problem: str) -> None:
    with pytest.raises(AgentError, match=problem):
        check_turns(turns, 2, "mine")


@pytest.mark.parametrize("kind", [FakeAgent, StreamingFakeAgent])
def test_a_wrong_answer_fails_its_episode_alone(kind: type[FakeAgent]) -> None:
    agent = kind(lambda r: Turn(text="Action: right", num_sampled_tokens="5" if r.seed else 5))  # type: ignore[arg-type]
    with Collector(corridor(), agent) as collector:
        good, bad = collector.run([EpisodeRequest(task_id="corridor-1", seed=s, max_agent_turns=1) for s in (0, 1)])
    assert good.trajectory.status == "running" and good.trajectory.steps
    assert bad.trajectory.status == "error" and "num_sampled_tokens must be" in bad.trajectory.error


def test_fewer_turns_than_asked_for_fail_the_episode() -> None:
    class Silent(FakeAgent):
        def act(self, requests: Sequence[TurnRequest]) -> list[Turn]:
            return []

    found = played(Silent(lambda _: ""))
    assert found.status == "error" and "0 turns for 1 requests" in found.error


# -- turn formats -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["react", "tools", "json", "xml"])
def test_a_collector_reads_the_format_that_it_is_given(name: str) -> None:
    found = played(find_turn_format(name).render("I go.", "right"), turn_format=name)
    assert [(s.thought, s.action, s.parsed) for s in found.steps][:1] == [("I go.", "right", True)]
    assert played(ExpertAgent(name), turn_format=name).won


def test_a_turn_in_another_format_is_refused_with_a_hint() -> None:
    step = played("<action>right</action>").steps[0]
    assert not step.parsed and not step.valid
    assert "'xml'" in step.observation and step.observation.endswith("'Thought: ...' and one line 'Action: ...'.")
    step = played("Action: right", turn_format="json").steps[0]
    assert "'react'" in step.observation and "JSON object" in step.observation
    assert played("hm").steps[0].observation == INVALID_TURN_OBSERVATION


def test_what_the_agent_is_told_stands_in_its_next_prompt() -> None:
    agent = FakeAgent(lambda _: "<action>right</action>")
    found = played(agent)
    assert agent.batches[1][0].messages[-1].content == found.steps[0].observation


def test_script_steps_are_written_in_the_collectors_format() -> None:
    script = (Step(thought="I was wrong.", action="right", observation=""),)
    found = played(
        "x", request=EpisodeRequest(task_id="corridor-1", seed=0, script=script, max_agent_turns=0), turn_format="xml"
    )
    assert found.steps[0].turn_text() == "<thought>I was wrong.</thought>\n<action>right</action>"
    plain = played("x", request=EpisodeRequest(task_id="corridor-1", seed=0, script=script, max_agent_turns=0))
    assert plain.steps[0].text == ""


# -- actions of several lines -----------------------------------------------------------------------------------

QUERY = "SELECT 1\nFROM t"


class Database(CorridorWorld):
    """Wins on a query of two lines, which its expert and its list of actions name."""

    multiline_actions: ClassVar[bool] = True

    def act(self, action: str) -> Outcome:
        self._won = self._over = action == QUERY
        return self._outcome(f"got {action!r}")

    def expert_action(self) -> str | None:
        return QUERY

    def admissible_actions(self) -> tuple[str, ...]:
        return (QUERY,)


class OneLine(Database):
    multiline_actions: ClassVar[bool] = False


@pytest.mark.parametrize("name", ["react", "tools", "json", "xml"])
def test_a_world_that_accepts_several_lines_gets_them(name: str) -> None:
    for agent in (ExpertAgent(name), RandomAgent(name), f"{find_turn_format(name).render('', QUERY)}"):
        found = played(agent, lambda: TextEnv(Database()), turn_format=name)
        assert found.won and found.steps[0].action == QUERY
    assert played(render_turn("Two lines.\nAction: none", QUERY), lambda: TextEnv(Database())).won


def test_elsewhere_the_turn_is_refused_with_the_reason() -> None:
    found = played(f"Thought: x\nAction: {QUERY}", lambda: TextEnv(OneLine()))
    assert not found.won and not found.steps[0].parsed
    assert "the action has 2 lines, expected one line" in found.steps[0].observation


@pytest.mark.parametrize("agent", [ExpertAgent(), RandomAgent()])
def test_a_world_that_contradicts_itself_fails_the_episode(agent: Any) -> None:
    found = played(agent, lambda: TextEnv(OneLine()))
    assert found.status == "error" and "multiline_actions = True" in found.error


# -- turns that were cut ----------------------------------------------------------------------------------------


def test_a_truncated_turn_stays_marked() -> None:
    found = played(Turn(text="Action: right", token_ids=(1, 2), num_sampled_tokens=2, truncated=True))
    assert [step.truncated for step in found.steps] == [True] * len(found.steps) and found.steps
    assert from_json(to_json(found)) == found
    assert found.messages(Collector(corridor(), FakeAgent(str)).prompt)[1].truncated


def test_reasoning_is_not_the_action() -> None:
    assert played("<think>\nAction: left\n</think>\nAction: right").steps[0].action == "right"
