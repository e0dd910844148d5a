"""What an agent is: batches of conversations in, batches of turns out; and how a turn reads.

Knows messages, sampling settings and the ``Thought: ... Action: ...`` form. Knows no environment, no model and
no tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from steca_gym.errors import ConfigError

Role = Literal["system", "user", "assistant"]
Need = Literal["expert_action", "admissible_actions"]

MAX_TURN_CHARS = 20_000
"""a longer turn is cut there and counted as unreadable"""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: Role
    content: str
    token_ids: tuple[int, ...] | None = None
    """for an assistant's message: the ids that the model produced, without the template's end-of-turn marks,
    so that prompt and training sample repeat them to the id"""

    def as_dict(self) -> dict[str, str]:
        """The form that chat templates and HTTP servers take."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How turns are drawn."""

    temperature: float = 1.0
    """0 is greedy"""
    max_new_tokens: int = 64
    """tokens per turn"""
    top_p: float = 1.0

    def __post_init__(self) -> None:
        """Refuse settings that cannot work."""
        if self.temperature < 0:
            raise ConfigError(f"temperature must be >= 0 (0 is greedy), got {self.temperature}")
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens must be >= 1, got {self.max_new_tokens}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p must lie in (0, 1], got {self.top_p}")


GREEDY = Sampling(temperature=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What stands before an episode: part of an environment's configuration."""

    instruction: str = ""
    """the system message; empty: none"""
    examples: tuple[Message, ...] = ()
    """messages of a worked example, put between instruction and the first observation"""

    def messages(self) -> tuple[Message, ...]:
        """The conversation's fixed head."""
        head = (Message("system", self.instruction),) if self.instruction else ()
        return head + self.examples


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnRequest:
    """One episode that waits for its agent's next turn."""

    episode_id: str
    """unique per episode; an agent may keep a cache under it until ``release``"""
    messages: tuple[Message, ...]
    """the whole conversation; it ends with a user message, and from turn to turn it only grows"""
    seed: int
    """the episode's seed; with ``turn`` it decides the sample, whatever else is in the batch"""
    turn: int
    """0 for the episode's first turn; a fork goes on counting from its prefix"""
    sampling: Sampling = field(default_factory=Sampling)
    fork_of: str | None = None
    """key shared by requests that go on from one common prefix (a hint for caches)"""
    expert_action: str | None = None
    """filled when the agent's ``needs`` has it"""
    expert_thought: str = ""
    """filled together with ``expert_action``"""
    admissible_actions: tuple[str, ...] | None = None
    """filled when the agent's ``needs`` has it"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """An agent's answer."""

    text: str
    token_ids: tuple[int, ...] | None = None
    """ids sampled by the model, end-of-turn mark excluded; None for agents without tokens"""
    num_prompt_tokens_read: int = 0
    num_prompt_tokens_reused: int = 0
    num_sampled_tokens: int = 0


@runtime_checkable
class Agent(Protocol):
    """Anything that answers conversations.

    The loop that it serves::

        turns = agent.act(requests)          # one turn per waiting episode, in order
        for request, turn in zip(requests, turns):
            action = parse_turn(turn.text).action
            ...                              # step the environment, append the observation
        agent.release(ids_of_finished_episodes)
    """

    name: str
    needs: frozenset[Need]
    """what the collector must put into the requests"""

    def act(self, requests: Sequence[TurnRequest]) -> list[Turn]:
        """Answer each request once, in order."""
        ...

    def release(self, episode_ids: Iterable[str]) -> None:
        """Forget what was kept for episodes that ended."""
        ...


@runtime_checkable
class StreamingAgent(Agent, Protocol):
    """An agent that hands back each turn as soon as it is done, so that no episode waits for the slowest.

    The loop that it serves::

        agent.submit(requests)                       # any time, also while others are under way
        for episode_id, answer in agent.poll():      # at least one, if anything is under way
            ...                                      # an exception in place of a turn: that episode failed
    """

    def submit(self, requests: Sequence[TurnRequest]) -> None:
        """Take requests; at most one per episode may be under way."""
        ...

    def poll(self) -> list[tuple[str, Turn | Exception]]:
        """Work until at least one turn is done; empty only when nothing is under way."""
        ...


@dataclass(frozen=True, slots=True)
class ParsedTurn:
    """A turn taken apart."""

    thought: str
    action: str | None
    """None: the turn could not be read"""


_ACTION = re.compile(r"^[ \t]*action[ \t]*:[ \t]*(.*)$", re.IGNORECASE | re.MULTILINE)
_THOUGHT = re.compile(r"^[ \t]*thought[ \t]*:[ \t]*", re.IGNORECASE)


def parse_turn(text: str) -> ParsedTurn:
    r"""Read ``Thought: ...\nAction: ...``; the thought may be missing or span lines, the action is one line.

    The first ``Action:`` line counts. No action, an empty one, or more than ``MAX_TURN_CHARS`` characters:
    ``action`` is None and the turn counts as invalid.
    """
    if len(text) > MAX_TURN_CHARS:
        return ParsedTurn(thought=text[:MAX_TURN_CHARS], action=None)
    match = _ACTION.search(text)
    if match is None:
        return ParsedTurn(thought=_THOUGHT.sub("", text).strip(), action=None)
    thought = _THOUGHT.sub("", text[: match.start()]).strip()
    return ParsedTurn(thought=thought, action=match.group(1).strip() or None)


def render_turn(thought: str, action: str) -> str:
    """Write a turn in the form that ``parse_turn`` reads; without a thought it is the action line alone."""
    return f"Thought: {thought}\nAction: {action}" if thought else f"Action: {action}"
