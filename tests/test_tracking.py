"""Trackers: what reaches them, and that none of them stops a run."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from steca_gym.cli import main
from steca_gym.errors import ConfigError, UnknownNameError
from steca_gym.tracking import CompositeTracker, JsonlTracker, SafeTracker, Tracker, make_tracker

CONF = ["--config-dir", str(Path(__file__).parent / "conf")]


def events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class Failing:
    """Raises at every call but its making."""

    def log(self, metrics: Mapping[str, float], *, phase: str = "", step: int | None = None) -> None:
        raise OSError(28, "No space left on device")

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        raise RuntimeError("no network")

    def summary(self, metrics: Mapping[str, Any]) -> None:
        raise RuntimeError("no network")

    def finish(self) -> None:
        raise RuntimeError("no network")


def use(tracker: Tracker) -> None:
    tracker.log({"loss": 0.5}, phase="warm_up", step=3)
    tracker.table("calibration_table", ["task", "step"], [["a", 1], ["ü", 2]])
    tracker.summary({"success": 1.0})
    tracker.finish()


def test_json_lines(tmp_path: Path) -> None:
    use(JsonlTracker(tmp_path / "metrics.jsonl"))
    use(JsonlTracker(tmp_path / "metrics.jsonl"))  # a resumed run appends
    got = events(tmp_path / "metrics.jsonl")
    assert [e["event"] for e in got] == 2 * ["metrics", "table", "summary"]
    assert got[0]["phase"] == "warm_up" and got[0]["step"] == 3 and got[0]["metrics"] == {"loss": 0.5}
    assert got[1]["rows"] == [["a", 1], ["ü", 2]]


def test_a_failing_tracker_warns_once_and_its_siblings_go_on(tmp_path: Path) -> None:
    failing = SafeTracker(Failing)
    tracker = CompositeTracker([failing, SafeTracker(lambda: JsonlTracker(tmp_path / "metrics.jsonl"))])
    with pytest.warns(UserWarning, match="the tracker failed and the run continues.*No space left") as seen:
        use(tracker)
    assert len(seen) == 1 and failing.num_failures == 4
    assert len(events(tmp_path / "metrics.jsonl")) == 3


def test_a_tracker_that_cannot_start_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.warns(UserWarning, match="continues without it"):
        tracker = make_tracker({"name": "jsonl"}, folder=tmp_path / "taken", settings={})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        use(tracker)


def test_wrong_settings_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="no logger 'wandv'; did you mean 'wandb'"):
        make_tracker({"name": "wandv"}, folder=tmp_path, settings={})
    pytest.importorskip("wandb")
    with pytest.raises(ConfigError, match="offline, online or disabled, got 'ofline'"):
        make_tracker({"name": "wandb", "project": "p", "mode": "ofline"}, folder=tmp_path, settings={})


def test_a_run_tells_metrics_of_each_phase_and_its_calibrations(tmp_path: Path) -> None:
    command = [*CONF, "env=corridor", "agent=stumbling", f"run_dir={tmp_path}"]
    assert main(["calibrate", *command]) == 0
    assert main(["evaluate", *CONF, f"run={tmp_path}"]) == 0
    got = events(tmp_path / "metrics.jsonl")
    assert {"demonstrations", "calibration", "evaluation"} == {e["phase"] for e in got if e["event"] == "metrics"}
    (table,) = [e for e in got if e["event"] == "table"]
    assert table["name"] == "calibration_table" and table["columns"][:2] == ["task", "step"] and table["rows"]
    (summary,) = [e for e in got if e["event"] == "summary"]
    assert 0 <= summary["metrics"]["success"] <= 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full: a full disk under the tracker is NOT tested")
def test_a_full_disk_under_the_tracker_stops_no_run(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.warns(UserWarning, match="the tracker failed and the run continues without it.*No space left"):
        assert main(["evaluate", *CONF, "env=corridor", "agent=expert", f"run_dir={tmp_path}"]) == 0
    assert (tmp_path / "evaluation.json").exists()


def test_wandb_works_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="the wandb extra is not installed: the offline W&B run is NOT tested")
    monkeypatch.setenv("WANDB_MODE", "offline")
    seen: list[dict[str, Any]] = []
    init = wandb.init

    def spy(**kwargs: Any) -> Any:
        run = init(**kwargs)
        log = run.log
        monkeypatch.setattr(run, "log", lambda data, **more: (seen.append(dict(data)), log(data, **more))[1])
        return run

    monkeypatch.setattr(wandb, "init", spy)
    command = [*CONF, "env=corridor", "agent=stumbling", "logger=wandb", f"run_dir={tmp_path}"]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the tracker failed")
        assert main(["calibrate", *command]) == 0
    assert any("calibration/num_samples" in metrics for metrics in seen)
    assert any("demonstrations/seconds" in metrics for metrics in seen)
    (table,) = [m["calibration_table"] for m in seen if "calibration_table" in m]
    assert table.columns[:3] == ["task", "step", "deviated action"] and table.data
    # What `wandb sync` uploads later lies in the run's folder, and the JSON lines beside it.
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert events(tmp_path / "metrics.jsonl")


class Collecting:
    """A tracker of one's own: keeps what it is given."""

    made: list[Collecting] = []

    def __init__(self, folder: Path, *, tag: str = "") -> None:
        self.folder, self.tag, self.phases = folder, tag, list[str]()
        Collecting.made.append(self)

    def log(self, metrics: Mapping[str, float], *, phase: str = "", step: int | None = None) -> None:
        self.phases.append(phase)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        pass

    def summary(self, metrics: Mapping[str, Any]) -> None:
        pass

    def finish(self) -> None:
        self.phases.append("finished")


def test_a_tracker_of_ones_own_is_named_like_all_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Collecting.made.clear()
    own = [f"logger={__name__}:Collecting", "logger.tag=mine", f"run_dir={tmp_path / 'run'}"]
    assert main(["collect", *CONF, "env=corridor", "agent=stumbling", *own]) == 0
    (tracker,) = Collecting.made
    assert tracker.tag == "mine" and tracker.folder == tmp_path / "run"
    assert tracker.phases == ["demonstrations", "finished"]
    assert events(tmp_path / "run" / "metrics.jsonl")
    capsys.readouterr()


@pytest.mark.parametrize(
    ("logger", "words"),
    [
        (["logger.name=jsnol"], "no logger 'jsnol'; did you mean 'jsonl'"),
        (["logger=nowhere:Tracker"], "cannot import logger 'nowhere:Tracker'"),
        (["logger=json:JSONDecoder"], "has no log()"),
        ([f"logger={__name__}:Collecting", "logger.tga=x"], "'tga'; did you mean 'tag'"),
        (["logger=wandb", "logger.mode=ofline"], "offline, online or disabled, got 'ofline'"),
    ],
)
def test_a_wrong_logger_is_one_line_before_any_stage(
    logger: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*CONF, "env=corridor", "agent=stumbling", *logger, f"run_dir={tmp_path / 'run'}"]
    assert main(["collect", *command]) == 2
    err = capsys.readouterr().err.strip()
    assert words in err and len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()
