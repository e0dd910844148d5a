"""A run that is killed with SIGKILL continues where it stopped: in the end everything is as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import killing
from tests.killing import CONF, ROOT, SCENARIOS, TINY, play_round, play_whole
from tests.left_behind import evaluation, tables
from tests.worlds import KILL_AT

CORRIDOR = [*killing.CORRIDOR, *killing.FIXED]


def steca(*args: str, kill_at: str = "") -> int:
    """The exit code of a command line in a process of its own, killed at a moment (see ``worlds``)."""
    script = "import sys, tests.worlds; from steca_gym.cli import main; sys.exit(main(sys.argv[1:]))"
    env = {**os.environ, KILL_AT: kill_at, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, *args], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


@pytest.mark.slow
def test_collecting_calibrating_and_evaluating(tmp_path: Path) -> None:
    # Beside each other they would share their stages.
    whole, killed = tmp_path / "a" / "whole", tmp_path / "b" / "killed"
    assert steca("calibrate", *CORRIDOR, "agent=stumbling", f"run_dir={whole}") == 0
    assert steca("evaluate", *CONF, f"run={whole}") == 0
    assert len(tables(whole)["calibrations"]) > 3

    for moment in ("run.json#1", "act#1", "act#50", "act#60", "run.json#1", "act#700", "act#900", "run.json#1"):
        assert steca("calibrate", *CORRIDOR, "agent=stumbling", f"run_dir={killed}", kill_at=moment) != 0, moment
        if (killed / "buffer.sqlite").exists():  # what is marked as done is there, whole
            held = tables(killed)
            marked = {key for phase, key in held["progress"] if phase == "calibration"}
            assert marked == {row[1] for row in held["results"]}
    for moment in ("act#30", "evaluation.json#1"):
        assert steca("evaluate", *CONF, f"run={killed}", kill_at=moment) != 0, moment
    assert steca("evaluate", *CONF, f"run={killed}") == 0
    assert tables(killed) == tables(whole)
    assert evaluation(killed) == evaluation(whole)


@pytest.mark.slow
def test_training_goes_on_to_equal_weights(tmp_path: Path) -> None:
    command = [*CORRIDOR, *TINY, "method=steca"]
    folders = [tmp_path / name / "run" for name in ("whole", "killed")]
    for moment in ("trainer_state.json#2", "training.json#1", "training.json#2"):
        assert steca("train", *command, f"run_dir={folders[1]}", kill_at=moment) != 0, moment
    phases = []
    for folder in folders:
        assert steca("train", *command, f"run_dir={folder}") == 0
        phases.append(json.loads((folder / "run.json").read_text())["stages"])
    assert phases[1]["warm_up"]["result"]["resumed_from_step"] > 0
    assert tables(folders[0]) == tables(folders[1])
    for name in ("num_steps", "num_samples"):
        assert phases[0]["train"]["result"][name] == phases[1]["train"]["result"][name]
    weights = [(f / "model" / "model.safetensors").read_bytes() for f in folders]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_kills_at_random_moments_change_nothing(tmp_path: Path) -> None:
    """A handful; `benchmarks/kills.py` does hundreds, over all kinds of stages."""
    source = tmp_path / "whole" / "run"
    for name in ("racing", "report"):  # the report is of the first one's run
        folder = source if name == "racing" else tmp_path / name / "whole"
        whole = play_whole(SCENARIOS[name], folder, source)
        found = play_round(SCENARIOS[name], whole, tmp_path / name / "killed", source, random.Random(2))
        assert found.clean and found.kills, found
