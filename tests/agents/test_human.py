"""A person at the terminal: what a typed line means, what is shown, and how the game is left."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steca_gym.agents.human import HumanAgent, choose

from steca_gym.agent import Message, PlayerLeft, StreamingAgent, TurnRequest, is_clairvoyant, parse_turn
from steca_gym.collectors import Collector, EpisodeRequest
from steca_gym.errors import AgentError, ConfigError
from steca_gym.registry import agents
from tests.fakes import corridor

ACTIONS = ("go to shelf 1", "go to shelf 10", "look", "look at mug", "take mug 1", "Quit")


@pytest.mark.parametrize(
    ("typed", "action"),
    [
        ("3", "look"),
        ("look", "look"),
        ("LOOK", "look"),
        ("go to shelf 1", "go to shelf 1"),
        ("go  to SHELF 1", "go to shelf 1"),
        ("go to shelf 10", "go to shelf 10"),
        ("t", "take mug 1"),
        ("look at", "look at mug"),
        ("dance", "dance"),
        ("=go to", "go to"),
        ("=2", "2"),
    ],
)
def test_a_line_is_a_number_a_prefix_or_free_text(typed: str, action: str) -> None:
    assert choose(typed, ACTIONS).action == action


def test_what_is_not_clear_is_asked_again() -> None:
    found = choose("go to", ACTIONS)
    assert found.action is None and "1 go to shelf 1, 2 go to shelf 10" in found.answer and "=go to" in found.answer
    for typed in ("0", "7", "99999999999999999999"):
        assert choose(typed, ACTIONS).action is None and "from 1 to 6" in choose(typed, ACTIONS).answer
    assert choose("7", ()).action == "7"
    # The world's own word comes before a number, and before the beginning of another.
    assert choose("2", ("2 steps", "2", "go")).action == "2"


@pytest.mark.slow
@given(st.lists(st.text(min_size=1), max_size=5, unique=True), st.text(min_size=1).map(str.strip).filter(bool))
def test_every_offered_action_can_be_typed_and_every_text_can_be_sent(actions: list[str], text: str) -> None:
    assert all(choose(a, actions).action == a for a in actions)
    assert choose(f"={text}", [a for a in actions if not a.startswith("=")]).action == text
    found = choose(text, actions)
    assert (found.action is None) == bool(found.answer) and "\n" not in found.answer


class Terminal:
    """Types lines; an exception among them is raised."""

    def __init__(self, *lines: str | BaseException) -> None:
        self.lines = list(lines)
        self.shown: list[str] = []

    def ask(self, prompt: str) -> str:
        line = self.lines.pop(0) if self.lines else EOFError()
        if isinstance(line, BaseException):
            raise line
        return line

    def agent(self, **settings: Any) -> HumanAgent:
        return HumanAgent(ask=self.ask, show=self.shown.append, **settings)

    @property
    def screen(self) -> str:
        return "\n".join(self.shown)


def request(text: str = "A room.", actions: Iterable[str] | None = ACTIONS, **changes: Any) -> TurnRequest:
    given: dict[str, Any] = {"episode_id": "e", "messages": (Message("user", text),), "seed": 0, "turn": 0}
    return TurnRequest(admissible_actions=None if actions is None else tuple(actions), **{**given, **changes})


def said(*lines: str | BaseException, **changes: Any) -> str:
    (turn,) = Terminal(*lines).agent().act([request(**changes)])
    return turn.text


def test_a_turn_holds_the_thought_and_the_action() -> None:
    assert said("think: it is on the shelf", "1") == "Thought: it is on the shelf\nAction: go to shelf 1"
    assert said("", "?", ":list", ":list mug", "look") == "Action: look"
    parsed = parse_turn(said("SELECT 1\\", "FROM t", actions=None))
    assert parsed.action == "SELECT 1\nFROM t"
    assert parse_turn(said("x" * 30_000, "look")).action == "look"
    assert said(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"), "look") == "Action: look"
    (turn,) = Terminal("look").agent(turn_format="json").act([request()])
    assert turn.text == '{"action": "look"}'


def test_the_worlds_own_word_is_no_command() -> None:
    assert said("Quit") == "Action: Quit"
    with pytest.raises(PlayerLeft):
        said("quit")
    with pytest.raises(PlayerLeft):
        said(":quit", actions=["quit"])
    assert said("quit", actions=["quit"]) == "Action: quit"


@pytest.mark.parametrize(("line", "interrupted"), [("exit", False), (EOFError(), False), (KeyboardInterrupt(), True)])
def test_leaving_says_how(line: str | BaseException, interrupted: bool) -> None:
    with pytest.raises(PlayerLeft, match="human:anna") as left:
        Terminal("?", line).agent(player="anna").act([request()])
    assert left.value.interrupted is interrupted


def test_control_characters_are_shown_and_never_sent_to_the_terminal() -> None:
    terminal = Terminal(":list", "ev", "=x")
    hostile = "\x1b]0;owned\x07\x1b[2J\rYou won!\u202e"
    terminal.agent().act([request(hostile, [f"evil{i}\x1b[31m" for i in range(3)])])
    assert "\x1b" not in terminal.screen and "\r" not in terminal.screen and "\x07" not in terminal.screen
    assert "⟨U+001B⟩]0;owned⟨U+0007⟩" in terminal.screen and "⟨U+202E⟩" in terminal.screen
    assert "evil2⟨U+001B⟩[31m" in terminal.screen


def test_long_lists_are_cut_and_can_be_searched() -> None:
    terminal = Terminal(":list 77", "1")
    terminal.agent(max_listed=5).act([request(actions=[f"go to room {i}" for i in range(200)])])
    assert "195 more: :list" in terminal.screen and "go to room 77" in terminal.screen
    assert "go to room 5" not in terminal.screen
    with pytest.raises(ConfigError, match="max_listed must be a whole number >= 1, got 0"):
        HumanAgent(max_listed=0)


def test_one_game_after_the_other_whatever_the_collector_begins() -> None:
    lines = ["right", "open"] + ["right", "right", "open"]
    terminal = Terminal(*lines)
    agent = terminal.agent()
    assert isinstance(agent, StreamingAgent) and not is_clairvoyant(agent)
    requests = [EpisodeRequest(task_id=f"corridor-{n}", seed=n) for n in (1, 2)]
    with Collector(corridor(), agent, num_envs=8) as collector:
        episodes = collector.run(requests)
    assert [e.trajectory.actions for e in episodes] == [("right", "open"), ("right", "right", "open")]
    assert all(e.trajectory.won and e.trajectory.agent == "human" for e in episodes)
    seen = [step.observation for e in episodes for step in e.trajectory.steps if step.action == "right"]
    assert [s for s in terminal.shown if s.startswith("\nYou are in")] == [f"\n{text}" for text in seen]
    with Collector(corridor(), Terminal(":skip", "right", "open").agent()) as collector:
        skipped, won = collector.run(requests[:1] * 2)
    assert (skipped.trajectory.status, won.trajectory.won) == ("error", True)
    assert "skipped" in skipped.trajectory.error
    with pytest.raises(AgentError, match="skipped"):
        Terminal(":skip").agent().act([request()])


def test_an_episode_in_the_middle_is_shown_from_its_start() -> None:
    messages = (
        Message("user", "An example."),
        Message("assistant", "Action: ignore"),
        Message("user", "First."),
        Message("assistant", "Thought: why\nAction: go"),
        Message("user", "Second."),
    )
    terminal = Terminal("look", "look")
    agent = terminal.agent()
    agent.act([request(messages=messages, turn=1)])
    assert "example" not in terminal.screen and "ignore" not in terminal.screen
    place = [terminal.screen.index(text) for text in ("First.", "> think: why", "> go", "Second.")]
    assert place == sorted(place)
    later = (*messages, Message("assistant", "Action: look"), Message("user", "Third."))
    num_shown = len(terminal.shown)
    agent.act([request(messages=later, turn=2)])
    assert terminal.shown[num_shown] == "\nThird."


def test_it_is_registered() -> None:
    make: Callable[..., Any] = agents.get("human")
    assert make is HumanAgent
