"""One work queue of episodes and forks over pooled environments and one agent.

Knows how an episode runs and how many run at once. Knows no model, no step reward and no training. What
breaks inside one episode ends that episode, as data; its siblings go on.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from steca_gym.agent import (
    MAX_TURN_CHARS,
    Agent,
    Message,
    Prompt,
    StreamingAgent,
    Turn,
    TurnRequest,
    parse_turn,
)
from steca_gym.collectors.episodes import Episode, EpisodeRequest, EpisodeSource, Fork
from steca_gym.collectors.ledger import Ledger
from steca_gym.env import TextEnv
from steca_gym.errors import CheckpointError, ConfigError
from steca_gym.trajectory import Ended, Step, Trajectory

_UNREADABLE_ACTION_CHARS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What ``on_progress`` is told after each finished episode."""

    num_finished: int
    num_active: int
    num_known: int | None
    """requests in all; None while a source may still ask for more"""
    last: Episode
    ledger: Ledger


@dataclass(slots=True, eq=False)
class _Live:
    """An episode under way."""

    index: int
    episode_id: str
    request: EpisodeRequest
    env: TextEnv
    messages: list[Message]
    head: Trajectory
    steps: list[Step]
    num_given_steps: int
    """steps of the fork's prefix"""
    score: float = 0.0
    won: bool = False
    ended: Ended = "open"
    error: str = ""
    num_agent_turns: int = 0
    num_sampled_tokens: int = 0
    forks: list[Fork] = field(default_factory=list)

    def trajectory(self) -> Trajectory:
        return dataclasses.replace(
            self.head,
            steps=tuple(self.steps),
            score=self.score,
            won=self.won,
            ended=self.ended,
            error=self.error,
        )


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:500]


