"""The stages that methods share: demonstrations, the supervised warm-up, sampled episodes, and offline training.

Offline training is on weighted trajectories or on preference pairs. Online training is in ``online``.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from steca_gym import provenance
from steca_gym.agent import Agent
from steca_gym.collectors.episodes import Episode, EpisodeRequest, Fork
from steca_gym.errors import AgentError, ConfigError, DataError
from steca_gym.methods.base import Stage, reported, round_name
from steca_gym.methods.context import Context, Record, RunConfig, Stored
from steca_gym.settings import read_settings
from steca_gym.training import PreferenceSettings, TrainSettings
from steca_gym.trajectory import PreferencePair, Trajectory, WeightedTrajectory

if TYPE_CHECKING:
    from steca_gym.training import TrainReport

T = TypeVar("T")


def subsample(seed: int, items: Sequence[T], count: int | None) -> list[T]:
    """At most ``count`` of the items, drawn with a seed; all of them for None.

    Trajectories are listed by task id, and ids often begin with the kind of task: the first few would be of one kind.
    """
    import numpy as np

    if count is None or count >= len(items):
        return list(items)
    return [items[i] for i in np.random.default_rng(seed).permutation(len(items))[:count]]


def distinct(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """One trajectory of each action sequence in a game: equal ones teach the same."""
    first: dict[tuple[str, tuple[str, ...]], Trajectory] = {}
    for t in trajectories:
        first.setdefault((t.task_id, t.actions), t)
    return list(first.values())


def train_settings(config: RunConfig, which: str, changes: Mapping[str, Any] | None = None) -> TrainSettings:
    """``agent.warm_up`` or ``agent.train`` with the run's seed and a method's changes.

    Raises ConfigError or UnknownNameError.
    """
    raw = getattr(config.agent, which)
    if raw is None:
        raise ConfigError(f"agent.{which} is not set; give it the settings of a training")
    return read_settings(TrainSettings, {"seed": config.seed, **raw, **(changes or {})}, where=f"agent.{which}")


def report_broken(context: Context, errors: Sequence[str], num_played: int, what: str) -> None:
    """Say how many broke; raise AgentError where nothing else came of it: the same command tries them again."""
    if errors and len(errors) == num_played:
        raise AgentError(
            f"all {num_played} {what} broke (first: {errors[0]}); check the agent (its server, its memory) and run the "
            "same command again: what was played before is kept"
        )
    if errors:
        context.say(f"  {len(errors)} of {num_played} {what} broke (first: {errors[0]})")


class Demonstrations(Stage):
    """Let the expert play the training tasks; what it does not win is dropped and counted."""

    name = "demonstrations"

    def depends_on(self, config: RunConfig) -> Mapping[str, Any]:
        """The seed, the environment without its evaluation, the expert, and how its turns are written."""
        env, written = config.env, config.agent.turn_format
        return {
            **({} if written == "react" else {"turn_format": written}),
            "seed": config.seed,
            "env": {
                "id": env.id,
                "kwargs": env.kwargs,
                "prompt": env.prompt,
                "train_split": env.train_split,
                "num_train_tasks": env.num_train_tasks,
                **({"held_out_types": env.held_out_types} if env.held_out_types else {}),
            },
            "expert": config.expert,
        }

    def run(self, context: Context, record: Record) -> None:
        """Raises DataError when the world has no expert or the expert wins nothing."""
        env = context.config.env
        task_ids = context.task_ids(env.train_split, env.num_train_tasks)
        done = context.buffer.done(self.name)
        broken: list[str] = []

        def keep(episode: Episode) -> None:
            played = episode.trajectory
            if played.status == "error":  # not played to an end: the next attempt may
                broken.append(played.error)
                return
            # Ids that an expert's model sampled are not those of the model that is trained.
            steps = tuple(dataclasses.replace(s, token_ids=None) for s in played.steps)
            won = [dataclasses.replace(played, steps=steps).with_id()] if played.won else []
            context.buffer.add_trajectories(won, kind="expert", done=(self.name, [played.task_id]))

        expert = context.expert()
        recorded: Sequence[Trajectory] | None = getattr(expert, "recorded", None)
        if recorded is None:
            todo = [context.request(t) for t in task_ids if t not in done]
        else:  # what there is, under its own seeds
            known = set(context.task_ids(env.train_split, sys.maxsize))
            brought = {t.task_id: t for t in recorded if t.task_id in known}
            task_ids = [t for t in brought][: env.num_train_tasks]
            todo = [
                dataclasses.replace(
                    context.request(t), seed=brought[t].seed, script=brought[t].steps, max_agent_turns=0
                )
                for t in task_ids
                if t not in done
            ]
            context.say(f"  {len(task_ids)} of {len(recorded)} imported demonstrations, split {env.train_split!r}")
        context.play(expert, todo, keep, self.name)
        record["num_won"] = len(demonstrations(context))
        record["num_lost"] = len(task_ids) - record["num_won"]
        record["num_broken"] = len(broken)
        if not record["num_won"]:
            why = f" (first failure: {broken[0]})" if broken else ""
            raise DataError(
                f"no demonstrations: the expert of {env.id!r} won none of {len(task_ids)} tasks{why}; "
                "check the horizon, and that the world has an expert"
            )

    def adopt(self, context: Context, source: Stored) -> bool:
        """Copy the trajectories."""
        with source.buffer() as other:
            found, done = other.trajectories(kind="expert"), other.done(self.name)
        context.buffer.add_trajectories(found, kind="expert", done=(self.name, done))
        return bool(found)


def demonstrations(context: Context) -> list[Trajectory]:
    """The expert trajectories of the run, ordered by task."""
    return context.buffer.trajectories(kind="expert")


class ModelStage(Stage):
    """A stage that trains a model into a folder of the run."""

    folder_name: str
    """inside the run's folder"""

    def adopt(self, context: Context, source: Stored) -> bool:
        """Take over the trained model, without a second copy on disk where the file system has hard links."""
        return link_model(source.stage_folder(self.name), context.folder / self.folder_name)


