"""Corrections off the demonstrations' path are continued by the run's expert, not by one that knows hidden things."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from steca_gym.agents.searching import SearchingAgent

from steca_gym.agent import GREEDY, TurnRequest, find_turn_format
from steca_gym.buffer import CalibrationBuffer
from steca_gym.cli import main
from steca_gym.cli.composing import compose
from steca_gym.runs import RunFolder
from steca_gym.runs.context import RunContext, read_config


@pytest.mark.parametrize(
    ("overrides", "name"),
    [(["expert=searching"], "searching"), (["expert=planner"], None), (["expert=human"], None)],
)
def test_who_repairs(tmp_path: Path, overrides: list[str], name: str | None) -> None:
    context = RunContext(read_config(compose(["env=household", *overrides]))[0], tmp_path)
    found = context.repair_expert()
    assert (found.name if found is not None else None) == name


@pytest.mark.slow
def test_what_is_taught_off_the_path_follows_from_the_conversation(tmp_path: Path) -> None:
    run = tmp_path / "run"
    # A random agent leaves the path anywhere, and often so that the rest of the demonstration no longer fits.
    found = ["agent=random", "method=steca", "preset.calibration.detector=random", "until=calibration"]
    small = ["env.num_train_tasks=30", "env.kwargs.horizon=20", f"run_dir={run}"]
    assert main(["run", "env=household", "expert=searching", *found, *small]) == 0
    config, _ = read_config(compose(["env=household"]))
    prompt = RunContext(config, tmp_path).prompt
    expert, asked = SearchingAgent(), 0
    with CalibrationBuffer(RunFolder(run).path / "buffer.sqlite") as buffer:
        repaired = [c for c in buffer.calibrations(status="accepted") if c.repaired]
    for c in repaired:
        for t, step in enumerate(c.trajectory.steps):
            if not step.trainable:
                continue
            before = dataclasses.replace(c.trajectory, steps=c.trajectory.steps[:t])
            request = TurnRequest(
                episode_id=f"{c.calibration_id}-{t}", messages=before.messages(prompt), seed=0, turn=t, sampling=GREEDY
            )
            (turn,) = expert.act([request])
            assert find_turn_format(None).parse(turn.text).action == step.action
            asked += 1
    assert asked > 10
