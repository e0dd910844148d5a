"""Plays the stages of a method in a run's folder: each once, resumed after a kill, shared with sibling runs, accounted.

A stage's key is a digest of the settings that it depends on and of the key of the stage before it. Runs whose stages
have equal keys share them: a sweep over methods or over a later training's settings plays the demonstrations and the
warm-up once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steca_gym import provenance
from steca_gym.errors import ConfigError, ContaminationError, StorageError, UnknownNameError
from steca_gym.files import copy_changed, write_atomically
from steca_gym.methods.base import Method, make_method
from steca_gym.methods.context import Record, RunConfig
from steca_gym.methods.stages import engine_settings, report_broken
from steca_gym.registry import explain_unknown
from steca_gym.runs.context import RunContext, check_turns, read_config
from steca_gym.runs.folder import RunFolder, StageRecord
from steca_gym.runs.guard import listed_twins, played_twins, refuse_twins
from steca_gym.runs.planning import PlannedStage, agent_name, check_settings, method_name, plan, run_folder
from steca_gym.runs.quiet import no_progress_bars
from steca_gym.runs.state import RunState
from steca_gym.runs.tracked import TrackedRun
from steca_gym.runs.view import counting
from steca_gym.seeding import evaluation_seed
from steca_gym.settings import differences, digest, plain
from steca_gym.tracking import results_are_awaited

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from steca_gym.collectors.episodes import Episode
    from steca_gym.evaluation import EvaluationReport
    from steca_gym.evaluation.panel import Panel

EVALUATION, REPEAT = "evaluation", "repeat"


class Runner:
    """A run under way.

    >>> with Runner.open(cfg) as runner:
    ...     report = runner.play()

    Args:
        config: the typed configuration.
        settings: the composed configuration as plain data.
        overrides: of the command, kept for ``run=PATH``, as are the user's folders of configurations, ``config_dirs``.
        sweep: name of the sweep that the run belongs to, for trackers; empty: none.
        swept: what the sweep gave this run, by key, which then waits for a sibling in its folder; None: no sweep.

    Raises:
        ConfigError: settings that do not fit, or a folder with another run's settings, or held by another process.
        StorageError: the folder cannot be written.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        settings: Mapping[str, Any],
        overrides: Sequence[str] = (),
        config_dirs: Sequence[str] = (),
        sweep: str = "",
        swept: Mapping[str, str] | None = None,
    ) -> None:
        """Check every setting, then make or re-enter the run's folder."""
        from steca_gym import __version__

        no_progress_bars()
        self.config = config
        self.method: Method = make_method(config.method)
        self.method_name = method_name(config)
        self.plan = plan(self.method, config)
        check_settings(self.plan, config)
        folder = run_folder(config, self.plan, self.method_name, swept)
        blank = {
            "version": __version__,
            "method": self.method_name,
            "seed": config.seed,
            "overrides": list(overrides),
            "config_dirs": list(config_dirs),
            "settings": settings,
        }
        on_wait = None if swept is None else partial(print, file=sys.stderr)
        self.state = RunState(folder, blank=blank, on_wait=on_wait)
        self.context = RunContext(config, folder, settings=settings, sweep=sweep)
        self._twins: list[str] = []
        try:
            self._check_fits(settings, overrides)
        except BaseException:
            self.state.release()
            raise

    @classmethod
    def open(
        cls,
        cfg: DictConfig,
        *,
        overrides: Sequence[str] = (),
        config_dirs: Sequence[str] = (),
        sweep: str = "",
        swept: Mapping[str, str] | None = None,
    ) -> Runner:
        """From a composed configuration."""
        config, settings = read_config(cfg)
        return cls(config, settings=settings, overrides=overrides, config_dirs=config_dirs, sweep=sweep, swept=swept)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.context.folder

    def __enter__(self) -> Runner:
        """Return the runner."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        """Close what was opened and let go of the folder."""
        try:
            self.context.close(error)
        finally:
            self.state.release()

    def _check_fits(self, settings: Mapping[str, Any], overrides: Sequence[str]) -> None:
        """Raise ConfigError where a finished stage depends on other settings; adopt settings of stages to come."""
        record = self.state.record
        if record.method != self.method_name:
            raise ConfigError(
                f"{str(self.folder)!r} holds a run with other settings (method: {record.method!r}, asked for "
                f"{self.method_name!r}); choose another run_dir or leave it to be derived"
            )
        for planned in self.plan:
            held = record.stages.get(planned.stage.name)
            if held is None or held.key == planned.key:
                continue
            differing = differences(held.depends_on, plain(planned.depends_on))
            what = "; ".join(differing[:3]) or "settings of an earlier stage"
            raise ConfigError(
                f"{str(self.folder)!r} holds a run with other settings: its stage {held.name!r} was done with {what}; "
                "choose another run_dir or leave it to be derived: stages that fit are shared"
            )
        if plain(settings) != dict(record.settings):
            self.state.update(
                settings=settings, seed=self.config.seed, overrides=list(overrides) or list(record.overrides)
            )

    # -- playing --------------------------------------------------------------------------------------------

    @property
    def label(self) -> str:
        """What tables call the run: its method, or its agent where nothing is trained."""
        return self.method_name if self.config.agent.trainable else agent_name(self.config)

    def stage_names(self) -> tuple[str, ...]:
        """What ``until`` may name."""
        return (*(p.stage.name for p in self.plan), EVALUATION)

    def play(self, *, until: str | None = None) -> EvaluationReport | None:
        """Play the stages that are not done, then evaluate.

        Args:
            until: the last stage to play; None: all, and the evaluation.

        Returns:
            The evaluation; None where ``until`` names an earlier stage.

        Raises:
            UnknownNameError: the method has no such stage.
        """
        if until is not None and until not in self.stage_names():
            raise UnknownNameError(explain_unknown(f"stage of method {self.method_name!r}", until, self.stage_names()))
        if until in (None, EVALUATION):
            self._check_evaluation()
        untrained = not self.config.agent.trainable and bool(self.plan) and until in (None, EVALUATION)
        if untrained:
            # The expert or a random agent: there is nothing to train, and its games can be compared all the same.
            self.context.say("this agent has no model: it is not trained, only evaluated")
        if self.state.ended_badly:
            self.context.say(f"{self.state.ended_badly}; what was stored is kept, and the work goes on from there")
        if self.unfinished_stages():
            self.context.prepare()
        for planned in self.plan:
            if untrained and planned.stage.name != "demonstrations":
                continue
            self._play_stage(planned)
            if planned.stage.name == until:
                self.tracked.costs(RunFolder(self.folder).cost())
                return None
        if self.config.agent.trainable and self.context.model is None:
            self.context.model = self._initial_model()
        return self.evaluate()

    def unfinished_stages(self) -> list[str]:
        """Names of the stages that are not done."""
        done = self.state.record.stages
        return [p.stage.name for p in self.plan if p.stage.name not in done]

    def evaluate_only(self) -> EvaluationReport:
        """Evaluate the model that the finished stages have trained; plays and trains nothing else."""
        self._check_evaluation()
        models = [r.model for r in self.state.record.stages.values() if r.model is not None]
        if models:
            self.context.model = self.folder / models[-1]
        elif self.config.agent.trainable:
            self.context.model = self._initial_model()
        return self.evaluate()

    def _initial_model(self) -> Path | None:
        """The model of an agent that no stage has trained; raises ConfigError where there is none to evaluate."""
        if self.config.agent.model is not None:
            return Path(self.config.agent.model)
        raise ConfigError(
            "this agent has no trained model to evaluate; train it first (steca run method=sft), or give a model: "
            "steca evaluate model=PATH"
        )

    @cached_property
    def tracked(self) -> TrackedRun:
        """What the run's tracker gets beyond what its stages log themselves."""
        return TrackedRun(self.context, [p.stage.name for p in self.plan])

    def _play_stage(self, planned: PlannedStage) -> None:
        stage, key = planned.stage, planned.key
        record = self.state.record.stages.get(stage.name)
        if record is None:
            waits = f"{stage.title or stage.name}: another run does it; waiting to take it over"
            with self.context.shared.holding(stage.name, key, on_wait=lambda: self.context.say(waits)):
                record = self._adopt(planned) or self._do(planned)
            self.context.shared.publish(stage.name, key, self.folder)
            self.tracked.stage(record, list(self.state.record.stages.values()))
        if record.model is not None:
            self.context.model = self.folder / record.model

    def _adopt(self, planned: PlannedStage) -> StageRecord | None:
        """Take the stage over from a sibling that has done it; its cost counts for this run as well."""
        stage = planned.stage
        source = self.context.shared.find(stage.name, planned.key)
        if source is None or not stage.adopt(self.context, source):  # pyright: ignore[reportArgumentType]
            return None
        held = source.record.stages[stage.name]
        record = dataclasses.replace(held, shared_from=held.shared_from or source.name)
        self.state.put_stage(record)
        self.context.say(f"{stage.title or stage.name}: taken over from {source.name}")
        return record

    def _do(self, planned: PlannedStage) -> StageRecord:
        with self.accounting(planned.stage.name, planned.stage.title or planned.stage.name) as (result, spent):
            planned.stage.run(self.context, result)  # pyright: ignore[reportArgumentType]
        seconds = round(spent.pop("elapsed"), 2)
        if result.get("num_accepted"):
            result["cost_per_calibrated"] = {k: v / result["num_accepted"] for k, v in spent.items()}
        record = StageRecord(
            name=planned.stage.name,
            key=planned.key,
            depends_on=plain(planned.depends_on),
            seconds=seconds,
            cost=spent,
            result=plain(result),
        )
        self.state.put_stage(record)
        return record

    @contextlib.contextmanager
    def accounting(self, name: str, title: str) -> Iterator[tuple[Record, dict[str, float]]]:
        """Do a piece of work: what goes into the yielded record is kept, and its costs are known after the block.

        Costs of an attempt that an exception ended are kept and added to those of the attempt that finishes (a killed
        process can leave none behind).

        Raises:
            AgentError: every turn was empty or overlong; what was played is kept.
        """
        context = self.context
        context.view.say(title, style="bold")
        result: Record = {}
        spent: dict[str, float] = {}
        start = time.perf_counter()
        with context.ledger.phase(name) as cost:
            before = cost.as_dict()

            def add_up() -> dict[str, float]:
                earlier = dict(self.state.record.unfinished.get(name, {"elapsed": 0.0}))
                earlier["elapsed"] += time.perf_counter() - start
                for counter, value in cost.as_dict().items():
                    earlier[counter] = earlier.get(counter, 0) + value - before[counter]
                return earlier

            try:
                yield result, spent
                check_turns(cost)
            except BaseException:
                # A full disk must not hide why the work ended.
                with contextlib.suppress(StorageError):
                    unfinished = {**self.state.record.unfinished, name: add_up()}
                    self.state.update(unfinished=unfinished)
                raise
            spent.update(add_up())
        counters = {k: v for k, v in spent.items() if k not in ("seconds", "elapsed")}
        whole = type(cost)(**counters)  # type: ignore[arg-type]
        line = whole.line() + context.view.money(whole, spent["elapsed"])
        context.view.say(f"  {title}: {spent['elapsed']:.0f} s; {line}", style="dim")

    # -- evaluation -----------------------------------------------------------------------------------------

    def _check_evaluation(self) -> None:
        """Raise early where the evaluation could not be played: a split without tasks, or games that are trained on."""
        env = self.config.env
        games = self._games()
        if not self.plan:
            self.context.task_ids(env.train_split, 1)  # a mistyped name is found here, though nothing is trained
        if self.plan and (self.config.agent.trainable or env.eval_split == env.train_split):
            played = set(self.context.task_ids(env.train_split, env.num_train_tasks))
            tainted = sorted(played & set(games))
            if tainted:
                raise ContaminationError(
                    f"{len(tainted)} of {len(games)} games fed training or calibration (first: {tainted[0]!r}): "
                    "env.train_split and env.eval_split share them; evaluate on another split"
                )
            if env.twins == "refuse" and self.config.agent.trainable:
                twins = listed_twins(self.context.make_env, (env.train_split, sorted(played)), (env.eval_split, games))
                refuse_twins(twins or (), len(games))

    def _games(self) -> list[str]:
        """What an evaluation plays, in order: the panel's games, or some of the split."""
        if self._panel is not None:
            return self._panel.task_ids
        env = self.config.env
        return self.context.task_ids(env.eval_split, env.num_eval_tasks)

    @cached_property
    def _panel(self) -> Panel | None:
        """The panel that was asked for; raises ConfigError or DataError where it does not fit this run."""
        from steca_gym.evaluation.panel import check_panel, check_world, read_panel

        if self.config.env.panel is None:
            return None
        panel = read_panel(Path(self.config.env.panel))
        check_world(panel, self.config.env.id)
        if panel.split != (split := self.config.env.eval_split):
            raise ConfigError(
                f"the panel's games are of split {panel.split!r}, this run evaluates {split!r}; "
                f"set env.eval_split={panel.split}"
            )
        check_panel(panel, self._panel_here(panel.task_ids, panel.seed))
        return panel

    @property
    def _game_seed(self) -> int:
        """Of the evaluation's episodes: the panel's, or the run's."""
        return self.config.seed if self._panel is None else self._panel.seed

    def _panel_here(self, task_ids: Sequence[str], seed: int) -> Panel:
        from steca_gym.evaluation.panel import make_panel

        env = self.config.env
        rules: Any = {"env_id": env.id, "kwargs": env.kwargs, "split": env.eval_split, "prompt": digest(env.prompt)}
        with contextlib.closing(self.context.make_env(env.eval_split)) as probe:
            return make_panel(probe, task_ids, **rules, seed=seed, name=env.panel_name)

    def evaluation_settings(self) -> dict[str, Any]:
        """What an evaluation depends on, beyond the stages before it."""
        config, env = self.config, self.config.env
        return {
            "seed": config.seed,
            **({"panel": self._panel.key} if self._panel is not None else {}),
            **({"held_out_types": env.held_out_types} if env.held_out_types else {}),
            "env": {"id": env.id, "kwargs": env.kwargs, "prompt": env.prompt, "eval_split": env.eval_split},
            "agent.model": config.agent.model,
            **engine_settings(config),
        }

    def evaluate(self) -> EvaluationReport:
        """Greedy evaluation on games that fed nothing; done once for equal settings, and kept."""
        from steca_gym.evaluation import read_report

        env = self.config.env
        last = self.plan[-1].key if self.plan else ""
        games_key = digest([last, self.evaluation_settings()])
        asked = {
            "num_eval_tasks": env.num_eval_tasks,
            "evaluation": self.config.evaluation,
            "encoder": self.config.encoder,
            "expert": self.config.expert,
        }
        key = digest([games_key, asked])
        file = self.folder / "evaluations" / f"{key}.json"
        panel_file = file.with_suffix(".panel.json")
        known = self.state.record.evaluations.get(key)
        if known is not None and file.exists():
            report = read_report(file)
            if results_are_awaited():
                self.tracked.evaluation(report)
        else:
            report = self._evaluate_anew(games_key)
            file.parent.mkdir(exist_ok=True)
            played = [g.task_id for g in report.games]
            panel = self._panel or self._panel_here(played, self._game_seed)
            panel.write(panel_file)
            write_atomically(file, json.dumps(report.as_dict(), indent=1))
            entry = {
                "file": str(file.relative_to(self.folder)),
                "split": env.eval_split,
                "panel": {"key": panel.key, "name": panel.name, "file": str(panel_file.relative_to(self.folder))},
                "twins": self._twins,
                "depends_on": {**self.evaluation_settings(), **asked},
                "cost": report.cost.get(EVALUATION, {}),
            }
            unfinished = {k: v for k, v in self.state.record.unfinished.items() if k != EVALUATION}
            self.state.update(evaluations={**self.state.record.evaluations, key: entry}, unfinished=unfinished)
            self.tracked.evaluation(report)
        copy_changed(file, self.folder / "evaluation.json")
        copy_changed(panel_file, self.folder / "panel.json")  # evaluations of earlier versions have none
        return report

    def _evaluate_anew(self, games_key: str) -> EvaluationReport:
        from steca_gym.evaluation import EvaluationSettings, evaluate, refuse_tainted

        context, env, model = self.context, self.config.env, self.context.model
        split = env.eval_split
        task_ids = self._games()
        stored = f"games:{games_key}"
        named = f" ({label})" if (label := env.panel_name or (self._panel.name if self._panel else "")) else ""
        with self.accounting(EVALUATION, f"evaluation: {len(task_ids)} games of {split}{named}") as (result, spent):
            forbidden = context.buffer.used_task_ids() if self.plan else set()
            if model is not None:
                with contextlib.closing(context.make_env(split)) as probe:
                    provenance.check_environment(model, probe.fingerprint)
                forbidden |= set(provenance.trained_on(model, task_ids))
            refuse_tainted(task_ids, forbidden)
            agent = context.agent(model)
            # The yardstick's cost is not the agent's.
            with context.ledger.phase("yardstick"):
                # The agent's episodes have the same seeds: both play the same game.
                seeds = {t: evaluation_seed(self._game_seed, t) for t in task_ids}
                requests = [dataclasses.replace(context.request(t), seed=seeds[t]) for t in task_ids]
                with (
                    context.progress("the expert's games", len(requests), tracked=False) as on_progress,
                    context.collector(context.expert(), split=split, on_episode=counting(on_progress)) as collector,
                ):
                    experts = [e.trajectory for e in collector.run(requests)]
            self._twins = played_twins(context.buffer.trajectories(kind="expert"), experts) if self.plan else []
            if self._twins and env.twins == "refuse":
                refuse_twins(self._twins, len(task_ids))
            elif self._twins:
                context.say(f"  {len(self._twins)} of {len(task_ids)} games read and are solved like a training task")

            ids = context.buffer.done(stored)
            kept = {k: context.buffer.trajectories(kind=k) for k in (EVALUATION, REPEAT)}
            earlier = [t for k in kept for t in kept[k] if t.trajectory_id in ids]
            settings = EvaluationSettings(sampling=context.sampling(0.0), **dataclasses.asdict(self.config.evaluation))
            wins = [t.won for t in kept[EVALUATION] if t.trajectory_id in ids]
            others = {"stress test": 0, "repeats": 0}

            def keep(episode: Episode) -> None:
                # The stress test's histories are not the agent's own: only whole games are kept.
                played, kind = episode.trajectory.with_id(), ""
                if episode.request.start is not None or episode.request.script:
                    others["stress test"] += 1
                elif played.seed == seeds[played.task_id]:
                    kind = EVALUATION
                    wins.append(played.won)
                else:
                    kind = REPEAT
                    others["repeats"] += 1
                if kind and played.status != "error":
                    context.buffer.add_trajectories([played], kind=kind, done=(stored, [played.trajectory_id]))
                note = ", ".join(f"{name}: {n} episodes" for name, n in others.items() if n)
                on_progress(len(wins), note, won=sum(wins), num_played=len(wins))

            with (
                context.progress("games", len(task_ids)) as on_progress,
                context.collector(agent, split=split, on_episode=keep) as collector,
            ):
                report = evaluate(
                    collector,
                    task_ids,
                    seed=self._game_seed,
                    expert_trajectories=[e for e in experts if e.won],
                    forbidden_task_ids=forbidden,
                    played=earlier,
                    settings=settings,
                    make_env=lambda: context.make_env(split),
                    encoder=context.encoder(),
                )
            report_broken(context, [g.error for g in report.games if g.error], len(report.games), "games")  # pyright: ignore[reportArgumentType]
            result.update({k: v for k, v in report.as_dict().items() if isinstance(v, int | float)})
        elapsed = spent.pop("elapsed")
        cost = {**RunFolder(self.folder).cost(), EVALUATION: {**spent, "seconds": round(elapsed, 2)}}
        return dataclasses.replace(report, cost=cost)