def link_model(source: Path, target: Path) -> bool:
    """Put a model's files into another folder as hard links, or as copies; False where there is no model."""
    if not (source / "config.json").exists():
        return False
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for file in sorted(source.iterdir()):
        if file.is_file():
            try:
                os.link(file, part / file.name)
            except OSError:
                shutil.copy2(file, part / file.name)
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)
    return True


class WarmUp(ModelStage):
    """Fine-tune on the expert trajectories (STeCa, phase 1; behaviour cloning). Left out for agents without a model."""

    name = "warm_up"
    folder_name = "warm-up"

    def applies(self, config: RunConfig) -> bool:
        """Only agents with a model are trained."""
        return config.agent.trainable

    def depends_on(self, config: RunConfig) -> Mapping[str, Any]:
        """The model that training begins with, and how it is trained."""
        agent = config.agent
        return {"agent.model": agent.model, "agent.build": agent.build, "agent.warm_up": agent.warm_up}

    def check(self, config: RunConfig) -> None:
        """Refuse an agent without training settings."""
        if config.agent.warm_up is None:
            raise ConfigError("agent.warm_up is not set; give it the settings of a training, or choose another agent")

    def run(self, context: Context, record: Record) -> None:
        """Build or load the initial model and train it."""
        from steca_gym.files import storage_errors
        from steca_gym.registry import checked_call, instantiate

        agent, experts = context.config.agent, demonstrations(context)
        context.say(f"  {len(experts)} expert trajectories")
        folder = context.folder / self.folder_name
        settings = train_settings(context.config, "warm_up")
        with storage_errors("the model", folder):
            base: Path | None = None
            if agent.build is not None:
                texts = [m.content for e in experts for m in e.messages(context.prompt)]
                build = instantiate("agent.build", agent.build)
                initial = folder / "initial"
                keywords = {"corpus": texts, "output_dir": initial, "seed": context.config.seed}
                start = Path(checked_call("agent.build", lambda: build(**keywords)))
            else:
                assert agent.model is not None
                start = base = Path(agent.model)
                provenance.check_environment(base, experts[0].fingerprint)
            samples = [WeightedTrajectory(trajectory=e) for e in experts]
            report = context.train(self.name, start, samples, settings, folder)
            record_samples(context, folder, samples, base=base)
            shutil.rmtree(folder / "initial", ignore_errors=True)
            fingerprint = experts[0].fingerprint
            provenance.record(folder, fingerprint=fingerprint, task_ids=(e.task_id for e in experts), base=base)
        record.update(report.as_dict(), fingerprint=fingerprint, model=reported(folder, context))


class TrainingStage(ModelStage):
    """One stage of offline training, with the settings of ``agent.train``.

    With ``max_steps`` in these settings all offline methods take equally many optimizer steps.
    """

    def __init__(self, round_index: int = 0) -> None:
        """One stage a round: ``train``, ``train.1``, ..."""
        self.round_index = round_index
        self.name = round_name("train", round_index)
        self.folder_name = "model" if round_index == 0 else f"model-{round_index}"

    def depends_on(self, config: RunConfig) -> Mapping[str, Any]:
        """The training's settings; subclasses add what their samples depend on."""
        return {"agent.train": config.agent.train}

    def check(self, config: RunConfig) -> None:
        """Refuse an agent that cannot be trained."""
        if config.agent.trainable and config.agent.train is None:
            raise ConfigError("agent.train is not set; give it the settings of a training, or choose another agent")

    @abstractmethod
    def fit(self, context: Context, model: Path, record: Record) -> tuple[TrainReport, list[Trajectory]]:
        """Train and return the report and the trajectories that were trained on."""

    def run(self, context: Context, record: Record) -> None:
        """Train the context's model."""
        from steca_gym.files import storage_errors

        base = context.model
        if base is None:
            raise ConfigError("agent without a model cannot be trained; choose agent=tiny or agent=transformers")
        report, trained_on = self.fit(context, base, record)
        folder = context.folder / self.folder_name
        with storage_errors("the model", folder):
            task_ids = (t.task_id for t in trained_on)
            provenance.record(folder, fingerprint=trained_on[0].fingerprint, task_ids=task_ids, base=base)
        record.update(report.as_dict(), model=reported(folder, context))


