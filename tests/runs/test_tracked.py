"""What a run's tracker gets: rounds as an axis, costs, games, and artifacts with their origin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from steca_gym.evaluation import EvaluationReport
from steca_gym.evaluation.metrics import GameResult
from steca_gym.runs.folder import StageRecord
from steca_gym.runs.tracked import COST_COLUMNS, TrackedRun
from steca_gym.statistics import wilson
from steca_gym.tracking import Artifact


class Keeping:
    """A tracker that keeps everything."""

    def __init__(self) -> None:
        self.logged: list[tuple[str, int | None, dict[str, float]]] = []
        self.tables: dict[str, list[list[Any]]] = {}
        self.end: dict[str, Any] = {}
        self.artifacts: list[Artifact] = []

    def log(self, metrics: Mapping[str, float], *, phase: str = "", step: int | None = None) -> None:
        self.logged.append((phase, step, dict(metrics)))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self.tables[name] = [list(columns), *(list(r) for r in rows)]

    def artifact(self, artifact: Artifact) -> None:
        self.artifacts.append(artifact)

    def summary(self, metrics: Mapping[str, Any]) -> None:
        self.end.update(metrics)


def record(name: str, shared_from: str = "", **result: Any) -> StageRecord:
    return StageRecord(
        name=name,
        key=f"key-{name}",
        depends_on={},
        seconds=2.0,
        cost={"num_env_steps": 7},
        result=result,
        shared_from=shared_from,
    )


def tracked(folder: Path, stages: Sequence[str]) -> tuple[TrackedRun, Keeping]:
    tracker = Keeping()
    context: Any = SimpleNamespace(tracker=tracker, folder=folder)
    return TrackedRun(context, stages), tracker


def test_rounds_are_an_axis_of_their_own_with_success_and_its_interval(tmp_path: Path) -> None:
    run, tracker = tracked(tmp_path, ["warm_up", "own_episodes", "own_episodes.1", "evaluation.x"])
    for name, won in (("own_episodes", 2), ("own_episodes.1", 6)):
        run.stage(record(name, num_episodes=10, num_broken=2, num_won=won, kept="x"), [])
    (stage, none, metrics), first, _, second = tracker.logged
    assert (stage, none) == ("own_episodes", None)
    low, high = wilson(2, 8)
    expected = {"success": 0.25, "success_low": low, "success_high": high, "num_won": 2.0, "seconds": 2.0}
    assert {k: metrics[k] for k in expected} == expected and metrics["cost/num_env_steps"] == 7
    assert first[:2] == ("rounds", 0) and second[:2] == ("rounds", 1)
    assert first[2]["own_episodes/success"] == 0.25 and second[2]["own_episodes/success"] == 0.75


def test_a_method_of_one_round_has_no_such_axis(tmp_path: Path) -> None:
    run, tracker = tracked(tmp_path, ["warm_up", "train"])
    run.stage(record("warm_up"), [])
    assert [phase for phase, _, _ in tracker.logged] == ["warm_up"]


def test_a_model_names_what_it_was_made_from(tmp_path: Path) -> None:
    run, tracker = tracked(tmp_path, ["demonstrations", "warm_up", "calibration", "train"])
    (tmp_path / "buffer.sqlite").write_bytes(b"")
    stages = [record("demonstrations"), record("warm_up", model="warm-up"), record("calibration")]
    stages.append(record("train", shared_from="sibling", model="model", last_loss=0.5))
    run.stage(stages[-1], stages)
    buffer, model = tracker.artifacts
    assert (buffer.name, buffer.kind, buffer.path) == ("buffer-key-calibration", "buffer", tmp_path / "buffer.sqlite")
    assert (model.name, model.kind, model.path) == ("train-key-train", "model", tmp_path / "model")
    assert model.made_from == ("buffer-key-calibration", "warm_up-key-warm_up")
    assert model.shared_from == "sibling" and model.metadata == {"last_loss": 0.5}


def test_an_evaluation_leaves_games_types_and_costs(tmp_path: Path) -> None:
    run, tracker = tracked(tmp_path, ["calibration", "calibration.1"])
    games = tuple(
        GameResult(
            task_id=f"g{i}", task_type="heat" if i else "cool", won=i > 1, score=i / 2, num_steps=4, num_invalid=1
        )
        for i in range(3)
    )
    cost = {"calibration": {"num_sampled_tokens": 5, "seconds": 2.0}, "evaluation": {"num_sampled_tokens": 6}}
    run.evaluation(EvaluationReport(games=games, cost=cost))
    assert [phase for phase, _, _ in tracker.logged] == ["evaluation", "rounds"] and tracker.logged[1][1] == 1
    assert tracker.logged[1][2]["evaluation/success"] == pytest.approx(1 / 3)
    assert tracker.tables["games"][1:] == [
        [f"g{i}", "heat" if i else "cool", i > 1, i / 2, 4, 1, None, ""] for i in range(3)
    ]
    assert tracker.tables["task_types"][1:] == [["cool", 0, 1, 0.0, *wilson(0, 1)], ["heat", 1, 2, 0.5, *wilson(1, 2)]]
    assert tracker.tables["costs"][0] == list(COST_COLUMNS)
    assert [row[:2] for row in tracker.tables["costs"][1:]] == [["calibration", 5.0], ["evaluation", 6.0]]
    assert tracker.end["success"] == pytest.approx(1 / 3) and tracker.end["cost/num_sampled_tokens"] == 11
    assert "mean_dndtw" not in tracker.end  # there was no expert to compare with
