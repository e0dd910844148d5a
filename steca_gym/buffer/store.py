"""CalibrationBuffer: the durable store of a run, and the record of who decided what.

Knows transactions, queries and exports. Knows no phase and no training: what a unit of work produced is committed
in one transaction together with the mark that it is done, so a run killed at any moment goes on without loss or
duplicates.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from steca_gym.buffer.export import object_line, write_lines, write_tables
from steca_gym.buffer.schema import check_is_buffer, create_tables, explain, from_cell, to_cell
from steca_gym.calibration.records import Calibration, ExpertResult, result_from_json, result_to_json
from steca_gym.errors import DataError, StorageError
from steca_gym.trajectory import Trajectory, from_json, to_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One entry of the audit trail."""

    at: str
    """UTC, ISO 8601"""
    calibration_id: str
    decision: Literal["approved", "refused"]
    who: str
    why: str


class CalibrationBuffer:
    """A SQLite file in WAL mode; several processes may read while one writes.

    Args:
        path: the file; made where it does not exist.

    Raises:
        StorageError: a full disk, a file that is not a buffer, or one of another schema version.
    """

    def __init__(self, path: Path) -> None:
        """Open or make the file."""
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=30.0, isolation_level=None)
        except (sqlite3.Error, OSError) as error:
            raise StorageError(f"cannot open buffer {str(path)!r}: {error}; {explain(error)}") from error
        try:
            known = check_is_buffer(self._db, path)
            self._db.execute("PRAGMA journal_mode=WAL")
            # A killed process loses nothing that was committed; a power cut may lose the last commits, whole.
            self._db.execute("PRAGMA synchronous=NORMAL")
            if not known:
                with self._writing():
                    create_tables(self._db)
        except sqlite3.Error as error:
            self._db.close()
            raise StorageError(f"cannot open buffer {str(path)!r}: {error}; {explain(error)}") from error
        except StorageError:
            self._db.close()
            raise

    def close(self) -> None:
        """Close the file; what was committed stays."""
        self._db.close()

    def __enter__(self) -> CalibrationBuffer:
        """Return the open buffer."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Close the file."""
        self.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction: all or nothing."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except (sqlite3.Error, OSError) as error:
            self._rollback()
            raise StorageError(f"cannot write buffer {str(self.path)!r}: {error}; {explain(error)}") from error
        except BaseException:
            self._rollback()
            raise

    def _insert(self, verb: str, table: str, *rows: Sequence[Any]) -> int:
        """Insert rows; returns how many were new."""
        if not rows:
            return 0
        marks = ",".join("?" * len(rows[0]))
        sql = f"INSERT OR {verb} INTO {table} VALUES ({marks})"
        return self._db.executemany(sql, [tuple(map(to_cell, row)) for row in rows]).rowcount

    def _rows(self, sql: str, *args: Any) -> list[tuple[Any, ...]]:
        """Rows of a query, with texts as they were given."""
        try:
            found = self._db.execute(sql, tuple(map(to_cell, args))).fetchall()
        except (sqlite3.Error, OSError) as error:
            raise StorageError(f"cannot read buffer {str(self.path)!r}: {error}; {explain(error)}") from error
        return [tuple(map(from_cell, row)) for row in found]

    def _rollback(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self._db.execute("ROLLBACK")

    # -- trajectories ---------------------------------------------------------------------------------------

    def add_trajectories(
        self,
        trajectories: Sequence[Trajectory],
        *,
        kind: str,
        round_index: int = 0,
        done: tuple[str, Iterable[str]] | None = None,
    ) -> int:
        """Store trajectories under a kind; the same content twice is stored once.

        Args:
            trajectories: ids are given where they are missing.
            kind: e.g. "expert", "own", "evaluation".
            round_index: of an iterated run.
            done: (phase, keys) to mark in the same transaction.

        Returns:
            How many were new.
        """
        new = 0
        with self._writing():
            for given in trajectories:
                t = given.with_id()
                row = (
                    t.trajectory_id,
                    kind,
                    round_index,
                    t.task_id,
                    t.agent,
                    t.score,
                    t.won,
                    len(t),
                    to_json(t),
                )
                new += self._insert("IGNORE", "trajectories", row)
                self._insert(
                    "IGNORE",
                    "steps",
                    *(
                        (
                            t.trajectory_id,
                            i,
                            s.source,
                            s.trainable,
                            s.thought,
                            s.action,
                            s.observation,
                            s.valid,
                            s.score,
                        )
                        for i, s in enumerate(t.steps)
                    ),
                )
            if done is not None:
                self._mark(done[0], done[1])
        return new

    def trajectories(self, *, kind: str, round_index: int | None = None) -> list[Trajectory]:
        """Trajectories of a kind (of all rounds, each once, by default), ordered by task and id."""
        where, args = ("", ()) if round_index is None else (" AND round = ?", (round_index,))
        sql = f"SELECT payload FROM trajectories WHERE kind = ?{where} GROUP BY trajectory_id"
        rows = self._rows(sql + " ORDER BY task_id, trajectory_id", kind, *args)
        return [from_json(row[0]) for row in rows]

    def used_task_ids(self, *, apart_from: Iterable[str] = ("evaluation",)) -> set[str]:
        """Games of everything stored, but for the kinds named: what an evaluation has to stay away from."""
        kept = set(apart_from)
        used = {
            task for task, kind in self._rows("SELECT DISTINCT task_id, kind FROM trajectories") if kind not in kept
        }
        return used | {row[0] for row in self._rows("SELECT DISTINCT task_id FROM calibrations")}

    # -- calibration ----------------------------------------------------------------------------------------

    def add_result(self, result: ExpertResult, *, phase: str) -> None:
        """Store everything that came of one expert trajectory, and that it is done, in one transaction.

        A second result of the same phase and expert trajectory takes the place of the first, whole.
        """
        key = (phase, result.expert_id)
        with self._writing():
            for table in ("results", "step_rewards", "samples", "calibrations"):
                self._db.execute(f"DELETE FROM {table} WHERE phase = ? AND expert_id = ?", tuple(map(to_cell, key)))
            self._insert("REPLACE", "results", (*key, result_to_json(result)))
            for v in result.verdicts:
                means = [e.mean if e is not None else None for e in (v.expert_reward, v.agent_reward)]
                row = (*key, v.step, v.expert_action, v.agent_action, v.verdict, *means, v.note)
                self._insert("REPLACE", "step_rewards", row)
                for arm, estimate in (("expert", v.expert_reward), ("agent", v.agent_reward)):
                    outcomes = estimate.outcomes if estimate is not None else ()
                    samples = [(*key, v.step, arm, i, outcome) for i, outcome in enumerate(outcomes)]
                    self._insert("REPLACE", "samples", *samples)
            for c in result.calibrations:
                about = (
                    c.calibration_id,
                    phase,
                    c.task_id,
                    c.expert_id,
                    c.step,
                    c.status,
                    c.repaired,
                    c.reason,
                )
                turn = (c.deviated.action, c.expert_action, c.reflection.text, c.reflection.source)
                self._insert("REPLACE", "calibrations", (*about, *turn))
            self._mark(phase, [result.expert_id])

    def results(self, phase: str) -> list[ExpertResult]:
        """Results of a calibration phase, ordered by expert trajectory."""
        rows = self._rows("SELECT payload FROM results WHERE phase = ? ORDER BY expert_id", phase)
        return [result_from_json(row[0]) for row in rows]

    def calibrations(self, *, status: str | None = None, approved: bool | None = None) -> list[Calibration]:
        """Calibrations of all phases, each once, with their evidence.

        Args:
            status: the executed verdict, "accepted" or "refused"; None: both.
            approved: True: a person's last word was an approval; False: a refusal; None: whatever was said.
        """
        rows = self._rows("SELECT payload FROM results ORDER BY phase, expert_id")
        found = {c.calibration_id: c for row in rows for c in result_from_json(row[0]).calibrations}
        last = self._last_decisions()
        word = {True: "approved", False: "refused"}.get(approved) if approved is not None else None
        return [c for c in found.values() if status in (None, c.status) and word in (None, last.get(c.calibration_id))]

    # -- decisions ------------------------------------------------------------------------------------------

    def decide(self, calibration_id: str, decision: Literal["approved", "refused"], *, who: str, why: str) -> Decision:
        """Record a person's decision; the last one on a calibration counts, all stay on record.

        Raises DataError for an unknown calibration or an anonymous decision.
        """
        if not who.strip():
            raise DataError("a decision needs who made it, got an empty name; pass who=...")
        if decision not in ("approved", "refused"):
            raise DataError(f"a decision is 'approved' or 'refused', got {decision!r}")
        if not self._rows("SELECT 1 FROM calibrations WHERE calibration_id = ?", calibration_id):
            raise DataError(f"no calibration {calibration_id!r} in {str(self.path)!r}; see the table calibrations")
        entry = Decision(
            at=datetime.now(UTC).isoformat(),
            calibration_id=calibration_id,
            decision=decision,
            who=who,
            why=why,
        )
        values = tuple(map(to_cell, asdict(entry).values()))
        with self._writing():
            self._db.execute(
                "INSERT INTO decisions (at, calibration_id, decision, who, why) VALUES (?,?,?,?,?)", values
            )
        return entry

    def decisions(self) -> list[Decision]:
        """The audit trail, oldest first."""
        rows = self._rows("SELECT at, calibration_id, decision, who, why FROM decisions ORDER BY number")
        return [Decision(at=r[0], calibration_id=r[1], decision=r[2], who=r[3], why=r[4]) for r in rows]

    def _last_decisions(self) -> dict[str, str]:
        return {d.calibration_id: d.decision for d in self.decisions()}

    def refused_ids(self) -> set[str]:
        """Calibrations whose last decision is a refusal."""
        return {calibration_id for calibration_id, word in self._last_decisions().items() if word == "refused"}

    # -- progress -------------------------------------------------------------------------------------------

    def _mark(self, phase: str, keys: Iterable[str]) -> None:
        self._insert("IGNORE", "progress", *((phase, key) for key in keys))

    def mark_done(self, phase: str, keys: Iterable[str]) -> None:
        """Mark units of work as done."""
        with self._writing():
            self._mark(phase, keys)

    def done(self, phase: str) -> set[str]:
        """Units of work of a phase that are done."""
        return {row[0] for row in self._rows("SELECT key FROM progress WHERE phase = ?", phase)}

    # -- export ---------------------------------------------------------------------------------------------

    def export_jsonl(self, folder: Path) -> list[Path]:
        """Write ``trajectories``, ``results`` and ``decisions`` as JSON lines; returns the files."""
        stored = self._rows("SELECT kind, round, payload FROM trajectories ORDER BY kind, round, trajectory_id")
        results = self._rows("SELECT phase, payload FROM results ORDER BY phase, expert_id")
        lines = {
            "trajectories": [object_line({"kind": k, "round": r}, payload) for k, r, payload in stored],
            "results": [object_line({"phase": phase}, payload) for phase, payload in results],
            "decisions": [json.dumps(asdict(d), ensure_ascii=False) for d in self.decisions()],
        }
        return [write_lines(folder / f"{name}.jsonl", rows) for name, rows in lines.items()]

    def export_parquet(self, folder: Path) -> list[Path]:
        """Write every table as ``TABLE.parquet``, which ``datasets.load_dataset("parquet", ...)`` reads."""
        try:
            return write_tables(self._db, folder)
        except sqlite3.Error as error:
            raise StorageError(f"cannot read buffer {str(self.path)!r}: {error}; {explain(error)}") from error
