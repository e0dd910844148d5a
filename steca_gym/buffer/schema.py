"""The tables of a buffer, how a file is recognised as one, and how any string goes in and comes out.

Knows SQLite. Knows nothing of what the rows mean.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from steca_gym.errors import StorageError

SCHEMA_VERSION = 1

TABLES = (
    "trajectories",
    "steps",
    "step_rewards",
    "samples",
    "calibrations",
    "results",
    "decisions",
    "progress",
)

# Payload columns hold the whole object as JSON, so that fields without a column of their own survive.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS trajectories (
    trajectory_id TEXT, kind TEXT, round INTEGER, task_id TEXT, agent TEXT, score REAL, won INTEGER,
    num_steps INTEGER, payload TEXT, PRIMARY KEY (trajectory_id, kind, round)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS steps (
    trajectory_id TEXT, step INTEGER, source TEXT, trainable INTEGER, thought TEXT, action TEXT,
    observation TEXT, valid INTEGER, score REAL, PRIMARY KEY (trajectory_id, step)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS step_rewards (
    phase TEXT, expert_id TEXT, step INTEGER, expert_action TEXT, agent_action TEXT, verdict TEXT,
    expert_mean REAL, agent_mean REAL, note TEXT, PRIMARY KEY (phase, expert_id, step)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS samples (
    phase TEXT, expert_id TEXT, step INTEGER, arm TEXT, sample INTEGER, outcome REAL,
    PRIMARY KEY (phase, expert_id, step, arm, sample)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS calibrations (
    calibration_id TEXT PRIMARY KEY, phase TEXT, task_id TEXT, expert_id TEXT, step INTEGER, status TEXT,
    repaired INTEGER, reason TEXT, deviated_action TEXT, expert_action TEXT, reflection TEXT,
    reflection_source TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS results (
    phase TEXT, expert_id TEXT, payload TEXT, PRIMARY KEY (phase, expert_id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS decisions (
    number INTEGER PRIMARY KEY AUTOINCREMENT, at TEXT, calibration_id TEXT, decision TEXT, who TEXT,
    why TEXT);
CREATE TABLE IF NOT EXISTS progress (phase TEXT, key TEXT, PRIMARY KEY (phase, key)) WITHOUT ROWID;
CREATE TRIGGER IF NOT EXISTS decisions_are_kept BEFORE DELETE ON decisions
    BEGIN SELECT RAISE(ABORT, 'decisions are never deleted'); END;
CREATE TRIGGER IF NOT EXISTS decisions_stand BEFORE UPDATE ON decisions
    BEGIN SELECT RAISE(ABORT, 'decisions are never changed'); END;
"""


def check_is_buffer(db: sqlite3.Connection, path: Path) -> bool:
    """Whether the open file holds a buffer's tables; False for an empty file.

    Nothing is written, so that a file which is not ours stays as it was.

    Raises:
        StorageError: a SQLite file of something else, another schema version, or a damaged one.
        sqlite3.Error: not a SQLite file.
    """
    tables = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    if not tables and not version:
        return False
    missing = sorted(set(TABLES) - tables)
    if version != SCHEMA_VERSION and set(TABLES) & tables:
        raise StorageError(
            f"buffer {str(path)!r} has schema version {version}, expected {SCHEMA_VERSION}; open it with the "
            "version of steca-gym that made it, or choose another folder"
        )
    if missing:
        raise StorageError(
            f"{str(path)!r} is a SQLite file, but no buffer of a run (it lacks the table {missing[0]!r}, "
            f"schema version {version}, expected {SCHEMA_VERSION}); choose another folder"
        )
    found = str(db.execute("PRAGMA quick_check(1)").fetchone()[0])
    if found != "ok":
        raise StorageError(
            f"buffer {str(path)!r} is damaged ({found.splitlines()[0]}); restore a copy, or save what is "
            "readable with `sqlite3 FILE .recover`"
        )
    return True


def create_tables(db: sqlite3.Connection) -> None:
    """Make the tables inside the caller's transaction."""
    for statement in _statements(_SCHEMA):
        db.execute(statement)
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _statements(script: str) -> Iterator[str]:
    """Single statements of a script; ``executescript`` would commit the open transaction."""
    part = ""
    for line in script.splitlines(keepends=True):
        part += line
        if sqlite3.complete_statement(part):
            yield part
            part = ""


def to_cell(value: Any) -> Any:
    """A value as SQLite takes it: text with lone surrogates, which models can write, goes in as bytes."""
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            return value.encode("utf-8", "surrogatepass")
    return value


def from_cell(value: Any) -> Any:
    """What ``to_cell`` was given."""
    return value.decode("utf-8", "surrogatepass") if isinstance(value, bytes) else value


def explain(error: BaseException) -> str:
    """What to do about an error of SQLite or the file system: one clause."""
    text = str(error).lower()
    if "locked" in text or "busy" in text:
        return "another process is writing it: wait for it or stop it, then run the same command again"
    if "readonly" in text or "permission" in text or "unable to open" in text:
        return "make the folder writable, or choose another one"
    if "malformed" in text or "not a database" in text:
        return "expected a buffer of a run; choose another folder, or restore a copy"
    return "nothing committed before is lost: free space and run the same command again"
