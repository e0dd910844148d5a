"""The parts of a run, made from its configuration: environments, agents, collector, buffer, tracker, console."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steca_gym.agent import MAX_TURN_CHARS, Agent, Prompt, Sampling, is_clairvoyant, is_interactive
from steca_gym.env import TextEnv
from steca_gym.errors import AgentError, ConfigError, DataError, foreign_errors
from steca_gym.methods.context import OnProgress, RunConfig, SampleT, SettingsT
from steca_gym.redaction import redact_data
from steca_gym.registry import agents as agent_names
from steca_gym.registry import (
    check_call,
    checked_call,
    encoders,
    executors,
    import_dotted,
    instantiate,
    reflectors,
)
from steca_gym.runs.guard import tasks_of_types
from steca_gym.runs.state import SharedStages
from steca_gym.seeding import derive_seed
from steca_gym.settings import digest, plain, read_settings, refuse_secrets

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from rich.console import Console

    from steca_gym.buffer import CalibrationBuffer
    from steca_gym.calibration.reflection import Reflector
    from steca_gym.collectors import Collector, Executor, Ledger
    from steca_gym.collectors.collector import Progress
    from steca_gym.collectors.episodes import Episode, EpisodeRequest
    from steca_gym.collectors.ledger import Cost
    from steca_gym.distances import Encoder
    from steca_gym.runs.view import Meter, View
    from steca_gym.step_rewards import Judge
    from steca_gym.tracking import CompositeTracker
    from steca_gym.training import Trainer, TrainReport, TrainSettings
    from steca_gym.trajectory import WeightedTrajectory

# Turns after which an agent that has not said anything usable counts as broken.
_NUM_TRIED_TURNS = 50

# Groups of the composed configuration that a run does not read itself: a method's settings refer to them.
_REFERRED_TO = ("preset", "exploration", "launcher", "experiment", "hydra")
_GROUPS = ("exploration", "preset", "preset.calibration", "preset.step_rewards", "preset.weights", "preset.training")


def read_config(cfg: DictConfig) -> tuple[RunConfig, dict[str, Any]]:
    """The typed configuration, and the composed one as plain data; raises ConfigError for what does not fit."""
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    try:
        settings = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        key = getattr(error, "full_key", None) or str(error).split(":")[-1].strip()
        raise ConfigError(f"setting {key!r} has no value; add {key}=... to the command") from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"a setting does not resolve: {' '.join(str(error).split())}") from error
    assert isinstance(settings, dict)
    refuse_secrets(OmegaConf.to_container(cfg, resolve=False), settings)
    raw = {str(k): v for k, v in settings.items()}
    for name in _GROUPS:
        # Checked here because a method that does not refer to a group would not notice that it is damaged.
        found: Any = raw
        for part in name.split("."):
            found = found.get(part, {})
            if not isinstance(found, Mapping):
                raise ConfigError(f"{name} must be a group of settings, got {found!r}")
    typed = {k: v for k, v in raw.items() if k not in _REFERRED_TO}
    config = read_settings(RunConfig, typed, where="")
    return config, raw


class RunContext:
    """What the stages of a run share; implements ``steca_gym.methods.Context``.

    Args:
        config: the typed configuration.
        folder: the run's folder; the caller has made it.
        settings: the composed configuration as plain data, for trackers; None: that of ``config``.
        sweep: name of the sweep that the run belongs to, for trackers; empty: none.
    """

    def __init__(
        self, config: RunConfig, folder: Path, *, settings: Mapping[str, Any] | None = None, sweep: str = ""
    ) -> None:
        """Make nothing yet: parts are made at first use."""
        self.config = config
        self.sweep = sweep
        self.folder = folder
        self.model: Path | None = None
        self.settings = dict(settings) if settings is not None else plain(config)
        self.shared = SharedStages(folder, Path(config.runs_root))

    def prepare(self) -> None:
        """Make the parts that every run uses, so that a value that one of them refuses is found before any work."""
        self.executor  # noqa: B018
        self.tracker  # noqa: B018
        if self.config.encoder:
            self.encoder()
        if self.config.expert:
            self.expert()

    # -- parts ----------------------------------------------------------------------------------------------

    @cached_property
    def view(self) -> View:
        """What a person sees."""
        from steca_gym.prices import read_prices
        from steca_gym.runs.view import View

        return View(prices=read_prices(Path(self.config.prices)) if self.config.prices else None)

    @property
    def console(self) -> Console:
        """Where results are shown, whatever the view is."""
        return self.view.console

    @cached_property
    def buffer(self) -> CalibrationBuffer:
        """The run's durable store."""
        from steca_gym.buffer import CalibrationBuffer

        return CalibrationBuffer(self.folder / "buffer.sqlite", durability=self.config.buffer.durability)

    @cached_property
    def ledger(self) -> Ledger:
        """What the run has cost in this process."""
        from steca_gym.collectors import Ledger

        return Ledger()

    @cached_property
    def executor(self) -> Executor:
        """Where environments live; shared by all stages, so that workers start once. Closed by ``close``."""
        from steca_gym.collectors import InProcess

        made: Executor = executors.make(self.config.executor) if self.config.executor else InProcess()
        return made

    @cached_property
    def tracker(self) -> CompositeTracker:
        """Where metrics go; a failing tracker never stops the run."""
        from steca_gym.tracking import make_tracker

        settings = redact_data(self.settings)
        made = make_tracker(self.config.logger, folder=self.folder, settings=settings, sweep=self.sweep)
        self.say(*made.opening_lines())
        return made

    @cached_property
    def prompt(self) -> Prompt:
        """What stands before every episode."""
        return self.config.env.prompt.prompt().written_in(self.config.agent.turn_format)

    def close(self, failure: BaseException | None = None) -> None:
        """Flush and close what was opened; ``failure``: what ended the run early, for trackers."""
        # Made at first use: closing must not make what failed to be made.
        if "tracker" in self.__dict__:
            if failure is not None:
                self.tracker.failed(" ".join(str(failure).split()) or type(failure).__name__)
            self.tracker.finish()
            self.say(*self.tracker.closing_lines())
        for name in ("executor", "buffer"):
            if name in self.__dict__:
                self.__dict__[name].close()

    # -- what a person sees ---------------------------------------------------------------------------------

    def say(self, *lines: str) -> None:
        """Show lines; texts from outside are shown as they are."""
        self.view.say(*lines)

    @contextlib.contextmanager
    def progress(self, title: str, total: int | None, *, tracked: bool = True) -> Iterator[OnProgress]:
        """Show how far a piece of work is; the yielded function takes what ``runs.view.Meter.update`` takes.

        ``tracked``: the tracker gets success so far and cost as well, under ``<stage>/progress``.
        """

        def track(meter: Meter) -> None:
            self.tracker.log(meter.figures(), phase=f"{self.ledger.current_phase}/progress", step=meter.done)

        with self.view.progress(title, total, self.ledger, on_share=track if tracked else None) as on_progress:
            yield on_progress

    # -- environments and agents ----------------------------------------------------------------------------

    def make_env(self, split: str | None = None) -> TextEnv:
        """Make one environment; unknown ids get Gymnasium's or our nearest name."""
        env = self.config.env
        with foreign_errors(f"making environment {env.id!r}"):
            return make_env(env.id, env.kwargs, split or env.train_split)

    def task_ids(self, split: str, limit: int) -> list[str]:
        """Tasks of a split in an order drawn with the run's seed, at most ``limit``.

        Where ``env.held_out_types`` names types, the split that is evaluated has only these, any other split none.
        """
        import numpy as np

        env = self.make_env(split)
        with foreign_errors(f"task_ids() or close() of {self.config.env.id!r}"):
            try:
                ids = list(env.task_ids(split))
            finally:
                env.close()
        if not ids:
            raise DataError(f"split {split!r} of {self.config.env.id!r} has no tasks; choose another split")
        order = [ids[i] for i in np.random.default_rng(self.config.seed).permutation(len(ids))]
        held_out = self.config.env.held_out_types
        if not held_out:
            return order[:limit]
        wanted = split == self.config.env.eval_split
        with foreign_errors(f"beginning tasks of {self.config.env.id!r}"):
            return tasks_of_types(self.make_env(split), order, limit, held_out, wanted=wanted)

    def sampling(self, temperature: float) -> Sampling:
        """Sampling settings of the run's agent at a temperature."""
        return Sampling(temperature=temperature, max_new_tokens=self.config.agent.max_new_tokens)

    def request(self, task_id: str, *, index: int = 0, temperature: float = 0.0, **kwargs: Any) -> EpisodeRequest:
        """An episode whose seed follows from the run's seed, the task and an index."""
        from steca_gym.collectors.episodes import EpisodeRequest

        seed = derive_seed(self.config.seed, task_id, index)
        return EpisodeRequest(task_id=task_id, seed=seed, sampling=self.sampling(temperature), **kwargs)

    def agent(self, model: Path | None) -> Agent:
        """The acting agent around a model folder (None for agents without a model)."""
        engine = self._in_turn_format(self.config.agent.engine)
        if model is None or engine.get("dtype") != "auto":
            return self._agent(engine, model)
        # Measured again, two stages (or two runs of one sweep) could play in different number types.
        with self.shared.holding("engine-dtype", digest(self.config.agent.engine)):
            engine["dtype"] = self.shared.decided("engine-dtype", self.config.agent.engine) or "auto"
            made = self._agent(engine, model)
            if dtype := getattr(made, "dtype", None):
                self.shared.decided("engine-dtype", self.config.agent.engine, decide=dtype)
        return made

    def _agent(self, engine: dict[str, Any], model: Path | None) -> Agent:
        args = () if model is None else (model,)
        if "_target_" in engine:
            made: Agent = checked_call("agent.engine", instantiate("agent.engine", engine), *args)
            agent_names.check_methods(made, str(engine["_target_"]))
        else:
            made = agent_names.make(engine, *args)
        self._leave_terminal_to(made)
        if line := getattr(made, "engine_line", ""):
            self.say(f"  {line}")
        return made

    def live_agent(self, model: Path) -> Agent:
        """The acting agent in float32, with weights that an online trainer can change.

        Raises ConfigError for an agent whose weights are not in this process.
        """
        engine = self._in_turn_format(self.config.agent.engine)
        if "dtype" in engine:
            engine["dtype"] = "float32"  # small updates would be lost in 16 bits
        if "_target_" in engine:
            made: Agent = checked_call("agent.engine", instantiate("agent.engine", engine), model)
        else:
            made = agent_names.make(engine, model)
        if getattr(made, "model", None) is None:
            raise ConfigError(
                f"agent {made.name!r} has no weights in this process, so that it cannot be trained online; use "
                "agent=tiny or agent=transformers"
            )
        return made

    def _leave_terminal_to(self, agent: Agent) -> None:
        """No live view draws over what an interactive agent shows."""
        if is_interactive(agent) and self.view.mode == "live":
            self.view.mode = "plain"

    def _in_turn_format(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """An agent's settings with the run's ``turn_format``, for agents that take one and were not given theirs."""
        import inspect

        given, name = dict(settings), self.config.agent.turn_format
        if name == "react" or given.get("turn_format") is not None:
            return given
        try:
            takes = "turn_format" in inspect.signature(agent_names.factory(given)).parameters
        except (TypeError, ValueError):  # a builtin has no signature
            return given
        return {**given, "turn_format": name} if takes else given

    def expert(self) -> Agent:
        """Who demonstrates."""
        made: Agent = agent_names.make(self._in_turn_format(self.config.expert))
        self._leave_terminal_to(made)
        return made

    def repair_expert(self) -> Agent | None:
        """See ``Context``; recorded demonstrations and people cannot be asked about any state."""
        expert = self.expert()
        silent = getattr(expert, "recorded", None) is not None or is_interactive(expert)
        return None if silent or is_clairvoyant(expert) else expert

    def collector(
        self,
        agent: Agent,
        *,
        split: str | None = None,
        on_episode: Callable[[Episode], None] | None = None,
    ) -> Collector:
        """A collector over the run's environment; ``on_episode`` is called with each episode that ends."""
        from steca_gym.collectors import Collector

        env = self.config.env

        def after_episode(progress: Progress) -> None:
            if on_episode is not None:
                on_episode(progress.last)
            if progress.ledger.cost.num_turns >= _NUM_TRIED_TURNS:
                check_turns(progress.ledger.cost)

        return Collector(
            functools.partial(make_env, env.id, env.kwargs, split or env.train_split),
            agent,
            prompt=self.prompt,
            ledger=self.ledger,
            num_envs=self.config.collector.num_envs,
            on_progress=after_episode,
            executor=self.executor,
            turn_format=self.config.agent.turn_format,
        )

    def play(
        self, agent: Agent, requests: Sequence[EpisodeRequest], keep: Callable[[Episode], None], title: str
    ) -> None:
        """Play episodes; each is handed to ``keep`` as soon as it ends, so that a killed process loses none of them."""
        num_finished = num_played = won = 0

        def after(episode: Episode) -> None:
            nonlocal num_finished, num_played, won
            keep(episode)
            played = episode.trajectory
            num_finished += 1
            num_played += played.status != "error"
            won += played.won
            on_progress(num_finished, won=won, num_played=num_played)

        with self.progress(title, len(requests)) as on_progress, self.collector(agent, on_episode=after) as collector:
            collector.run(requests)

    # -- calibration ----------------------------------------------------------------------------------------

    def reflector(self, agent: Agent) -> Reflector:
        """Who writes reflections; ``agent`` lets the acting agent's own model write them."""
        args = (agent, self.prompt) if self.config.reflector.get("name") == "agent" else ()
        made: Reflector = reflectors.make(self.config.reflector, *args)
        return made

    def encoder(self) -> Encoder:
        """The encoder of actions, for distances and for the same-action rule."""
        return self._encoder

    @cached_property
    def _encoder(self) -> Encoder:
        made: Encoder = encoders.make(self.config.encoder)
        return made

    def judge(self) -> Judge:
        """A language model that annotates step rewards (``estimator=judge``)."""
        if self.config.judge is None:
            raise ConfigError("estimator=judge needs a judge; add +judge._target_=... (see docs/step-rewards.md)")
        made: Judge = instantiate("judge", self.config.judge)
        return made

    # -- training -------------------------------------------------------------------------------------------

    def train(
        self,
        name: str,
        model: Path,
        samples: Sequence[WeightedTrajectory],
        settings: TrainSettings,
        output_dir: Path,
    ) -> TrainReport:
        """Train on weighted trajectories with a progress bar and the tracker."""
        from steca_gym.training import WeightedSFT

        return self.fit(name, WeightedSFT, settings, model, samples, output_dir)

    def fit(
        self,
        name: str,
        make_trainer: Callable[[SettingsT], Trainer[SampleT]],
        settings: SettingsT,
        model: Path,
        data: Sequence[SampleT],
        output_dir: Path,
    ) -> TrainReport:
        """Train with any offline trainer, with a progress bar and the tracker."""
        import dataclasses

        def fit(settings: SettingsT) -> TrainReport:
            with self.progress(f"training {name}", settings.max_steps, tracked=False) as on_progress:

                def on_log(metrics: dict[str, float]) -> None:
                    self.tracker.log(metrics, phase=name, step=int(metrics["step"]))
                    on_progress(int(metrics["step"]), f"loss {metrics['loss']:.3f}", int(metrics["max_steps"]))

                report = make_trainer(settings).fit(model, data, output_dir, prompt=self.prompt, on_log=on_log)
                # A short training ends before anything is logged.
                on_progress(report.num_steps, f"loss {report.last_loss:.3f}", report.num_steps)
            speed = f"{report.num_tokens:,} tokens, {report.tokens_per_second:,.0f} tokens/s"
            self.say(f"  {report.num_steps} steps on {report.num_samples} samples, {speed}, {report.precision}")
            return report

        if settings.precision != "auto":
            return fit(settings)
        # Measured again, two trainings of one run could differ in precision: what the first one measured holds for all.
        of = {"agent": self.config.agent.model or self.config.agent.build, "batch": settings.per_device_batch_size}
        with self.shared.holding("precision", digest(of)):
            known = self.shared.decided("precision", of)
            if known is None:
                report = fit(settings)
                self.shared.decided("precision", of, decide=report.precision)
                return report
        return fit(dataclasses.replace(settings, precision=known))  # type: ignore[arg-type]


def make_env(env_id: str, kwargs: Mapping[str, Any], split: str) -> TextEnv:
    """Make a TextEnv by its Gymnasium id; raises ConfigError for what is not one."""
    import gymnasium
    from gymnasium.error import Error as GymnasiumError

    try:
        env = gymnasium.make(env_id, split=split, disable_env_checker=True, **kwargs).unwrapped
    except (GymnasiumError, ModuleNotFoundError) as error:
        raise ConfigError(f"cannot make environment {env_id!r}: {error}") from error
    except TypeError as error:
        raise ConfigError(f"environment {env_id!r} does not take these kwargs: {error}") from error
    if not isinstance(env, TextEnv):
        raise ConfigError(
            f"environment {env_id!r} is a {type(env).__name__}, expected a steca_gym TextEnv; "
            "wrap it with steca_gym.envs.adapters"
        )
    return env


def check_parts(config: RunConfig) -> None:
    """Check what the groups name and the settings that they give it, without making anything.

    Raises:
        UnknownNameError, ConfigError: a name, module, object or setting that does not exist or does not fit.
    """
    from steca_gym.tracking import check_tracker

    agent = config.agent
    if config.executor:
        executors.check(config.executor)
    check_tracker(config.logger)
    if config.encoder:
        encoders.check(config.encoder)
    if config.expert:
        agent_names.check(config.expert)
    if config.reflector:
        reflectors.check(config.reflector, *((None, None) if config.reflector.get("name") == "agent" else ()))
    if config.judge is not None:
        import_dotted(str(config.judge.get("_target_", "")), "judge")
    agent_names.check(agent.engine, *(("model",) if agent.trainable else ()))
    if agent.build is not None:
        sizes = {k: v for k, v in agent.build.items() if k not in ("_target_", "_partial_")}
        factory = import_dotted(str(agent.build.get("_target_", "")), "agent.build")
        check_call("agent.build", factory, sizes, corpus=(), output_dir="", seed=config.seed)


def check_turns(cost: Cost) -> None:
    """Raise AgentError where an agent has said nothing usable so far: each turn was empty or overlong.

    A few such turns are data: each is an invalid turn with an observation of its own, and counted.
    """
    if cost.num_turns and cost.num_empty_turns + cost.num_overlong_turns == cost.num_turns:
        raise AgentError(
            f"the agent said nothing usable: expected turns of 'Thought: ...' and 'Action: ...', got {cost.num_turns} "
            f"turns, {cost.num_empty_turns} of them empty and {cost.num_overlong_turns} over {MAX_TURN_CHARS} "
            "characters; check the agent (its model, chat template, max_new_tokens); what was played is kept"
        )


def short_name(name: str) -> str:
    """A name as a part of a folder's name: letters, digits, dots, dashes and underscores only."""
    return re.sub(r"[^\w.-]+", "-", name.split(":")[-1]).strip(".-") or "unnamed"
