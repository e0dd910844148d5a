"""Tables over run folders: one row for each method and swept value, aggregated over seeds."""

from __future__ import annotations

import csv
import difflib
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from steca_gym.errors import DataError, UnknownNameError
from steca_gym.runs.folder import find_runs
from steca_gym.statistics import bootstrap_interval, interquartile_mean, mean_interval, probability_of_improvement

if TYPE_CHECKING:
    from steca_gym.evaluation import EvaluationReport

_LATEX = str.maketrans({c: "\\" + c for c in "&%$#_{}"} | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"})
_LATEX |= str.maketrans({"\\": r"\textbackslash{}"})
FORMATS = ("text", "markdown", "latex", "csv")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Runs of one method and one value of the swept key."""

    method: str
    value: str
    """of the swept key; empty without one"""
    num_runs: int
    num_unfinished: int
    """runs without an evaluation so far"""
    num_games: int
    """of all evaluations together"""
    success: float | None
    """mean over the runs, in [0, 1]"""
    success_low: float | None
    success_high: float | None
    """95 % interval of the mean over seeds (Student's t); with one run the Wilson interval of its games"""
    interquartile_mean: float | None
    """of success over runs and task types, in [0, 1]"""
    interquartile_low: float | None
    interquartile_high: float | None
    """95 %, by a bootstrap of the runs that is stratified by task type (rliable); None with one run"""
    improvement: float | None
    """probability that a run scores higher than one of the first row of its world, averaged over the task types; None
    for that row, or where the two have no task type in common"""
    mean_steps: float | None
    mean_dndtw: float | None
    robustness: float | None
    num_sampled_tokens: float | None
    """mean over the runs"""
    num_env_steps: float | None
    seconds: float | None
    world: str
    """the environment's settings in which the runs differ; empty where all have the same"""


def collect_rows(paths: Sequence[Path], *, by: str | None = None) -> list[Row]:
    """Aggregate all runs at or below the paths.

    Args:
        paths: run folders, or folders that hold some.
        by: a key of the configuration, e.g. ``agent.train.learning_rate``.

    Raises:
        DataError: no runs there.
        UnknownNameError: no run has the key; runs without it, where others have it, are shown under "-".
    """
    runs = {run.path.resolve(): run for path in paths for run in find_runs(path)}
    if not runs:
        where = ", ".join(map(str, paths))
        raise DataError(f"no runs in {where}; give folders that `steca run` printed, or their root")
    records = {path: run.record for path, run in runs.items()}
    values = _values({path: record.settings for path, record in records.items()}, by)
    worlds = _worlds({path: record.settings for path, record in records.items()}, by)
    cells: dict[tuple[str, str, str], list[EvaluationReport | None]] = {}
    for path, run in runs.items():
        record = records[path]
        cells.setdefault((worlds[path], record.method, values[path]), []).append(run.evaluation())
    first: dict[str, list[EvaluationReport]] = {}
    rows = []
    for world, method, value in sorted(cells, key=lambda cell: (cell[0], cell[1], _by_size(cell[2]))):
        reports = cells[world, method, value]
        rows.append(_row(method, value, world, reports, first.get(world, ())))
        first[world] = first.get(world) or [r for r in reports if r is not None]
    return rows


def _values(settings: Mapping[Path, Mapping[str, Any]], by: str | None) -> dict[Path, str]:
    """Each run's value of a key, "-" where it has none; raises UnknownNameError where none has it."""
    if by is None:
        return dict.fromkeys(settings, "")
    values, error = dict.fromkeys(settings, "-"), None
    for path, known in settings.items():
        try:
            values[path] = setting(known, by)
        except UnknownNameError as unknown:
            error = unknown
    if error is not None and set(values.values()) == {"-"}:
        raise error
    return values


def _by_size(value: str) -> tuple[float, str]:
    """To sort by: numbers by size, before texts."""
    try:
        return float(value), value
    except ValueError:
        return math.inf, value


def _worlds(settings: Mapping[Path, Mapping[str, Any]], by: str | None) -> dict[Path, str]:
    """What each run is evaluated in: runs with other games or rules are no seeds of one another."""
    shown: dict[Path, dict[str, str]] = {}
    for path, known in settings.items():
        env = known.get("env")
        env = env if isinstance(env, Mapping) else {}
        kwargs = env.get("kwargs")
        rules = {f"env.kwargs.{k}": v for k, v in kwargs.items()} if isinstance(kwargs, Mapping) else {}
        rules |= {f"env.{k}": env[k] for k in ("id", "eval_split", "prompt", "held_out_types") if k in env}
        shown[path] = {k: json.dumps(v, sort_keys=True, default=str) for k, v in rules.items() if k != by}
    names = sorted({k for rules in shown.values() for k in rules})
    differing = [k for k in names if len({rules.get(k) for rules in shown.values()}) > 1]
    return {
        path: " ".join(f"{k.rpartition('.')[2]}={rules[k].strip(chr(34))[:40]}" for k in differing if k in rules)
        for path, rules in shown.items()
    }


def setting(settings: Mapping[str, Any], key: str) -> str:
    """A value of a configuration by its dotted key, as text; raises UnknownNameError with the nearest key."""
    node: Any = settings
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            raise UnknownNameError(unknown_setting(key, settings))
        node = node[part]
    if isinstance(node, Mapping) and isinstance(node.get("name"), str):  # a group: by the choice's name
        return str(node["name"])
    return node if isinstance(node, str) else json.dumps(node)


def unknown_setting(key: str, settings: Mapping[str, Any]) -> str:
    """One line with the nearest keys; a configuration has too many to list."""
    nearest = difflib.get_close_matches(key, _keys(settings), n=3, cutoff=0.4)
    hint = f"; did you mean {', '.join(map(repr, nearest))}?" if nearest else ";"
    return f"no setting {key!r} in the runs{hint} `steca run --help` lists the keys"


def _keys(node: Any, prefix: str = "") -> list[str]:
    if not isinstance(node, Mapping):
        return []
    return [name for k, v in node.items() for name in (f"{prefix}{k}", *_keys(v, f"{prefix}{k}."))]


def _scores(reports: Sequence[EvaluationReport], types: Sequence[str]) -> list[list[float]]:
    """Success by run and task type."""
    tables = [r.by_type() for r in reports]
    return [[won / played for won, played in (t[name] for name in types)] for t in tables]


def _common_types(reports: Sequence[EvaluationReport]) -> list[str]:
    """Task types that all runs have played."""
    return sorted(set.intersection(*(set(r.by_type()) for r in reports))) if reports else []


def _row(
    method: str, value: str, world: str, reports: Sequence[EvaluationReport | None], first: Sequence[EvaluationReport]
) -> Row:
    done = [r for r in reports if r is not None]
    types = _common_types(done)
    middle, middle_low, middle_high = None, None, None
    if types:
        scores = _scores(done, types)
        middle = interquartile_mean(scores)
        if len(done) > 1:
            middle_low, middle_high = bootstrap_interval(interquartile_mean, scores)
    shared = _common_types([*first, *done]) if first and done else []
    improvement = probability_of_improvement(_scores(first, shared), _scores(done, shared)) if shared else None
    low, high = None, None
    if len(done) == 1:
        low, high = done[0].success_interval
    elif done:
        low, high = mean_interval([r.success for r in done])

    def mean(values: Sequence[float | None]) -> float | None:
        known = [v for v in values if v is not None]
        return float(np.mean(known)) if known else None

    return Row(
        method=method,
        value=value,
        world=world,
        num_runs=len(reports),
        num_unfinished=len(reports) - len(done),
        num_games=sum(len(r.games) for r in done),
        success=mean([r.success for r in done]),
        success_low=low,
        success_high=high,
        interquartile_mean=middle,
        interquartile_low=middle_low,
        interquartile_high=middle_high,
        improvement=improvement,
        mean_steps=mean([r.mean_steps for r in done]),
        mean_dndtw=mean([r.mean_dndtw for r in done]),
        robustness=mean([r.robustness for r in done]),
        num_sampled_tokens=mean([r.total("num_sampled_tokens") for r in done]),
        num_env_steps=mean([r.total("num_env_steps") for r in done]),
        seconds=mean([r.total("seconds") for r in done]),
    )


def runs_table(paths: Sequence[Path], *, by: str | None = None, form: str = "text") -> str:
    """The rows as text, Markdown, LaTeX or CSV."""
    by = None if by == "method" else by  # there is a row for each method anyhow
    rows = collect_rows(paths, by=by)
    if form == "csv":
        names = [f for f in Row.__slots__]
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([by or "value" if n == "value" else n for n in names])
        writer.writerows([getattr(row, n) for n in names] for row in rows)
        return out.getvalue().rstrip("\n")
    several = any(row.world for row in rows)
    head = [
        *(["environment"] if several else []),
        "method",
        *([by] if by else []),
        "runs",
        "success (95 %)",
        "IQM (95 %)",
        "P(better)",
        "steps",
        "dnDTW",
        "after a wrong action",
    ]
    head += ["tokens", "env steps", "seconds"]
    cells = [([row.world] if several else []) + _cells(row, by) for row in rows]
    if form == "latex":
        body = [" & ".join(c.translate(_LATEX) for c in row) + r" \\" for row in [head, *cells]]
        columns = "l" * (len(head) - 8) + "r" * 8
        lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", body[0], r"\midrule", *body[1:], r"\bottomrule"]
        return "\n".join([*lines, r"\end{tabular}"])
    if form == "markdown":
        lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        return "\n".join(lines + ["| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in cells])
    widths = [max(len(row[i]) for row in [head, *cells]) for i in range(len(head))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in [head, *cells])


def _cells(row: Row, by: str | None) -> list[str]:
    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    success = "-"
    if row.success is not None and row.success_low is not None and row.success_high is not None:
        success = f"{100 * row.success:.1f} % ({100 * row.success_low:.1f} to {100 * row.success_high:.1f})"
    middle = "-" if row.interquartile_mean is None else f"{100 * row.interquartile_mean:.1f} %"
    if row.interquartile_low is not None and row.interquartile_high is not None:
        middle += f" ({100 * row.interquartile_low:.1f} to {100 * row.interquartile_high:.1f})"
    runs = str(row.num_runs) if not row.num_unfinished else f"{row.num_runs} ({row.num_unfinished} unfinished)"
    return [
        row.method,
        *([row.value] if by else []),
        runs,
        success,
        middle,
        "-" if row.improvement is None else f"{100 * row.improvement:.0f} %",
        number(row.mean_steps, ".1f"),
        number(row.mean_dndtw, ".3f"),
        "-" if row.robustness is None else f"{100 * row.robustness:.1f} %",
        number(row.num_sampled_tokens, ",.0f"),
        number(row.num_env_steps, ",.0f"),
        number(row.seconds, ".0f"),
    ]
