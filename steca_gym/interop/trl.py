"""Train on our worlds with TRL's ``GRPOTrainer``: by its tool calls, or by rollouts of our collector.

Rollouts of the collector (any chat template, prefix cache, exact token ids)::

    task = TRLTask("household", prompt=prompt)
    trainer = GRPOTrainer(model, reward_funcs=task.outcome_reward, args=args, processing_class=tokenizer,
                          train_dataset=task.dataset(200), rollout_func=task.rollout)

TRL's own tool-calling loop (a chat template that shows tool calls)::

    task = TRLTask("household", prompt=task_prompt)
    trainer = GRPOTrainer(model, args=args, processing_class=tokenizer,
                          train_dataset=task.dataset(200), environment_factory=task.environment)

Both interfaces of TRL are marked experimental; this file is written to TRL 1.16.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from steca_gym.agent import Agent, Prompt, Sampling, StreamingAgent, Turn, TurnFormat, TurnRequest
from steca_gym.chat import ChatCodec, codec_of
from steca_gym.collectors import Collector, Episode, EpisodeRequest
from steca_gym.env import TextEnv
from steca_gym.errors import ConfigError, DataError, TrainingError, WorldError
from steca_gym.interop.worlds import make_env
from steca_gym.registry import agents
from steca_gym.seeding import derive_seed

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["TRLTask", "WorldTools", "WorldToolsWithList"]

_TASK_KEY = "task_id"
"""key of a prompt's last message that names the task; chat templates ignore it"""
_NOT_LIVE = "The episode is over. Stop calling tools."


class WorldTools:
    """One world as an environment of ``GRPOTrainer(environment_factory=...)``; its public methods are the tools.

    TRL resets it with the columns of a row, offers ``act`` to the model, and takes ``get_reward`` at the end.
    """

    def __init__(self, env: TextEnv, seed: int = 0) -> None:
        """Play ``env``; ``seed`` and the task decide the world."""
        self._env = env
        self._seed = seed
        self._live = False
        self._score = 0.0

    def reset(self, task_id: str | None = None, prompt: Any = None, **_: Any) -> str | None:
        """Start the task of a row.

        Returns:
            The first observation, which TRL appends to the prompt; None where the prompt ends with it already.

        Raises:
            ConfigError: the row names no task, so that a group would play different ones.
        """
        if not isinstance(task_id, str):
            raise ConfigError(
                f"a row must name its task in the column 'task_id', got {task_id!r}; see TRLTask.dataset()"
            )
        observation, _info = self._env.reset(seed=derive_seed(self._seed, task_id), options={"task_id": task_id})
        self._live, self._score = True, 0.0
        last = prompt[-1]["content"] if isinstance(prompt, list) and prompt else prompt
        return None if isinstance(last, str) and last.endswith(observation) else observation

    def act(self, action: str) -> str:
        """Take one action in the world and read what happens.

        Args:
            action: The action in the world's own words, on one line, such as "go to shelf 1".

        Returns:
            What you observe after the action.
        """
        if not self._live:
            return _NOT_LIVE
        observation, _, terminated, truncated, info = self._env.step(str(action))
        self._score = float(info["score"])
        self._live = not (terminated or truncated)
        return observation if self._live else f"{observation}\n{_NOT_LIVE}"

    def get_reward(self) -> float:
        """The episode's score so far, in [0, 1]."""
        return self._score


class WorldToolsWithList(WorldTools):
    """``WorldTools`` with a second tool that lists the possible actions."""

    def list_actions(self) -> str:
        """List the actions that are possible now, one on each line.

        Returns:
            The possible actions.
        """
        return "\n".join(self._env.admissible_actions() or ()) if self._live else _NOT_LIVE


