"""The buffer: what is stored comes back, once, also after a kill, on a full disk and in other formats."""

import dataclasses
import json
import random
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steca_gym.buffer import CalibrationBuffer
from steca_gym.calibration.records import (
    Calibration,
    Counts,
    ExpertResult,
    ExpertSubtrajectory,
    Reflection,
    StepVerdict,
)
from steca_gym.errors import DataError, StorageError
from steca_gym.step_rewards.values import Estimate
from steca_gym.trajectory import Step, Trajectory

ROOT = Path(__file__).resolve().parents[2]
ANY_TEXT = st.text(st.characters(codec=None), max_size=8)  # every code point, lone surrogates too


def trajectory(number, *, action="right", task_id=None, num_steps=2):
    steps = tuple(
        Step(thought="weil", action=f"{action} {i}", observation=f"部屋 {i}", token_ids=(i, number))
        for i in range(num_steps)
    )
    task = task_id or f"corridor-{number}"
    return Trajectory(task_id=task, first_observation="You are in a room.", steps=steps, seed=number).with_id()


def estimate(outcomes):
    return Estimate(mean=sum(outcomes) / len(outcomes), low=0.0, high=1.0, outcomes=tuple(outcomes))


def result(number, *, num_calibrations=1, outcomes=(0.0, 1.0, 0.0), round_index=0):
    expert = trajectory(number)
    verdict = StepVerdict(
        step=1,
        expert_action="right",
        agent_action="left",
        verdict="deviated",
        expert_reward=estimate((1.0, 1.0)),
        agent_reward=estimate(outcomes),
    )
    calibrations = tuple(
        Calibration(
            calibration_id=f"c{number}.{i}.{round_index}",
            task_id=expert.task_id,
            expert_id=expert.trajectory_id,
            step=1,
            deviated=Step(action="left", observation="wall", source="deviation", trainable=False),
            expert_action="right",
            reflection=Reflection(text="Das war falsch.", source="template"),
            verdicts=(verdict,),
            trajectory=trajectory(number, action="calibrated"),
            failed_continuation=trajectory(number, action="failed"),
            status="accepted" if i == 0 else "refused",
            reason="" if i == 0 else "lost",
            round=round_index,
        )
        for i in range(num_calibrations)
    )
    return ExpertResult(
        expert_id=expert.trajectory_id,
        task_id=expert.task_id,
        verdicts=(verdict,),
        calibrations=calibrations,
        explored_successes=(trajectory(number, action="explored"),),
        expert_subtrajectories=(
            ExpertSubtrajectory(trajectory=expert, failed_continuation=trajectory(number, action="failed"), step=1),
        ),
        counts=Counts(num_steps=3, num_samples=5),
    )


def open_buffer(folder):
    return CalibrationBuffer(folder / "buffer.sqlite")


def count(buffer, table):
    with sqlite3.connect(buffer.path) as db:
        return db.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0]


# -- storing once, whole ---------------------------------------------------------------------------------------


def test_storing_twice_stores_once_and_content_decides_the_id(tmp_path):
    buffer = open_buffer(tmp_path)
    first = trajectory(1)
    assert buffer.add_trajectories([first, trajectory(2)], kind="expert") == 2
    assert buffer.add_trajectories([first, dataclasses.replace(first, trajectory_id="")], kind="expert") == 0
    changed = dataclasses.replace(first, score=0.5)  # carries the id of what it was made from
    assert buffer.add_trajectories([changed], kind="expert") == 1
    stored = buffer.trajectories(kind="expert")
    assert {t.trajectory_id for t in stored} == {t.with_id().trajectory_id for t in stored}
    assert sorted(t.score for t in stored) == [0.0, 0.0, 0.5]


def test_kinds_and_rounds_are_kept_apart(tmp_path):
    buffer = open_buffer(tmp_path)
    buffer.add_trajectories([trajectory(1)], kind="own", round_index=0)
    buffer.add_trajectories([trajectory(1), trajectory(2)], kind="own", round_index=1)
    assert [t.seed for t in buffer.trajectories(kind="own", round_index=0)] == [1]
    assert [t.seed for t in buffer.trajectories(kind="own", round_index=1)] == [1, 2]
    assert [t.seed for t in buffer.trajectories(kind="own")] == [1, 2]
    assert buffer.trajectories(kind="expert") == []


