"""CalibrationBuffer: the durable store of a run, and the record of who decided what.

Knows tables, transactions and exports. Knows no phase and no training: what a unit of work produced is committed in one
transaction together with the mark that it is done, so a run killed at any moment goes on without loss or duplicates.
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

from steca_gym.calibration.records import Calibration, ExpertResult, result_from_json, result_to_json
from steca_gym.errors import DataError, StorageError
from steca_gym.trajectory import Trajectory, from_json, to_json

SCHEMA_VERSION = 1

_SCHEMA = """
CREATE TABLE IF NOT EXISTS trajectories (
    trajectory_id TEXT, kind TEXT, round INTEGER, task_id TEXT, agent TEXT, score REAL, won INTEGER,
    num_steps INTEGER, payload TEXT, PRIMARY KEY (trajectory_id, kind, round)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS steps (
    trajectory_id TEXT, step INTEGER, source TEXT, trainable INTEGER, thought TEXT, action TEXT, observation TEXT,
    valid INTEGER, score REAL, PRIMARY KEY (trajectory_id, step)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS step_rewards (
    phase TEXT, expert_id TEXT, step INTEGER, expert_action TEXT, agent_action TEXT, verdict TEXT,
    expert_mean REAL, agent_mean REAL, note TEXT, PRIMARY KEY (phase, expert_id, step)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS samples (
    phase TEXT, expert_id TEXT, step INTEGER, arm TEXT, sample INTEGER, outcome REAL,
    PRIMARY KEY (phase, expert_id, step, arm, sample)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS calibrations (
    calibration_id TEXT PRIMARY KEY, phase TEXT, task_id TEXT, expert_id TEXT, step INTEGER, status TEXT, repaired INTEGER,
    reason TEXT, deviated_action TEXT, expert_action TEXT, reflection TEXT, reflection_source TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS results (
    phase TEXT, expert_id TEXT, payload TEXT, PRIMARY KEY (phase, expert_id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS decisions (
    number INTEGER PRIMARY KEY AUTOINCREMENT, at TEXT, calibration_id TEXT, decision TEXT, who TEXT, why TEXT);
CREATE TABLE IF NOT EXISTS progress (phase TEXT, key TEXT, PRIMARY KEY (phase, key)) WITHOUT ROWID;
CREATE TRIGGER IF NOT EXISTS decisions_are_kept BEFORE DELETE ON decisions
    BEGIN SELECT RAISE(ABORT, 'decisions are never deleted'); END;
CREATE TRIGGER IF NOT EXISTS decisions_stand BEFORE UPDATE ON decisions
    BEGIN SELECT RAISE(ABORT, 'decisions are never changed'); END;
"""


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
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            version = int(self._db.execute("PRAGMA user_version").fetchone()[0])
            tables = {r[0] for r in self._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        except (sqlite3.Error, OSError) as error:
            raise StorageError(f"cannot open buffer {str(path)!r}: {error}; expected a SQLite file of a run") from error
        if version != SCHEMA_VERSION and (version or tables):
            self._db.close()
            raise StorageError(
                f"buffer {str(path)!r} has schema version {version}, expected {SCHEMA_VERSION}; open it with the "
                "version of steca-gym that made it, or choose another folder"
            )
        with self._writing():
            for statement in _statements(_SCHEMA):
                self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def close(self) -> None:
        """Close the file; what was committed stays."""
        self._db.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction: all or nothing."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except sqlite3.IntegrityError:
            self._rollback()
            raise
        except (sqlite3.Error, OSError) as error:
            self._rollback()
            raise StorageError(
                f"cannot write buffer {str(self.path)!r}: {error}; nothing committed before is lost: free space and "
                "run the same command again"
            ) from error
        except BaseException:
            self._rollback()
            raise

    def _rollback(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self._db.execute("ROLLBACK")

    # -- trajectories ---------------------------------------------------------------------------------------

    def add_trajectories(
        self, trajectories: Sequence[Trajectory], *, kind: str, round_index: int = 0, done: tuple[str, Iterable[str]] | None = None
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
            for trajectory in trajectories:
                t = trajectory if trajectory.trajectory_id else trajectory.with_id()
                row = (t.trajectory_id, kind, round_index, t.task_id, t.agent, t.score, t.won, len(t), to_json(t))
                new += self._db.execute("INSERT OR IGNORE INTO trajectories VALUES (?,?,?,?,?,?,?,?,?)", row).rowcount
                self._db.executemany(
                    "INSERT OR IGNORE INTO steps VALUES (?,?,?,?,?,?,?,?,?)",
                    [
                        (t.trajectory_id, i, s.source, s.trainable, s.thought, s.action, s.observation, s.valid, s.score)
                        for i, s in enumerate(t.steps)
                    ],
                )
            if done is not None:
                self._mark(done[0], done[1])
        return new

    def trajectories(self, *, kind: str, round_index: int | None = None) -> list[Trajectory]:
        """Trajectories of a kind, ordered by task and id."""
        sql, args = "SELECT payload FROM trajectories WHERE kind = ?", [kind]
        if round_index is not None:
            sql, args = sql + " AND round = ?", [*args, str(round_index)]
        return [from_json(row[0]) for row in self._db.execute(sql + " ORDER BY task_id, trajectory_id", args)]

    # -- calibration ----------------------------------------------------------------------------------------

    def add_result(self, result: ExpertResult, *, phase: str) -> None:
        """Store everything that came of one expert trajectory, and that it is done, in one transaction."""
        with self._writing():
            key = (phase, result.expert_id)
            self._db.execute("INSERT OR REPLACE INTO results VALUES (?,?,?)", (*key, result_to_json(result)))
            for v in result.verdicts:
                means = [e.mean if e is not None else None for e in (v.expert_reward, v.agent_reward)]
                row = (*key, v.step, v.expert_action, v.agent_action, v.verdict, *means, v.note)
                self._db.execute("INSERT OR REPLACE INTO step_rewards VALUES (?,?,?,?,?,?,?,?,?)", row)
                for arm, estimate in (("expert", v.expert_reward), ("agent", v.agent_reward)):
                    outcomes = estimate.outcomes if estimate is not None else ()
                    self._db.executemany(
                        "INSERT OR REPLACE INTO samples VALUES (?,?,?,?,?,?)",
                        [(*key, v.step, arm, i, outcome) for i, outcome in enumerate(outcomes)],
                    )
            for c in result.calibrations:
                self._db.execute(
                    "INSERT OR REPLACE INTO calibrations VALUES (?,?,?,?,?,?,?,?,?,?,?,?)",
                    (
                        *(c.calibration_id, phase, c.task_id, c.expert_id, c.step, c.status, c.repaired, c.reason),
                        *(c.deviated.action, c.expert_action, c.reflection.text, c.reflection.source),
                    ),
                )
            self._mark(phase, [result.expert_id])

    def results(self, phase: str) -> list[ExpertResult]:
        """Results of a calibration phase, ordered by expert trajectory."""
        rows = self._db.execute("SELECT payload FROM results WHERE phase = ? ORDER BY expert_id", (phase,))
        return [result_from_json(row[0]) for row in rows]

    def calibrations(self, *, status: str | None = None) -> list[Calibration]:
        """Calibrations of all phases, with their evidence."""
        rows = self._db.execute("SELECT payload FROM results ORDER BY phase, expert_id")
        found = [c for row in rows for c in result_from_json(row[0]).calibrations]
        return [c for c in found if status is None or c.status == status]

    # -- decisions ------------------------------------------------------------------------------------------

    def decide(self, calibration_id: str, decision: Literal["approved", "refused"], *, who: str, why: str) -> Decision:
        """Record a person's decision; the last one on a calibration counts, all stay on record.

        Raises DataError for an unknown calibration or an anonymous decision.
        """
        if not who.strip():
            raise DataError("a decision needs who made it, got an empty name; pass who=...")
        if decision not in ("approved", "refused"):
            raise DataError(f"a decision is 'approved' or 'refused', got {decision!r}")
        known = self._db.execute("SELECT 1 FROM calibrations WHERE calibration_id = ?", (calibration_id,)).fetchone()
        if known is None:
            raise DataError(f"no calibration {calibration_id!r} in {str(self.path)!r}; see the table calibrations")
        entry = Decision(
            at=datetime.now(UTC).isoformat(), calibration_id=calibration_id, decision=decision, who=who, why=why
        )
        with self._writing():
            self._db.execute(
                "INSERT INTO decisions (at, calibration_id, decision, who, why) VALUES (?,?,?,?,?)",
                tuple(asdict(entry).values()),
            )
        return entry

    def decisions(self) -> list[Decision]:
        """The audit trail, oldest first."""
        rows = self._db.execute("SELECT at, calibration_id, decision, who, why FROM decisions ORDER BY number")
        return [Decision(at=r[0], calibration_id=r[1], decision=r[2], who=r[3], why=r[4]) for r in rows]

    def refused_ids(self) -> set[str]:
        """Calibrations whose last decision is a refusal."""
        last = {d.calibration_id: d.decision for d in self.decisions()}
        return {calibration_id for calibration_id, decision in last.items() if decision == "refused"}

    # -- progress -------------------------------------------------------------------------------------------

    def _mark(self, phase: str, keys: Iterable[str]) -> None:
        self._db.executemany("INSERT OR IGNORE INTO progress VALUES (?,?)", [(phase, key) for key in keys])

    def mark_done(self, phase: str, keys: Iterable[str]) -> None:
        """Mark units of work as done."""
        with self._writing():
            self._mark(phase, keys)

    def done(self, phase: str) -> set[str]:
        """Units of work of a phase that are done."""
        return {row[0] for row in self._db.execute("SELECT key FROM progress WHERE phase = ?", (phase,))}

    # -- export ---------------------------------------------------------------------------------------------

    def export_jsonl(self, folder: Path) -> list[Path]:
        """Write trajectories, results and decisions as JSON lines; returns the files."""
        folder.mkdir(parents=True, exist_ok=True)
        rows: dict[str, list[str]] = {
            "trajectories": [
                json.dumps({"kind": kind, "round": number, **json.loads(payload)}, ensure_ascii=False)
                for kind, number, payload in self._db.execute(
                    "SELECT kind, round, payload FROM trajectories ORDER BY kind, round, trajectory_id"
                )
            ],
            "results": [row[0] for row in self._db.execute("SELECT payload FROM results ORDER BY phase, expert_id")],
            "decisions": [json.dumps(asdict(d), ensure_ascii=False) for d in self.decisions()],
        }
        paths = []
        for name, lines in rows.items():
            path = folder / f"{name}.jsonl"
            path.write_text("".join(line + "\n" for line in lines), encoding="utf-8", errors="surrogatepass")
            paths.append(path)
        return paths

    def export_parquet(self, folder: Path) -> list[Path]:
        """Write every table as Parquet, as ``datasets.load_dataset("parquet", data_files=...)`` reads it."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for name in ("trajectories", "steps", "step_rewards", "samples", "calibrations", "decisions"):
            cursor = self._db.execute(f"SELECT * FROM {name}")
            columns = [d[0] for d in cursor.description]
            rows = [tuple(_utf8(v) for v in row) for row in cursor.fetchall()]
            data: dict[str, list[Any]] = {c: [row[i] for row in rows] for i, c in enumerate(columns)}
            path = folder / f"{name}.parquet"
            pq.write_table(pa.table(data), path)
            paths.append(path)
        return paths


def _statements(script: str) -> Iterator[str]:
    """Single statements of a script; ``executescript`` would commit the open transaction."""
    part = ""
    for line in script.splitlines(keepends=True):
        part += line
        if sqlite3.complete_statement(part):
            yield part
            part = ""


def _utf8(value: Any) -> Any:
    # Lone surrogates, which models can produce, are not UTF-8; Parquet takes nothing else.
    return value.encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else value
