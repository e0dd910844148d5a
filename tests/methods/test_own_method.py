"""``docs/your-own-method.md`` holds a method that works as it stands."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs.test_runner import CONF, TINY

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "your-own-method.md").read_text(encoding="utf-8")


def block(kind: str) -> str:
    (found,) = re.findall(rf"^```{kind}\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)
    return found


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    (folder / "method").mkdir(parents=True)
    (folder / "best_of_n.py").write_text(block("python"), encoding="utf-8")
    (folder / "method" / "best_of_n.yaml").write_text(block("yaml"), encoding="utf-8")
    # Hydra takes one folder of the user's: the tests' world is put beside the method.
    (folder / "env").symlink_to(Path(CONF[1]) / "env")
    return folder


def steca(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    code = "import sys; from steca_gym.cli import main; sys.exit(main())"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code, *args], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_the_method_of_the_guide_trains_and_is_evaluated(mine: Path, tmp_path: Path) -> None:
    # The untrained model wins nothing; what is tested here is that the method's own stages are played.
    small = [*TINY, "agent.warm_up.num_epochs=1", f"run_dir={tmp_path / 'run'}"]
    chosen = ["--config-dir", str(mine), "method=best_of_n:BestOfN", "method.num_samples=1"]
    done = steca("run", *chosen, *small, cwd=tmp_path)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["method"] == "best_of_n:BestOfN"
    assert list(record["stages"]) in (
        ["demonstrations", "warm_up", "own_episodes"],
        ["demonstrations", "warm_up", "own_episodes", "train"],
    )
    assert record["stages"]["own_episodes"]["result"]["num_episodes"] == 8
    if "train" in record["stages"]:
        assert done.returncode == 0 and record["stages"]["train"]["result"]["num_best"] >= 1
    else:
        assert done.returncode == 3 and "no sampled episode was won" in done.stderr


@pytest.mark.slow
def test_its_settings_are_checked_at_the_start(mine: Path, tmp_path: Path) -> None:
    command = ["run", "--config-dir", str(mine), "env=corridor", f"run_dir={tmp_path / 'run'}"]
    for extra, words in (
        (["method=best_of_n:BestOfN", "method.num_sample=1"], "'method.num_sample'; did you mean 'method.num_samples'"),
        (["method=best_of_n", "method.num_samples=0"], "num_samples must be >= 1, got 0"),
        (["method=best_of_n", "method.num_samples=many"], "method.num_samples must be a whole number, got 'many'"),
        (["method=best_of_n:BestOfM"], "did you mean 'BestOfN'"),
        (["method=nowhere:Method"], "cannot import method 'nowhere:Method'"),
    ):
        done = steca(*command, *extra, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        (line,) = [x for x in done.stderr.splitlines() if x.startswith("steca: ")]
        assert words in line, line
    assert not (tmp_path / "run" / "buffer.sqlite").exists()
