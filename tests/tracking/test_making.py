"""Trackers: what reaches them, and that none of them stops a run."""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from steca_gym.cli import main
from steca_gym.errors import ConfigError, UnknownNameError
from steca_gym.tracking import CompositeTracker, JsonlTracker, SafeTracker, Tracker, check_tracker, make_tracker

CONF = ["--config-dir", str(Path(__file__).parents[1] / "conf")]


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


class Exiting:
    """Ends the process, as a library does that cannot go on."""

    def __init__(self) -> None:
        raise SystemExit(1)


def test_a_tracker_that_ends_the_process_stops_nothing() -> None:
    with pytest.warns(UserWarning, match="continues without it"):
        tracker = SafeTracker(Exiting)  # type: ignore[arg-type]
    use(tracker)
    assert tracker.num_failures == 1


class Hanging(Failing):
    """Never returns from its last call."""

    def __init__(self) -> None:
        self.logged: list[str] = []

    def log(self, metrics: Mapping[str, float], *, phase: str = "", step: int | None = None) -> None:
        self.logged.append(phase)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        threading.Event().wait()


def test_a_tracker_that_hangs_is_given_up_and_the_run_goes_on() -> None:
    inner, abandoned = Hanging(), list[str]()
    tracker = SafeTracker(lambda: inner, timeout_s=0.05, abandon=lambda: abandoned.append("yes"))
    with pytest.warns(UserWarning, match="no answer in 0 s") as seen:
        use(tracker)
    assert len(seen) == 1 and inner.logged == ["warm_up"] and abandoned == ["yes"]
    tracker.log({"loss": 1.0}, phase="later")
    assert inner.logged == ["warm_up"] and tracker.closing_lines() == []


def test_calls_reach_a_guarded_tracker_in_order_and_its_errors_come_back() -> None:
    collected = Collecting(Path())
    tracker = SafeTracker(lambda: collected, timeout_s=60)
    for index in range(50):
        tracker.log({}, phase=str(index))
    tracker.finish()
    assert collected.phases == [*map(str, range(50)), "finished"]
    assert tracker._worker is None  # its thread ends with it
    with pytest.raises(ConfigError, match="nothing of that kind"):

        def refuse() -> Tracker:
            raise ConfigError("nothing of that kind")

        SafeTracker(refuse, timeout_s=60)


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


@pytest.mark.slow
def test_a_run_tells_metrics_of_each_phase_and_its_calibrations(tmp_path: Path) -> None:
    command = [*CONF, "env=corridor", "agent=stumbling", f"run_dir={tmp_path}"]
    assert main(["calibrate", *command]) == 0
    assert main(["evaluate", *CONF, f"run={tmp_path}"]) == 0
    got = events(tmp_path / "metrics.jsonl")
    phases = {e["phase"] for e in got if e["event"] == "metrics"}
    assert phases == {p + end for p in ("demonstrations", "calibration", "evaluation") for end in ("", "/progress")}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full: a full disk under the tracker is NOT tested")
def test_a_full_disk_under_the_tracker_stops_no_run(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.warns(UserWarning, match="the tracker failed and the run continues without it.*No space left"):
        assert main(["evaluate", *CONF, "env=corridor", "agent=expert", f"run_dir={tmp_path}"]) == 0
    assert (tmp_path / "evaluation.json").exists()


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


def test_several_trackers_at_once_one_of_them_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Collecting.made.clear()
    several = [f"logger=[jsonl,{__name__}:Collecting]", "logger.custom.tag=mine", f"run_dir={tmp_path / 'run'}"]
    assert main(["collect", *CONF, "env=corridor", "agent=stumbling", *several]) == 0
    (tracker,) = Collecting.made
    assert tracker.tag == "mine" and tracker.phases[-1] == "finished"
    assert events(tmp_path / "run" / "metrics.jsonl")
    # The run's own command finds them again.
    assert main(["evaluate", *CONF, f"run={tmp_path / 'run'}", "agent=expert"]) == 0
    assert len(Collecting.made) == 2
    capsys.readouterr()


def test_a_missing_package_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name in ("wandb", "tensorboard", "trackio"):
        settings = {"name": name} if name == "tensorboard" else {"name": name, "project": "p"}
        with pytest.raises(ConfigError, match=rf"pip install 'steca-gym\[{name}\]'"):
            check_tracker({name: settings})


def test_a_tracker_of_ones_own_is_named_like_all_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Collecting.made.clear()
    own = [f"logger={__name__}:Collecting", "logger.tag=mine", f"run_dir={tmp_path / 'run'}"]
    assert main(["collect", *CONF, "env=corridor", "agent=stumbling", *own]) == 0
    (tracker,) = Collecting.made
    assert tracker.tag == "mine" and tracker.folder == tmp_path / "run"
    assert tracker.phases[-2:] == ["demonstrations", "finished"]
    assert set(tracker.phases[:-2]) == {"demonstrations/progress"}
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
        (["logger=wandb", "logger.projct=x"], "did you mean 'logger.wandb.project'"),
        (["logger=wandb", "+logger.projct=x"], "'projct'; did you mean 'project'"),
        (["logger=wandb", "logger.project=a/b"], "without / \\ # ? % or :"),
        (["logger=wandb", "logger.tags=first"], "must be a list of texts"),
        (["logger=wandb", "logger.timeout_s=0"], "timeout_s must be > 0"),
        (["logger=wandb", "logger.artifacts_max_mb=-1"], "artifacts_max_mb must be >= 0"),
        (["logger=[jsonl,wandb]", "logger.mode=online"], "did you mean 'logger.wandb.mode'"),
        (["logger=[jsonl,wandv]"], "no logger 'wandv'; did you mean 'wandb'"),
        (["logger=[a:B,c:D]"], "one logger of your own can be named"),
        (["agent=[tiny]"], "agent takes one choice"),
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