class Collector:
    """Plays requests, many at once, with one agent.

    The trajectories do not depend on ``num_envs``: an episode's seed decides its world and its samples.

    Args:
        make_env: makes one environment; called at most ``num_envs`` times, and again after one broke.
        agent: answers turns; an agent with ``submit`` and ``poll`` never waits for the slowest of a batch.
        prompt: what stands before each episode's first observation.
        num_envs: episodes under way at once, >= 1.
        ledger: where costs go; one of its own by default.
        on_progress: called after each finished episode.
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
    ) -> None:
        """See the class."""
        if num_envs < 1:
            raise ConfigError(f"num_envs must be >= 1, got {num_envs}")
        self.agent = agent
        self.prompt = prompt if prompt is not None else Prompt()
        self.num_envs = num_envs
        self.ledger = ledger if ledger is not None else Ledger()
        self.on_progress = on_progress
        self._make_env = make_env
        self._idle: list[TextEnv] = []
        self._prefix = uuid.uuid4().hex[:12]
        self._counter = itertools.count()
        self._seconds_environment = 0.0

    # -- public --------------------------------------------------------------------------------------------

    def run(self, requests: Sequence[EpisodeRequest]) -> list[Episode]:
        """Play all requests and return their episodes in the requests' order.

        Requests of one task and one fork are started one after another, so that caches of common prefixes
        serve.
        """
        source = _ListSource(requests)
        self._drive(source, num_known=len(requests))
        return source.episodes()

    def drive(self, source: EpisodeSource) -> None:
        """Play what a source hands out, until it has nothing more and nothing is under way."""
        self._drive(source, num_known=None)

    def close(self) -> None:
        """Close the pooled environments; they are made again when needed."""
        while self._idle:
            self._idle.pop().close()

    def __enter__(self) -> Collector:
        """Use the collector as a context that closes its environments."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the environments."""
        self.close()

    # -- the loop ------------------------------------------------------------------------------------------

    def _drive(self, source: EpisodeSource, num_known: int | None) -> None:
        started, model_before = time.perf_counter(), self._model_seconds()
        agent_before = self._seconds_agent = 0.0
        self._seconds_environment = 0.0
        num_finished = 0
        asking: deque[_Live] = deque()
        live: dict[str, _Live] = {}
        streaming = self.agent if isinstance(self.agent, StreamingAgent) else None

        def finish(done: _Live) -> None:
            nonlocal num_finished
            live.pop(done.episode_id, None)
            episode = self._finish(done)
            num_finished += 1
            source.finished(episode)
            if self.on_progress is not None:
                self.on_progress(
                    Progress(
                        num_finished=num_finished,
                        num_active=len(live),
                        num_known=num_known,
                        last=episode,
                        ledger=self.ledger,
                    )
                )

        try:
            while True:
                while len(live) < self.num_envs:
                    request = source.next_request()
                    if request is None:
                        break
                    episode = self._start(request)
                    live[episode.episode_id] = episode
                    if self._wants_turn(episode):
                        asking.append(episode)
                    else:
                        finish(episode)
                if not live:
                    break
                batch: list[tuple[_Live, TurnRequest]] = []
                for episode in asking:
                    asked = self._turn_request(episode)
                    if asked is None:
                        finish(episode)
                    else:
                        batch.append((episode, asked))
                asking.clear()
                if not batch and (streaming is None or not live):
                    continue
                for episode, answer in self._answers(batch, live, streaming):
                    self._play(episode, answer)
                    if self._wants_turn(episode):
                        asking.append(episode)
                    else:
                        finish(episode)
        except BaseException:
            # Nothing under way is worth keeping: the agent forgets it, and the environments are closed.
            self.agent.release(list(live))
            for episode in live.values():
                episode.env.close()
            raise
        finally:
            seconds = time.perf_counter() - started
            model_after = self._model_seconds()
            in_model = self._seconds_agent - agent_before
            if model_before is not None and model_after is not None:
                in_model = model_after - model_before
            cost = self.ledger.cost
            cost.seconds_model += in_model
            cost.seconds_environment += self._seconds_environment
            cost.seconds_framework += max(seconds - in_model - self._seconds_environment, 0.0)

    def _answers(
        self,
        batch: list[tuple[_Live, TurnRequest]],
        live: dict[str, _Live],
        streaming: StreamingAgent | None,
    ) -> Iterable[tuple[_Live, Turn | Exception]]:
        requests = [request for _, request in batch]
        before = time.perf_counter()
        try:
            if streaming is not None:
                if requests:
                    streaming.submit(requests)
                return [(live[episode_id], answer) for episode_id, answer in streaming.poll()]
            answers = self._act(requests)
            return [(episode, answer) for (episode, _), answer in zip(batch, answers, strict=True)]
        finally:
            self._seconds_agent += time.perf_counter() - before

    def _act(self, requests: list[TurnRequest]) -> list[Turn | Exception]:
        """Ask for the whole batch; if that fails ask one by one, so that one bad request fails alone."""
        try:
            return list(self.agent.act(requests))
        except (ConfigError, CheckpointError):
            raise
        except Exception as error:
            if len(requests) == 1:
                return [error]
            return [answer for request in requests for answer in self._act([request])]

    def _model_seconds(self) -> float | None:
        seconds: float | None = getattr(self.agent, "model_seconds", None)
        return seconds

    # -- one episode ---------------------------------------------------------------------------------------

    def _start(self, request: EpisodeRequest) -> _Live:
        index = next(self._counter)
        env = self._idle.pop() if self._idle else self._make_env()
        start = request.start
        head = Trajectory(task_id=request.task_id, first_observation="") if start is None else start.prefix
        episode = _Live(
            index=index,
            episode_id=f"{self._prefix}-{index}",
            request=request,
            env=env,
            messages=[],
            head=dataclasses.replace(
                head, seed=request.seed, agent=self.agent.name, trajectory_id="", ended="open", error=""
            ),
            steps=list(head.steps),
            num_given_steps=len(head.steps),
            score=head.score,
            won=head.won,
        )
        before = time.perf_counter()
        try:
            self._enter(episode)
            if request.capture:
                self._capture(episode)
            for step in request.script:
                if episode.ended != "open":
                    break
                self._step(episode, step)
        except Exception as error:
            episode.ended, episode.error = "failed", _one_line(error)
        finally:
            self._seconds_environment += time.perf_counter() - before
        if self._wants_turn(episode):
            episode.messages.extend(episode.trajectory().messages(self.prompt))
        return episode

    def _enter(self, episode: _Live) -> None:
        request, env = episode.request, episode.env
        start = request.start
        if start is None:
            observation, info = env.reset(seed=request.seed, options={"task_id": request.task_id})
            episode.head = dataclasses.replace(
                episode.head,
                task_type=info["task_type"],
                goal=info["goal"],
                first_observation=observation,
                fingerprint=info["fingerprint"],
            )
            over = bool(info["won"])
        else:
            _, info = env.restore(start.snapshot)
            if start.snapshot.trail is not None:
                self.ledger.cost.num_replayed_steps += len(start.snapshot.trail)
            over = start.snapshot.last.over
        episode.score, episode.won = float(info["score"]), bool(info["won"])
        if over:
            episode.ended = "over"
        elif env.num_steps >= env.horizon:
            episode.ended = "horizon"

    def _step(self, episode: _Live, step: Step) -> None:
        """Play one step; ``step`` carries everything but the world's answer."""
        env = episode.env
        observation, _, over, truncated, info = env.step(step.action) if step.readable else env.skip_turn()
        episode.score, episode.won = float(info["score"]), bool(info["won"])
        episode.steps.append(
            dataclasses.replace(step, observation=observation, valid=bool(info["valid"]), score=episode.score)
        )
        if over:
            episode.ended = "over"
        elif truncated:
            episode.ended = "horizon"
        if episode.request.capture:
            self._capture(episode)

    def _capture(self, episode: _Live) -> None:
        prefix = dataclasses.replace(episode.trajectory(), ended="open")
        episode.forks.append(
            Fork(
                fork_id=f"{episode.episode_id}/{len(episode.steps)}",
                snapshot=episode.env.snapshot(),
                prefix=prefix,
                state_key=episode.env.state_key(),
            )
        )

    def _wants_turn(self, episode: _Live) -> bool:
        limit = episode.request.max_agent_turns
        return episode.ended == "open" and (limit is None or episode.num_agent_turns < limit)

    def _turn_request(self, episode: _Live) -> TurnRequest | None:
        """What the agent is asked; None when the world failed to answer what the agent needs."""
        request, needs = episode.request, self.agent.needs
        expert_action: str | None = None
        expert_thought = ""
        admissible: tuple[str, ...] | None = None
        if needs:
            before = time.perf_counter()
            try:
                if "expert_action" in needs:
                    expert_action = episode.env.expert_action()
                    expert_thought = episode.env.expert_thought()
                if "admissible_actions" in needs:
                    admissible = episode.env.admissible_actions()
            except Exception as error:
                episode.ended, episode.error = "failed", _one_line(error)
                return None
            finally:
                self._seconds_environment += time.perf_counter() - before
        return TurnRequest(
            episode_id=episode.episode_id,
            messages=tuple(episode.messages),
            seed=request.seed,
            turn=len(episode.steps),
            sampling=request.sampling,
            fork_of=None if request.start is None else request.start.fork_id,
            expert_action=expert_action,
            expert_thought=expert_thought,
            admissible_actions=admissible,
        )

    def _play(self, episode: _Live, answer: Turn | Exception) -> None:
        """Give an agent's answer to the world."""
        cost = self.ledger.cost
        cost.num_turns += 1
        episode.num_agent_turns += 1
        if not isinstance(answer, Turn):
            episode.ended, episode.error = "failed", _one_line(answer)
            return
        cost.num_prompt_tokens_read += answer.num_prompt_tokens_read
        cost.num_prompt_tokens_reused += answer.num_prompt_tokens_reused
        cost.num_sampled_tokens += answer.num_sampled_tokens
        episode.num_sampled_tokens += answer.num_sampled_tokens
        parsed = parse_turn(answer.text)
        text, token_ids = answer.text, answer.token_ids
        if len(text) > MAX_TURN_CHARS:
            text, token_ids = text[:MAX_TURN_CHARS], None
        readable = parsed.action is not None
        if not readable:
            cost.num_unreadable_turns += 1
            cost.num_empty_turns += not answer.text.strip()
            cost.num_overlong_turns += len(answer.text) > MAX_TURN_CHARS
        step = Step(
            thought=parsed.thought if readable else "",
            action=parsed.action if parsed.action is not None else text[:_UNREADABLE_ACTION_CHARS],
            observation="",
            readable=readable,
            text=text,
            token_ids=token_ids,
        )
        before = time.perf_counter()
        try:
            self._step(episode, step)
        except Exception as error:
            episode.ended, episode.error = "failed", _one_line(error)
            return
        finally:
            self._seconds_environment += time.perf_counter() - before
        last = episode.steps[-1]
        episode.messages.append(Message("assistant", text, token_ids))
        episode.messages.append(Message("user", last.observation))

    def _finish(self, episode: _Live) -> Episode:
        cost = self.ledger.cost
        num_env_steps = len(episode.steps) - episode.num_given_steps
        cost.num_episodes += 1
        cost.num_env_steps += num_env_steps
        self.agent.release([episode.episode_id])
        state_key = None
        if episode.ended == "failed":
            cost.num_failed_episodes += 1
            self._discard(episode.env)
        else:
            try:
                state_key = episode.env.state_key()
            except Exception as error:
                episode.ended, episode.error = "failed", _one_line(error)
                self._discard(episode.env)
            else:
                self._idle.append(episode.env)
        return Episode(
            request=episode.request,
            trajectory=episode.trajectory().with_id(),
            forks=tuple(episode.forks),
            state_key=state_key,
            num_env_steps=num_env_steps,
            num_sampled_tokens=episode.num_sampled_tokens,
        )

    @staticmethod
    def _discard(env: TextEnv) -> None:
        """Close an environment that broke; a second failure on the way out is of no further use."""
        try:
            env.close()
        except Exception:
            return


class _ListSource:
    """Requests known beforehand, handed out so that those of one fork follow each other."""

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
        # The same object may have been requested twice; both give equal episodes, so their order is free.
        self._episodes[self._started[id(episode.request)].popleft()] = episode

    def episodes(self) -> list[Episode]:
        return [self._episodes[index] for index in range(len(self._requests))]
