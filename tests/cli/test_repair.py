"""`steca repair`: what is readable is saved, what is gone is named, and the same command fills it in."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from steca_gym.buffer import CalibrationBuffer, verify_trail
from steca_gym.cli import main
from steca_gym.runs.holding import hold

ROOT = Path(__file__).resolve().parents[2]
PAGE = 4096
TABLES = ("trajectories", "steps", "step_rewards", "samples", "calibrations", "results", "progress")
COMMAND = [
    "calibrate",
    "--config-dir",
    str(ROOT / "tests" / "conf"),
    "env=corridor",
    "env.kwargs.num_tasks=40",
    "env.num_train_tasks=40",
    "agent=stumbling",
    "preset.step_rewards.estimator=fixed",
    "preset.step_rewards.num_samples=3",
]


def tables(folder: Path) -> dict[str, list[tuple[Any, ...]]]:
    with sqlite3.connect(folder / "buffer.sqlite") as db:
        return {name: sorted(db.execute(f"SELECT * FROM {name}").fetchall(), key=repr) for name in TABLES}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert main([*COMMAND, f"run_dir={folder}"]) == 0
    with CalibrationBuffer(folder / "buffer.sqlite") as buffer:
        for row in buffer.calibration_rows()[:3]:
            buffer.decide(row["calibration_id"], "refused", who="ada", why="too late")
    with sqlite3.connect(folder / "buffer.sqlite") as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return folder


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copies" / "run"))


def zero_pages(content: bytearray, numbers: list[int]) -> None:
    for number in numbers:
        content[(number - 1) * PAGE : number * PAGE] = bytes(PAGE)


def some_pages(seed: int, share: float) -> Callable[[bytearray], None]:
    def damage(content: bytearray) -> None:
        num_pages = len(content) // PAGE
        zero_pages(content, random.Random(seed).sample(range(2, num_pages + 1), max(1, int(num_pages * share))))

    return damage


def halve(content: bytearray) -> None:
    del content[len(content) // 2 :]


def overwrite_header(content: bytearray) -> None:
    content[:100] = b"\xff" * 100


def overwrite_first_page(content: bytearray) -> None:
    zero_pages(content, [1])


def overwrite_everything(content: bytearray) -> None:
    content[:] = b"x" * len(content)


DAMAGES = {
    **{f"pages-{seed}": some_pages(seed, 0.05) for seed in range(4)},
    "many-pages": some_pages(7, 0.4),
    "half": halve,
    "header": overwrite_header,
    "first-page": overwrite_first_page,
    "everything": overwrite_everything,
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_repaired_run_is_completed_by_the_same_command(
    damage: Callable[[bytearray], None], run: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = bytearray((run / "buffer.sqlite").read_bytes())
    damage(content)
    (run / "buffer.sqlite").write_bytes(bytes(content))
    capsys.readouterr()
    assert main(["repair", str(run)]) == 5
    said = capsys.readouterr().out
    assert "buffer.sqlite: saved " in said and "damaged-1" in said
    assert (run / "damaged-1" / "buffer.sqlite").read_bytes() == bytes(content)
    assert main(["repair", str(run)]) == 0  # what was saved is a sound buffer
    assert main([*COMMAND, f"run_dir={run}"]) == 0
    assert tables(run) == tables(whole)


def test_what_is_intact_is_saved(run: Path, whole: Path) -> None:
    """A damaged page of a table that is made from the stored objects loses nothing."""
    with sqlite3.connect(run / "buffer.sqlite") as db:
        root = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'steps'").fetchone()[0]
    content = bytearray((run / "buffer.sqlite").read_bytes())
    zero_pages(content, [root])
    (run / "buffer.sqlite").write_bytes(bytes(content))
    stages = json.loads((run / "run.json").read_text())["stages"]
    assert main(["repair", str(run)]) == 5
    assert tables(run) == tables(whole)
    assert json.loads((run / "run.json").read_text())["stages"] == stages  # nothing has to be played again
    with CalibrationBuffer(run / "buffer.sqlite", read_only=True) as buffer:
        assert len(buffer.decisions()) == 3 and verify_trail(buffer.decisions())


def test_an_object_that_was_changed_is_not_believed(run: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with sqlite3.connect(run / "buffer.sqlite") as db:
        db.execute(
            "UPDATE trajectories SET payload = '{' WHERE trajectory_id = (SELECT MIN(trajectory_id) FROM trajectories)"
        )
    assert main(["repair", str(run)]) == 5
    assert "trajectories: not readable at 1 place" in capsys.readouterr().out
    assert main([*COMMAND, f"run_dir={run}"]) == 0
    assert tables(run)["trajectories"] == tables(whole)["trajectories"]


def test_a_sound_run_stays_as_it_is(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {f.name: f.read_bytes() for f in run.iterdir() if f.is_file()}
    assert main(["repair", str(run)]) == 0
    assert capsys.readouterr().out.splitlines() == ["run.json: sound", "buffer.sqlite: sound"]
    assert {f.name: f.read_bytes() for f in run.iterdir() if f.is_file()} == before


def test_a_damaged_record_is_put_aside(run: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "run.json").write_text('{"format": 2, "stages"')
    assert main(["repair", str(run)]) == 5
    assert "give the command of this run" in capsys.readouterr().out
    assert (run / "damaged-1" / "run.json").exists() and not (run / "run.json").exists()
    assert main([*COMMAND, f"run_dir={run}"]) == 0
    assert tables(run) == tables(whole)


def test_a_missing_buffer_is_filled_again(run: Path, whole: Path) -> None:
    (run / "buffer.sqlite").unlink()
    assert main(["repair", str(run)]) == 5
    assert main([*COMMAND, f"run_dir={run}"]) == 0
    assert tables(run) == tables(whole)


def test_what_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for args, code, line in (
        ([], 2, "repair takes the folders of runs, got none"),
        ([str(tmp_path / "nothing")], 3, "no run in"),
        ([str(tmp_path)], 3, "expected run.json or buffer.sqlite"),
    ):
        assert main(["repair", *args]) == code
        assert line in capsys.readouterr().err
    held = hold(run)
    assert main(["repair", str(run)]) == 2
    assert "is being worked on by process" in capsys.readouterr().err
    held.let_go()