@given(
    thought=ANY_TEXT,
    action=ANY_TEXT,
    task=ANY_TEXT.filter(bool),
    ids=st.none() | st.tuples(st.integers(0, 2**31)),
    score=st.floats(0, 1),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_comes_back_as_it_was(tmp_path, thought, action, task, ids, score):
    (tmp_path / "buffer.sqlite").unlink(missing_ok=True)
    step = Step(thought=thought, action=action, observation=action, token_ids=ids, score=score)
    given_one = Trajectory(task_id=task, first_observation=thought, steps=(step,), score=score).with_id()
    with open_buffer(tmp_path) as buffer:
        buffer.add_trajectories([given_one], kind="expert", done=("phase", [task]))
        assert buffer.trajectories(kind="expert") == [given_one]
        assert buffer.done("phase") == {task}
        assert buffer.used_task_ids() == {task}
        buffer.export_jsonl(tmp_path / "out")
        buffer.export_parquet(tmp_path / "out")


def test_results_come_back_with_all_their_evidence(tmp_path):
    given_one = result(1, num_calibrations=2)
    with open_buffer(tmp_path) as buffer:
        buffer.add_result(given_one, phase="calibration")
    with open_buffer(tmp_path) as buffer:
        assert buffer.results("calibration") == [given_one]
        assert buffer.results("calibration.1") == []
        assert buffer.done("calibration") == {given_one.expert_id}
        assert buffer.calibrations() == list(given_one.calibrations)
        assert buffer.calibrations(status="refused") == [given_one.calibrations[1]]
        assert (count(buffer, "samples"), count(buffer, "step_rewards")) == (5, 1)


def test_a_second_result_replaces_the_first_whole(tmp_path):
    buffer = open_buffer(tmp_path)
    buffer.add_result(result(1, num_calibrations=2, outcomes=(0.0, 1.0, 0.0)), phase="calibration")
    buffer.add_result(result(1, num_calibrations=1, outcomes=(1.0,)), phase="calibration")
    assert len(buffer.calibrations()) == count(buffer, "calibrations") == 1
    assert count(buffer, "samples") == 3
    buffer.add_result(result(1, round_index=1), phase="calibration.1")
    assert len(buffer.calibrations()) == count(buffer, "calibrations") == 2


def test_what_fails_in_the_middle_leaves_nothing(tmp_path):
    buffer = open_buffer(tmp_path)
    with pytest.raises(AttributeError):
        buffer.add_trajectories([trajectory(1), None], kind="expert", done=("phase", ["a"]))
    assert buffer.trajectories(kind="expert") == [] and buffer.done("phase") == set()
    buffer.add_trajectories([trajectory(1)], kind="expert")  # and the buffer still works


def test_games_that_fed_something_are_known(tmp_path):
    buffer = open_buffer(tmp_path)
    buffer.add_trajectories([trajectory(1)], kind="expert")
    buffer.add_trajectories([trajectory(2)], kind="own")
    buffer.add_trajectories([trajectory(3)], kind="evaluation")
    buffer.add_result(result(4), phase="calibration")
    assert buffer.used_task_ids() == {"corridor-1", "corridor-2", "corridor-4"}


# -- decisions -------------------------------------------------------------------------------------------------


def test_the_last_decision_counts_and_all_stay_on_record(tmp_path):
    buffer = open_buffer(tmp_path)
    buffer.add_result(result(1, num_calibrations=2), phase="calibration")
    buffer.decide("c1.0.0", "refused", who="Ada", why="the thought is wrong")
    buffer.decide("c1.0.0", "approved", who="Grace", why="it is right")
    buffer.decide("c1.1.0", "refused", who="Ada", why="")
    assert [(d.decision, d.who, d.why) for d in buffer.decisions()] == [
        ("refused", "Ada", "the thought is wrong"),
        ("approved", "Grace", "it is right"),
        ("refused", "Ada", ""),
    ]
    assert all(d.at.endswith("+00:00") for d in buffer.decisions())
    assert buffer.refused_ids() == {"c1.1.0"}
    assert [c.calibration_id for c in buffer.calibrations(approved=True)] == ["c1.0.0"]
    assert [c.calibration_id for c in buffer.calibrations(approved=False)] == ["c1.1.0"]
    assert len(buffer.calibrations()) == 2


def test_decisions_survive_a_repeated_phase_and_cannot_be_undone(tmp_path):
    buffer = open_buffer(tmp_path)
    buffer.add_result(result(1), phase="calibration")
    buffer.decide("c1.0.0", "refused", who="Ada", why="no")
    buffer.add_result(result(1), phase="calibration")
    assert buffer.refused_ids() == {"c1.0.0"}
    with sqlite3.connect(buffer.path) as db:
        for statement in ("DELETE FROM decisions", "UPDATE decisions SET decision = 'approved'"):
            with pytest.raises(sqlite3.IntegrityError, match="decisions are never"):
                db.execute(statement)


@pytest.mark.parametrize(
    ("calibration_id", "decision", "who", "told"),
    [
        ("nope", "refused", "Ada", "no calibration 'nope'"),
        ("c1.0.0", "refused", " ", "who"),
        ("c1.0.0", "maybe", "A", "maybe"),
    ],
)
def test_a_decision_names_a_calibration_a_word_and_a_person(tmp_path, calibration_id, decision, who, told):
    buffer = open_buffer(tmp_path)
    buffer.add_result(result(1), phase="calibration")
    with pytest.raises(DataError, match=told):
        buffer.decide(calibration_id, decision, who=who, why="")
    assert buffer.decisions() == []


# -- killed at any moment --------------------------------------------------------------------------------------

WORKER = """
import sys
from pathlib import Path
from steca_gym.buffer import CalibrationBuffer
from tests.buffer.test_store import NUM_UNITS, result, trajectory
buffer = CalibrationBuffer(Path(sys.argv[1]))
print("open", flush=True)
for n in range(NUM_UNITS):
    unit = result(n, num_calibrations=2)
    if unit.expert_id not in buffer.done("demonstrations"):
        buffer.add_trajectories([trajectory(n)], kind="expert", done=("demonstrations", [unit.expert_id]))
    if unit.expert_id not in buffer.done("calibration"):
        buffer.add_result(unit, phase="calibration")
    print(n, flush=True)
print("end", flush=True)
"""
NUM_UNITS = 60


@pytest.mark.slow
def test_a_run_killed_again_and_again_loses_and_doubles_nothing(tmp_path):
    path, rng, num_killed, ended = tmp_path / "buffer.sqlite", random.Random(7), 0, False
    while not ended:
        worker = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        lines = 0
        # The worker does not wait for the reader, so the kill falls wherever it then is.
        patience = rng.randrange(0, 20) if num_killed < 6 else 10**6
        for line in worker.stdout:
            lines += 1
            ended = line.strip() == "end"
            if lines > patience:
                break
        worker.send_signal(signal.SIGKILL)
        worker.stdout.close()
        worker.wait()
        num_killed += not ended
        if ended:
            break
        with CalibrationBuffer(path) as buffer:  # whole units only, whatever the moment was
            assert {r.expert_id for r in buffer.results("calibration")} == buffer.done("calibration")
            assert count(buffer, "samples") == 5 * len(buffer.done("calibration"))
    assert num_killed >= 3
    expected = [result(n, num_calibrations=2) for n in range(NUM_UNITS)]
    with CalibrationBuffer(path) as buffer:
        assert sorted(buffer.results("calibration"), key=lambda r: r.expert_id) == sorted(
            expected, key=lambda r: r.expert_id
        )
        assert len(buffer.trajectories(kind="expert")) == count(buffer, "trajectories") == NUM_UNITS
        assert count(buffer, "steps") == 2 * NUM_UNITS
        assert len(buffer.calibrations()) == count(buffer, "calibrations") == 2 * NUM_UNITS


# -- bad files and full disks ----------------------------------------------------------------------------------


def test_a_full_disk_is_one_clear_line_and_keeps_what_was_committed(tmp_path):
    buffer = open_buffer(tmp_path)
    pages = buffer._db.execute("PRAGMA page_count").fetchone()[0]
    buffer._db.execute(f"PRAGMA max_page_count = {pages + 12}")
    kept = 0
    with pytest.raises(StorageError, match="full.*free space and run the same command again") as caught:  # noqa: PT012
        for n in range(1000):
            buffer.add_result(result(n), phase="calibration")
            kept += 1
    assert "\n" not in str(caught.value) and kept > 0
    assert len(buffer.done("calibration")) == kept
    buffer._db.execute("PRAGMA max_page_count = 100000")
    buffer.add_result(result(kept), phase="calibration")  # space was freed: it continues
    buffer.close()
    assert len(open_buffer(tmp_path).results("calibration")) == kept + 1


FILLER = """
import resource, sys
from pathlib import Path
from steca_gym.buffer import CalibrationBuffer
from steca_gym.errors import StorageError
from tests.buffer.test_store import result
buffer = CalibrationBuffer(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
kept = 0
try:
    for kept in range(10_000):
        buffer.add_result(result(kept), phase="calibration")
except StorageError as error:
    print(kept, error)
    sys.exit(3)
"""


def test_a_file_that_may_not_grow_is_one_clear_line(tmp_path):
    path = tmp_path / "buffer.sqlite"
    done = subprocess.run([sys.executable, "-c", FILLER, str(path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    kept, _, told = done.stdout.strip().partition(" ")
    assert "cannot write buffer" in told and "free space" in told and "\n" not in told
    with CalibrationBuffer(path) as buffer:
        assert len(buffer.done("calibration")) == len(buffer.results("calibration")) == int(kept) > 0


def test_an_export_that_does_not_fit_leaves_no_half_file(tmp_path):
    buffer = open_buffer(tmp_path)
    (tmp_path / "taken").write_text("a file where the folder should be")
    for export in (buffer.export_jsonl, buffer.export_parquet):
        with pytest.raises(StorageError, match="cannot write"):
            export(tmp_path / "taken")


def test_a_foreign_database_is_refused_and_left_as_it_was(tmp_path):
    path = tmp_path / "other.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE songs (name TEXT)")
    before = path.read_bytes()
    with pytest.raises(StorageError, match="not the buffer of a run.*choose another folder"):
        CalibrationBuffer(path)
    assert path.read_bytes() == before


def test_another_schema_version_is_named(tmp_path):
    open_buffer(tmp_path).close()
    with sqlite3.connect(tmp_path / "buffer.sqlite") as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(StorageError, match="schema version 99, expected 1 to 3"):
        open_buffer(tmp_path)


def test_a_text_file_is_not_a_buffer(tmp_path):
    path = tmp_path / "buffer.sqlite"
    path.write_text("this is no database " * 100)
    with pytest.raises(StorageError, match="cannot open buffer.*expected a buffer of a run"):
        CalibrationBuffer(path)


def test_a_damaged_file_is_found_on_opening(tmp_path):
    with open_buffer(tmp_path) as buffer:
        for n in range(100):
            buffer.add_result(result(n), phase="calibration")
    path = tmp_path / "buffer.sqlite"
    raw = bytearray(path.read_bytes())
    page = 4096
    for start in range(page * 4, len(raw), page):
        raw[start : start + 64] = b"\xff" * 64
    path.write_bytes(raw)
    with pytest.raises(StorageError) as caught:
        open_buffer(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_empty_file_and_a_missing_folder_become_a_buffer(tmp_path):
    (tmp_path / "buffer.sqlite").touch()
    open_buffer(tmp_path).mark_done("phase", ["a"])
    assert open_buffer(tmp_path).done("phase") == {"a"}
    assert CalibrationBuffer(tmp_path / "a" / "b" / "buffer.sqlite").done("phase") == set()


def test_another_process_may_read_while_one_writes(tmp_path):
    writer, reader = open_buffer(tmp_path), open_buffer(tmp_path)
    with writer._writing():
        writer._mark("phase", ["a"])
        assert reader.done("phase") == set()
        assert open_buffer(tmp_path).done("phase") == set()
    assert reader.done("phase") == {"a"}


# -- exports ---------------------------------------------------------------------------------------------------


def filled(tmp_path):
    buffer = open_buffer(tmp_path)
    buffer.add_trajectories([trajectory(1), trajectory(2)], kind="expert")
    buffer.add_result(result(1), phase="calibration")
    return buffer


def test_json_lines_hold_everything(tmp_path):
    buffer = filled(tmp_path)
    buffer.decide("c1.0.0", "approved", who="Ada", why="läuft")
    files = {
        p.name: [json.loads(line) for line in p.open(encoding="utf-8")] for p in buffer.export_jsonl(tmp_path / "out")
    }
    assert {name: len(rows) for name, rows in files.items()} == {
        "trajectories.jsonl": 2,
        "results.jsonl": 1,
        "decisions.jsonl": 1,
    }
    assert files["trajectories.jsonl"][0]["kind"] == "expert"
    assert files["results.jsonl"][0]["calibrations"][0]["verdicts"][0]["agent_reward"]["outcomes"] == [0.0, 1.0, 0.0]
    assert files["decisions.jsonl"][0]["why"] == "läuft"


def test_datasets_loads_the_parquet_files(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    buffer = filled(tmp_path)
    files = {p.stem: p for p in buffer.export_parquet(tmp_path / "out")}
    cache = str(tmp_path / "cache")
    tables = {
        name: datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=cache)
        for name, path in files.items()
        if name != "decisions"  # datasets refuses a table without rows; Parquet itself does not
    }
    sizes = {name: table.num_rows for name, table in tables.items()}
    assert sizes == {
        "trajectories": 2,
        "steps": 4,
        "step_rewards": 1,
        "samples": 5,
        "calibrations": 1,
        "results": 1,
        "progress": 1,
    }
    assert tables["samples"]["outcome"][:] == [0.0, 1.0, 0.0, 1.0, 1.0]
    assert tables["steps"][0]["observation"] == "部屋 0"
    empty = pytest.importorskip("pyarrow.parquet").read_table(files["decisions"])
    assert empty.num_rows == 0 and set(empty.column_names) >= {"calibration_id", "decision", "who", "why"}


def test_a_runs_export_comes_back_through_datasets(tmp_path, capsys):
    datasets = pytest.importorskip("datasets")
    from steca_gym.cli import main

    run, out = tmp_path / "run", tmp_path / "out"
    conf = ["--config-dir", str(ROOT / "tests" / "conf")]
    assert main(["calibrate", *conf, "env=corridor", "agent=stumbling", f"run_dir={run}"]) == 0
    assert main(["export", f"run={run}", f"to={out}"]) == 0
    assert {str(p) for p in out.iterdir()} == set(capsys.readouterr().out.split())
    with CalibrationBuffer(run / "buffer.sqlite") as buffer:
        experts, calibrations = buffer.trajectories(kind="expert"), buffer.calibrations()
    cache = str(tmp_path / "cache")

    def load(kind: str, name: str):
        path = out / f"{name}.{'jsonl' if kind == 'json' else kind}"
        return datasets.load_dataset(kind, data_files=str(path), split="train", cache_dir=cache)

    lines, table = load("json", "trajectories"), load("parquet", "calibrations")
    assert sorted(lines["trajectory_id"]) == sorted(t.trajectory_id for t in experts)
    assert [s["action"] for s in lines[0]["steps"]] == ["go on"] * len(lines[0]["steps"])
    assert {(r["calibration_id"], r["deviated_action"], r["status"]) for r in table} == {
        (c.calibration_id, c.deviated.action, c.status) for c in calibrations
    }
    assert load("json", "results").num_rows == len(experts)


@pytest.mark.parametrize(
    ("args", "told"),
    [(["run=/nowhere"], "no run in '/nowhere'"), ([], "got no run="), (["run=x", "form=csv"], "got 'form'")],
)
def test_an_export_of_nothing_is_one_line(args, told, capsys):
    from steca_gym.cli import main

    assert main(["export", *args]) in (2, 3)
    assert told in capsys.readouterr().err
