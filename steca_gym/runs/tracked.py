"""What the tracker of a run gets beyond what its stages log: their figures, rounds, costs, games, and artifacts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from steca_gym.methods.base import round_name
from steca_gym.runs.folder import StageRecord
from steca_gym.statistics import wilson
from steca_gym.tracking import Artifact

if TYPE_CHECKING:
    from steca_gym.evaluation import EvaluationReport
    from steca_gym.runs.context import RunContext

ROUNDS = "rounds"
"""phase whose steps are the rounds of a method, from 0: ``rounds/calibration/num_accepted``"""
EVALUATION = "evaluation"

GAME_COLUMNS = ("task", "type", "won", "score", "steps", "invalid steps", "dnDTW to the expert", "error")
TYPE_COLUMNS = ("type", "won", "played", "success", "low", "high")
_COST_NAMES = ("num_sampled_tokens", "num_prompt_tokens_read", "num_prompt_tokens_reused", "num_env_steps")
COST_COLUMNS = ("stage", *_COST_NAMES, "num_replayed_steps", "num_episodes", "seconds")


class TrackedRun:
    """Tells a run's tracker what has been done.

    Args:
        context: the run's.
        stages: names of its stages, in order.
    """

    def __init__(self, context: RunContext, stages: Sequence[str]) -> None:
        """See the class."""
        self._context = context
        self._last_round = max((_round(name)[1] for name in stages), default=0)

    def stage(self, record: StageRecord, stages: Sequence[StageRecord]) -> None:
        """A stage is done, or taken over from a sibling.

        Args:
            record: of the stage.
            stages: all that are done, in order, this one included.
        """
        tracker = self._context.tracker
        metrics = numbers({**record.result, "seconds": record.seconds})
        metrics.update(_success(record.result))
        costs = {f"cost/{k}": float(v) for k, v in record.cost.items()}
        tracker.log({**metrics, **costs}, phase=record.name)
        if self._last_round:
            base, index = _round(record.name)
            tracker.log({f"{base}/{k}": v for k, v in metrics.items()}, phase=ROUNDS, step=index)
        if record.model is not None:
            self._artifacts(record, stages)

    def _artifacts(self, record: StageRecord, stages: Sequence[StageRecord]) -> None:
        """The model, and the buffer as it was when the model was trained."""
        before = [s for s in stages if s.name != record.name]
        made_from: list[str] = []
        buffer = self._context.folder / "buffer.sqlite"
        if before and buffer.exists():
            held = Artifact(
                name=f"buffer-{before[-1].key}",
                kind="buffer",
                path=buffer,
                metadata={"stages": [s.name for s in before]},
                shared_from=record.shared_from,
            )
            self._context.tracker.artifact(held)
            made_from.append(held.name)
        made_from += [_model_name(s) for s in before if s.model is not None][-1:]
        self._context.tracker.artifact(
            Artifact(
                name=_model_name(record),
                kind="model",
                path=self._context.folder / str(record.model),
                made_from=tuple(made_from),
                metadata=numbers(record.result),
                shared_from=record.shared_from,
            )
        )

    def evaluation(self, report: EvaluationReport) -> None:
        """The run is evaluated: figures with intervals, a row for each game and for each type of task, and costs."""
        tracker = self._context.tracker
        figures = numbers(report.as_dict())
        tracker.log(figures, phase=EVALUATION)
        if self._last_round:
            tracker.log({f"{EVALUATION}/{k}": v for k, v in figures.items()}, phase=ROUNDS, step=self._last_round)
        tracker.table("games", GAME_COLUMNS, [list(dataclasses.astuple(g)) for g in report.games])
        types = [
            [name, won, played, won / played, *wilson(won, played)] for name, (won, played) in report.by_type().items()
        ]
        tracker.table("task_types", TYPE_COLUMNS, types)
        tracker.summary(figures)
        self.costs(report.cost)

    def costs(self, by_stage: Mapping[str, Mapping[str, float]]) -> None:
        """What the run has cost so far, stages that siblings did included."""
        rows = [[stage, *(float(cost.get(name, 0)) for name in COST_COLUMNS[1:])] for stage, cost in by_stage.items()]
        self._context.tracker.table("costs", COST_COLUMNS, rows)
        totals = {f"cost/{name}": sum(float(c.get(name, 0)) for c in by_stage.values()) for name in COST_COLUMNS[1:]}
        self._context.tracker.summary(totals)


def numbers(data: Mapping[str, Any]) -> dict[str, float]:
    """The figures among plain data."""
    return {k: float(v) for k, v in data.items() if isinstance(v, int | float)}


def _success(result: Mapping[str, Any]) -> dict[str, float]:
    """Success with its 95 % interval, of a stage in which the agent has played episodes by itself."""
    played = result.get("num_episodes", 0) - result.get("num_broken", 0)
    if "num_won" not in result or played <= 0:
        return {}
    low, high = wilson(result["num_won"], played)
    return {"success": result["num_won"] / played, "success_low": low, "success_high": high}


def _round(name: str) -> tuple[str, int]:
    """``calibration.1`` is round 1 of ``calibration``."""
    base, _, index = name.rpartition(".")
    if index.isdigit() and base and round_name(base, int(index)) == name:
        return base, int(index)
    return name, 0


def _model_name(record: StageRecord) -> str:
    return f"{record.name}-{record.key}"
