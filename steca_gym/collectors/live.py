"""An episode in progress, as the collector keeps it: turns become jobs, and answers become steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from typing import Any

from steca_gym.agent import (
    MAX_TURN_CHARS,
    Message,
    Need,
    ParsedTurn,
    Prompt,
    Turn,
    TurnFormat,
    TurnRequest,
    explain_unread,
    find_turn_format,
)
from steca_gym.collectors.episodes import Episode, EpisodeRequest, Fork
from steca_gym.collectors.jobs import Act, Answer, Enter, Entered, Seen
from steca_gym.errors import one_line
from steca_gym.trajectory import Status, Step, Trajectory

_UNREADABLE_ACTION_CHARS = 200


class LiveEpisode:
    """One request between its first job and its last answer.

    The loop that it serves::

        live.take(do(live.enter(agent.needs)), prompt)
        while live.wants_turn:
            live.take(do(live.play(ask(live.turn_request()))), prompt)
        return live.episode()

    Args:
        episode_id: unique.
        request: what is played.
        agent: the agent's name.
        retried: whether this is the second try, after one that was lost.
        turn_format: how the agent writes its turns; by default ``react``.
    """

    def __init__(
        self,
        episode_id: str,
        request: EpisodeRequest,
        agent: str,
        *,
        retried: bool = False,
        turn_format: TurnFormat | None = None,
    ) -> None:
        """See the class."""
        start = request.start
        head = Trajectory(task_id=request.task_id, first_observation="") if start is None else start.prefix
        self.episode_id = episode_id
        self.request = request
        self.retried = retried
        self._format = find_turn_format(turn_format)
        self.status: Status = "running"
        self.num_agent_turns = 0
        self.num_sampled_tokens = 0
        # What stays the same during the episode: every fork's trajectory is made of it.
        self._head: dict[str, Any] = {
            "task_id": head.task_id,
            "task_type": head.task_type,
            "goal": head.goal,
            "first_observation": head.first_observation,
            "seed": request.seed,
            "agent": agent,
            "fingerprint": head.fingerprint,
        }
        self._steps = list(head.steps)
        self._score = head.score
        self._won = head.won
        self._error = ""
        self._state_key: Hashable | None = None
        self._forks: list[Fork] = []
        self._messages: list[Message] = []
        # The turn that the world has not answered yet; None while the script is played.
        self._turn: Step | None = None
        self._multiline_actions = False
        self._expert: tuple[str | None, str] = (None, "")
        self._admissible_actions: tuple[str, ...] | None = None

    # -- state ---------------------------------------------------------------------------------------------

    @property
    def wants_turn(self) -> bool:
        """Whether it is the agent's turn."""
        return self.status == "running" and self._asks()

    @property
    def num_env_steps(self) -> int:
        """Number of steps after the fork's prefix."""
        start = self.request.start
        return len(self._steps) - (0 if start is None else len(start.prefix.steps))

    def trajectory(self, status: Status | None = None) -> Trajectory:
        """The steps so far; ``status`` replaces the episode's own."""
        return Trajectory(
            **self._head,
            steps=tuple(self._steps),
            score=self._score,
            won=self._won,
            status=self.status if status is None else status,
            error=self._error,
        )

    def episode(self) -> Episode:
        """The finished episode."""
        return Episode(
            request=self.request,
            trajectory=self.trajectory().with_id(),
            forks=tuple(self._forks),
            state_key=self._state_key,
            num_env_steps=self.num_env_steps,
            num_sampled_tokens=self.num_sampled_tokens,
        )

    # -- jobs ----------------------------------------------------------------------------------------------

    def enter(self, needs: frozenset[Need]) -> Enter:
        """The job that begins the episode and plays its script."""
        request = self.request
        return Enter(
            task_id=request.task_id,
            seed=request.seed,
            snapshot=None if request.start is None else request.start.snapshot,
            script=tuple(step.action if step.parsed else None for step in request.script),
            capture=request.capture,
            needs=needs,
            asks=self._asks(),
        )

    def turn_request(self) -> TurnRequest:
        """The request for the agent's next turn."""
        request = self.request
        return TurnRequest(
            episode_id=self.episode_id,
            messages=tuple(self._messages),
            seed=request.seed,
            turn=len(self._steps),
            sampling=request.sampling,
            fork_of=None if request.start is None else request.start.fork_id,
            expert_action=self._expert[0],
            expert_thought=self._expert[1],
            admissible_actions=self._admissible_actions,
        )

    def play(self, answer: Turn | Exception) -> Act | None:
        """The job that an agent's answer asks for; None if the agent failed, and the episode with it."""
        self.num_agent_turns += 1
        if not isinstance(answer, Turn):
            self.status, self._error = "error", one_line(answer)
            return None
        self.num_sampled_tokens += answer.num_sampled_tokens
        text, token_ids, truncated = answer.text, answer.token_ids, answer.truncated
        parsed = self._format.parse(text)
        if parsed.action is not None and not self._multiline_actions and len(parsed.action.splitlines()) > 1:
            num_lines = len(parsed.action.splitlines())
            if parsed.action == self._expert[0] or parsed.action in (self._admissible_actions or ()):
                self.status, self._error = "error", f"WorldError: {_several_lines(num_lines)}"
                return None
            parsed = one_line_action(parsed, multiline=False)
        if len(text) > MAX_TURN_CHARS:
            text, token_ids, truncated = text[:MAX_TURN_CHARS], None, True
        action = parsed.action
        self._turn = Step(
            thought="" if action is None else parsed.thought,
            action=text[:_UNREADABLE_ACTION_CHARS] if action is None else action,
            # The world's own words follow; a turn that could not be read is answered here, in its format's terms.
            observation=explain_unread(self._format, parsed) if action is None else "",
            parsed=action is not None,
            text=text,
            token_ids=token_ids,
            truncated=truncated,
        )
        return Act(action, self._asks())

    # -- answers -------------------------------------------------------------------------------------------

    def take(self, answer: Answer, prompt: Prompt) -> None:
        """Record the answer to the last job."""
        if self._turn is None:
            self._take_start(answer)
        else:
            for seen in answer.seen:  # one, or none if the world broke
                self._take_turn(self._turn, seen)
        if answer.error:
            self.status, self._error = "error", answer.error
            return
        self._state_key = answer.state_key
        self._expert = answer.expert_action, answer.expert_thought
        self._admissible_actions = answer.admissible_actions
        if not self._messages and self.wants_turn:
            self._messages.extend(self.trajectory().messages(prompt))

    def _take_start(self, answer: Answer) -> None:
        if answer.entered is None:
            return
        self._begin(answer.entered)
        for step, seen in zip(self.request.script, answer.seen, strict=False):
            self._note(self._answered(step, seen), seen)

    def _begin(self, entered: Entered) -> None:
        first = entered.seen
        self._multiline_actions = entered.multiline_actions
        if self.request.start is None:
            self._head.update(
                task_type=entered.task_type,
                goal=entered.goal,
                first_observation=first.observation,
                fingerprint=entered.fingerprint,
            )
        self._note(None, first)

    def _take_turn(self, turn: Step, seen: Seen) -> None:
        step = self._answered(turn, seen)
        self._messages.append(Message("assistant", step.text, step.token_ids, step.truncated))
        self._messages.append(Message("user", step.observation))
        self._note(step, seen)

    def _answered(self, step: Step, seen: Seen) -> Step:
        """The step with what the world said; of an unreadable turn the explanation is kept."""
        observation = seen.observation if step.parsed or not step.observation else step.observation
        text = step.text
        if not text and step.parsed and self._format.name != "react":  # an empty text stands for the default format
            text = self._format.render(step.thought, step.action)
        return dataclasses.replace(step, observation=observation, valid=seen.valid, score=seen.score, text=text)

    def _note(self, step: Step | None, seen: Seen) -> None:
        if step is not None:
            self._steps.append(step)
        self._score, self._won, self.status = seen.score, seen.won, seen.status
        if seen.fork is not None:
            snapshot, state_key = seen.fork
            self._forks.append(
                Fork(
                    fork_id=f"{self.episode_id}/{len(self._steps)}",
                    snapshot=snapshot,
                    prefix=self.trajectory("running"),
                    state_key=state_key,
                )
            )

    def _asks(self) -> bool:
        limit = self.request.max_agent_turns
        return limit is None or self.num_agent_turns < limit


def one_line_action(parsed: ParsedTurn, multiline: bool) -> ParsedTurn:
    """The turn, or an unreadable one where its action has several lines in a world whose actions have one."""
    num_lines = 0 if multiline or parsed.action is None else len(parsed.action.splitlines())
    if num_lines <= 1:
        return parsed
    return ParsedTurn(parsed.thought, None, f"the action has {num_lines} lines, expected one line")


def _several_lines(num_lines: int) -> str:
    return (
        f"the world offers an action of {num_lines} lines, but its class says that actions have one line; "
        "set multiline_actions = True in the World"
    )
