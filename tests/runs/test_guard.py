"""Games that fed training are kept out of evaluations, also under other ids."""

from __future__ import annotations

from pathlib import Path

import pytest

from steca_gym.cli import main
from steca_gym.env import TextEnv, World
from steca_gym.errors import ContaminationError
from steca_gym.runs import RunFolder
from steca_gym.runs.guard import listed_twins, played_twins, refuse_twins
from steca_gym.trajectory import Step, Trajectory
from tests.fakes import CorridorWorld
from tests.runs.test_runner import CONF


class TwinCorridor(CorridorWorld):
    """Its second split holds the tasks of the first under other ids, and one of its own."""

    def content_key(self, task_id: str) -> str:
        return task_id.replace("twin", "corridor")


def make(split: str) -> TextEnv:
    return TextEnv(TwinCorridor(), split="train")


def test_planted_twins_are_found() -> None:
    train = ("train", ["corridor-1", "corridor-2"])
    assert listed_twins(make, train, ("train", ["twin-2", "twin-3", "corridor-1"])) == ["twin-2", "corridor-1"]
    assert type(CorridorWorld()).content_key is World.content_key
    assert listed_twins(lambda split: TextEnv(CorridorWorld(), split="train"), train, ("train", ["corridor-3"])) is None
    with pytest.raises(ContaminationError, match="1 of 7 games read and are solved like a training task .first: 'a'"):
        refuse_twins(["a"], 7)


def test_twins_are_found_in_what_was_played() -> None:
    def played(task_id: str, first: str, *actions: str) -> Trajectory:
        steps = tuple(Step(action=a, observation="") for a in actions)
        return Trajectory(task_id=task_id, first_observation=first, steps=steps)

    train = [played("a", "a room", "left", "up"), played("b", "a hall", "up")]
    games = [played("x", "a room", "left", "up"), played("y", "a room", "left"), played("z", "a hall", "left", "up")]
    assert played_twins(train, games) == ["x"]


@pytest.mark.slow
def test_a_run_reports_or_refuses_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The corridors name their tasks in their texts; without these all of one length are twins.
    monkeypatch.setattr("steca_gym.runs.guard._content", lambda trajectory: str(len(trajectory)))
    command = ["calibrate", *CONF, "env=corridor", "agent=stumbling", "evaluation.stress=false", f"run_dir={tmp_path}"]
    assert main(command) == 0
    assert main(["evaluate", *CONF, f"run={tmp_path}"]) == 3
    assert "games read and are solved like a training task" in capsys.readouterr().err
    assert main(["evaluate", *CONF, f"run={tmp_path}", "env.twins=report"]) == 0
    (entry,) = RunFolder(tmp_path).record.evaluations.values()
    assert len(entry["twins"]) == 4
