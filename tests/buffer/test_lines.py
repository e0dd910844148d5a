"""What an export writes: valid JSON, and one type along a file."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from steca_gym.buffer import CalibrationBuffer
from steca_gym.buffer.lines import result_line, trajectory_line, typed_first
from steca_gym.errors import DataError
from steca_gym.trajectory import read_jsonl
from tests.buffer.test_store import result, trajectory


def strict(line: str):
    def refuse(name: str):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(line, parse_constant=refuse)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 7.0])
def test_a_score_that_is_no_score_is_not_stored(tmp_path: Path, bad: float) -> None:
    with CalibrationBuffer(tmp_path / "buffer.sqlite") as buffer:
        one = trajectory(1)
        for wrong in (
            dataclasses.replace(one, score=bad),
            dataclasses.replace(one, steps=(dataclasses.replace(one.steps[0], score=bad),)),
        ):
            with pytest.raises(DataError, match=r"score must be a number in \[0, 1\], got"):
                buffer.add_trajectories([trajectory(2), wrong], kind="own", done=("phase", ["a"]))
        assert buffer.trajectories(kind="own") == [] and buffer.done("phase") == set()


def test_a_result_with_nan_is_not_stored(tmp_path: Path) -> None:
    with CalibrationBuffer(tmp_path / "buffer.sqlite") as buffer:
        with pytest.raises(DataError, match="it holds the number NaN; expected finite numbers"):
            buffer.add_result(result(1, outcomes=(math.nan,)), phase="calibration")
        assert buffer.results("calibration") == []
        said = dataclasses.replace(result(1), error="NaN, as the world said, and Infinity")
        buffer.add_result(said, phase="calibration")
        assert buffer.results("calibration") == [said]


def test_nan_of_an_earlier_version_is_exported_as_null(tmp_path: Path) -> None:
    with CalibrationBuffer(tmp_path / "buffer.sqlite") as buffer:
        buffer.add_trajectories([trajectory(1)], kind="own")
        buffer.add_result(result(1), phase="calibration")
        buffer._db.execute("UPDATE trajectories SET payload = replace(payload, '\"content_key\": \"\", ', '')")
        for table in ("trajectories", "results"):
            buffer._db.execute(f"UPDATE {table} SET payload = replace(payload, '\"score\": 0.0', '\"score\": NaN')")
        for path in buffer.export_jsonl(tmp_path / "out"):
            rows = [strict(line) for line in path.open(encoding="utf-8")]
            assert path.stem == "decisions" or rows
        assert json.loads((tmp_path / "out" / "trajectories.jsonl").read_text())["score"] is None


def test_exported_trajectories_are_read_back(tmp_path: Path) -> None:
    with CalibrationBuffer(tmp_path / "buffer.sqlite") as buffer:
        given = [dataclasses.replace(trajectory(n), goal="\udc80 部屋").with_id() for n in range(3)]
        buffer.add_trajectories(given, kind="expert", round_index=2)
        paths = {p.stem: p for p in buffer.export_jsonl(tmp_path / "out")}
        assert sorted(read_jsonl(paths["trajectories"]), key=lambda t: t.seed) == given
        assert json.loads(paths["trajectories"].open(errors="surrogatepass").readline())["round"] == 2


def test_the_lines_that_show_types_come_first_and_the_others_keep_their_order() -> None:
    rows = [
        (1, '{"a": null, "b": []}'),
        (2, '{"a": null, "b": []}'),
        (3, '{"a": 1, "b": []}'),
        (4, '{"a": 2.5, "b": [{"c": null}]}'),
        (5, '{"a": null, "b": [{"c": "x"}]}'),
        (6, '{"a": 3, "b": [{"c": "y"}]}'),
    ]
    got = list(typed_first(lambda: rows))
    assert got == [rows[i][1] for i in (2, 3, 4, 0, 1, 5)]
    assert list(typed_first(list)) == []


@pytest.mark.slow
def test_datasets_reads_token_ids_from_files_of_any_size(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    with CalibrationBuffer(tmp_path / "buffer.sqlite") as buffer:
        wide = trajectory(0, num_steps=1)
        step = dataclasses.replace(wide.steps[0], observation="x" * 60_000, token_ids=None)
        plain = [dataclasses.replace(wide, steps=(step,), seed=n) for n in range(200)]
        buffer.add_trajectories(plain, kind="expert")  # 12 MB without any ids
        buffer.add_trajectories([trajectory(n) for n in range(5)], kind="own")
        buffer.add_result(dataclasses.replace(result(0), calibrations=(), expert_id="a" * 12_000_000), phase="a")
        buffer.add_result(result(1), phase="b")
        paths = {p.stem: str(p) for p in buffer.export_jsonl(tmp_path / "out")}
    cache = str(tmp_path / "cache")
    read = datasets.load_dataset("json", data_files=paths["trajectories"], split="train", cache_dir=cache)
    ids = {(r["kind"], r["seed"]): r["steps"][0]["token_ids"] for r in read}
    assert len(ids) == 205 and ids["own", 3] == [0, 3] and ids["expert", 3] is None
    read = datasets.load_dataset("json", data_files=paths["results"], split="train", cache_dir=cache)
    assert sorted(len(r["calibrations"]) for r in read) == [0, 1]


def test_datasets_streams_tables_without_rows(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    with CalibrationBuffer(tmp_path / "buffer.sqlite") as buffer:
        for path in buffer.export_parquet(tmp_path / "out"):
            empty = datasets.load_dataset("parquet", data_files=str(path), split="train", streaming=True)
            assert list(empty) == [] and empty.features


GOOD = '{"content_key": "", "task_id": "t", "first_observation": "a", "steps": []}'


@pytest.mark.parametrize("payload", [GOOD.replace(": ", ":\n\n "), GOOD[:-1] + ', "x": NaN}', GOOD[:-1] + ', "x":\r1}'])
def test_a_stored_payload_of_several_lines_is_one_line_of_json(payload: str) -> None:
    line = trajectory_line({"kind": "own"}, payload)
    assert "\n" not in line and "\r" not in line
    assert json.loads(line, parse_constant=pytest.fail)["kind"] == "own"


@pytest.mark.parametrize("payload", ["", "[]", "{}", "1", GOOD[:-3], "{" * 3000])
def test_a_damaged_payload_is_refused_in_one_line(payload: str) -> None:
    for write in (trajectory_line, result_line):
        if (write, payload) != (result_line, "{}"):
            with pytest.raises(DataError, match="damaged row"):
                write({"kind": "own"}, payload)
