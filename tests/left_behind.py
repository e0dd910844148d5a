"""What a killed command has left in its folder, read without changing it; see ``tests/killing.py``."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TABLES = ("trajectories", "steps", "step_rewards", "samples", "calibrations", "results", "progress")
Row = tuple[Any, ...]
_MADE = re.compile(rb'"made":"[^"]*"')


def tables(folder: Path, *, costs: bool = True) -> dict[str, list[Row]]:
    """The rows of a run's buffer, sorted; raises sqlite3.Error where it is damaged.

    ``costs``: with the continuations, steps and tokens that were spent on each result. A race asks for some
    continuations that are not needed after all; how many depends on what else is under way.
    """
    with contextlib.closing(sqlite3.connect(folder / "buffer.sqlite")) as db:
        found = {name: sorted(db.execute(f"SELECT * FROM {name}").fetchall(), key=repr) for name in TABLES}
    if not costs:
        found["results"] = [(*row[:2], _without_costs(row[2])) for row in found["results"]]
    return found


def _without_costs(payload: str) -> str:
    result = json.loads(payload)
    for counter in ("num_samples", "num_env_steps", "num_sampled_tokens"):
        del result["counts"][counter]
    return json.dumps(result, sort_keys=True)


def rows_seen(folder: Path) -> set[Row]:
    """The rows that a reader of the buffer sees now, whoever is writing; changes nothing in the folder."""
    file = folder / "buffer.sqlite"
    if not file.exists():
        return set()
    with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as db:
        names = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        return {(name, *row) for name in TABLES if name in names for row in db.execute(f"SELECT * FROM {name}")}


def rows_left(folder: Path) -> tuple[set[Row], bool]:
    """The rows in a killed command's buffer, and whether it is sound; read from a copy, so that nothing is repaired."""
    copy = folder.with_name(f"{folder.name}.copy")
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    for name in ("buffer.sqlite", "buffer.sqlite-wal"):
        if (folder / name).exists():
            shutil.copy2(folder / name, copy / name)
    if not (copy / "buffer.sqlite").exists():
        return set(), True
    with contextlib.closing(sqlite3.connect(copy / "buffer.sqlite")) as db:
        sound = db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    return rows_seen(copy), sound


def evaluation(folder: Path) -> dict[str, Any]:
    """A run's evaluation without its cost: what was played twice was paid twice."""
    report: dict[str, Any] = json.loads((folder / "evaluation.json").read_text())
    report.pop("cost")
    return report


def contents(folder: Path, *, leave_out: Sequence[str] = ("run.lock",)) -> dict[str, bytes]:
    """All files by their path in the folder, without the time at which a report was made."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in leave_out)
    return {p.relative_to(folder).as_posix(): _MADE.sub(b"", p.read_bytes()) for p in paths}


def is_temporary(name: str) -> bool:
    """Whether a path is one of a write under way."""
    return any(part.endswith((".part", ".old")) for part in Path(name).parts)


def loads(model: Path) -> bool:
    """Whether transformers loads a model folder, with every weight in it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from steca_gym.runs.quiet import no_progress_bars

    no_progress_bars()
    try:
        AutoTokenizer.from_pretrained(str(model), trust_remote_code=False)
        _, info = AutoModelForCausalLM.from_pretrained(str(model), output_loading_info=True, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError):
        return False
    return not info["missing_keys"] and not info["unexpected_keys"]
