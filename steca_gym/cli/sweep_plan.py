"""`steca sweep-plan ...`: how many runs a sweep has, what they share, about how long and how much; plays nothing.

  steca sweep-plan method=sft,rft,steca seed=0,1,2
  steca sweep-plan method=sft,steca seed=range(0,5) like=runs/earlier     times from the runs below a folder
  steca sweep-plan method=sft,steca seed=0,1 jobs=4                       four jobs at a time

Takes the overrides of `steca run -m`. Stages with equal settings are played once for all runs, and not at all where a
run below runs_root has done them. Times and tokens are medians of the finished stages of that name below runs_root (or
`like=`); where there are none, the plan says so.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from steca_gym.cli.composing import compose, explain_overrides
from steca_gym.cli.options import config_dirs, whole_number, without_config_dirs
from steca_gym.errors import ConfigError

if TYPE_CHECKING:
    from steca_gym.methods.context import RunConfig


def main(args: list[str]) -> int:
    """Run the command."""
    like, num_jobs, kept = None, 1, []
    for arg in args:
        key, equals, value = arg.partition("=")
        if equals and key == "like":
            like = Path(value).expanduser()
        elif equals and key == "jobs":
            num_jobs = whole_number("jobs", value)
        elif arg not in ("-m", "--multirun"):
            kept.append(arg)
    folders = config_dirs(kept)
    kept = without_config_dirs(kept)
    explain_overrides(["-m", *kept, *(f"--config-dir={d}" for d in folders)])
    needs, root = plan_sweep(kept, folders)
    print(needs.text(measured([like or root]), num_jobs))
    return 0


@dataclass(slots=True)
class SweepPlan:
    """What the runs of a sweep need, by stage."""

    num_runs: int = 0
    needed: dict[str, int] = field(default_factory=dict)
    """stage: runs that need one of its name"""
    keys: dict[str, set[str]] = field(default_factory=dict)
    """stage: different ones"""
    done: dict[str, set[str]] = field(default_factory=dict)
    """stage: those that a run below ``runs_root`` has done"""

    def add(self, stage: str, key: str, *, is_done: bool) -> None:
        """Count a stage of one run."""
        self.needed[stage] = self.needed.get(stage, 0) + 1
        self.keys.setdefault(stage, set()).add(key)
        if is_done:
            self.done.setdefault(stage, set()).add(key)

    def text(self, measures: Mapping[str, Measure], num_jobs: int) -> str:
        """The plan for people."""
        head = ("stage", "runs", "different", "done", "to play", "seconds each", "tokens each")
        rows: list[tuple[str, ...]] = [head]
        num_known, seconds, tokens, unknown = 0, 0.0, 0.0, []
        for stage, needed in self.needed.items():
            done = len(self.done.get(stage, ()))
            left = len(self.keys[stage]) - done
            known = measures.get(_base(stage))
            if left and known is None:
                unknown.append(stage)
            elif known is not None:
                num_known += left
                seconds, tokens = seconds + left * known.seconds, tokens + left * known.num_tokens
            each = ("?", "?") if known is None else (f"{known.seconds:,.0f}", f"{known.num_tokens:,.0f}")
            rows.append((stage, str(needed), str(len(self.keys[stage])), str(done), str(left), *each))
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines = [f"{self.num_runs} run{'' if self.num_runs == 1 else 's'}"]
        lines += ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        if unknown and not num_known:
            return "\n".join([*lines, "time and tokens: not known, no run with these stages is finished; see like="])
        at_once = f", {num_jobs} at a time about {_clock(seconds / num_jobs)}" if num_jobs > 1 else ""
        lines.append(f"about {_clock(seconds)} of work{at_once}, {tokens:,.0f} sampled tokens")
        if unknown:
            lines.append(f"without {', '.join(unknown)}: no run with these is finished")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Measure:
    """Medians over the finished stages of one name."""

    seconds: float
    num_tokens: float


def plan_sweep(overrides: Sequence[str], folders: Sequence[str]) -> tuple[SweepPlan, Path]:
    """The plan of a sweep, and its ``runs_root``; raises ConfigError for settings that a run would refuse."""
    from steca_gym.methods.base import make_method
    from steca_gym.runs.context import read_config
    from steca_gym.runs.planning import check_settings, plan
    from steca_gym.runs.runner import EVALUATION
    from steca_gym.runs.state import SharedStages
    from steca_gym.settings import digest, plain

    found = SweepPlan()
    root = Path("runs")
    for job in expand(overrides):
        config, _ = read_config(compose(job, folders))
        root = Path(config.runs_root).expanduser()
        stages = plan(make_method(config.method), config)
        check_settings(stages, config)
        shared = SharedStages(root / "planned", root)
        for planned in stages:
            done = shared.find(planned.stage.name, planned.key) is not None
            found.add(planned.stage.name, planned.key, is_done=done)
        last = stages[-1].key if stages else digest(config.agent)
        run = shared.find(stages[-1].stage.name, stages[-1].key) if stages else None
        asked = plain(
            {"seed": config.seed, "num_eval_tasks": config.env.num_eval_tasks, "evaluation": config.evaluation}
        )
        evaluations = () if run is None else [e.get("depends_on", {}) for e in run.record.evaluations.values()]
        played = any(all(e.get(k) == v for k, v in asked.items()) for e in evaluations)
        found.add(EVALUATION, digest([last, _evaluated(config)]), is_done=played)
        found.num_runs += 1
    return found, root


def _evaluated(config: RunConfig) -> list[object]:
    return [config.seed, config.env, config.evaluation]


def expand(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of each run, in the order of ``steca run -m``; raises ConfigError for what names no values."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parsed = OverridesParser.create().parse_overrides(list(overrides))
    try:
        (jobs,) = BasicSweeper.split_arguments(parsed, None)
    except HydraException as error:
        raise ConfigError(f"sweep-plan needs values that are listed (a,b, range(), choice()): {error}") from error
    return jobs


def measured(roots: Sequence[Path]) -> dict[str, Measure]:
    """Medians of what finished stages took in the runs below the folders, by stage; empty where there are none."""
    from steca_gym.errors import DataError
    from steca_gym.runs.folder import find_runs

    seconds: dict[str, list[float]] = {}
    tokens: dict[str, list[float]] = {}

    def note(stage: str, took: float, cost: Mapping[str, float]) -> None:
        seconds.setdefault(_base(stage), []).append(took)
        tokens.setdefault(_base(stage), []).append(float(cost.get("num_sampled_tokens", 0)))

    for root in roots:
        for run in find_runs(root) if root.is_dir() else ():
            try:
                record = run.record
            except DataError:  # a damaged run teaches nothing
                continue
            for stage in record.stages.values():
                if not stage.shared_from:
                    note(stage.name, stage.seconds, stage.cost)
            for evaluation in record.evaluations.values():
                cost = evaluation.get("cost") or {}
                note("evaluation", float(cost.get("seconds", 0.0)), cost)
    return {s: Measure(statistics.median(v), statistics.median(tokens[s])) for s, v in seconds.items()}


def _base(stage: str) -> str:
    """A later round of a stage takes about what the first takes."""
    return stage.partition(".")[0]


def _clock(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes // 60}:{minutes % 60:02d} h" if minutes >= 90 else f"{minutes} min"
