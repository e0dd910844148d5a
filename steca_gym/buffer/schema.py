"""The tables of a buffer, how a file is recognised as one, and how any text is stored in a cell."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from steca_gym.errors import StorageError

SCHEMA_VERSION = 3
"""2: columns ``split`` and ``content_key`` of ``trajectories``, and an index by task; 3: ``decisions`` are chained"""

_OLDEST = 1
_MAX_CHECKED_BYTES = 256 << 20
"""a larger file is not read through at opening; damage is reported by the query that meets it"""

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

# Payload columns hold the whole object as JSON, so that fields without a column are kept too.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS trajectories (
    trajectory_id TEXT, kind TEXT, round INTEGER, task_id TEXT, agent TEXT, score REAL, won INTEGER,
    num_steps INTEGER, payload TEXT, split TEXT DEFAULT '', content_key TEXT DEFAULT '',
    PRIMARY KEY (trajectory_id, kind, round)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS trajectories_by_task ON trajectories (kind, task_id, trajectory_id, round);
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
    why TEXT, before TEXT DEFAULT '', after TEXT DEFAULT '', previous TEXT DEFAULT '', digest TEXT DEFAULT '');
CREATE TABLE IF NOT EXISTS progress (phase TEXT, key TEXT, PRIMARY KEY (phase, key)) WITHOUT ROWID;
CREATE TRIGGER IF NOT EXISTS decisions_are_kept BEFORE DELETE ON decisions
    BEGIN SELECT RAISE(ABORT, 'decisions are never deleted'); END;
CREATE TRIGGER IF NOT EXISTS decisions_stand BEFORE UPDATE ON decisions
    BEGIN SELECT RAISE(ABORT, 'decisions are never changed'); END;
"""


def check_is_buffer(db: sqlite3.Connection, path: Path) -> int | None:
    """The schema version of the open file; None for an empty file.

    Writes nothing, so that a file of another program stays as it was.

    Raises:
        StorageError: a SQLite file of another program, a schema version that this one cannot read, or a damaged file.
        sqlite3.Error: not a SQLite file.
    """
    tables = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    if not tables and not version:
        return None
    missing = sorted(set(TABLES) - tables)
    if not _OLDEST <= version <= SCHEMA_VERSION and set(TABLES) & tables:
        raise StorageError(
            f"buffer {str(path)!r} has schema version {version}, expected {_OLDEST} to {SCHEMA_VERSION}; open it with "
            "the version of steca-gym that wrote it, or choose another folder"
        )
    if missing:
        raise StorageError(
            f"{str(path)!r} is a SQLite file but not the buffer of a run (the table {missing[0]!r} is missing, schema "
            f"version {version}, expected {_OLDEST} to {SCHEMA_VERSION}); choose another folder"
        )
    num_bytes = db.execute("PRAGMA page_count").fetchone()[0] * db.execute("PRAGMA page_size").fetchone()[0]
    found = "ok" if num_bytes > _MAX_CHECKED_BYTES else str(db.execute("PRAGMA quick_check(1)").fetchone()[0])
    if found != "ok":
        raise StorageError(
            f"buffer {str(path)!r} is damaged ({found.splitlines()[0]}); restore a copy, or save what is "
            "readable with `steca repair RUN`"
        )
    return version


def create_tables(db: sqlite3.Connection) -> None:
    """Create the tables inside the caller's transaction."""
    for statement in _statements(_SCHEMA):
        db.execute(statement)
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def migrate(db: sqlite3.Connection, version: int) -> None:
    """Bring the tables of an earlier schema version to today's, inside the caller's transaction."""
    if version < 2:
        db.execute("ALTER TABLE trajectories ADD COLUMN split TEXT DEFAULT ''")
        db.execute("ALTER TABLE trajectories ADD COLUMN content_key TEXT DEFAULT ''")
    if version < 3:
        _chain_decisions(db)
    create_tables(db)  # what exists stays


def _chain_decisions(db: sqlite3.Connection) -> None:
    """Give the decisions of an earlier version their place in the chain."""
    from steca_gym.buffer.decisions import insert_decision, seal_rows

    names = ("at", "calibration_id", "decision", "who", "why")
    rows = db.execute(f"SELECT {', '.join(names)} FROM decisions ORDER BY number").fetchall()
    db.execute("DROP TABLE decisions")  # with its triggers; created again below
    create_tables(db)
    for entry in seal_rows(dict(zip(names, map(from_cell, row), strict=True)) for row in rows):
        insert_decision(db, entry)


def _statements(script: str) -> Iterator[str]:
    """The single statements of a script; ``executescript`` would commit the open transaction."""
    part = ""
    for line in script.splitlines(keepends=True):
        part += line
        if sqlite3.complete_statement(part):
            yield part
            part = ""


def to_cell(value: Any) -> Any:
    """A value as SQLite takes it; text with lone surrogates, which a model can write, is stored as bytes."""
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            return value.encode("utf-8", "surrogatepass")
    return value


def from_cell(value: Any) -> Any:
    """The value that ``to_cell`` was given."""
    return value.decode("utf-8", "surrogatepass") if isinstance(value, bytes) else value


def explain(error: BaseException) -> str:
    """What to do about an error of SQLite or of the file system, as one clause."""
    text = str(error).lower()
    if "locked" in text or "busy" in text:
        return "another process is writing to it: wait for it or stop it, then run the same command again"
    if "readonly" in text or "permission" in text or "unable to open" in text:
        return "make the folder writable, or choose another one"
    if "malformed" in text or "not a database" in text:
        return "expected a buffer of a run: save what is readable with `steca repair RUN`, or restore a copy"
    return "what was committed is kept: free space and run the same command again"