class TRLTask:
    """A split of a world as TRL sees it: a data set of prompts, a rollout function, an environment factory, a reward.

    Args:
        env_id: a Gymnasium id, or a packaged configuration such as ``household``.
        split: the tasks' split.
        prompt: what comes before the first observation.
        turn_format: how turns are written in rollouts: "react" (default), "tools", "json", "xml" or your own.
        max_new_tokens: tokens per turn in rollouts, >= 1.
        num_envs: episodes that a rollout plays at once, >= 1.
        seed: decides the worlds, the order of tasks and, in rollouts, the samples.
        with_list: give ``environment_factory`` the tool ``list_actions`` as well.
        kwargs: keyword arguments of the world.

    Raises:
        ConfigError: settings that cannot work.
        DataError: the world's data is missing.
    """

    def __init__(
        self,
        env_id: str,
        *,
        split: str = "train",
        prompt: Prompt | None = None,
        turn_format: str | TurnFormat | None = None,
        max_new_tokens: int = 64,
        num_envs: int = 64,
        seed: int = 0,
        with_list: bool = False,
        **kwargs: Any,
    ) -> None:
        """See the class."""
        self.prompt = (prompt if prompt is not None else Prompt()).written_in(turn_format)
        self.seed = seed
        self.max_new_tokens = max_new_tokens
        self._make: Callable[[], TextEnv] = lambda: make_env(env_id, split=split, **kwargs)
        self._turn_format, self._num_envs = turn_format, num_envs
        self._with_list = with_list
        self._probe = self._make()
        if with_list:
            self._probe.reset(seed=0)
            if self._probe.admissible_actions() is None:
                raise ConfigError(f"{env_id!r} does not list its actions; leave out with_list=True")
        self._calls: Counter[tuple[bool, int]] = Counter()
        self._collector: Collector | None = None
        self._recording: _Recording | None = None
        self._model: Any = None

    # -- data ------------------------------------------------------------------------------------------------

    def dataset(self, num_tasks: int | None = None) -> Dataset:
        """Rows with ``prompt`` (messages up to the first observation) and ``task_id``, in an order drawn with the seed.

        Args:
            num_tasks: how many, >= 1; None for all of the split.
        """
        import numpy as np
        from datasets import Dataset

        ids = list(self._probe.task_ids())
        if num_tasks is not None and not 1 <= num_tasks <= len(ids):
            raise ConfigError(f"num_tasks must be in [1, {len(ids)}], the tasks of the split, got {num_tasks}")
        order = np.random.default_rng(self.seed).permutation(len(ids))[: num_tasks or len(ids)]
        chosen = [str(ids[i]) for i in order]
        return Dataset.from_list([{"prompt": self._messages(task_id), _TASK_KEY: task_id} for task_id in chosen])

    def _messages(self, task_id: str) -> list[dict[str, Any]]:
        observation, _ = self._probe.reset(seed=self._world_seed(task_id), options={"task_id": task_id})
        messages = [*self.prompt.begin(observation)]
        # Every message has the key, because a column of Arrow structs has the same keys in each.
        return [{**m.as_dict(), _TASK_KEY: task_id if m is messages[-1] else ""} for m in messages]

    def _world_seed(self, task_id: str) -> int:
        return derive_seed(self.seed, task_id)

    # -- TRL's tool loop ---------------------------------------------------------------------------------------

    def environment(self) -> WorldTools:
        """A new environment, for ``environment_factory``."""
        return (WorldToolsWithList if self._with_list else WorldTools)(self._make(), self.seed)

    # -- rollouts ----------------------------------------------------------------------------------------------

    def outcome_reward(
        self, prompts: Sequence[Any], completions: Sequence[Any], score: Sequence[float | None] = (), **_: Any
    ) -> list[float | None]:
        """The episodes' scores, as a reward function for ``rollout``; None for an episode that failed."""
        if len(score) != len(completions):
            raise ConfigError("outcome_reward needs the scores of TRLTask.rollout; pass rollout_func=task.rollout")
        return list(score)

    def rollout(self, prompts: Sequence[Any], trainer: Any) -> dict[str, list[Any]]:
        """Play one episode for each prompt with the trainer's live model, for ``rollout_func``.

        Every task is entered once, and its episodes are forks of that state, so that a group plays the same world and
        shares the cache of its prompt. ``completion_ids`` holds the sampled ids of every turn and the observations
        between them; ``env_mask`` is 1 on the former. ``logprobs`` are those of the sampling, 0.0 on the
        observations (None where temperature or top_p make them another distribution's).

        Returns:
            The above and, for reward functions, ``score``, ``won``, ``num_steps``, ``task_id`` and ``task_type``.

        Raises:
            ConfigError: prompts that are not of ``dataset``.
            TrainingError: an episode without a single turn, or a template that drops reasoning from past turns.
        """
        tasks = [_task_of(prompt) for prompt in prompts]
        collector = self._collector_of(trainer)
        sampling = self._sampling(trainer.args)
        forks = self._enter(collector, dict(zip(tasks, prompts, strict=True)))
        training, step = bool(trainer.model.training), int(trainer.state.global_step)
        call = self._calls[training, step]
        self._calls[training, step] += 1
        place = (self.seed, training, step, call, int(trainer.accelerator.process_index))
        requests = [
            EpisodeRequest(
                task_id=task,
                seed=derive_seed("rollout", *place, index),
                sampling=sampling,
                start=forks[task],
                tag=index,
            )
            for index, task in enumerate(tasks)
        ]
        assert self._recording is not None
        self._recording.log_probs.clear()
        episodes = collector.run(requests)
        codec = codec_of(self._recording.tokenizer)
        rows = [self._row(codec, episode, self._recording) for episode in episodes]
        table: dict[str, Any] = {key: [getattr(row, key) for row in rows] for key in _Row.__dataclass_fields__}
        if not sampling.logprobs:
            table["logprobs"] = None
        return table

    def _sampling(self, args: Any) -> Sampling:
        temperature, top_p = float(args.temperature), float(args.top_p)
        return Sampling(
            temperature=temperature,
            top_p=top_p,
            max_new_tokens=self.max_new_tokens,
            logprobs=temperature == 1.0 and top_p == 1.0,
        )

    def _collector_of(self, trainer: Any) -> Collector:
        model = trainer.accelerator.unwrap_model(trainer.model)
        if self._collector is None or self._model is not model:
            tokenizer = trainer.processing_class
            agent = agents.get("transformers")(model, tokenizer=tokenizer)
            self._recording = _Recording(agent, tokenizer)
            self._model = model
            self._collector = Collector(
                self._make,
                self._recording,
                prompt=self.prompt,
                num_envs=self._num_envs,
                turn_format=self._turn_format,
            )
        return self._collector

    def _enter(self, collector: Collector, prompts: dict[str, Any]) -> dict[str, Any]:
        """A fork at the start of each task."""
        entered = collector.run(
            [
                EpisodeRequest(task_id=task, seed=self._world_seed(task), max_agent_turns=0, capture=True)
                for task in prompts
            ]
        )
        forks = {}
        for (task, prompt), episode in zip(prompts.items(), entered, strict=True):
            if not episode.forks:
                raise WorldError(f"task {task!r} cannot be started: {episode.trajectory.error}")
            if prompt[-1]["content"] != episode.trajectory.first_observation:
                raise ConfigError(
                    f"the prompt of task {task!r} does not end with its first observation; make the data set with "
                    "dataset() of the same TRLTask settings"
                )
            forks[task] = episode.forks[0]
        return forks

    def _row(self, codec: ChatCodec, episode: Episode, recording: _Recording) -> _Row:
        trajectory = episode.trajectory
        if not trajectory.steps:
            raise TrainingError(
                f"no turn was played of task {trajectory.task_id!r}: {trajectory.error or 'it is over'}"
            )
        messages = trajectory.messages(self.prompt)[:-1]
        first = len(self.prompt.messages()) + 1
        if not all(codec.keeps(m) for m in messages[first:] if m.role == "assistant"):
            raise TrainingError(
                f"{codec.name}: the chat template drops reasoning from past turns, so an episode is not one sequence; "
                "use a template that keeps it"
            )
        ids, spans = codec.encode_turns(messages)
        start, end = len(codec.encode(messages[:first], for_generation=True)[0]), spans[-1][1]
        mine = spans[-len(trajectory.steps) :]
        mask, log_probs = [0] * end, [0.0] * end
        for turn, (begin, stop) in enumerate(mine):
            mask[begin:stop] = [1] * (stop - begin)
            known = recording.log_probs.get((episode.request.seed, turn), ())
            log_probs[begin : begin + len(known)] = known
        failed = trajectory.status == "error"
        return _Row(
            prompt_ids=ids[:start],
            completion_ids=ids[start:end],
            env_mask=mask[start:],
            logprobs=log_probs[start:],
            score=None if failed else trajectory.score,
            won=trajectory.won,
            num_steps=len(trajectory.steps),
            task_id=trajectory.task_id,
            task_type=trajectory.task_type,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """One episode in TRL's terms; the fields are the keys of ``rollout``'s result."""

    prompt_ids: list[int]
    completion_ids: list[int]
    env_mask: list[int]
    logprobs: list[float]
    score: float | None
    won: bool
    num_steps: int
    task_id: str
    task_type: str


class _Recording:
    """An agent that notes the log-probabilities of each turn, which trajectories do not keep."""

    def __init__(self, agent: Agent, tokenizer: Any) -> None:
        self._agent = agent
        self.tokenizer = tokenizer
        self.name, self.needs = agent.name, agent.needs
        self.log_probs: dict[tuple[int, int], tuple[float, ...]] = {}
        """(seed of the episode, turn) to one number for each id of the turn, its end mark included"""
        self._asked: dict[str, TurnRequest] = {}

    def submit(self, requests: Sequence[TurnRequest]) -> None:
        """See StreamingAgent."""
        assert isinstance(self._agent, StreamingAgent)
        self._asked.update((request.episode_id, request) for request in requests)
        self._agent.submit(requests)

    def poll(self) -> list[tuple[str, Turn | Exception]]:
        """See StreamingAgent."""
        assert isinstance(self._agent, StreamingAgent)
        answers = self._agent.poll()
        for episode_id, answer in answers:
            request = self._asked.pop(episode_id, None)
            if request is not None and isinstance(answer, Turn) and answer.log_probs is not None:
                ending = () if answer.end_log_prob is None else (answer.end_log_prob,)
                self.log_probs[request.seed, request.turn] = (*answer.log_probs, *ending)
        return answers

    def act(self, requests: Sequence[TurnRequest]) -> list[Turn]:
        """See Agent."""
        return self._agent.act(requests)

    def release(self, episode_ids: Iterable[str]) -> None:
        """See Agent."""
        gone = list(episode_ids)
        for episode_id in gone:
            self._asked.pop(episode_id, None)
        self._agent.release(gone)


def _task_of(prompt: Any) -> str:
    found = prompt[-1].get(_TASK_KEY) if isinstance(prompt, list) and prompt and isinstance(prompt[-1], dict) else None
    if not isinstance(found, str) or not found:
        raise DataError(f"a prompt names no task, got {prompt!r:.80}; make the data set with TRLTask.dataset()")
    return found
