"""Save what can still be read of a damaged buffer into a new one.

SQLite stops a query at the first page that it cannot read. So each table is read from both ends, and then from every
key that some other table or index still names. Trajectories and results hold the whole objects; the tables of steps,
step rewards, samples and calibrations are made again from them, so that a damaged page there loses nothing. Where the
first page of the file is damaged, that of a new buffer takes its place: the tables of every buffer begin on the same
pages.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import string
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steca_gym.buffer.decisions import Decision, verify_trail
from steca_gym.buffer.lines import read_result
from steca_gym.buffer.schema import TABLES, check_is_buffer, from_cell, to_cell
from steca_gym.buffer.store import CalibrationBuffer
from steca_gym.errors import DataError, StecaError
from steca_gym.trajectory import from_json

SUFFIXES = ("", "-wal", "-shm")
"""of the files that make up a buffer"""

_TRAJECTORY = ("trajectory_id", "kind", "round", "payload", "split")
_DECISION = ("number", "at", "calibration_id", "decision", "who", "why", "before", "after", "previous", "digest")


@dataclass(slots=True)
class Salvage:
    """What was saved, and what is gone."""

    num_trajectories: int = 0
    num_results: int = 0
    num_decisions: int = 0
    unreadable: dict[str, int] = field(default_factory=dict)
    """places in each table at which reading broke off, and rows that hold no object; how many rows lay there is unknown
    unless something else names them"""
    named_and_gone: dict[str, int] = field(default_factory=dict)
    """rows that an index or a mark names and that could not be read, by table"""
    replayed: dict[str, int] = field(default_factory=dict)
    """pieces of work, by stage, whose mark was taken off, so that the same command plays them again"""
    is_readable: bool = True
    """False: not even the tables could be found"""
    trail: str = ""
    """what is wrong with the audit trail; empty: it is whole"""


def find_damage(path: Path) -> str:
    """What is wrong with a buffer, in one clause; empty for a sound one.

    Every page and every stored object is read, on a private copy.
    """
    with tempfile.TemporaryDirectory(prefix="steca-repair-") as scratch:
        copy = _copy(path, Path(scratch))
        try:
            with contextlib.closing(sqlite3.connect(copy)) as db:
                if check_is_buffer(db, path) is None:
                    return "the file is empty" if path.stat().st_size == 0 else "it holds no table"
                found = str(db.execute("PRAGMA integrity_check(1)").fetchone()[0])
            if found != "ok":
                return found.splitlines()[0]
            with CalibrationBuffer(copy, read_only=True) as buffer:
                for _ in buffer.iter_trajectories():
                    pass
                for _ in buffer.iter_results():
                    pass
                verify_trail(buffer.decisions())
        except (sqlite3.Error, StecaError) as error:
            return str(error).replace(str(copy), str(path))
    return ""


def salvage(path: Path, target: Path) -> Salvage:
    """Write what is readable of the buffer at ``path`` into a new buffer at ``target``; changes nothing at ``path``.

    Marks of finished work are kept where the work itself is there: a calibration's where its result is, those of
    episodes where every trajectory could be read. All others are taken off.

    Raises:
        StorageError: the target cannot be written, or ``path`` was written by a newer version.
    """
    found = Salvage()
    with tempfile.TemporaryDirectory(prefix="steca-repair-") as scratch, CalibrationBuffer(target) as new:
        db = _open(_copy(path, Path(scratch)), Path(scratch))
        if db is None:
            found.is_readable = False
            found.unreadable = dict.fromkeys(("trajectories", "results", "decisions", "progress"), 1)
            return found
        with contextlib.closing(db):
            marks = [(str(p), str(k)) for p, k in _Reader(db, found).rows("progress", ("phase", "key"), 2)]
            _save_trajectories(db, new, found)
            saved = _save_results(db, new, found, marks)
            _save_decisions(db, new, found)
            _save_marks(new, found, marks, saved)
    return found


def _copy(path: Path, scratch: Path) -> Path:
    copy = scratch / path.name
    for suffix in SUFFIXES[:2]:  # the shared memory is made anew from the log
        file = path.with_name(path.name + suffix)
        if file.is_file():
            shutil.copyfile(file, copy.with_name(copy.name + suffix))
    return copy


def _open(copy: Path, scratch: Path) -> sqlite3.Connection | None:
    """Open a damaged file; None where not even the tables can be found."""
    for with_new_first_page in (False, True):
        if with_new_first_page:
            _replace_first_page(copy, scratch)
        db = sqlite3.connect(copy, isolation_level=None)
        try:
            tables = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if set(TABLES) <= tables:
                db.execute("PRAGMA query_only=1")
                return db
        except sqlite3.Error:
            pass
        db.close()
    return None


def _replace_first_page(copy: Path, scratch: Path) -> None:
    """Put the first page of a new buffer, with the number of pages of this file, in place of a damaged one."""
    fresh = scratch / "fresh.sqlite"
    with CalibrationBuffer(fresh):
        pass
    page = bytearray(fresh.read_bytes()[:4096])
    content = copy.read_bytes()
    page[28:32] = (len(content) // len(page)).to_bytes(4, "big")
    page[32:40] = bytes(8)  # no list of free pages
    copy.write_bytes(bytes(page) + content[len(page) :])


class _Reader:
    """Reads a table past damaged pages."""

    def __init__(self, db: sqlite3.Connection, found: Salvage) -> None:
        self._db, self._found = db, found

    def rows(
        self, table: str, columns: Sequence[str], num_keys: int, named: Iterable[Sequence[Any]] = ()
    ) -> list[tuple[Any, ...]]:
        """The readable rows; the first ``num_keys`` columns are the key. ``named``: keys known from elsewhere."""
        rows: dict[tuple[Any, ...], tuple[Any, ...]] = {}
        key, wanted = columns[:num_keys], [tuple(k) for k in named]
        end = self._scan(rows, table, columns, key, "ASC")
        if end is not None:
            broken = [end, self._scan(rows, table, columns, key, "DESC")]
            for start in [*wanted, *_guesses(num_keys, rows)]:
                if start not in rows:
                    broken.append(self._scan(rows, table, columns, key, "ASC", start))
            self._found.unreadable[table] = len(set(broken) - {None})
            gone = sum(k not in rows for k in set(wanted))
            if gone:
                self._found.named_and_gone[table] = gone
        return [tuple(map(from_cell, rows[k])) for k in sorted(rows, key=repr)]

    def _scan(
        self,
        rows: dict[tuple[Any, ...], tuple[Any, ...]],
        table: str,
        columns: Sequence[str],
        key: Sequence[str],
        order: str,
        start: tuple[Any, ...] = (),
    ) -> tuple[Any, ...] | None:
        """Read on until the end, a row that is known, or a page that cannot be read: then the last key before it."""
        clause = f"WHERE ({', '.join(key)}) >= ({', '.join('?' * len(start))})" if start else ""
        by = ", ".join(f"{name} {order}" for name in key)
        last: tuple[Any, ...] = ("",)
        try:
            query = f"SELECT {', '.join(columns)} FROM {table} {clause} ORDER BY {by}"
            for row in self._db.execute(query, tuple(map(to_cell, start))):
                last = row[: len(key)]
                if last in rows:
                    return None
                rows[last] = row
        except sqlite3.Error:
            return last
        return None


def _guesses(num_keys: int, rows: Iterable[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    """Places to go on from between the keys that are known: ids are hexadecimal, numbers count from 1."""
    heads = sorted({row[:-1] for row in rows}, key=repr) if num_keys == 2 else [()]
    for head in heads:
        for first in string.hexdigits[:16]:
            for second in string.hexdigits[:16]:
                yield (*head, first + second, *(("", -1) if num_keys == 3 else ()))


def _save_trajectories(db: sqlite3.Connection, new: CalibrationBuffer, found: Salvage) -> None:
    named: list[tuple[Any, ...]] = []
    with contextlib.suppress(sqlite3.Error):
        index = "trajectories INDEXED BY trajectories_by_task ORDER BY kind, task_id"
        named.extend(db.execute(f"SELECT trajectory_id, kind, round FROM {index}"))
    columns = _TRAJECTORY if _has(db, "trajectories", "split") else _TRAJECTORY[:4]
    for row in _Reader(db, found).rows("trajectories", columns, 3, named):
        name, kind, round_index, payload, split = (*row, "")[:5]
        try:
            trajectory = from_json(payload)
            if trajectory.with_id().trajectory_id != name:
                raise DataError("its content does not fit its id")
            new.add_trajectories([trajectory], kind=str(kind), round_index=int(round_index), split=str(split or ""))
            found.num_trajectories += 1
        except (DataError, TypeError, ValueError):
            found.unreadable["trajectories"] = found.unreadable.get("trajectories", 0) + 1


def _save_results(
    db: sqlite3.Connection, new: CalibrationBuffer, found: Salvage, marks: Sequence[tuple[str, str]]
) -> set[tuple[str, str]]:
    saved: set[tuple[str, str]] = set()
    calibrated = set()
    with contextlib.suppress(sqlite3.Error):
        calibrated = {(str(p), str(e)) for p, e in db.execute("SELECT DISTINCT phase, expert_id FROM step_rewards")}
    phases = {phase for phase, _ in calibrated}
    named = sorted(calibrated | {m for m in marks if m[0] in phases})
    for phase, expert_id, payload in _Reader(db, found).rows("results", ("phase", "expert_id", "payload"), 2, named):
        try:
            new.add_result(read_result(payload), phase=str(phase))
            saved.add((str(phase), str(expert_id)))
        except (DataError, TypeError, ValueError):
            found.unreadable["results"] = found.unreadable.get("results", 0) + 1
    found.num_results = len(saved)
    return saved


def _save_decisions(db: sqlite3.Connection, new: CalibrationBuffer, found: Salvage) -> None:
    if not _has(db, "decisions", "digest"):
        return  # of a version whose decisions were not chained: it is migrated when it opens
    rows = _Reader(db, found).rows("decisions", _DECISION, 1, [(n,) for n in range(1, 10_000)])
    entries = [Decision(**dict(zip(_DECISION[1:], row[1:], strict=True))) for row in rows]
    new.keep_decisions(entries)
    found.num_decisions = len(entries)
    try:
        verify_trail(entries)
    except DataError as error:
        found.trail = str(error).partition("; restore")[0]


def _save_marks(
    new: CalibrationBuffer, found: Salvage, marks: Sequence[tuple[str, str]], saved: set[tuple[str, str]]
) -> None:
    whole = "trajectories" not in found.unreadable
    with_results = {phase for phase, _ in saved}
    lost_results = "results" in found.unreadable
    for phase, key in marks:
        is_there = (phase, key) in saved or (whole and phase not in with_results and not lost_results)
        if is_there:
            new.mark_done(phase, [key])
        else:
            found.replayed[phase] = found.replayed.get(phase, 0) + 1


def _has(db: sqlite3.Connection, table: str, column: str) -> bool:
    try:
        return any(row[1] == column for row in db.execute(f"PRAGMA table_info({table})"))
    except sqlite3.Error:
        return False


__all__ = ["SUFFIXES", "Salvage", "find_damage", "salvage"]
