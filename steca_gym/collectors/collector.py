"""Plays episodes and continuations of forks in one work queue, over an executor's environments and one agent.

A failure inside one episode ends that episode and is stored on its trajectory; the other episodes continue.
"""

from __future__ import annotations

import itertools
import time
import uuid
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from steca_gym.agent import (
    MAX_TURN_CHARS,
    Agent,
    Prompt,
    StreamingAgent,
    Turn,
    TurnFormat,
    TurnRequest,
    check_turn,
    check_turns,
    find_turn_format,
)
from steca_gym.collectors.episodes import Episode, EpisodeRequest, EpisodeSource
from steca_gym.collectors.executors import Executor, InProcess
from steca_gym.collectors.jobs import Answer
from steca_gym.collectors.ledger import Ledger
from steca_gym.collectors.live import LiveEpisode
from steca_gym.env import TextEnv
from steca_gym.errors import AgentError, CheckpointError, ConfigError, one_line

# What an agent raises that is not data of an episode: a setting or a model that cannot work, and Ctrl-C.
_RAISED = (ConfigError, CheckpointError, KeyboardInterrupt, GeneratorExit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What ``on_progress`` gets after each finished episode."""

    num_finished: int
    num_active: int
    num_known: int | None
    """number of requests; None while a source may still make more"""
    last: Episode
    ledger: Ledger


class Collector:
    """Plays requests with one agent, many at once.

    The trajectories depend neither on ``num_envs`` nor on the executor: an episode's seed decides its world and
    its samples.

    Args:
        make_env: makes one environment; called at most ``num_envs`` times, and again after one broke.
        agent: answers turns; an agent with ``submit`` and ``poll`` never waits for the slowest episode of a batch.
        prompt: the beginning of every conversation, before the first observation.
        num_envs: maximum number of episodes in progress, >= 1.
        ledger: counts costs; a new one by default.
        on_progress: called after each finished episode.
        executor: where the environments live: by default in this process; ``Processes`` for slow worlds. An executor
            that is given is not closed by the collector, and several collectors may use it, one at a time.
        turn_format: how the agent writes its turns: "react" (default), "tools", "json", "xml", ``module:Object`` or a
            ``TurnFormat``.
    """

    def __init__(
        self,
        make_env: Callable[[], TextEnv],
        agent: Agent,
        *,
        prompt: Prompt | None = None,
        num_envs: int = 64,
        ledger: Ledger | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        executor: Executor | None = None,
        turn_format: str | TurnFormat | None = None,
    ) -> None:
        """See the class."""
        if num_envs < 1:
            raise ConfigError(f"num_envs must be >= 1, got {num_envs}")
        self.agent = agent
        self.prompt = prompt if prompt is not None else Prompt()
        self.num_envs = num_envs
        self.ledger = ledger if ledger is not None else Ledger()
        self.on_progress = on_progress
        self.executor: Executor = executor if executor is not None else InProcess()
        self._owns_executor = executor is None
        self.turn_format = find_turn_format(turn_format)
        self._make_env = make_env
        self._prefix = uuid.uuid4().hex[:12]
        self._counter = itertools.count()

    @property
    def make_env(self) -> Callable[[], TextEnv]:
        """What makes one of the environments that are played in."""
        return self._make_env

    def run(self, requests: Sequence[EpisodeRequest]) -> list[Episode]:
        """Play all requests and return their episodes in the order of the requests.

        Requests of one task and one fork start one after another, so that caches of common prefixes are used.
        """
        source = _ListSource(requests)
        self._drive(source, num_known=len(requests))
        return source.episodes()

    def drive(self, source: EpisodeSource) -> None:
        """Play what a source provides, until it has nothing more and nothing is in progress."""
        self._drive(source, num_known=None)

    def close(self) -> None:
        """Close the environments, unless they live in an executor that was given: whoever made it closes it."""
        if self._owns_executor:
            self.executor.close()

    def __enter__(self) -> Collector:
        """Use the collector as a context that closes it."""
        return self

    def __exit__(self, *_: object) -> None:
        """See ``close``."""
        self.close()

    def _drive(self, source: EpisodeSource, num_known: int | None) -> None:
        self.executor.serve(self._make_env)
        drive = _Drive(self, source, num_known)
        started, model_before = time.perf_counter(), self._model_seconds()
        try:
            drive.play(lambda: f"{self._prefix}-{next(self._counter)}")
        except BaseException:
            # Nothing in progress is worth keeping.
            drive.release(list(drive.live))
            self.executor.abandon()
            raise
        finally:
            seconds = time.perf_counter() - started
            model_after = self._model_seconds()
            in_model, in_env = drive.seconds_agent, drive.seconds_environment
            if model_before is not None and model_after is not None:
                in_model = model_after - model_before
            cost = self.ledger.cost
            cost.seconds_model += in_model
            cost.seconds_environment += in_env
            cost.seconds_framework += max(seconds - in_model - in_env, 0.0)

    def _model_seconds(self) -> float | None:
        seconds: float | None = getattr(self.agent, "model_seconds", None)
        return seconds


class _Drive:
    """One call of ``run`` or ``drive``: what is in progress, and whose turn it is."""

    def __init__(self, collector: Collector, source: EpisodeSource, num_known: int | None) -> None:
        self.agent, self.executor = collector.agent, collector.executor
        self.prompt, self.ledger, self.on_progress = collector.prompt, collector.ledger, collector.on_progress
        self.num_envs, self.turn_format = collector.num_envs, collector.turn_format
        self.source = source
        self.num_known = num_known
        self.num_finished = 0
        self.live: dict[str, LiveEpisode] = {}
        self.streaming = self.agent if isinstance(self.agent, StreamingAgent) else None
        self.asked: set[str] = set()  # episodes whose turn a streaming agent is working on
        self.seconds_agent = 0.0
        self.seconds_environment = 0.0

    def play(self, new_id: Callable[[], str]) -> None:
        """Play until the source has nothing more and nothing is in progress."""
        while True:
            while len(self.live) < self.num_envs:
                request = self.source.next_request()
                if request is None:
                    break
                self._begin(self._live(new_id(), request))
            if not self.live:
                return
            asking: list[LiveEpisode] = []
            for episode_id, answer in self._gather():
                episode = self.live[episode_id]
                episode.take(answer, self.prompt)
                if answer.num_replayed_steps or answer.seconds:
                    self.ledger.cost.num_replayed_steps += answer.num_replayed_steps
                    self.ledger.cost.seconds_workers += answer.seconds
                if answer.lost and not episode.retried:
                    self._forget(episode)
                    self.ledger.cost.num_retried_episodes += 1
                    self._begin(self._live(new_id(), episode.request, retried=True))
                elif episode.wants_turn:
                    asking.append(episode)
                else:
                    self._finish(episode)
            if asking or self.asked:
                for episode, turn in self._answers(asking):
                    job = episode.play(turn)
                    self._count(turn, parsed=job is None or job.action is not None)
                    if job is None:
                        self.executor.leave(episode.episode_id)
                        self._finish(episode)
                    else:
                        self.executor.submit(episode.episode_id, job)

    def _live(self, episode_id: str, request: EpisodeRequest, *, retried: bool = False) -> LiveEpisode:
        return LiveEpisode(episode_id, request, self.agent.name, retried=retried, turn_format=self.turn_format)

    def _begin(self, episode: LiveEpisode) -> None:
        self.live[episode.episode_id] = episode
        self.executor.submit(episode.episode_id, episode.enter(self.agent.needs))

    def _gather(self) -> list[tuple[str, Answer]]:
        """The worlds' answers. A batching agent gets all at once; a streaming one never waits."""
        before = time.perf_counter()
        try:
            return self.executor.gather("all" if self.streaming is None else "none" if self.asked else "one")
        finally:
            self.seconds_environment += time.perf_counter() - before

    # -- the agent -----------------------------------------------------------------------------------------

    def _answers(self, asking: list[LiveEpisode]) -> list[tuple[LiveEpisode, Turn | Exception]]:
        requests = [episode.turn_request() for episode in asking]
        before = time.perf_counter()
        try:
            if self.streaming is None:
                return list(zip(asking, self._act(requests), strict=True))
            return [(self.live[episode_id], answer) for episode_id, answer in self._stream(self.streaming, requests)]
        finally:
            self.seconds_agent += time.perf_counter() - before

    def _act(self, requests: list[TurnRequest]) -> list[Turn | Exception]:
        """Ask for the whole batch; if that fails ask one by one, so that one bad request fails alone."""
        try:
            return list(check_turns(self.agent.act(requests), len(requests), self.agent.name))
        except _RAISED:
            raise
        except BaseException as error:
            if len(requests) == 1:
                return [self._failure(error)]
            return [answer for request in requests for answer in self._act([request])]

    def _stream(self, agent: StreamingAgent, requests: list[TurnRequest]) -> list[tuple[str, Turn | Exception]]:
        """Hand over requests and take the turns that are ready; whatever the agent does wrong fails episodes."""
        ids = [request.episode_id for request in requests]
        if requests:
            try:
                agent.submit(requests)
            except _RAISED:
                raise
            except BaseException as error:
                return [(episode_id, self._failure(error)) for episode_id in ids]
            self.asked.update(ids)
        answers: dict[str, Turn | Exception] = {}
        try:
            for episode_id, answer in agent.poll():
                if episode_id in self.asked:  # late answers to what failed, and second answers, are dropped
                    answers.setdefault(episode_id, self._checked(answer))
            if not answers:
                raise AgentError(
                    f"agent {agent.name!r}: poll() returned no turn while {len(self.asked)} are in progress; it must "
                    "work until at least one is ready"
                )
        except _RAISED:
            raise
        except BaseException as error:
            answers.update({i: self._failure(error) for i in self.asked if i not in answers})
        self.asked.difference_update(answers)
        return list(answers.items())

    def _checked(self, answer: object) -> Turn | Exception:
        try:
            return answer if isinstance(answer, Exception) else check_turn(answer, self.agent.name)
        except AgentError as error:
            return error

    @staticmethod
    def _failure(error: BaseException) -> Exception:
        return error if isinstance(error, Exception) else AgentError(f"the agent raised {one_line(error)}")

    def release(self, episode_ids: Iterable[str]) -> None:
        """Let the agent drop what it keeps for episodes; a failure costs memory, not episodes."""
        try:
            self.agent.release(episode_ids)
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:
            warnings.warn(f"agent {self.agent.name!r}: release() failed: {one_line(error)}", stacklevel=2)

    def _count(self, turn: Turn | Exception, parsed: bool) -> None:
        cost = self.ledger.cost
        cost.num_turns += 1
        if not isinstance(turn, Turn):
            return
        cost.num_prompt_tokens_read += turn.num_prompt_tokens_read
        cost.num_prompt_tokens_reused += turn.num_prompt_tokens_reused
        cost.num_sampled_tokens += turn.num_sampled_tokens
        if not parsed:
            cost.num_unreadable_turns += 1
            cost.num_empty_turns += not turn.text.strip()
            cost.num_overlong_turns += len(turn.text) > MAX_TURN_CHARS

    # -- ends ----------------------------------------------------------------------------------------------

    def _forget(self, episode: LiveEpisode) -> None:
        """What every end has in common, also that of a first try."""
        self.live.pop(episode.episode_id)
        self.release([episode.episode_id])
        self.ledger.cost.num_env_steps += episode.num_env_steps

    def _finish(self, episode: LiveEpisode) -> None:
        self._forget(episode)
        cost = self.ledger.cost
        cost.num_episodes += 1
        if episode.status == "error":
            cost.num_failed_episodes += 1
        done = episode.episode()
        self.num_finished += 1
        self.source.finished(done)
        if self.on_progress is not None:
            self.on_progress(
                Progress(
                    num_finished=self.num_finished,
                    num_active=len(self.live),
                    num_known=self.num_known,
                    last=done,
                    ledger=self.ledger,
                )
            )


class _ListSource:
    """Requests known beforehand, in an order that keeps those of one fork together."""

    def __init__(self, requests: Sequence[EpisodeRequest]) -> None:
        self._requests = requests
        groups: dict[tuple[str, str], list[int]] = {}
        for index, request in enumerate(requests):
            fork = "" if request.start is None else request.start.fork_id
            groups.setdefault((request.task_id, fork), []).append(index)
        self._waiting = deque(index for group in groups.values() for index in group)
        self._started: dict[int, deque[int]] = {}
        self._episodes: dict[int, Episode] = {}

    def next_request(self) -> EpisodeRequest | None:
        if not self._waiting:
            return None
        index = self._waiting.popleft()
        request = self._requests[index]
        self._started.setdefault(id(request), deque()).append(index)
        return request

    def finished(self, episode: Episode) -> None:
        # The same object may have been requested twice; both give equal episodes, so their order does not matter.
        self._episodes[self._started[id(episode.request)].popleft()] = episode

    def episodes(self) -> list[Episode]:
        return [self._episodes[index] for index in range(len(self._requests))]
