"""Weights & Biases offline, for real: what was logged is read back from the .wandb file with W&B's own reader."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from steca_gym.cli import main
from steca_gym.cli.composing import explain_overrides
from steca_gym.reports.data import report_data
from steca_gym.runs import RunFolder
from steca_gym.tracking import Artifact, Chart, SafeTracker, make_tracker

wandb = pytest.importorskip("wandb", reason="the wandb extra is not installed: nothing of W&B is tested")

ROOT = Path(__file__).parents[2]
CONF = ["--config-dir", str(ROOT / "tests" / "conf")]


@pytest.fixture(autouse=True)
def at_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home of its own: W&B stages artifacts and keeps logs there."""
    home = tmp_path_factory.mktemp("home")
    for name in [n for n in os.environ if n.startswith("WANDB_") and n != "WANDB_SERVICE"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    for name in ("DATA", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(home / name.lower()))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the tracker failed")
        yield home


def parts(folder: Path) -> list[list[dict[str, Any]]]:
    """The records of each offline part of the run in a folder, in order."""
    from wandb.util import get_core_path

    found = []
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda f: f.stat().st_mtime):
        command = [get_core_path(), "leet", "inspect", "--no-observability", "--json", "--run-file", str(file)]
        done = subprocess.run([*command, str(file.parents[1])], capture_output=True, text=True, check=True)
        found.append([json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")])
    return found


def rows(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """History rows without W&B's own columns, and with the step."""
    return [
        {k: v for k, v in r["history"]["item"].items() if k == "_step" or not k.startswith("_")}
        for r in records
        if r["type"] == "history"
    ]


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for r in records:
        if r["type"] == "summary":
            found.update(r["summary"]["update"])
    return found


def of_type(records: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [r[kind] for r in records if r["type"] == kind]


def table(folder: Path, row: dict[str, Any], name: str) -> dict[str, Any]:
    """A logged table, from the file that is uploaded."""
    (file,) = folder.glob(f"wandb/offline-run-*/files/{row[f'{name}.path']}")
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def jsonl(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def flat(events: list[dict[str, Any]]) -> list[dict[str, float]]:
    """What the JSON lines hold, as rows of W&B."""
    made = []
    for e in events:
        if e["event"] == "metrics":
            row = {f"{e['phase']}/{k}": v for k, v in e["metrics"].items()}
            if e["step"] is not None:
                row[f"{e['phase']}/step"] = e["step"]
            made.append(row)
    return made


@pytest.mark.slow
def test_a_run_is_one_wandb_run_that_holds_what_was_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    logger = ["logger=wandb", "logger.project=steca-test", "logger.tags=[first,corridor]", "logger.entity=me"]
    command = [*CONF, "env=corridor", "agent=stumbling", *logger, f"run_dir={folder}"]
    assert main(["calibrate", *command]) == 0
    told = capsys.readouterr().err
    assert main(["evaluate", *CONF, f"run={folder}"]) == 0
    first, second = parts(folder)

    # One run: its id is kept, also by `steca evaluate run=`.
    runs = [of_type(p, "run")[0] for p in (first, second)]
    kept = json.loads((folder / "wandb-run.json").read_text(encoding="utf-8"))
    assert {r["run_id"] for r in runs} == {kept["id"]} and all(r["resume"] for r in runs)
    assert {(r["project"], r["entity"], r["display_name"], r["job_type"]) for r in runs} == {
        ("steca-test", "me", "run", "steca")
    }
    assert runs[0]["tags"] == ["first", "corridor"] and "run_group" not in runs[0]
    assert runs[0]["config"]["update"]["env"]["id"].endswith("Corridor-v0")
    assert f"wandb sync {folder}/wandb/offline-run-*-{kept['id']}*" in told

    # The printed command is one, and finds both parts.
    sync = next(line for line in told.splitlines() if line.startswith("wandb sync"))
    command_line = sync.replace("wandb sync", f"{sys.executable} -m wandb sync --dry-run")
    dry = subprocess.run(["sh", "-c", command_line], capture_output=True, text=True, check=True)
    assert dry.stderr.count(f"run-{kept['id']}.wandb") == 2

    # W&B's step never goes back, also across the parts: rows of the second would be dropped.
    steps = [row["_step"] for part in (first, second) for row in rows(part)]
    assert steps == sorted(set(steps)) and kept["next_step"] == steps[-1] + 1

    # Every number of the JSON lines is there, in order, and nothing else.
    logged = [{k: v for k, v in row.items() if k != "_step"} for part in (first, second) for row in rows(part)]
    numbers = [row for row in logged if not any(k.endswith("._type") for k in row)]
    assert numbers == [pytest.approx(row) for row in flat(jsonl(folder))]

    # Each phase has its own axis.
    defined = of_type(first, "metric")
    axes = {m["glob_name"]: m["step_metric"] for m in defined if "glob_name" in m}
    assert axes["calibration/progress/*"] == "calibration/progress/step"
    progress = [row for row in logged if "calibration/progress/step" in row]
    assert [r["calibration/progress/step"] for r in progress] == list(range(1, 9))
    assert progress[-1]["calibration/progress/num_accepted"] > 0

    # Tables: calibrations with their reflections, timelines, games, costs.
    for name in ("calibration_table", "calibration_timelines", "games", "task_types", "costs"):
        of_line = [e for e in jsonl(folder) if e["event"] == "table" and e["name"] == name]
        of_row = [row for row in logged if f"{name}._type" in row]
        assert len(of_line) == len(of_row) >= 1, name
        held = table(folder, of_row[-1], name)
        assert held["columns"] == of_line[-1]["columns"] and held["data"] == of_line[-1]["rows"], name
    calibrations = [e for e in jsonl(folder) if e.get("name") == "calibration_table"][0]
    assert all(row[calibrations["columns"].index("reflection")] for row in calibrations["rows"] if row[5] == "accepted")
    # Each links to its place in the report that `steca report` writes.
    links = [row[calibrations["columns"].index("in the report")].partition("#/t/") for row in calibrations["rows"]]
    assert {page for page, _, _ in links} == {(folder / "report.html").as_uri()}
    shown = {row["id"] for row in report_data([RunFolder(folder)]).rows}
    assert {place.rpartition("/")[0] for _, _, place in links} <= shown

    # Charts of step values along an episode, with the points of the table.
    charts = [e for e in jsonl(folder) if e["event"] == "chart"]
    (row,) = [r for r in logged if f"{charts[0]['name']}_table._type" in r]
    held = table(folder, row, f"{charts[0]['name']}_table")
    points = [[x, label, y] for label, line in charts[0]["lines"].items() for x, y in line]
    assert held["columns"] == ["step", "lineKey", "lineVal"] and held["data"] == points

    # The summary is what a sweep optimizes.
    end = summary(second)
    report = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    for name in ("success", "success_low", "success_high"):
        assert end[name] == pytest.approx(report[name])
        assert end[f"evaluation/{name}"] == pytest.approx(report[name])
    assert end["cost/num_env_steps"] > 0
    assert [e["exit_code"] if e else 0 for e in of_type(second, "exit")] in ([0], [])


def test_no_secret_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_home: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["steca", "run", "agent.engine.api_key=sk-on-the-command-line"])
    settings = {"agent": {"engine": {"api_key": "very-secret-one", "model": "m"}}, "method": {"name": "sft"}}
    logger = {"name": "wandb", "project": "p"}
    tracker = make_tracker(logger, folder=tmp_path, settings=settings)
    tracker.log({"loss": 1.0}, phase="warm_up", step=1)
    tracker.finish()
    (records,) = parts(tmp_path)
    config = of_type(records, "run")[0]["config"]["update"]
    assert config["agent"] == {"engine": {"api_key": "[hidden]", "model": "m"}}
    for folder in (tmp_path, at_home):
        for file in (f for f in folder.rglob("*") if f.is_file()):
            for secret in (b"very-secret-one", b"sk-on-the-command-line"):
                assert secret not in file.read_bytes(), file


@pytest.mark.slow
def test_a_killed_run_continues_behind_its_last_row(tmp_path: Path) -> None:
    code = """
import os, sys
from pathlib import Path
from steca_gym.tracking import make_tracker
tracker = make_tracker({"name": "wandb", "project": "p"}, folder=Path(sys.argv[1]), settings={})
for step in range(3):
    tracker.log({"loss": 0.5}, phase="warm_up", step=step)
os._exit(9)
"""
    env = {k: v for k, v in os.environ.items() if k != "WANDB_SERVICE"}  # with a service of its own, as a command has
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, env=env).returncode == 9
    killed = json.loads((tmp_path / "wandb-run.json").read_text(encoding="utf-8"))
    tracker = make_tracker({"name": "wandb", "project": "other"}, folder=tmp_path, settings={})
    tracker.log({"loss": 0.4}, phase="warm_up", step=3)
    tracker.finish()
    last = parts(tmp_path)[-1]
    assert of_type(last, "run")[0]["run_id"] == killed["id"] and of_type(last, "run")[0]["project"] == "p"
    (row,) = rows(last)
    assert row == {"_step": killed["next_step"], "warm_up/loss": 0.4, "warm_up/step": 3} and row["_step"] > 2


def test_artifacts_have_their_origin_and_large_ones_stay_out(tmp_path: Path, at_home: Path) -> None:
    model, buffer = tmp_path / "model", tmp_path / "buffer.sqlite"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"w" * 3000)
    (model / "config.json").write_text("{}")
    with sqlite3.connect(buffer) as database:
        database.execute("CREATE TABLE t (x)")
        database.execute("INSERT INTO t VALUES (7)")
    database.close()

    def run(limit: float | None, folder: Path) -> list[str]:
        folder.mkdir()
        logger = {"name": "wandb", "project": "p", "artifacts_max_mb": limit}
        tracker = make_tracker(logger, folder=folder, settings={})
        tracker.artifact(Artifact(name="buffer-1", kind="buffer", path=buffer))
        made_from = ("buffer-1", "warm_up-0")
        tracker.artifact(Artifact(name="train-2", kind="model", path=model, made_from=made_from, shared_from="sibling"))
        tracker.finish()
        return tracker.closing_lines()

    run(1, tmp_path / "all")
    records = of_type(parts(tmp_path / "all")[0], "artifact")
    assert [(a["name"], a["type"]) for a in records] == [("buffer-1", "buffer"), ("train-2", "model")]
    assert json.loads(records[1]["metadata"]) == {"made_from": ["buffer-1", "warm_up-0"], "shared_from": "sibling"}
    files = {c["path"]: c["local_path"] for c in records[1]["manifest"]["contents"]}
    assert files == {f.name: str(f) for f in model.iterdir()}  # uploaded from where they are
    (held,) = records[0]["manifest"]["contents"]
    copied = sqlite3.connect(held["local_path"])
    assert copied.execute("SELECT x FROM t").fetchall() == [(7,)]
    copied.close()

    lines = run(0.005, tmp_path / "small")
    assert [a["name"] for a in of_type(parts(tmp_path / "small")[0], "artifact")] == ["train-2"]
    assert "artifacts_max_mb=0.005: buffer-1 (0 MB)" in lines[0]
    assert len(run(0, tmp_path / "none")) == 1 and of_type(parts(tmp_path / "none")[0], "artifact") == []


def test_a_run_that_fails_is_failed_in_wandb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*CONF, "env=corridor", "agent=broken", "logger=wandb", f"run_dir={tmp_path / 'run'}"]
    assert main(["calibrate", *command]) == 4
    (records,) = parts(tmp_path / "run")
    assert of_type(records, "exit")[0]["exit_code"] == 1 and "broke" in summary(records)["error"]
    capsys.readouterr()


@pytest.mark.slow
def test_runs_of_a_sweep_are_a_group_and_their_methods_the_job_types(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = ["-m", *CONF, "env=corridor", "agent=stumbling", "logger=wandb", "seed=0,1", f"runs_root={tmp_path}"]
    assert main(["calibrate", *sweep]) == 0
    found = [of_type(parts(f.parent)[0], "run")[0] for f in sorted(tmp_path.glob("*/run.json"))]
    groups = {r["run_group"] for r in found}
    assert len(found) == 2 and len(groups) == 1 and re.fullmatch("sweep-seed-[0-9a-f]{6}", groups.pop())
    assert {r["job_type"] for r in found} == {"steca"} and len({r["run_id"] for r in found}) == 2
    capsys.readouterr()


@pytest.mark.slow
def test_under_an_agent_the_agents_run_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [*CONF, "env=corridor", "agent=expert", "method=none", "logger=wandb", f"run_dir={tmp_path / 'run'}"]
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep123")
    for run_id in ("agent001", "agent002"):  # the second finds the run done, and its figures are awaited all the same
        monkeypatch.setenv("WANDB_RUN_ID", run_id)
        wandb.teardown()  # W&B reads its environment once; an agent's command is a new process
        assert main(["evaluate", *command]) == 0
    wandb.teardown()
    both = parts(tmp_path / "run")
    assert [of_type(p, "run")[0]["run_id"] for p in both] == ["agent001", "agent002"]
    assert [of_type(p, "run")[0]["sweep_id"] for p in both] == ["sweep123", "sweep123"]
    assert [summary(p)["success"] for p in both] == [1, 1]


def documented_sweep() -> dict[str, Any]:
    page = (ROOT / "docs" / "tracking.md").read_text(encoding="utf-8")
    (text,) = [b for b in re.findall(r"```yaml\n(.*?)```", page, flags=re.S) if "command:" in b]
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def test_the_command_of_a_documented_sweep_composes() -> None:
    """Composed with W&B's own code, from the page that users copy."""
    from wandb.sdk.launch.sweeps import utils

    sweep = documented_sweep()
    grid = {name: p.get("values", [p.get("value", p.get("min"))]) for name, p in sweep["parameters"].items()}
    for index in range(max(map(len, grid.values()))):
        args = {name: {"value": values[index % len(values)]} for name, values in grid.items()}
        composed = utils.create_sweep_command_args({"args": args})
        command: list[str] = []
        for chunk in utils.create_sweep_command(list(sweep["command"])):
            command += composed[chunk[2:-1]] if chunk.startswith("${") else [chunk]
        assert command[:2] == ["steca", "run"]
        explain_overrides(command[2:])
        for name, value in args.items():
            assert f"{name}={value['value']}" in command
    assert sweep["metric"] == {"name": "success", "goal": "maximize"}


def service_pid() -> int:
    """Process id of W&B's service, from the kernel."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == os.getpid() and "wandb-core" in (entry / "cmdline").read_text():
                return int(entry.name)
        except OSError:
            continue
    raise AssertionError("W&B's service is not running")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc: a frozen W&B service is NOT tested")
def test_a_frozen_service_is_given_up_and_the_next_run_has_one_of_its_own(tmp_path: Path) -> None:
    from steca_gym.tracking.wandb_tracker import WandbTracker

    wandb.teardown()  # what earlier tests have started

    def start(folder: Path, timeout_s: float) -> SafeTracker:
        folder.mkdir()
        return SafeTracker(
            lambda: WandbTracker(folder=folder, settings={}, project="p", timeout_s=30),
            timeout_s=timeout_s,
            abandon=WandbTracker.abandon,
        )

    frozen = start(tmp_path / "frozen", 20)
    pid = service_pid()
    frozen.log({"loss": 1.0}, phase="train", step=1)
    frozen._worker._timeout_s = 0.5  # type: ignore[union-attr]
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.warns(UserWarning, match="the tracker failed and the run continues without it: no answer"):
            frozen.finish()
    finally:
        try:
            os.kill(pid, signal.SIGCONT)  # where it was not ended
        except ProcessLookupError:
            pass
    tracker = start(tmp_path / "next", 60)
    tracker.log({"loss": 0.5}, phase="train", step=1)
    tracker.finish()
    (records,) = parts(tmp_path / "next")
    assert rows(records) == [{"_step": 0, "train/loss": 0.5, "train/step": 1}]
    assert service_pid() != pid


def test_a_chart_and_a_table_with_gaps_and_mixed_types(tmp_path: Path) -> None:
    tracker = make_tracker({"name": "wandb", "project": "p"}, folder=tmp_path, settings={})
    tracker.table("t", ["a", "b"], [[1, None], ["x", 2.5], [None, "ü"]])
    tracker.chart("c", Chart(title="t", x_label="step", lines={"one": [(0, 0.5)], "two": [(0, 1.0), (3, 0.0)]}))
    tracker.finish()
    (records,) = parts(tmp_path)
    first, second = rows(records)
    assert table(tmp_path, first, "t")["data"] == [[1, None], ["x", 2.5], [None, "ü"]]
    assert table(tmp_path, second, "c_table")["data"] == [[0, "one", 0.5], [0, "two", 1.0], [3, "two", 0.0]]


def test_an_online_run_without_an_account_is_logged_offline(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="W&B is not reached, so the run is logged offline: No API key"):
        tracker = make_tracker({"name": "wandb", "project": "p", "mode": "online"}, folder=tmp_path, settings={})
    assert tracker.opening_lines() == []
    tracker.log({"loss": 1.0}, phase="train", step=1)
    tracker.finish()
    (records,) = parts(tmp_path)
    assert rows(records) == [{"_step": 0, "train/loss": 1.0, "train/step": 1}]
    assert tracker.closing_lines()[0].startswith("wandb sync ")


@pytest.mark.slow
def test_a_server_that_is_away_delays_a_run_by_the_timeout_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:  # bound and never listening: connections are refused
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        wandb.teardown()
        settings = {"name": "wandb", "project": "p", "mode": "online", "timeout_s": 2}
        with pytest.warns(UserWarning, match="W&B is not reached, so the run is logged offline"):
            tracker = make_tracker(settings, folder=tmp_path, settings={})
        tracker.log({"loss": 1.0}, phase="train", step=1)
        tracker.finish()
    wandb.teardown()
    assert rows(parts(tmp_path)[-1]) == [{"_step": 0, "train/loss": 1.0, "train/step": 1}]
