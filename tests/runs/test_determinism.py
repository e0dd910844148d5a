"""One command again: under another hash seed, with other threads, batches and executors; docs/determinism.md."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steca_gym.runs.state import SharedStages
from tests.runs.test_runner import CONF, TINY

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "determinism.md"
RUN = [
    *(t for t in TINY if not t.startswith("preset.step_rewards.num_samples")),
    "preset.step_rewards.num_samples=2",
    "agent.warm_up.max_steps=8",
    "agent.warm_up.num_epochs=null",
    "exploration.num_experts=3",
    "env.num_eval_tasks=3",
]


def play(folder: Path, *overrides: str, **environment: str) -> dict[str, Any]:
    """What a run in a process of its own has left: digests of its trajectories, its results and its weights."""
    env = {**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "2", **environment}
    script = (
        "import sys, torch, os; torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']));"
        "from steca_gym.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, "run", *CONF, *RUN, "method=steca", f"run_dir={folder}", *overrides]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    files = sorted(folder.glob("*/model.safetensors"))
    if "until=warm_up" in overrides:
        return {"files": files}
    with sqlite3.connect(folder / "buffer.sqlite") as db:
        queries = {
            "trajectories": "SELECT kind, round, payload FROM trajectories",
            "results": "SELECT phase, payload FROM results",
        }
        held = {name: sorted(map(repr, db.execute(query))) for name, query in queries.items()}
    assert len(held["trajectories"]) > 6 and len(held["results"]) >= 3
    report = json.loads((folder / "evaluation.json").read_text())
    left: dict[str, Any] = {name: hashlib.sha256("\n".join(rows).encode()).hexdigest() for name, rows in held.items()}
    left["games"] = report["games"]
    for weights in files:
        left[weights.parent.name] = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert len(left) >= 5, left
    return {**left, "files": files}


def digests(left: dict[str, Any]) -> dict[str, Any]:
    """What must be equal, without the places of the files."""
    return {name: value for name, value in left.items() if name != "files"}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return play(tmp_path_factory.mktemp("first") / "run")


@pytest.mark.slow
def test_hash_seeds_executors_batches_and_kernel_threads_change_nothing(first: dict[str, Any], tmp_path: Path) -> None:
    """All at once: where they are equal together, each of them alone changes nothing."""
    changed = ["executor=processes", "executor.num_workers=2", "collector.num_envs=3"]
    left = play(tmp_path / "run", *changed, PYTHONHASHSEED="12345", NUMBA_NUM_THREADS="1")
    assert digests(left) == digests(first)


@pytest.mark.slow
def test_other_numbers_of_torch_threads_give_nearly_the_same_weights(first: dict[str, Any], tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    left = play(tmp_path / "run", "until=warm_up", OMP_NUM_THREADS="2")
    (folder,) = {path.parent.name for path in left["files"]}
    mine, theirs = (load_file(next(f for f in d["files"] if f.parent.name == folder)) for d in (left, first))
    assert all(np.allclose(mine[name], theirs[name], atol=1e-5) for name in theirs)


def test_what_was_measured_once_is_kept(tmp_path: Path) -> None:
    runs = [SharedStages(tmp_path / name, tmp_path) for name in ("a", "b")]
    of = {"model": "m", "dtype": "auto"}
    assert runs[0].decided("engine-dtype", of) is None
    assert runs[0].decided("engine-dtype", of, "bfloat16") == "bfloat16"
    assert runs[1].decided("engine-dtype", of, "float32") == "bfloat16"
    assert runs[1].decided("engine-dtype", {**of, "model": "other"}, "float32") == "float32"


def test_the_page_names_tests_that_exist() -> None:
    rows = [
        line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ") and "---" not in line
    ]
    assert len(rows) > 12
    for row in rows[1:]:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)
        assert named or "not tested" in row, row
        for file, test in named:
            assert re.search(rf"^ *def {test}\(", (ROOT / file).read_text(encoding="utf-8"), re.M), f"{file}::{test}"
