"""Reading a buffer: read-only without a trace, in bounded memory, and as earlier versions wrote it."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from steca_gym.buffer import CalibrationBuffer
from steca_gym.buffer.opening import open_read_only
from steca_gym.calibration.records import result_to_json
from steca_gym.errors import ConfigError, DataError, StorageError
from steca_gym.trajectory import to_json
from tests.buffer.test_store import ROOT, result, trajectory

KILLED_WRITER = """
import os, sys
from pathlib import Path
from steca_gym.buffer import CalibrationBuffer
from tests.buffer.test_store import trajectory
buffer = CalibrationBuffer(Path(sys.argv[1]))
buffer.add_trajectories([trajectory(n) for n in range(5)], kind="expert")
os._exit(9)
"""


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(folder.iterdir())}


def write_buffer(path: Path, *, num: int = 5) -> None:
    with CalibrationBuffer(path) as buffer:
        buffer.add_trajectories([trajectory(n) for n in range(num)], kind="expert")


def kill_writer(path: Path) -> None:
    """Leave a log that nobody has put into the file yet."""
    subprocess.run([sys.executable, "-c", KILLED_WRITER, str(path)], cwd=ROOT)
    assert path.with_name(path.name + "-wal").stat().st_size > 0


# -- read-only -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", ["closed", "killed", "log without shared memory"])
def test_reading_only_creates_and_writes_nothing(tmp_path: Path, left: str) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    path = folder / "buffer.sqlite"
    if left == "closed":
        write_buffer(path)
    else:
        kill_writer(path)
    if left == "log without shared memory":
        path.with_name("buffer.sqlite-shm").unlink()
    before = snapshot(folder)
    with CalibrationBuffer(path, read_only=True) as buffer:
        assert len(buffer.trajectories(kind="expert")) == 5
        assert buffer.used_task_ids() == {f"corridor-{n}" for n in range(5)}
        buffer.export_jsonl(tmp_path / "out")
        buffer.export_parquet(tmp_path / "out")
        assert snapshot(folder) == before
        with pytest.raises(StorageError, match="opened read-only; open it without read_only to write"):
            buffer.mark_done("phase", ["a"])
    assert snapshot(folder) == before


READER = """
import sys
from pathlib import Path
from steca_gym.buffer import CalibrationBuffer
with CalibrationBuffer(Path(sys.argv[1]), read_only=True) as buffer:
    print(len(buffer.trajectories(kind="expert")), len(buffer.export_jsonl(Path(sys.argv[2]))))
