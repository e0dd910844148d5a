"""The stage that online methods share: roll out groups of episodes, give each turn an advantage, step the trainer.

A method of this kind is its settings and an ``Advantages`` object; ``grpo``, ``gigpo`` and ``ppo`` are examples.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from steca_gym import provenance
from steca_gym.collectors.episodes import Episode, EpisodeRequest
from steca_gym.errors import AgentError, ConfigError
from steca_gym.methods.base import reported
from steca_gym.methods.context import Context, Record, RunConfig
from steca_gym.methods.stages import ModelStage, demonstrations, engine_settings, report_broken, train_settings
from steca_gym.settings import digest
from steca_gym.statistics import wilson
from steca_gym.trajectory import Trajectory

if TYPE_CHECKING:
    from steca_gym.collectors import Collector
    from steca_gym.training import EpisodeGroup, PolicyGradient, PolicyGradientSettings

CURVE = "curve.json"
"""suffix of the file with the metrics of every step: ``online.curve.json`` in the run's folder"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutConfig:
    """How many episodes a step of an online method plays, and for how many steps."""

    num_steps: int = 100
    """steps of rolling out and training, >= 1"""
    num_tasks: int = 8
    """tasks per step, >= 1; all training tasks are played before one is played again"""
    group_size: int = 8
    """episodes per task and step, >= 1, all from the same start"""
    temperature: float = 1.0
    """of the agent's turns, > 0"""
    save_every_steps: int = 10
    """steps between two saves, from which a killed run resumes, >= 1"""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        for name in ("num_steps", "num_tasks", "group_size", "save_every_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not self.temperature > 0:
            raise ConfigError(f"temperature must be > 0, got {self.temperature}; greedy episodes are all equal")


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyConfig:
    """Settings of the policy's loss; batch size, optimizer and number type are those of ``agent.train``."""

    learning_rate_scale: float = 0.1
    """the learning rate as a part of ``agent.train.learning_rate``, > 0; it stays constant"""
    clip_range: float | None = 0.2
    """PPO's clipping of the probability ratio; None: no clipping"""
    num_minibatches: int = 1
    """optimizer steps per pass over the episodes of a step"""
    num_passes: int = 1
    """passes over the episodes of a step"""
    kl_coef: float = 0.0
    """weight of the KL divergence to the model before the stage, >= 0"""
    entropy_coef: float = 0.0
    """weight of an entropy bonus, >= 0"""

    def __post_init__(self) -> None:
        """Refuse what ``PolicyGradientSettings`` would not."""
        if not self.learning_rate_scale > 0:
            raise ConfigError(f"learning_rate_scale must be > 0, got {self.learning_rate_scale}")

    def training(self, config: RunConfig, temperature: float) -> PolicyGradientSettings:
        """Validated settings of the trainer."""
        from steca_gym.training import PolicyGradientSettings

        train = train_settings(config, "train")
        if train.lora_rank is not None:
            raise ConfigError(
                f"online methods train all weights, got lora_rank={train.lora_rank}; leave agent.lora.rank and "
                "agent.train.lora_rank at null, or take another method"
            )
        fields = {f.name for f in dataclasses.fields(PolicyGradientSettings)} & {
            f.name for f in dataclasses.fields(train)
        }
        shared = {name: getattr(train, name) for name in fields}
        shared["learning_rate"] *= self.learning_rate_scale
        if train.precision == "auto":  # measured at run time, it could differ after a resume
            shared["precision"] = "fp32"
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "learning_rate_scale"}
        return PolicyGradientSettings(**{**shared, **own, "temperature": temperature})


class Advantages(Protocol):
    """Gives every turn of a step's episodes an advantage.

    The loop that it serves::

        advantages.begin(demonstrations)
        advantages.restore(folder, num_steps)                  # after an interruption
        for step in range(...):
            trainer.step(advantages(groups, trainer))
            advantages.save(folder, step + 1)
    """

    needs_states: bool
    """whether episodes must come with a ``Fork`` before every step"""
    metrics: Mapping[str, float]
    """figures of the last call, for the tracker"""

    def settings(self) -> Mapping[str, Any]:
        """The settings that change the advantages, as plain data."""
        ...

    def begin(self, experts: Sequence[Trajectory]) -> None:
        """Take the demonstrations, before the first step and after an interruption."""
        ...

    def __call__(self, groups: Sequence[Sequence[Episode]], trainer: PolicyGradient) -> list[EpisodeGroup]:
        """One ``EpisodeGroup`` per group, with one number per turn."""
        ...

    def save(self, folder: Path, num_steps: int) -> None:
        """Keep what the next steps depend on, if anything does."""
        ...

    def restore(self, folder: Path, num_steps: int) -> None:
        """Load what was kept after so many steps."""
        ...


