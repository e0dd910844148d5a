"""The agent interface: a batch of conversations in, a batch of turns out.

Turn formats (how a turn states its thought and action) live in ``steca_gym.turns`` and are re-exported here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

from steca_gym.errors import AgentError, ConfigError
from steca_gym.turns import (
    MAX_TURN_CHARS,
    ParsedTurn,
    TurnFormat,
    explain_unread,
    find_turn_format,
    parse_turn,
    render_turn,
    tools_of,
)

__all__ = [
    "GREEDY",
    "MAX_TURN_CHARS",
    "Agent",
    "Message",
    "Need",
    "ParsedTurn",
    "PlayerLeft",
    "Prompt",
    "Role",
    "Sampling",
    "StreamingAgent",
    "Turn",
    "TurnFormat",
    "TurnRequest",
    "check_turn",
    "check_turns",
    "explain_unread",
    "find_turn_format",
    "is_clairvoyant",
    "is_interactive",
    "parse_turn",
    "render_turn",
]

Role = Literal["system", "user", "assistant"]
Need = Literal["expert_action", "admissible_actions"]


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: Role
    content: str
    token_ids: tuple[int, ...] | None = None
    """for an assistant's message: the ids that the model sampled, without the template's end-of-turn mark; prompts and
    training samples repeat them exactly"""
    truncated: bool = False
    """an assistant's message that was cut at ``max_new_tokens``: the model did not write the end-of-turn mark, so
    training does not teach it there"""
    tools: str = ""
    """of a conversation's first message: the functions that its turns may call, as a JSON list in the form of OpenAI's
    API; shown by the chat template where that can, else in the text of a system message"""

    def __post_init__(self) -> None:
        """Refuse content that is not text, such as a list of parts, and unknown roles."""
        if self.role not in ("system", "user", "assistant"):
            raise ConfigError(f"a message's role must be system, user or assistant, got {_shown(self.role)}")
        if not isinstance(self.content, str):
            raise ConfigError(
                f"a message's content must be a string, got {type(self.content).__name__} for role {self.role!r}; "
                "join the text parts of a list before"
            )

    def as_dict(self) -> dict[str, str]:
        """The form that chat templates and HTTP servers expect."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How turns are sampled."""

    temperature: float = 1.0
    """>= 0; 0 is greedy"""
    max_new_tokens: int = 64
    """maximum number of tokens per turn, >= 1"""
    top_p: float = 1.0
    """probability mass that is sampled from, in (0, 1]"""
    logprobs: bool = False
    """return the log-probabilities of the sampled tokens with each turn (``Turn.log_probs``); costs a little time"""

    def __post_init__(self) -> None:
        """Refuse settings that cannot work."""
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise ConfigError(f"temperature must be a finite number >= 0 (0 is greedy), got {self.temperature}")
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens must be >= 1, got {self.max_new_tokens}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p must lie in (0, 1], got {self.top_p}")


