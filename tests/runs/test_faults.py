"""Faults of the machine that reach a whole run: a locked buffer, a clock that jumps."""

from __future__ import annotations

import itertools
import json
import sqlite3
import time
from pathlib import Path

import pytest

from steca_gym.buffer import CalibrationBuffer, verify_trail
from steca_gym.cli import main

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [
    "run",
    "--config-dir",
    str(ROOT / "tests" / "conf"),
    "env=corridor",
    "agent=stumbling",
    "env.num_train_tasks=4",
    "env.num_eval_tasks=4",
    "preset.step_rewards.estimator=fixed",
]
CORRIDOR = [*COMMAND[:4], "env.kwargs.num_tasks=16", *COMMAND[4:]]


def outcome(folder: Path) -> tuple[object, object]:
    report = json.loads((folder / "evaluation.json").read_text())
    report.pop("cost")
    with sqlite3.connect(folder / "buffer.sqlite") as db:
        return report, sorted(db.execute("SELECT trajectory_id, kind, round FROM trajectories").fetchall())


def test_a_locked_buffer_is_one_line_and_the_same_command_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = sqlite3.connect
    # The product waits for half a minute.
    monkeypatch.setattr(sqlite3, "connect", lambda path, **options: connect(path, **{**options, "timeout": 0.05}))
    folder = tmp_path / "run"
    assert main(["collect", *CORRIDOR[1:], f"run_dir={folder}"]) == 0
    with CalibrationBuffer(folder / "buffer.sqlite") as other:
        other._db.execute("BEGIN IMMEDIATE")
        assert main([*CORRIDOR, f"run_dir={folder}"]) == 5
        said = capsys.readouterr().err
        assert "another process is writing to it: wait for it or stop it, then run the same command again" in said
        assert "Traceback" not in said
        other._db.execute("ROLLBACK")
    assert main([*CORRIDOR, f"run_dir={folder}"]) == 0


def test_a_clock_that_jumps_changes_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calm, jumping = tmp_path / "calm" / "run", tmp_path / "jumping" / "run"
    for command in ("calibrate", "run"):
        assert main([command, *CORRIDOR[1:], f"run_dir={calm}"]) == 0
    hour, start = 3600.0, time.time()
    jumps = itertools.cycle([0.0, -26 * hour, 400 * 24 * hour, -hour])
    monkeypatch.setattr(time, "time", lambda: start + next(jumps))
    for command in ("calibrate", "run"):
        assert main([command, *CORRIDOR[1:], f"run_dir={jumping}"]) == 0
    assert outcome(jumping) == outcome(calm)
    stages = json.loads((jumping / "run.json").read_text())["stages"]
    assert stages and all(0 <= stage["seconds"] < 600 for stage in stages.values())
    with CalibrationBuffer(jumping / "buffer.sqlite") as buffer:
        rows = buffer.calibration_rows()
        assert rows
        for row in rows:
            buffer.decide(row["calibration_id"], "refused", who="ada", why="too late")
        assert verify_trail(buffer.decisions())
