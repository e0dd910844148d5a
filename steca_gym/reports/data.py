"""What a report shows of whole runs: results with intervals, comparisons, costs, rounds, and what to do next.

Everything here is plain data for JSON; it says what was measured, not how it is drawn.
"""

from __future__ import annotations

import dataclasses
import fcntl
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steca_gym import __version__
from steca_gym.errors import DataError
from steca_gym.prices import Prices
from steca_gym.reports.tables import collect_rows
from steca_gym.reports.text import one_line
from steca_gym.reports.trajectories import JSON, explored
from steca_gym.runs.folder import RunFolder, RunRecord, as_written
from steca_gym.statistics import wilson

if TYPE_CHECKING:
    from steca_gym.evaluation import EvaluationReport

_BASELINES = {"none": 0, "sft": 1}
WIDE = 0.2
"""half width of an interval, in success rate, from which more games are advised"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """All that a report shows."""

    summary: JSON
    """runs, groups over seeds, paired comparisons"""
    rows: list[JSON]
    """one a trajectory, short: what lists and filters need"""
    details: list[JSON]
    """in the order of ``rows``: turns, values, calibrations"""


def report_data(runs: Sequence[RunFolder], prices: Prices | None = None) -> ReportData:
    """Collect what a report shows.

    Args:
        runs: at least one; they are only read, and may still be written.
        prices: for amounts of money; None: none are shown.

    Raises:
        DataError: no runs, or a damaged one.
        StorageError: a buffer that cannot be read.
    """
    if not runs:
        raise DataError("a report needs at least one run, got none; give folders that `steca run` printed")
    rows: list[JSON] = []
    details: list[JSON] = []
    counts: list[int] = []
    for index, run in enumerate(runs):
        before = len(rows)
        for row, detail in explored(run, index):
            rows.append(row)
            details.append(detail)
        counts.append(len(rows) - before)
    evaluations = [run.evaluation() for run in runs]
    described = []
    for index, (run, evaluation) in enumerate(zip(runs, evaluations, strict=True)):
        with as_written(run.path):
            described.append(_run(run, evaluation, [r for r in rows if r["run"] == index]))
    if prices is not None:
        for stage in (s for about in described for s in about["stages"]):
            stage["money"] = prices.of(
                num_sampled_tokens=stage["tokens"],
                num_prompt_tokens_read=stage["tokens_read"],
                seconds=stage["seconds"],
            )
    summary = {
        "currency": prices.currency if prices is not None else "",
        "version": __version__,
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "runs": described,
        "different": _different([run.record.settings for run in runs]),
        "groups": [_group(row) for row in collect_rows([run.path for run in runs])],
        "pairs": list(_pairs(runs, evaluations)),
    }
    return ReportData(summary=summary, rows=rows, details=details)


def _run(run: RunFolder, evaluation: EvaluationReport | None, rows: Sequence[JSON]) -> JSON:
    record = run.record
    env = record.settings.get("env")
    stages = [_stage(s.name, {**s.cost, "seconds": s.seconds}, s.result, s.shared_from) for s in record.stages.values()]
    stages += [
        {**_stage(name, cost, {}, ""), "unfinished": True}
        for name, cost in record.unfinished.items()
        if name not in record.stages
    ]
    for held in record.evaluations.values():
        stages.append(_stage(f"evaluation ({held.get('split', '?')})", held.get("cost") or {}, {}, ""))
    working = is_working(run.path)
    return {
        "name": run.name,
        "method": record.method.rpartition(":")[2],
        "seed": record.seed,
        "env": str(env.get("id", "")).rpartition(":")[2] if isinstance(env, Mapping) else "",
        "version": record.version,
        "working": working,
        "changed": [list(o.lstrip("+~").partition("=")[::2]) for o in record.overrides],
        "settings": [[key, _shown(value)] for key, value in flat(record.settings)],
        "stages": stages,
        "rounds": _rounds(record),
        "evaluation": None if evaluation is None else _evaluation(evaluation),
        "found": _found(record),
        "next": advice(run, record, evaluation, rows, working),
    }


def _stage(name: str, cost: Mapping[str, Any], result: Mapping[str, Any], shared_from: str) -> JSON:
    return {
        "name": name,
        "seconds": float(cost.get("seconds", 0.0)),
        "tokens": int(cost.get("num_sampled_tokens", 0)),
        "tokens_read": int(cost.get("num_prompt_tokens_read", 0)),
        "env_steps": int(cost.get("num_env_steps", 0)),
        "episodes": int(cost.get("num_episodes", 0)),
        "shared_from": shared_from,
        "result": [[key, _shown(value)] for key, value in flat(result)],
        "unfinished": False,
    }


def _evaluation(report: EvaluationReport) -> JSON:
    low, high = report.success_interval
    return {
        "success": report.success,
        "low": low,
        "high": high,
        "num_games": len(report.games),
        "mean_steps": report.mean_steps,
        "dndtw": report.mean_dndtw,
        "invalid_rate": report.invalid_rate,
        "robustness": report.robustness,
        "robustness_reference": report.robustness_reference,
        "num_stress": len(report.stress),
        "types": [
            [name or "all", won, played, *wilson(won, played)] for name, (won, played) in report.by_type().items()
        ],
    }


def _rounds(record: RunRecord) -> list[JSON]:
    """How often the agent went wrong, round by round."""
    rounds: list[JSON] = []
    for stage in record.stages.values():
        result = stage.result
        if "num_deviated" not in result or not result.get("num_steps"):
            continue
        wrong = result["num_deviated"] + sum(
            int(result.get(f"num_fatal_{k}", 0)) for k in ("ended", "unwinnable", "lost")
        )
        low, high = wilson(wrong, result["num_steps"])
        rounds.append(
            {
                "round": len(rounds),
                "stage": stage.name,
                "num_steps": result["num_steps"],
                "num_wrong": wrong,
                "share": wrong / result["num_steps"],
                "low": low,
                "high": high,
                "accepted": result.get("num_accepted", 0),
                "refused": result.get("num_refused", 0),
            }
        )
    return rounds


def _found(record: RunRecord) -> JSON | None:
    """The counts of all calibration stages together."""
    total: dict[str, int] = {}
    for stage in record.stages.values():
        if "num_deviated" in stage.result:
            for key, value in stage.result.items():
                if key.startswith("num_") and isinstance(value, int):
                    total[key] = total.get(key, 0) + value
    return total or None


def _group(row: Any) -> JSON:
    return {f.name: getattr(row, f.name) for f in dataclasses.fields(row)}


def _pairs(runs: Sequence[RunFolder], evaluations: Sequence[EvaluationReport | None]) -> Iterator[JSON]:
    """Every run against a baseline of the same seed, on the games that both played.

    The baseline is the untrained agent where there is one, otherwise SFT, otherwise the first run.
    """
    from steca_gym.evaluation import compare

    first: dict[int, int] = {}
    for index in sorted(range(len(runs)), key=lambda i: (_BASELINES.get(runs[i].record.method, len(_BASELINES)), i)):
        if evaluations[index] is not None:
            first.setdefault(runs[index].record.seed, index)
    for index, (run, evaluation) in enumerate(zip(runs, evaluations, strict=True)):
        base = first.get(run.record.seed, index)
        against = evaluations[base]
        if base == index or against is None or evaluation is None:
            continue
        try:
            found = compare(against, evaluation)
        except DataError:  # no game in common
            continue
        yield {"first": base, "second": index, **dataclasses.asdict(found)}


def _different(settings: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """[key, value of each run] of the settings in which several runs differ."""
    tables = [{k: _shown(v) for k, v in flat(s)} for s in settings]
    keys = dict.fromkeys(itertools.chain(*tables))
    return [
        [key, [table.get(key, "-") for table in tables]]
        for key in keys
        if key not in ("run_dir", "runs_root") and len({table.get(key, "-") for table in tables}) > 1
    ]


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of nested settings."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _shown(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return one_line(text, 400)


def is_working(folder: Path) -> bool:
    """Whether a process works on the run right now (it holds ``run.lock``)."""
    try:
        with (folder / "run.lock").open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except OSError:  # no lock file
        return False


def advice(
    run: RunFolder,
    record: RunRecord,
    evaluation: EvaluationReport | None,
    rows: Sequence[JSON],
    working: bool,
) -> list[str]:
    """What to do next, the most urgent first; one sentence each."""
    found = _found(record) or {}
    steps: list[str] = []
    if working:
        return ["The run is still going. Make the report again when it has ended."]
    waiting = sum(row["waiting"] for row in rows)
    if waiting:
        steps.append(
            f"{waiting} {'correction waits' if waiting == 1 else 'corrections wait'} for a person's decision: "
            f"`steca review {run.path}`, then `steca run run={run.path}`."
        )
    elif not record.stages:
        steps.append(f"No stage has finished. Continue with `steca run run={run.path}`.")
    elif record.unfinished:
        steps.append(
            f"The stage {next(iter(record.unfinished))} was begun and not finished. Go on with "
            f"`steca run run={run.path}`."
        )
    stages = list(record.stages.values())
    last = max((i for i, s in enumerate(stages) if "num_deviated" in s.result), default=0)
    trained = any(s.model for s in stages[last:])
    if found.get("num_accepted") and not trained and not waiting:
        steps.append(
            f"{found['num_accepted']} calibrations are ready and no model was trained on them: read some of them under "
            f"Trajectories, then `steca train run={run.path}`."
        )
    if record.stages and evaluation is None and not waiting:
        steps.append(f"Nothing was evaluated. Run `steca evaluate run={run.path}`.")
    accepted, refused = found.get("num_accepted", 0), found.get("num_refused", 0)
    if refused > accepted:
        steps.append(
            f"{refused} of {accepted + refused} calibrations were refused. Their cards say why; "
            "an expert that can continue from any state repairs more of them."
        )
    wrong = found.get("num_deviated", 0)
    if found.get("num_steps") and not wrong:
        steps.append("The agent went wrong nowhere: it does what the expert does, or the worlds are too easy for it.")
    open_ends = found.get("num_undecided", 0) + found.get("num_ties", 0)
    if open_ends > max(5, wrong):
        steps.append(
            f"{open_ends} comparisons ended in a tie or undecided, more than were decided ({wrong} deviations). "
            "Raise preset.step_rewards.max_samples."
        )
    if evaluation is not None:
        low, high = evaluation.success_interval
        if (high - low) / 2 > WIDE:
            steps.append(
                f"{len(evaluation.games)} games leave the success rate open between {100 * low:.0f} and "
                f"{100 * high:.0f} %. Evaluate on more: `env.num_eval_tasks=...`."
            )
        broken = sum(bool(g.error) for g in evaluation.games)
        if broken:
            steps.append(f"{broken} evaluation games ended with an error and count as lost; filter for outcome: error.")
    if not steps:
        steps.append("Nothing is missing. Run more seeds to see how much of the result is chance.")
    return steps