"""


@pytest.mark.skipif(
    shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode != 0,
    reason="needs the right to mount in a namespace of its own",
)
@pytest.mark.parametrize("left", ["closed", "killed", "log without shared memory"])
def test_a_read_only_file_system_can_be_exported_from(tmp_path: Path, left: str) -> None:
    folder, path = tmp_path / "run", tmp_path / "run" / "buffer.sqlite"
    folder.mkdir()
    write_buffer(path) if left == "closed" else kill_writer(path)
    if left == "log without shared memory":
        path.with_name("buffer.sqlite-shm").unlink()
    (tmp_path / "reader.py").write_text(READER)
    mount = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && ! touch "$1/x" 2>/dev/null'
    script = f'{mount} && exec "$0" "$2" "$1/buffer.sqlite" "$3"'
    command = [
        "unshare",
        "-rm",
        "sh",
        "-c",
        script,
        sys.executable,
        str(folder),
        str(tmp_path / "reader.py"),
        str(tmp_path / "out"),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.stdout.split() == ["5", "3"], done.stderr


def test_a_reader_beside_a_live_writer_sees_each_commit(tmp_path: Path) -> None:
    path = tmp_path / "buffer.sqlite"
    with CalibrationBuffer(path) as writer:
        writer.add_trajectories([trajectory(1)], kind="expert")
        with CalibrationBuffer(path, read_only=True) as reader:
            assert len(reader.trajectories(kind="expert")) == 1
            for n in range(2, 30):
                writer.add_trajectories([trajectory(n, num_steps=40)], kind="expert")
                assert len(reader.trajectories(kind="expert")) == n
            writer.close()  # the log goes into the file
            assert len(reader.trajectories(kind="expert")) == 29


def test_a_buffer_that_is_written_after_opening_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "buffer.sqlite"
    write_buffer(path, num=2)
    with CalibrationBuffer(path, read_only=True) as reader:
        assert len(reader.trajectories(kind="expert")) == 2
        write_buffer(path, num=4)
        assert len(reader.trajectories(kind="expert")) == 4


@pytest.mark.parametrize(
    ("content", "told"), [(None, "no buffer"), (b"", "is empty"), (b"text " * 2000, "not a database")]
)
def test_what_is_no_buffer_is_refused_and_not_created(tmp_path: Path, content: bytes | None, told: str) -> None:
    path = tmp_path / "buffer.sqlite"
    if content is not None:
        path.write_bytes(content)
    before = snapshot(tmp_path)
    with pytest.raises(StorageError, match=told) as caught:
        CalibrationBuffer(path, read_only=True)
    assert snapshot(tmp_path) == before and "\n" not in str(caught.value)
    with pytest.raises(StorageError, match="no buffer"):
        open_read_only(tmp_path)


def test_a_path_may_hold_any_characters(tmp_path: Path) -> None:
    folder = tmp_path / "実験 100% ?#&"
    folder.mkdir()
    write_buffer(folder / "buffer.sqlite")
    with CalibrationBuffer(folder / "buffer.sqlite", read_only=True) as buffer:
        assert len(buffer.trajectories(kind="expert")) == 5


# -- durability ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("durability", "synchronous"), [("process", 1), ("power", 2)])
def test_durability_is_sqlites_synchronous(tmp_path: Path, durability: str, synchronous: int) -> None:
    with CalibrationBuffer(tmp_path / "buffer.sqlite", durability=durability) as buffer:
        assert buffer._db.execute("PRAGMA synchronous").fetchone() == (synchronous,)


def test_an_unknown_durability_is_refused_before_anything_is_created(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="durability must be 'process' or 'power', got 'disk'"):
        CalibrationBuffer(tmp_path / "run" / "buffer.sqlite", durability="disk")
    assert not (tmp_path / "run").exists()


# -- in bounded memory -----------------------------------------------------------------------------------------


def test_trajectories_are_given_by_kind_split_and_task_each_once(tmp_path: Path) -> None:
    with CalibrationBuffer(tmp_path / "buffer.sqlite") as buffer:
        buffer.add_trajectories([trajectory(n) for n in range(150)], kind="expert", split="train")
        buffer.add_trajectories([trajectory(n) for n in range(70)], kind="own", round_index=0)
        buffer.add_trajectories([trajectory(n) for n in range(40, 90)], kind="own", round_index=1)
        buffer.add_trajectories([trajectory(7, action="left")], kind="expert", split="valid")

        def ids(**wanted):
            return [(t.task_id, t.trajectory_id) for t in buffer.iter_trajectories(**wanted)]

        for kind, number in (("expert", 151), ("own", 90)):
            assert len(ids(kind=kind)) == number == len(set(ids(kind=kind)))
            assert ids(kind=kind) == sorted(ids(kind=kind))
        assert ids() == ids(kind="expert") + ids(kind="own")
        assert len(ids(kind="expert", split="train")) == 150
        assert ids(split="valid") == [("corridor-7", trajectory(7, action="left").trajectory_id)]
        assert len(ids(kind="expert", task_id="corridor-7")) == 2 and len(ids(task_id="corridor-7")) == 3
        assert len(ids(kind="own", round_index=1)) == 50
        assert ids(kind="nobody") == [] == ids(split="nowhere")


def test_the_buffer_may_be_written_while_it_is_read(tmp_path: Path) -> None:
    with CalibrationBuffer(tmp_path / "buffer.sqlite") as buffer:
        buffer.add_trajectories([trajectory(n) for n in range(200)], kind="expert")
        seen = []
        for one in buffer.iter_trajectories(kind="expert"):
            seen.append(one.task_id)
            buffer.add_trajectories([one], kind="copied")
        assert len(seen) == 200 == len(buffer.trajectories(kind="copied"))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_trajectories(tmp_path: Path) -> None:
    def peak_bytes(num: int) -> int:
        with CalibrationBuffer(tmp_path / f"{num}.sqlite") as buffer:
            long = trajectory(0, num_steps=20)
            many = (dataclasses.replace(long, seed=n) for n in range(num))
            buffer.add_trajectories(many, kind="expert")
            buffer.add_result(result(1), phase="calibration")
            tracemalloc.start()
            try:
                assert sum(1 for _ in buffer.iter_trajectories(kind="expert")) == num
                buffer.export_jsonl(tmp_path / "out")
                return tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

    few, many = peak_bytes(200), peak_bytes(600)
    assert many < 1.2 * few


# -- content keys ----------------------------------------------------------------------------------------------


def test_games_are_known_by_their_content_too(tmp_path: Path) -> None:
    with CalibrationBuffer(tmp_path / "buffer.sqlite") as buffer:
        for n, kind in ((1, "expert"), (2, "own"), (3, "evaluation")):
            buffer.add_trajectories([dataclasses.replace(trajectory(n), content_key=f"key-{n}")], kind=kind)
        buffer.add_trajectories([trajectory(4)], kind="expert")
        assert buffer.used_content_keys() == {"key-1", "key-2"}
        assert buffer.used_content_keys(apart_from=()) == {"key-1", "key-2", "key-3"}


# -- as earlier versions wrote it ------------------------------------------------------------------------------


def _old(line: str) -> str:
    """A line under the names of before."""
    for new, old in (
        ('"status": "running"', '"ended": "open"'),
        ('"status": "terminated"', '"ended": "over"'),
        ('"parsed"', '"readable"'),
        ('"expert_subtrajectories"', '"expert_rests"'),
        ('"failed_continuation"', '"failed_rest"'),
        ('"content_key": "", ', ""),
    ):
        line = line.replace(new, old)
    return line


def old_buffer(path: Path) -> None:
    """A buffer of schema version 1."""
    with CalibrationBuffer(path) as buffer:
        buffer.add_trajectories([trajectory(n) for n in range(3)], kind="expert")
        buffer.add_result(result(1), phase="calibration")
    with sqlite3.connect(path) as db:
        db.execute("DROP INDEX trajectories_by_task")
        for column in ("split", "content_key"):
            db.execute(f"ALTER TABLE trajectories DROP COLUMN {column}")
        for n in range(3):
            one = trajectory(n)
            db.execute("UPDATE trajectories SET payload = ? WHERE task_id = ?", (_old(to_json(one)), one.task_id))
        db.execute("UPDATE results SET payload = ?", (_old(result_to_json(result(1))),))
        db.execute("PRAGMA user_version = 1")
    db.close()


@pytest.mark.parametrize("read_only", [True, False])
def test_a_buffer_of_the_first_schema_is_read(tmp_path: Path, read_only: bool) -> None:
    path = tmp_path / "buffer.sqlite"
    old_buffer(path)
    before = snapshot(tmp_path)
    with CalibrationBuffer(path, read_only=read_only) as buffer:
        assert buffer.trajectories(kind="expert") == [trajectory(n) for n in range(3)]
        assert list(buffer.iter_trajectories(split="train")) == []
        assert buffer.results("calibration") == [result(1)]
        assert buffer.used_content_keys() == set()
        for exported in buffer.export_jsonl(tmp_path / "out"):
            lines = exported.read_text(encoding="utf-8")
            assert '"readable"' not in lines and '"ended"' not in lines and '"expert_rests"' not in lines
        rows = [json.loads(line) for line in (tmp_path / "out" / "trajectories.jsonl").open(encoding="utf-8")]
        assert {r["content_key"] for r in rows} == {""} and {r["status"] for r in rows} == {"running"}
        if not read_only:
            buffer.add_trajectories([dataclasses.replace(trajectory(9), content_key="k")], kind="expert", split="train")
            assert [t.task_id for t in buffer.iter_trajectories(split="train")] == ["corridor-9"]
            assert buffer.used_content_keys() == {"k"}
    if read_only:
        shutil.rmtree(tmp_path / "out")
        assert snapshot(tmp_path) == before
    else:
        with CalibrationBuffer(path) as buffer:  # and once more, as one of today
            assert len(buffer.trajectories(kind="expert")) == 4


def test_a_stored_line_that_is_damaged_is_named(tmp_path: Path) -> None:
    path = tmp_path / "buffer.sqlite"
    with CalibrationBuffer(path) as buffer:
        buffer.add_trajectories([trajectory(1)], kind="expert")
        buffer.add_result(result(1), phase="calibration")
        buffer._db.execute("UPDATE trajectories SET payload = '[1'")
        buffer._db.execute("UPDATE results SET payload = '{}'")
        with pytest.raises(DataError, match=r"buffer.sqlite', trajectory '[0-9a-f]+': not a trajectory: not JSON"):
            buffer.trajectories(kind="expert")
        with pytest.raises(DataError, match=r"buffer.sqlite', result of '[0-9a-f]+' in phase 'calibration': "):
            buffer.results("calibration")
