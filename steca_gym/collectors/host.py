"""Pooled environments and the episodes in them: runs one job after another.

Knows how an episode is entered, stepped, captured and left. Knows no agent and no queue; in which process it
stands is not its business, so that an episode is the same in all of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from steca_gym.agent import Need
from steca_gym.collectors.jobs import Answer, Enter, Entered, Job, Rebuild, Seen, one_line
from steca_gym.env import Snapshot, TextEnv
from steca_gym.errors import ReplayMismatchError
from steca_gym.trajectory import Ended

MakeEnv = Callable[[], TextEnv]


def _nothing() -> None:
    return None


@dataclass(slots=True, eq=False)
class _Seat:
    """An environment with an episode in it."""

    env: TextEnv
    capture: bool
    needs: frozenset[Need]


class Host:
    """Environments of one factory, and the episodes that are under way in them.

    Args:
        make_env: makes an environment; called when none is free.
    """

    def __init__(self, make_env: MakeEnv) -> None:
        """Create a host without environments."""
        self._make_env = make_env
        self._idle: list[TextEnv] = []
        self._seats: dict[str, _Seat] = {}

    @property
    def num_live(self) -> int:
        """Episodes under way."""
        return len(self._seats)

    def run(
        self, episode_id: str, job: Job, rebuild: Rebuild | None = None, tick: Callable[[], None] = _nothing
    ) -> Answer:
        """Do a job and answer it. What the world raises is in the answer; what ``make_env`` raises is raised.

        The environment is free again once the episode ended, and closed if it failed.

        Args:
            episode_id: unique; an ``Act`` goes to the environment that its ``Enter`` took.
            job: what to do.
            rebuild: bring the episode back here first.
            tick: called when an environment is at hand and after each step of a script or a rebuild.
        """
        entering = job if isinstance(job, Enter) else rebuild.enter if rebuild is not None else None
        if entering is not None:
            env = self._idle.pop() if self._idle else self._make_env()
            self._seats[episode_id] = _Seat(env, entering.capture, entering.needs)
            tick()
        seat = self._seats[episode_id]
        answer = Answer()
        try:
            if rebuild is not None:
                _rebuild(seat.env, rebuild, answer, tick)
            ended = _enter(seat, job, answer, tick) if isinstance(job, Enter) else _act(seat, job.action, answer)
            if ended == "open" and job.asks:
                self._tell_needs(seat, answer)
            else:
                answer.state_key = seat.env.state_key()
                self.leave(episode_id)
        except Exception as error:
            answer.error = one_line(error)
            self.discard(episode_id)
        return answer

    def leave(self, episode_id: str) -> None:
        """The episode is over; its environment is free."""
        seat = self._seats.pop(episode_id, None)
        if seat is not None:
            self._idle.append(seat.env)

    def discard(self, episode_id: str) -> None:
        """Close an environment that broke; a second failure on the way out is of no further use."""
        seat = self._seats.pop(episode_id, None)
        if seat is not None:
            with contextlib.suppress(Exception):
                seat.env.close()

    def abandon(self) -> None:
        """Close the environments with an episode under way, whatever they raise."""
        for episode_id in list(self._seats):
            self.discard(episode_id)

    def close(self) -> None:
        """Close all environments; raises what the first free one that failed raised, behind the last."""
        self.abandon()
        idle, self._idle = self._idle, []
        first: Exception | None = None
        for env in idle:
            try:
                env.close()
            except Exception as error:
                first = first if first is not None else error
        if first is not None:
            raise first

    @staticmethod
    def _tell_needs(seat: _Seat, answer: Answer) -> None:
        if "expert_action" in seat.needs:
            answer.expert_action = seat.env.expert_action()
            answer.expert_thought = seat.env.expert_thought()
        if "admissible_actions" in seat.needs:
            answer.admissible_actions = seat.env.admissible_actions()


def _enter(seat: _Seat, job: Enter, answer: Answer, tick: Callable[[], None]) -> Ended:
    env = seat.env
    observation, info, over = _reset_or_restore(env, job, answer)
    ended: Ended = "over" if over else "horizon" if env.num_steps >= env.horizon else "open"
    first = Seen(observation, float(info["score"]), bool(info["won"]), bool(info["valid"]), ended)
    answer.entered = Entered(first, info["task_type"], info["goal"], info["fingerprint"])
    if seat.capture:
        first.fork = _capture(env)
    for action in job.script:
        if ended != "open":
            break
        tick()
        ended = _act(seat, action, answer)
    return ended


def _reset_or_restore(env: TextEnv, job: Enter, answer: Answer) -> tuple[str, dict[str, Any], bool]:
    snapshot = job.snapshot
    if snapshot is None:
        observation, info = env.reset(seed=job.seed, options={"task_id": job.task_id})
        return observation, info, bool(info["won"])
    observation, info = env.restore(snapshot)
    if snapshot.trail is not None:
        answer.num_replayed_steps += len(snapshot.trail)
    return observation, info, snapshot.last.over


def _act(seat: _Seat, action: str | None, answer: Answer) -> Ended:
    env = seat.env
    observation, _, over, truncated, info = env.skip_turn() if action is None else env.step(action)
    ended: Ended = "over" if over else "horizon" if truncated else "open"
    seen = Seen(observation, float(info["score"]), bool(info["won"]), bool(info["valid"]), ended)
    answer.seen.append(seen)
    if seat.capture:
        seen.fork = _capture(env)
    return ended


def _capture(env: TextEnv) -> tuple[Snapshot, Hashable | None]:
    return env.snapshot(), env.state_key()


def _rebuild(env: TextEnv, rebuild: Rebuild, answer: Answer, tick: Callable[[], None]) -> None:
    observation, _, _ = _reset_or_restore(env, rebuild.enter, answer)
    if rebuild.first_observation not in (None, observation):
        raise ReplayMismatchError(_differs(rebuild, 0, None, observation))
    for index, (action, expected) in enumerate(rebuild.steps):
        tick()
        observation, *_ = env.skip_turn() if action is None else env.step(action)
        if observation != expected:
            raise ReplayMismatchError(_differs(rebuild, index, action, observation))
    answer.num_replayed_steps += len(rebuild.steps)


def _differs(rebuild: Rebuild, index: int, action: str | None, observation: str) -> str:
    return (
        f"task {rebuild.enter.task_id!r}, brought back behind a lost worker, differs at step {index} (action "
        f"{action!r}): got {observation[:80]!r}; the world is not deterministic under its seed"
    )
