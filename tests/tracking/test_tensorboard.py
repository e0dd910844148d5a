"""TensorBoard's event files, read back with TensorBoard's own reader."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from steca_gym.cli import main
from steca_gym.tracking import Chart, make_tracker

pytest.importorskip("tensorboard", reason="the tensorboard extra is not installed: nothing of TensorBoard is tested")

CONF = ["--config-dir", str(Path(__file__).parents[1] / "conf")]


def reader(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    found.Reload()
    return found


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.util.tensor_util import make_ndarray

    found = reader(folder)
    plugin = found.PluginTagToContent("scalars")
    return {tag: [(e.step, float(make_ndarray(e.tensor_proto))) for e in found.Tensors(tag)] for tag in plugin}


def texts(folder: Path) -> dict[str, str]:
    from tensorboard.util.tensor_util import make_ndarray

    found = reader(folder)
    return {
        tag: make_ndarray(found.Tensors(tag)[-1].tensor_proto).item().decode()
        for tag in found.PluginTagToContent("text")
    }


@pytest.mark.slow
def test_a_run_holds_what_was_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    command = [*CONF, "env=corridor", "agent=stumbling", "logger=[tensorboard,jsonl]", f"run_dir={folder}"]
    assert main(["calibrate", *command]) == 0
    assert f"tensorboard --logdir {folder / 'tensorboard'}" in capsys.readouterr().err
    assert main(["evaluate", *CONF, f"run={folder}"]) == 0
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    expected: dict[str, list[tuple[int, float]]] = {}
    for e in events:
        for name, value in e["metrics"].items() if e["event"] == "metrics" else ():
            expected.setdefault(f"{e['phase']}/{name}", []).append((e["step"] or 0, value))
    found = scalars(folder / "tensorboard")
    for name, points in expected.items():
        assert [s for s, _ in found[name]] == [s for s, _ in points], name
        assert [v for _, v in found[name]] == pytest.approx([v for _, v in points]), name

    held = texts(folder / "tensorboard")
    calibrations = next(e for e in events if e.get("name") == "calibration_table")
    assert held["calibration_table"].count("\n") == len(calibrations["rows"]) + 1
    assert held["calibration_table"].startswith("| task | step | deviated action |")
    assert {"games", "costs", "calibration_timelines"} <= set(held)

    charts = [e for e in events if e["event"] == "chart"]
    for chart in charts:
        for label, points in chart["lines"].items():
            drawn = scalars(folder / "tensorboard" / "charts" / chart["name"] / label)[chart["title"]]
            assert drawn == [(int(x), pytest.approx(y)) for x, y in points]
    assert charts

    (summary,) = [e["metrics"] for e in events if e["event"] == "summary" and "success" in e["metrics"]]
    assert found["success"][-1][1] == pytest.approx(summary["success"])


def test_settings_are_hyperparameters_without_secrets(tmp_path: Path) -> None:
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    settings = {"seed": 3, "agent": {"engine": {"api_key": "very-secret-one", "model": "m"}, "tags": [1]}}
    logger = {"name": "tensorboard", "logdir": str(tmp_path / "all")}
    folder = tmp_path / "run-1"
    folder.mkdir()
    tracker = make_tracker(logger, folder=folder, settings=settings)
    tracker.summary({"success": 0.5, "note": "x"})
    tracker.finish()
    content = reader(tmp_path / "all" / "run-1").PluginTagToContent("hparams")
    (start,) = [HParamsPluginData.FromString(c) for tag, c in content.items() if "session_start" in tag]
    held = start.session_start_info.hparams
    assert set(held) == {"seed", "agent.engine.api_key", "agent.engine.model"}
    assert held["seed"].number_value == 3 and held["agent.engine.api_key"].string_value == "[hidden]"
    assert tracker.closing_lines() == [f"tensorboard --logdir {tmp_path / 'all' / 'run-1'}"]


def test_a_long_table_is_cut_and_says_so_and_cells_break_no_row(tmp_path: Path) -> None:
    tracker = make_tracker({"name": "tensorboard"}, folder=tmp_path, settings={})
    tracker.table("t", ["a", "b"], [["one\ntwo | three", None]] * 201)
    tracker.chart("c:d", Chart(title="t", x_label="step", lines={"one": [(0, 0.5)]}))
    tracker.finish()
    text = texts(tmp_path / "tensorboard")["t"]
    assert text.splitlines()[2] == "| one two \\| three |  |" and text.endswith(
        "200 of 201 rows; all are in metrics.jsonl"
    )
    assert scalars(tmp_path / "tensorboard" / "charts" / "c-d" / "one") == {"t": [(0, 0.5)]}


def test_neither_torch_nor_tensorflow_is_needed() -> None:
    import subprocess

    code = (
        "import sys, pathlib, tempfile; from steca_gym.tracking import make_tracker; "
        "t = make_tracker({'name': 'tensorboard'}, folder=pathlib.Path(tempfile.mkdtemp()), settings={}); "
        "t.log({'a': 1.0}); t.finish(); print([m for m in ('torch', 'tensorflow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