GREEDY = Sampling(temperature=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """The fixed beginning of every conversation: part of an environment's configuration."""

    instruction: str = ""
    """the system message; empty for none"""
    examples: tuple[Message, ...] = ()
    """messages of a worked example, placed between the instruction and the first observation"""
    tools: str = ""
    """the functions that turns may call, see ``Message.tools``"""

    def messages(self) -> tuple[Message, ...]:
        """The messages before the first observation."""
        head = (Message("system", self.instruction),) if self.instruction else ()
        return self._with_tools((*head, *self.examples))

    def begin(self, first_observation: str) -> tuple[Message, ...]:
        """The messages of an episode's start: ``messages()`` and the first observation."""
        return self._with_tools((*self.messages(), Message("user", first_observation)))

    def written_in(self, turn_format: str | TurnFormat | None) -> Prompt:
        """This prompt for agents that write their turns in a format.

        ``{turn_format}`` in the instruction becomes the format's own instructions, turns of the examples (written as
        ``Thought: ... Action: ...``) are written in the format, and the functions that it calls are listed.

        Raises:
            ConfigError: the instruction asks for ``Action:`` lines, and the format has none.
        """
        found = find_turn_format(turn_format)
        if found.name != "react" and re.search(r"^\s*Action:", self.instruction, re.MULTILINE):
            raise ConfigError(
                f"the prompt's instruction asks for 'Action: ...' lines, but turns are written as {found.name!r}; "
                "write {turn_format} in their place, or use a prompt for any format (env/prompt=turns)"
            )
        listed = tools_of(found)
        return replace(
            self,
            instruction=self.instruction.replace("{turn_format}", found.instructions),
            examples=tuple(_rewritten(message, found) for message in self.examples),
            tools=json.dumps(list(listed)) if listed else "",
        )

    def _with_tools(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        if not (self.tools and messages) or messages[0].tools:
            return messages
        return (replace(messages[0], tools=self.tools), *messages[1:])


def _rewritten(message: Message, turn_format: TurnFormat) -> Message:
    """A turn of an example in another format; what is no turn stays as it is."""
    if message.role != "assistant" or turn_format.name == "react":
        return message
    parsed = parse_turn(message.content)
    if parsed.action is None:
        return message
    return Message("assistant", turn_format.render(parsed.thought, parsed.action))


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnRequest:
    """One episode that waits for its agent's next turn."""

    episode_id: str
    """unique per episode; an agent may keep a cache under it until ``release``"""
    messages: tuple[Message, ...]
    """the whole conversation; it ends with a user message and only grows from turn to turn"""
    seed: int
    """the episode's seed; together with ``turn`` it decides the sample, regardless of the rest of the batch"""
    turn: int
    """0 for the episode's first turn; a fork continues the count of its prefix"""
    sampling: Sampling = field(default_factory=Sampling)
    fork_of: str | None = None
    """key shared by requests that continue one common prefix (a hint for caches)"""
    expert_action: str | None = None
    """filled if the agent's ``needs`` contains it"""
    expert_thought: str = ""
    """filled together with ``expert_action``"""
    admissible_actions: tuple[str, ...] | None = None
    """filled if the agent's ``needs`` contains it"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """An agent's answer."""

    text: str
    """the message as written; a ``TurnFormat`` reads the action from it"""
    token_ids: tuple[int, ...] | None = None
    """ids sampled by the model, end-of-turn mark excluded; None for agents without tokens"""
    num_prompt_tokens_read: int = 0
    """prompt tokens that the model processed for this turn"""
    num_prompt_tokens_reused: int = 0
    """prompt tokens taken from a cache"""
    num_sampled_tokens: int = 0
    """tokens that the model sampled, end-of-turn mark included"""
    truncated: bool = False
    """the turn was cut at ``max_new_tokens``: the model did not write an end-of-turn mark"""
    log_probs: tuple[float, ...] | None = None
    """if ``Sampling.logprobs`` asks for them, one natural log-probability per id in ``token_ids``: under the model's
    own distribution, at temperature 1 and without top_p. It equals the distribution that was sampled from only with
    temperature=1 and top_p=1, so importance ratios need these settings"""
    end_log_prob: float | None = None
    """the same for the id that ended the turn; None if the turn was truncated or nobody asked"""


@runtime_checkable
class Agent(Protocol):
    """Anything that answers conversations.

    The loop that it serves::

        turns = agent.act(requests)          # one turn per waiting episode, in order
        for request, turn in zip(requests, turns):
            action = parse_turn(turn.text).action
            ...                              # step the environment, append the observation
        agent.release(ids_of_finished_episodes)

    ``act([])`` returns ``[]``. ``release`` ignores unknown episode ids. A request that cannot be answered raises
    AgentError. ``steca_gym.testing.check_agent`` tests an implementation; ``docs/your-own-agent.md`` shows one.

    An agent that reads more than its conversation (such as the world's own expert) has ``is_clairvoyant = True``; see
    ``is_clairvoyant``.
    """

    name: str
    """recorded in trajectories"""
    needs: frozenset[Need]
    """what the collector must put into the requests"""

    def act(self, requests: Sequence[TurnRequest]) -> list[Turn]:
        """Answer each request once, in order."""
        ...

    def release(self, episode_ids: Iterable[str]) -> None:
        """Drop everything kept for episodes that ended."""
        ...


@runtime_checkable
class StreamingAgent(Agent, Protocol):
    """An agent that returns each turn as soon as it is ready, so that no episode waits for the slowest one.

    The loop that it serves::

        agent.submit(requests)                       # at any time, also while others are in progress
        for episode_id, answer in agent.poll():      # at least one, if anything is in progress
            ...                                      # an exception instead of a turn: that episode failed
    """

    def submit(self, requests: Sequence[TurnRequest]) -> None:
        """Accept requests; at most one per episode may be in progress."""
        ...

    def poll(self) -> list[tuple[str, Turn | Exception]]:
        """Work until at least one turn is ready; empty only when nothing is in progress."""
        ...


class PlayerLeft(KeyboardInterrupt):
    """Raised by an interactive agent whose person ends the game; what does not handle it ends as after Ctrl-C."""

    def __init__(self, reason: str, *, interrupted: bool = False) -> None:
        """Keep the reason, and whether it was Ctrl-C."""
        super().__init__(reason)
        self.interrupted = interrupted


def is_interactive(agent: object) -> bool:
    """Whether an agent reads from the terminal, so that nothing else may draw there: its attribute of that name."""
    return bool(getattr(agent, "is_interactive", False))


def is_clairvoyant(agent: object) -> bool:
    """Whether an agent reads the world's state, so that its success says nothing about what a model can learn.

    It is the agent's attribute ``is_clairvoyant``, or False.
    """
    return bool(getattr(agent, "is_clairvoyant", False))


def check_turn(turn: object, agent: str) -> Turn:
    """Return an agent's answer if it is a well-formed ``Turn``; raises AgentError in one line otherwise."""
    if not isinstance(turn, Turn):
        raise AgentError(f"agent {agent!r} must answer with a Turn, got {type(turn).__name__}")
    if type(turn.text) is not str:
        raise AgentError(f"agent {agent!r}: Turn.text must be a string, got {type(turn.text).__name__}")
    ids: Any = turn.token_ids
    if ids is not None and not (type(ids) is tuple and all(type(i) is int and i >= 0 for i in ids)):
        raise AgentError(
            f"agent {agent!r}: Turn.token_ids must be a tuple of whole numbers >= 0 or None, got {_shown(ids)}"
        )
    for name in ("num_prompt_tokens_read", "num_prompt_tokens_reused", "num_sampled_tokens"):
        count: Any = getattr(turn, name)
        if type(count) is not int or not 0 <= count < 2**53:
            raise AgentError(
                f"agent {agent!r}: Turn.{name} must be a whole number from 0 to 2**53, got {_shown(count)}"
            )
    known: Any = turn.log_probs
    if known is not None:
        number = type(known) is tuple and all(type(x) is float and -math.inf < x <= 1e-3 for x in known)
        if not number or ids is None or len(known) != len(ids):
            raise AgentError(
                f"agent {agent!r}: Turn.log_probs must be a tuple of finite numbers <= 0, one per id in token_ids, or "
                f"None, got {_shown(known)}"
            )
    if type(turn.truncated) is not bool:
        raise AgentError(f"agent {agent!r}: Turn.truncated must be True or False, got {_shown(turn.truncated)}")
    return turn


def check_turns(turns: object, num_requests: int, agent: str) -> list[Turn]:
    """Return what ``act`` gave if it is one well-formed turn per request; raises AgentError otherwise."""
    if not isinstance(turns, Sequence) or isinstance(turns, str | bytes):
        raise AgentError(f"agent {agent!r}: act() must return a list of turns, got {type(turns).__name__}")
    if len(turns) != num_requests:
        raise AgentError(
            f"agent {agent!r}: act() returned {len(turns)} turns for {num_requests} requests; return one per request, "
            "in order"
        )
    return [check_turn(turn, agent) for turn in turns]


def _shown(value: object) -> str:
    try:
        return " ".join(repr(value).split())[:80]
    except Exception:  # a number of too many digits, an object whose own __repr__ fails
        return f"a {type(value).__name__} that cannot be shown"
