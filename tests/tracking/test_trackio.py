"""trackio on this machine, read back with trackio's own interface."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from steca_gym.cli import main

CONF = ["--config-dir", str(Path(__file__).parents[1] / "conf")]
PROJECT = "steca-test"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A store of its own; trackio decides for one when it is imported."""
    folder = tmp_path_factory.mktemp("trackio")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACKIO_DIR", str(folder))
        for name in [n for n in sys.modules if n.partition(".")[0] == "trackio"]:  # trl imports it
            patch.delitem(sys.modules, name)
        pytest.importorskip("trackio", reason="the trackio extra is not installed: nothing of trackio is tested")
        from trackio.sqlite_storage import SQLiteStorage

        yield SQLiteStorage
        for name in [n for n in sys.modules if n.partition(".")[0] == "trackio"]:
            del sys.modules[name]


@pytest.mark.slow
def test_a_run_holds_what_was_logged_and_continues_under_its_name(
    store: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "my-run"
    logger = ["logger=[trackio,jsonl]", f"logger.trackio.project={PROJECT}", "logger.trackio.group=mine"]
    assert main(["calibrate", *CONF, "env=corridor", "agent=stumbling", *logger, f"run_dir={folder}"]) == 0
    shown = capsys.readouterr()
    assert f'trackio show --project "{PROJECT}"' in shown.err and shown.out == ""
    assert main(["evaluate", *CONF, f"run={folder}"]) == 0
    (run,) = store.get_run_records(PROJECT)
    assert run["name"] == "my-run"
    config = store.get_run_config(PROJECT, "my-run", run_id=run["id"])
    assert config["_Group"] == "mine" and config["env"]["id"].endswith("Corridor-v0")

    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = store.get_logs(PROJECT, "my-run", run_id=run["id"])
    logged = [{k: v for k, v in row.items() if k not in ("timestamp", "step")} | {"_at": row["step"]} for row in rows]
    for e in events:
        if e["event"] == "metrics" and e["metrics"]:
            expected = {f"{e['phase']}/{k}": v for k, v in e["metrics"].items()}
            (row,) = [r for r in logged if set(expected) <= set(r) and (e["step"] is None or r["_at"] == e["step"])]
            assert {k: row[k] for k in expected} == pytest.approx(expected)
        elif e["event"] == "table":
            (row,) = [r[e["name"]] for r in logged if e["name"] in r][-1:]
            assert [list(r.values()) for r in row["_value"]] == e["rows"] or e["name"] == "costs"
        elif e["event"] == "chart":
            for label, points in e["lines"].items():
                name = f"{e['name']}/{label}"
                assert [(r["_at"], r[name]) for r in logged if name in r] == [(int(x), y) for x, y in points]
    assert [r["success"] for r in logged if "success" in r]