class TrainOnTrajectories(TrainingStage):
    """Train on weighted trajectories (``WeightedSFT``). Subclasses say which samples."""

    def training_settings(self, context: Context) -> TrainSettings:
        """How to train: ``agent.train``."""
        return train_settings(context.config, "train")

    @abstractmethod
    def samples(self, context: Context) -> Sequence[WeightedTrajectory]:
        """What is trained on; never empty (raises DataError instead)."""

    def fit(self, context: Context, model: Path, record: Record) -> tuple[TrainReport, list[Trajectory]]:
        """Train on the samples."""
        samples = self.samples(context)
        count_kinds(context, record, (s.kind for s in samples))
        folder, settings = context.folder / self.folder_name, self.training_settings(context)
        report = context.train(self.name, model, samples, settings, folder)
        record_samples(context, folder, samples, base=model)
        return report, [s.trajectory for s in samples]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceConfig:
    """Settings of a method's preference loss; batch size, steps and precision are those of ``agent.train``."""

    beta: float = 0.1
    """strength of the pull to the model before the stage, > 0"""
    sft_weight: float = 0.0
    """weight of the added negative log-likelihood of the chosen side, in nats per token, >= 0"""
    learning_rate_scale: float = 0.1
    """the learning rate as a part of ``agent.train.learning_rate``, > 0; DPO takes smaller steps than SFT"""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if not self.beta > 0 or not self.learning_rate_scale > 0 or not self.sft_weight >= 0:
            raise ConfigError(
                "beta and learning_rate_scale must be > 0 and sft_weight >= 0, got "
                f"{self.beta}, {self.learning_rate_scale} and {self.sft_weight}"
            )

    def training(self, config: RunConfig) -> PreferenceSettings:
        """Validated settings of the training."""
        train = train_settings(config, "train")
        shared = {f.name for f in dataclasses.fields(PreferenceSettings)} & {f.name for f in dataclasses.fields(train)}
        settings = {name: getattr(train, name) for name in shared}
        settings["learning_rate"] *= self.learning_rate_scale
        return PreferenceSettings(**settings, beta=self.beta, sft_weight=self.sft_weight)


class TrainOnPairs(TrainingStage):
    """Train on preference pairs (``Preference``: DPO). Subclasses say which pairs."""

    def __init__(self, round_index: int, loss: PreferenceConfig) -> None:
        """``loss``: the settings of the preference loss."""
        super().__init__(round_index)
        self.loss = loss

    def depends_on(self, config: RunConfig) -> Mapping[str, Any]:
        """The settings of the training and of the loss."""
        return {**super().depends_on(config), "loss": self.loss}

    def check(self, config: RunConfig) -> None:
        """Refuse settings that the preference loss could not run with."""
        super().check(config)
        if config.agent.trainable:
            self.loss.training(config)

    @abstractmethod
    def pairs(self, context: Context) -> Sequence[PreferencePair]:
        """What is trained on; may be empty."""

    def fit(self, context: Context, model: Path, record: Record) -> tuple[TrainReport, list[Trajectory]]:
        """Train on the pairs; raises DataError where there are none."""
        from steca_gym.training import Preference

        pairs = self.pairs(context)
        if not pairs:
            raise DataError(
                "no preference pairs: the agent did as well as the expert on every task that it played; give it more "
                "or harder tasks, more samples, or a higher temperature"
            )
        count_kinds(context, record, (p.kind for p in pairs))
        folder, settings = context.folder / self.folder_name, self.loss.training(context.config)
        report = context.fit(self.name, Preference, settings, model, pairs, folder)
        chosen = [WeightedTrajectory(trajectory=p.chosen, kind=p.kind) for p in pairs]
        record_samples(context, folder, chosen, base=model)
        return report, [p.chosen for p in pairs]


def record_samples(context: Context, folder: Path, samples: Sequence[WeightedTrajectory], *, base: Path | None) -> None:
    """Leave beside a model's weights which samples trained it; of preference pairs, the preferred sides."""
    from steca_gym.files import storage_errors

    decided = context.buffer.decisions()
    with storage_errors("the model", folder):
        provenance.record_samples(
            folder,
            samples,
            trail=decided[-1].digest if decided else "",
            base="" if base is None else base.name,
        )