class Stateless:
    """The parts of ``Advantages`` for those that keep nothing between two steps."""

    needs_states = False
    metrics: Mapping[str, float] = {}

    def begin(self, experts: Sequence[Trajectory]) -> None:
        """The demonstrations are not needed."""

    def save(self, folder: Path, num_steps: int) -> None:
        """Nothing to keep."""

    def restore(self, folder: Path, num_steps: int) -> None:
        """Nothing was kept."""


class OnlineTraining(ModelStage):
    """Roll out, give advantages, train: ``num_steps`` times, on live weights.

    Tasks are those with a demonstration, in an order drawn with the run's seed. The episodes of a group begin in one
    state. A killed run resumes after the last saved step and ends with the same weights. Metrics of every step go to
    the tracker and to ``online.curve.json``: ``success_rate`` (with its 95 % interval), ``mean_score``, ``mean_length``
    (turns), and those of the trainer.
    """

    name = "online"
    folder_name = "model"

    def __init__(self, rollout: RolloutConfig, policy: PolicyConfig, advantages: Advantages) -> None:
        """See the class."""
        self.rollout, self.policy, self.advantages = rollout, policy, advantages

    def depends_on(self, config: RunConfig) -> Mapping[str, Any]:
        """Everything but how often it is saved."""
        rollout = dataclasses.asdict(self.rollout)
        del rollout["save_every_steps"]
        return {
            "agent.train": config.agent.train,
            "rollout": rollout,
            "policy": self.policy,
            "advantages": self.advantages.settings(),
            **engine_settings(config),
        }

    def check(self, config: RunConfig) -> None:
        """Refuse settings that the trainer could not run with."""
        if config.agent.trainable:
            if config.agent.train is None:
                raise ConfigError("agent.train is not set; give it the settings of a training, or choose another agent")
            self.policy.training(config, self.rollout.temperature)

    def run(self, context: Context, record: Record) -> None:
        """Train what is not trained yet."""
        from steca_gym.training import PolicyGradient
        from steca_gym.training.checkpoints import forget_saved, remove_leftovers, was_saved

        base = context.model
        if base is None:
            raise ConfigError("agent without a model cannot be trained; choose agent=tiny or agent=transformers")
        rollout, folder = self.rollout, context.folder / self.folder_name
        settings = self.policy.training(context.config, rollout.temperature)
        agent: Any = context.live_agent(base)
        trainer = PolicyGradient(settings, agent=agent, prompt=context.prompt)
        experts = demonstrations(context)
        self.advantages.begin(experts)
        curve: list[dict[str, float]] = []
        of = digest(self.depends_on(context.config))
        earlier = _read_curve(context.folder / f"{self.name}.{CURVE}", of)
        if not earlier:
            forget_saved(folder)  # saved with other settings: never to be resumed
        elif was_saved(folder):
            trainer.restore(folder)
            self.advantages.restore(context.folder, trainer.num_steps)
            curve = earlier[: trainer.num_steps]
        tasks = TaskOrder([e.task_id for e in experts], seed=context.config.seed)
        by_task = {e.task_id: e for e in experts}
        with (
            context.collector(agent) as collector,
            context.progress("online steps", rollout.num_steps, tracked=False) as on_progress,
        ):
            while trainer.num_steps < rollout.num_steps:
                step = trainer.num_steps
                chosen = [by_task[t] for t in tasks.take(step * rollout.num_tasks, rollout.num_tasks)]
                groups = self._play(context, collector, chosen, step)
                episodes = [e.trajectory for group in groups for e in group]
                made = self.advantages(groups, trainer)
                won = sum(t.won for t in episodes)
                low, high = wilson(won, len(episodes))
                metrics = {
                    "success_rate": won / len(episodes),
                    "success_rate_low": low,
                    "success_rate_high": high,
                    "mean_score": sum(t.score for t in episodes) / len(episodes),
                    "mean_length": sum(map(len, episodes)) / len(episodes),
                    **self.advantages.metrics,
                    **trainer.step(made),
                }
                curve.append(metrics)
                context.tracker.log(metrics, phase=self.name, step=trainer.num_steps)
                on_progress(trainer.num_steps, won=won, num_played=len(episodes))
                if trainer.num_steps % rollout.save_every_steps == 0 or trainer.num_steps == rollout.num_steps:
                    self._save(context, trainer, {"of": of, "steps": curve}, folder)
        remove_leftovers(folder)
        provenance.record(folder, fingerprint=experts[0].fingerprint, task_ids=by_task, base=base)
        tenth = max(1, len(curve) // 10)
        record.update(num_steps=trainer.num_steps, num_optimizer_steps=trainer.num_optimizer_steps)
        record["num_episodes"] = int(sum(m["num_episodes"] for m in curve))
        record["first_success_rate"] = sum(m["success_rate"] for m in curve[:tenth]) / tenth
        record["last_success_rate"] = sum(m["success_rate"] for m in curve[-tenth:]) / tenth
        record["model"] = reported(folder, context)

    def _save(self, context: Context, trainer: Any, curve: Mapping[str, Any], folder: Path) -> None:
        """The weights last: what is kept for a step whose weights were never saved is cut off by a restoration."""
        from steca_gym.files import write_json

        self.advantages.save(context.folder, trainer.num_steps)
        write_json(context.folder / f"{self.name}.{CURVE}", curve)
        trainer.save(folder)

    def _play(
        self, context: Context, collector: Collector, experts: Sequence[Trajectory], step: int
    ) -> list[list[Episode]]:
        """The groups of a step; episodes that broke are left out."""
        rollout = self.rollout
        # All begin where the demonstration did: a seed also decides the start in some worlds.
        entries = [EpisodeRequest(task_id=e.task_id, seed=e.seed, max_agent_turns=0, capture=True) for e in experts]
        starts = [e.forks[0] if e.forks else None for e in collector.run(entries)]
        requests = [
            context.request(
                expert.task_id,
                index=(step * rollout.num_tasks + place) * rollout.group_size + i,
                temperature=rollout.temperature,
                start=start,
                capture=self.advantages.needs_states,
                tag=place,
            )
            for place, (expert, start) in enumerate(zip(experts, starts, strict=True))
            if start is not None
            for i in range(rollout.group_size)
        ]
        groups: dict[int, list[Episode]] = {}
        broken: list[str] = []
        for episode in collector.run(requests):
            if episode.trajectory.status == "error":
                broken.append(episode.trajectory.error)
            elif episode.trajectory.steps:
                groups.setdefault(episode.request.tag, []).append(episode)
        report_broken(context, broken, len(requests), "episodes")
        if not groups:
            raise AgentError(
                f"no episode of online step {step + 1} could be begun; check that the environment starts (its data, "
                "its server) and run the same command again"
            )
        return list(groups.values())


class TaskOrder:
    """An endless order of tasks: each epoch is a permutation of all of them, drawn with a seed.

    Args:
        task_ids: the tasks, at least one.
        seed: decides every permutation.
    """

    def __init__(self, task_ids: Sequence[str], *, seed: int) -> None:
        """See the class."""
        self._task_ids, self._seed = list(task_ids), seed

    def take(self, start: int, count: int) -> list[str]:
        """``count`` tasks from position ``start`` on."""
        return [self._at(i) for i in range(start, start + count)]

    def _at(self, position: int) -> str:
        import numpy as np

        epoch, place = divmod(position, len(self._task_ids))
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._task_ids))
        return self._task_ids[int(order[place])]


def rewards_of(trajectory: Trajectory) -> list[float]:
    """The reward of each step: the change of the score. Their sum is the outcome."""
    scores = [0.0, *(step.score for step in trajectory.steps[:-1]), trajectory.score]
    return [after - before for before, after in zip(scores, scores[1:], strict=False)]


def discounted_returns(rewards: Sequence[float], gamma: float) -> list[float]:
    """``R_t = sum_k gamma^k r_{t+k}`` for each step."""
    returns: list[float] = []
    total = 0.0
    for reward in reversed(rewards):
        total = reward + gamma * total
        returns.append(total)
    return returns[::-1]


def _read_curve(path: Path, of: str) -> list[dict[str, float]]:
    """The steps of a curve that was written with equal settings; empty where there is none."""
    try:
        curve = json.loads(path.read_text(encoding="utf-8"))
        steps: list[dict[str, float]] = curve["steps"] if curve["of"] == of else []
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return steps


__all__ = [
    "Advantages",
    "OnlineTraining",
    "PolicyConfig",
    "RolloutConfig",
    "Stateless",
    "TaskOrder",
    "discounted_returns",
    "rewards_of",
]
