"""What a run is configured with, and what it gives to the stages of a method.

``RunConfig`` is the typed form of the composed configuration. ``Context`` is the protocol that stages are written
against; ``steca_gym.runs`` implements it for the command line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from steca_gym.agent import Message, Prompt
from steca_gym.errors import ConfigError
from steca_gym.review.config import ReviewConfig
from steca_gym.turns import find_turn_format

if TYPE_CHECKING:
    from steca_gym.agent import Agent
    from steca_gym.buffer import CalibrationBuffer
    from steca_gym.calibration.reflection import Reflector
    from steca_gym.collectors import Collector, Ledger
    from steca_gym.collectors.episodes import Episode, EpisodeRequest
    from steca_gym.distances import Encoder
    from steca_gym.env import TextEnv
    from steca_gym.step_rewards import Judge
    from steca_gym.tracking import CompositeTracker
    from steca_gym.training import Trainer, TrainReport, TrainSettings
    from steca_gym.training.settings import OptimizationSettings
    from steca_gym.trajectory import WeightedTrajectory

SampleT = TypeVar("SampleT")
SettingsT = TypeVar("SettingsT", bound="OptimizationSettings")


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageConfig:
    """One message of a worked example."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptConfig:
    """What stands before every episode."""

    instruction: str = ""
    """the system message; empty: none. ``{turn_format}`` stands for the instructions of ``agent.turn_format``"""
    examples: tuple[MessageConfig, ...] = ()
    """messages of a worked example"""

    def prompt(self) -> Prompt:
        """The prompt itself."""
        examples = tuple(Message(m.role, m.content) for m in self.examples)
        return Prompt(instruction=self.instruction, examples=examples)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvConfig:
    """The environment and its tasks."""

    id: str
    """a Gymnasium id, e.g. ``steca_gym.envs:steca/Household-v0`` or ``my_module:me/World-v0``"""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """passed to ``gymnasium.make``"""
    prompt: PromptConfig = PromptConfig()
    train_split: str = "train"
    num_train_tasks: int = 300
    """tasks that demonstrations are played on, >= 1"""
    eval_split: str = "valid_seen"
    num_eval_tasks: int = 140
    """games of an evaluation, >= 1"""
    held_out_types: tuple[str, ...] = ()
    """task types that training never plays, and that alone are evaluated; empty: all types everywhere"""
    panel: str | None = None
    """file of a panel: the evaluation plays its games, by its rules and with its seed, or is refused"""
    panel_name: str = ""
    """label of the evaluation, set by the choices of ``conf/panel``"""
    twins: Literal["refuse", "report"] = "refuse"
    """games that read and are solved like a training task under another id: refused, or counted and reported"""
    num_envs: int | None = None
    """live episodes that a machine can bear; None: the collector's own number"""

    def __post_init__(self) -> None:
        """Refuse counts below 1."""
        for name in ("num_train_tasks", "num_eval_tasks"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be >= 1, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoRAConfig:
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) in every training of a run, merged at the end of each."""

    rank: int | None = None
    """rank of the adapters, >= 1; None: all weights are trained"""
    alpha: float | None = None
    """scale of the adapters, > 0; None: twice the rank"""
    dropout: float = 0.0
    """dropout in front of the adapters, in [0, 1)"""
    target_modules: str | tuple[str, ...] = "all-linear"
    """names of the modules that get adapters, or "all-linear": every linear layer but the output embedding"""

    def __post_init__(self) -> None:
        """Refuse settings without an effect; the training's settings check the ranges."""
        if self.rank is None and any(getattr(self, f.name) != f.default for f in fields(self)):
            raise ConfigError("agent.lora.alpha, dropout and target_modules have no effect without agent.lora.rank")

    def added_to(self, training: Mapping[str, Any], where: str) -> Mapping[str, Any]:
        """The settings of a training with these adapters; raises ConfigError where it names others itself."""
        if self.rank is None:
            return training
        mine = {f"lora_{f.name}": getattr(self, f.name) for f in fields(self)}
        own = {f"lora_{f.name}": f.default for f in fields(self)}
        for key, value in mine.items():
            if training.get(key, own[key]) not in (own[key], value):
                other = f"agent.lora.{key.removeprefix('lora_')}"
                raise ConfigError(f"{where}.{key}={training[key]!r} and {other}={value!r}: set one of the two")
        return {**training, **mine}


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """The acting agent, and how it is trained."""

    engine: Mapping[str, Any]
    """makes the agent from a model folder: a ``_target_`` with ``_partial_: true``, or a ``name``"""
    max_new_tokens: int
    """tokens per turn, >= 1"""
    turn_format: str = "react"
    """how the agent writes its turns: ``react``, ``tools``, ``json``, ``xml``, or ``module:Object``"""
    model: str | None = None
    """folder or name of a pretrained model that training begins with"""
    build: Mapping[str, Any] | None = None
    """makes the model that training begins with, from a corpus"""
    warm_up: Mapping[str, Any] | None = None
    """training settings of the supervised warm-up, see ``training.TrainSettings``"""
    train: Mapping[str, Any] | None = None
    """training settings of the stages after it"""
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    """adapters for all trainings; they are then part of ``warm_up`` and ``train``"""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        for name in ("warm_up", "train"):
            training = getattr(self, name)
            if training is not None:
                object.__setattr__(self, name, self.lora.added_to(training, f"agent.{name}"))
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens must be >= 1, got {self.max_new_tokens}")
        find_turn_format(self.turn_format)

    @property
    def trainable(self) -> bool:
        """Whether there is a model to train."""
        return self.build is not None or self.model is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectorConfig:
    """How episodes are played."""

    num_envs: int = 64
    """maximum number of episodes in progress, >= 1"""

    def __post_init__(self) -> None:
        """Refuse counts below 1."""
        if self.num_envs < 1:
            raise ConfigError(f"num_envs must be >= 1, got {self.num_envs}")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationConfig:
    """How a run is evaluated."""

    stress: bool = True
    """play the deviated-history stress test as well"""
    num_stress_games: int | None = None
    """most games of it, each played twice; None: all that are evaluated"""
    num_repeats: int = 0
    """sampled plays of each game beside the greedy one, for ``pass^k``; 0: none"""
    repeat_temperature: float = 1.0
    """of these plays, > 0"""

    def __post_init__(self) -> None:
        """Refuse counts and temperatures that cannot work."""
        if self.num_repeats < 0:
            raise ConfigError(f"num_repeats must be >= 0, got {self.num_repeats}")
        if not 0 < self.repeat_temperature < math.inf:
            raise ConfigError(
                f"repeat_temperature must be > 0, got {self.repeat_temperature}; greedy plays of a game are all equal"
            )
        if self.num_stress_games is not None and self.num_stress_games < 1:
            raise ConfigError(f"num_stress_games must be >= 1, got {self.num_stress_games}")


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferConfig:
    """How the run's buffer is written; part of no stage's key, because it changes no result."""

    durability: Literal["process", "power"] = "process"
    """what a commit survives, see ``CalibrationBuffer``: the process being killed, or a loss of power as well"""

    def __post_init__(self) -> None:
        """Refuse another word."""
        if self.durability not in ("process", "power"):
            raise ConfigError(f"buffer.durability must be 'process' or 'power', got {self.durability!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """The whole configuration of a run, typed. Groups that name an object stay plain: the registry makes it."""

    env: EnvConfig
    agent: AgentConfig
    method: Mapping[str, Any]
    """``name`` (or ``_target_``) of the method and the settings of its ``Config``"""
    seed: int = 0
    """>= 0; decides tasks, samples and training"""
    expert: Mapping[str, Any] = field(default_factory=dict)
    """who demonstrates"""
    collector: CollectorConfig = CollectorConfig()
    executor: Mapping[str, Any] = field(default_factory=dict)
    encoder: Mapping[str, Any] = field(default_factory=dict)
    reflector: Mapping[str, Any] = field(default_factory=dict)
    judge: Mapping[str, Any] | None = None
    logger: Mapping[str, Any] = field(default_factory=dict)
    evaluation: EvaluationConfig = EvaluationConfig()
    review: ReviewConfig = ReviewConfig()
    """who decides about calibrations before a training uses them"""
    buffer: BufferConfig = BufferConfig()
    prices: str | None = None
    """a YAML file with a price table (``steca_gym.prices.Prices``), for what is shown; part of no stage's key"""
    runs_root: str = "runs"
    run_dir: str | None = None

    def __post_init__(self) -> None:
        """Refuse a negative seed, and a prompt that asks for turns of another format than the agent's."""
        self.env.prompt.prompt().written_in(self.agent.turn_format)
        if self.seed < 0:
            raise ConfigError(f"seed must be >= 0, got {self.seed}")


Record = dict[str, Any]
"""what a stage reports: plain data for ``run.json``"""

OnProgress = Callable[..., None]
"""called with how many are done; optionally with a note, a new ``total``, ``won`` of ``num_played`` episodes, and
further ``metrics`` for trackers"""


class Context(Protocol):
    """What a stage may use.

    The loop that it serves::

        for stage in method.stages():
            record = {}
            stage.run(context, record)       # reads and writes context.buffer, context.folder, context.model
    """

    config: RunConfig
    folder: Path
    """where the run keeps its files"""
    model: Path | None
    """folder of the model as the stages so far have trained it; None: none yet, or an agent without a model"""

    @property
    def buffer(self) -> CalibrationBuffer:
        """The run's durable store."""
        ...

    @property
    def ledger(self) -> Ledger:
        """What the run has cost in this process."""
        ...

    @property
    def tracker(self) -> CompositeTracker:
        """Where metrics go."""
        ...

    @property
    def prompt(self) -> Prompt:
        """What stands before every episode."""
        ...

    def say(self, *lines: str) -> None:
        """Show lines to the user."""
        ...

    def progress(self, title: str, total: int | None, *, tracked: bool = True) -> AbstractContextManager[OnProgress]:
        """Shows how far a piece of work is, what it costs and how long it will take.

        ``tracked``: the tracker gets the same figures; False for work that logs its own.
        """
        ...

    def task_ids(self, split: str, limit: int) -> list[str]:
        """At most ``limit`` tasks of a split, in an order drawn with the run's seed."""
        ...

    def make_env(self, split: str | None = None) -> TextEnv:
        """A new environment; the caller closes it."""
        ...

    def agent(self, model: Path | None) -> Agent:
        """The acting agent around a model folder."""
        ...

    def live_agent(self, model: Path) -> Agent:
        """The acting agent in float32, with weights that an online trainer can change."""
        ...

    def expert(self) -> Agent:
        """Who demonstrates."""
        ...

    def repair_expert(self) -> Agent | None:
        """Who continues where no demonstration leads; None: the world's own expert.

        It is the run's expert where that acts on conversations: a planner would teach to go straight to hidden things.
        """
        ...

    def collector(
        self,
        agent: Agent,
        *,
        split: str | None = None,
        on_episode: Callable[[Episode], None] | None = None,
    ) -> Collector:
        """A collector over the run's environments and executor."""
        ...

    def request(self, task_id: str, *, index: int = 0, temperature: float = 0.0, **kwargs: Any) -> EpisodeRequest:
        """An episode whose seed follows from the run's seed, the task and an index."""
        ...

    def play(
        self, agent: Agent, requests: Sequence[EpisodeRequest], keep: Callable[[Episode], None], title: str
    ) -> None:
        """Play episodes; each is handed to ``keep`` as soon as it ends."""
        ...

    def reflector(self, agent: Agent) -> Reflector:
        """Who writes reflections."""
        ...

    def encoder(self) -> Encoder:
        """The encoder of actions."""
        ...

    def judge(self) -> Judge:
        """The language model that annotates step rewards; raises ConfigError where none is configured."""
        ...

    def train(
        self,
        name: str,
        model: Path,
        samples: Sequence[WeightedTrajectory],
        settings: TrainSettings,
        output_dir: Path,
    ) -> TrainReport:
        """Train on weighted trajectories with a progress bar and the tracker."""
        ...

    def fit(
        self,
        name: str,
        make_trainer: Callable[[SettingsT], Trainer[SampleT]],
        settings: SettingsT,
        model: Path,
        data: Sequence[SampleT],
        output_dir: Path,
    ) -> TrainReport:
        """Train with any offline trainer, e.g. ``Preference`` on pairs, with a progress bar and the tracker.

        ``make_trainer`` is called with the settings; ``precision="auto"`` is decided before, once for the run.
        """
        ...


class Stored(Protocol):
    """What another run holds that a stage can take over, opened read-only."""

    path: Path

    def buffer(self) -> AbstractContextManager[CalibrationBuffer]:
        """Its buffer."""
        ...

    def stage_folder(self, stage: str) -> Path:
        """The folder of the model that one of its stages trained."""
        ...


def chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Parts of at most ``size`` items, in order."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