def count_kinds(context: Context, record: Record, kinds: Iterable[str]) -> None:
    """Say and record how many samples of each kind are trained on."""
    counts = sorted(Counter(kinds).items())
    context.say("  on " + ", ".join(f"{count} {kind}" for kind, count in counts))
    record.update({f"num_{kind}": count for kind, count in counts})


class SampleEpisodes(Stage):
    """Let the agent play training tasks at a temperature and keep the episodes that it wins.

    Args:
        num_samples: episodes per task.
        temperature: of the sampling, > 0; 0 is greedy.
        num_tasks: tasks, drawn with the run's seed from those with a demonstration; None: all.
        keep_lost: keep the lost episodes as well, under the kind ``own_lost``.
        same_start: begin each episode in the state in which the task's demonstration began, also in worlds whose start
            depends on the seed.
        round_index: of the round; the stages are ``own_episodes``, ``own_episodes.1``, ...
    """

    def __init__(
        self,
        *,
        num_samples: int,
        temperature: float,
        num_tasks: int | None = None,
        keep_lost: bool = False,
        same_start: bool = False,
        round_index: int = 0,
    ) -> None:
        """See the class."""
        self.name = round_name("own_episodes", round_index)
        self.num_samples, self.temperature, self.num_tasks = num_samples, temperature, num_tasks
        self.keep_lost, self.same_start, self.round_index = keep_lost, same_start, round_index

    def depends_on(self, config: RunConfig) -> Mapping[str, Any]:
        """How many are sampled, how, and by which engine."""
        return {
            "num_samples": self.num_samples,
            "temperature": self.temperature,
            "num_tasks": self.num_tasks,
            "keep_lost": self.keep_lost,
            **({"same_start": True} if self.same_start else {}),
            **engine_settings(config),
        }

    def run(self, context: Context, record: Record) -> None:
        """Play what is not stored yet."""
        done = context.buffer.done(self.name)
        experts = subsample(context.config.seed, demonstrations(context), self.num_tasks)
        first = self.round_index * self.num_samples
        requests = {
            f"{e.task_id}#{i}": context.request(e.task_id, index=i, temperature=self.temperature)
            for e in experts
            for i in range(first, first + self.num_samples)
        }
        keys = {(r.task_id, r.seed): key for key, r in requests.items()}
        broken: list[str] = []

        def keep(episode: Episode) -> None:
            played = episode.trajectory
            if played.status == "error":
                broken.append(played.error)
                return
            key = keys[played.task_id, played.seed]
            kept = [played] if played.won or self.keep_lost else []
            kind = "own" if played.won else "own_lost"
            context.buffer.add_trajectories(kept, kind=kind, round_index=self.round_index, done=(self.name, [key]))

        todo = [r for key, r in requests.items() if key not in done]
        agent = context.agent(context.model)
        if self.same_start and todo:
            left = {r.task_id for r in todo}
            forks = start_states(context, agent, [e for e in experts if e.task_id in left])
            todo = [dataclasses.replace(r, start=forks.get(r.task_id)) for r in todo]
        context.play(agent, todo, keep, "own episodes")
        report_broken(context, broken, len(todo), "episodes")
        won = context.buffer.trajectories(kind="own", round_index=self.round_index)
        record.update(num_episodes=len(requests), num_broken=len(broken))
        record.update(num_won=len(won), num_distinct=len(distinct(won)))

    def adopt(self, context: Context, source: Stored) -> bool:
        """Copy the episodes."""
        with source.buffer() as other:
            kept = {kind: other.trajectories(kind=kind, round_index=self.round_index) for kind in ("own", "own_lost")}
            done = other.done(self.name)
        for kind, found in kept.items():
            context.buffer.add_trajectories(found, kind=kind, round_index=self.round_index)
        context.buffer.mark_done(self.name, done)
        return True


def start_states(context: Context, agent: Agent, experts: Sequence[Trajectory]) -> dict[str, Fork]:
    """The states in which demonstrations began, by task; tasks whose start broke are left out."""
    requests = [EpisodeRequest(task_id=e.task_id, seed=e.seed, max_agent_turns=0, capture=True) for e in experts]
    with context.collector(agent) as collector:
        entered = collector.run(requests)
    return {e.request.task_id: e.forks[0] for e in entered if e.forks}


def own_successes(context: Context) -> list[Trajectory]:
    """The distinct episodes that the agent won by itself."""
    return distinct(context.buffer.trajectories(kind="own"))


def engine_settings(config: RunConfig) -> dict[str, Any]:
    """The settings of the acting agent that change what it says."""
    agent = config.agent
    return {
        "agent.engine": agent.engine,
        "agent.max_new_tokens": agent.max_new_tokens,
        "agent.turn_format": agent.turn_format,
    }
