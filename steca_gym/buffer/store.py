"""CalibrationBuffer: the durable store of a run, and the record of who decided what.

The results of a unit of work are committed in one transaction, together with the mark that it is done. So a run that
was killed at any moment continues without losing or repeating anything.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from steca_gym.buffer.decisions import DecisionTrail
from steca_gym.buffer.export import write_lines, write_tables
from steca_gym.buffer.lines import check_is_json, read_result, result_line, trajectory_line, typed_first
from steca_gym.buffer.opening import Durability, ReadOnly, file_state, open_for_writing, open_read_only
from steca_gym.buffer.schema import SCHEMA_VERSION, explain, from_cell, to_cell
from steca_gym.calibration.records import Calibration, ExpertResult, result_to_json
from steca_gym.errors import DataError, StorageError
from steca_gym.trajectory import Trajectory, from_json, to_json

_PAGE = 64
"""rows read at a time; between two pages no transaction is open"""


class CalibrationBuffer(DecisionTrail):
    """A SQLite file in WAL mode; several processes may read while one writes.

    Args:
        path: the file; created where it does not exist, unless ``read_only``.
        read_only: open an existing buffer and never create or write anything, so that it works on a read-only file
            system too. Each query shows what other processes had committed when it began.
        durability: what a commit survives. ``"process"``: the process being killed at any moment (SQLite's
            ``synchronous=NORMAL``); a power failure or a crash of the system may undo the last commits.
            ``"power"``: these too (``synchronous=FULL``), at the cost of a disk flush for each commit.

    Raises:
        StorageError: the file cannot be opened or written, is not a buffer, or has a newer schema version;
            ``read_only``: or it does not exist.
        ConfigError: an unknown ``durability``.
    """

    def __init__(self, path: Path, *, read_only: bool = False, durability: Durability = "process") -> None:
        """Open or create the file."""
        self.path = path
        self.read_only = read_only
        self._version = SCHEMA_VERSION
        self._shown: ReadOnly | None = None
        if read_only:
            self._enter(open_read_only(path))
        else:
            self._db = open_for_writing(path, durability)

    def _enter(self, shown: ReadOnly) -> None:
        self._shown, self._db, self._version = shown, shown.db, shown.version

    def _refresh(self) -> None:
        """Open the file again where it was opened read-only and has been written since."""
        if self._shown is not None and file_state(self.path) != self._shown.state:
            shown = open_read_only(self.path)
            self._shown.close()
            self._enter(shown)

    def close(self) -> None:
        """Close the file; what was committed is kept."""
        if self._shown is not None:
            self._shown.close()
        else:
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
        if self.read_only:
            raise StorageError(f"buffer {str(self.path)!r} was opened read-only; open it without read_only to write")
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
        """Insert rows; returns how many are new."""
        if not rows:
            return 0
        marks = ",".join("?" * len(rows[0]))
        sql = f"INSERT OR {verb} INTO {table} VALUES ({marks})"
        return self._db.executemany(sql, [tuple(map(to_cell, row)) for row in rows]).rowcount

    def _rows(self, sql: str, *args: Any) -> list[tuple[Any, ...]]:
        """Rows of a query, with texts as they were stored."""
        try:
            self._refresh()
            found = self._db.execute(sql, tuple(map(to_cell, args))).fetchall()
        except (sqlite3.Error, OSError) as error:
            raise self._cannot_read(error) from error
        return [tuple(map(from_cell, row)) for row in found]

    def _cannot_read(self, error: BaseException) -> StorageError:
        return StorageError(f"cannot read buffer {str(self.path)!r}: {error}; {explain(error)}")

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
        split: str = "",
        done: tuple[str, Iterable[str]] | None = None,
    ) -> int:
        """Store trajectories under a kind; equal content is stored once.

        Args:
            trajectories: their ids are set here.
            kind: a name of the caller's choice, e.g. "expert", "own", "evaluation".
            round_index: round of an iterated run, 0-based.
            split: the split of the environment that the tasks belong to; empty: not known.
            done: (phase, keys) to mark as done in the same transaction.

        Returns:
            How many are new.

        Raises:
            DataError: a trajectory that could not be read back, e.g. with a score that is NaN; nothing is stored.
            StorageError: the buffer cannot be written.
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
                    split,
                    t.content_key,
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
        """All trajectories of a kind, as a list; see ``iter_trajectories``, which needs less memory."""
        return list(self.iter_trajectories(kind=kind, round_index=round_index))

    def iter_trajectories(
        self,
        *,
        kind: str | None = None,
        split: str | None = None,
        task_id: str | None = None,
        round_index: int | None = None,
    ) -> Iterator[Trajectory]:
        """Read trajectories one by one, in memory that does not grow with their number.

        Each is given once for each kind, whatever the number of rounds that stored it. The buffer may be written while
        the iterator is in use; what is stored meanwhile may or may not be given.

        Args:
            kind: only of this kind.
            split: only those stored with this split.
            task_id: only of this task.
            round_index: only of this round.

        Yields:
            Trajectories, ordered by kind, task and id.

        Raises:
            StorageError: the buffer cannot be read.
            DataError: what is stored is not a trajectory.
        """
        last = None
        for key, payload in self._iter_rows(kind=kind, split=split, task_id=task_id, round=round_index):
            if key[:3] == last:
                continue
            last = key[:3]
            try:
                yield from_json(payload)
            except DataError as error:
                raise DataError(f"buffer {str(self.path)!r}, trajectory {key[2]!r}: {error}") from error

    def _iter_rows(self, **wanted: str | int | None) -> Iterator[tuple[tuple[Any, ...], str]]:
        """((kind, task, id, round), payload) in this order, page by page; ``wanted``: what columns must hold."""
        if self._version < 2 and wanted.pop("split", None):  # split was not stored
            return
        given = {column: value for column, value in wanted.items() if value is not None}
        # One kind at a time and from the last row on, so that each page is a search in the index, never a scan.
        if "kind" not in given:
            for (kind,) in self._rows("SELECT DISTINCT kind FROM trajectories ORDER BY kind"):
                yield from self._iter_rows(**{**given, "kind": kind})
            return
        order = [c for c in ("task_id", "trajectory_id", "round") if c not in given or c == "round"]
        clauses = [f"{column} = ?" for column in given]
        after: tuple[Any, ...] = ()
        while True:
            later = [f"({', '.join(order)}) > ({', '.join('?' * len(order))})"] if after else []
            rows = self._rows(
                f"SELECT kind, task_id, trajectory_id, round, payload, {', '.join(order)} FROM trajectories "
                f"WHERE {' AND '.join([*clauses, *later])} ORDER BY {', '.join(order)} LIMIT {_PAGE}",
                *given.values(),
                *after,
            )
            for row in rows:
                yield row[:4], row[4]
            if len(rows) < _PAGE:
                return
            after = rows[-1][5:]

    def kinds(self) -> list[str]:
        """The kinds under which trajectories are stored, sorted."""
        return [row[0] for row in self._rows("SELECT DISTINCT kind FROM trajectories ORDER BY kind")]

    def phases(self) -> list[str]:
        """The calibration phases that have stored results, sorted."""
        return [row[0] for row in self._rows("SELECT DISTINCT phase FROM results ORDER BY phase")]

    def used_task_ids(self, *, apart_from: Iterable[str] = ("evaluation", "repeat")) -> set[str]:
        """Tasks of everything stored except the given kinds: an evaluation must not play them."""
        return self._used("task_id", apart_from) | {
            row[0] for row in self._rows("SELECT DISTINCT task_id FROM calibrations")
        }

    def used_content_keys(self, *, apart_from: Iterable[str] = ("evaluation", "repeat")) -> set[str]:
        """Content keys of the trajectories of ``used_task_ids``: the same games under any task id.

        Empty where the environment gives no keys; then only ids can be compared.
        """
        return self._used("content_key", apart_from) - {""} if self._version >= 2 else set()

    def _used(self, column: str, apart_from: Iterable[str]) -> set[str]:
        left_out = set(apart_from)
        rows = self._rows(f"SELECT DISTINCT {column}, kind FROM trajectories")
        return {value for value, kind in rows if kind not in left_out}

    # -- calibration ----------------------------------------------------------------------------------------

    def add_result(self, result: ExpertResult, *, phase: str) -> None:
        """Store the result for one expert trajectory and mark it as done, in one transaction.

        It replaces an earlier result of the same phase and expert trajectory.

        Raises:
            DataError: it holds NaN or an infinity.
            StorageError: the buffer cannot be written.
        """
        payload = check_is_json(result_to_json(result))
        key = (phase, result.expert_id)
        with self._writing():
            for table in ("results", "step_rewards", "samples", "calibrations"):
                self._db.execute(f"DELETE FROM {table} WHERE phase = ? AND expert_id = ?", tuple(map(to_cell, key)))
            self._insert("REPLACE", "results", (*key, payload))
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
        """Results of a calibration phase, ordered by expert trajectory, as a list; see ``iter_results``."""
        return list(self.iter_results(phase))

    def iter_results(self, phase: str | None = None) -> Iterator[ExpertResult]:
        """Read results one by one, ordered by phase and expert trajectory.

        Raises:
            StorageError: the buffer cannot be read.
            DataError: what is stored is not a result.
        """
        for key, payload in self._iter_payloads(phase):
            try:
                yield read_result(payload)
            except DataError as error:
                raise DataError(
                    f"buffer {str(self.path)!r}, result of {key[1]!r} in phase {key[0]!r}: {error}"
                ) from error

    def _iter_payloads(self, phase: str | None = None) -> Iterator[tuple[tuple[str, str], str]]:
        """((phase, expert trajectory), payload) of the results, page by page."""
        after: tuple[str, ...] = ()
        clause = "" if phase is None else "phase = ? AND "
        while True:
            rows = self._rows(
                f"SELECT phase, expert_id, payload FROM results WHERE {clause}"
                f"{'(phase, expert_id) > (?, ?)' if after else 'TRUE'} ORDER BY phase, expert_id LIMIT {_PAGE}",
                *([] if phase is None else [phase]),
                *after,
            )
            for found, expert_id, payload in rows:
                yield (found, expert_id), payload
            if len(rows) < _PAGE:
                return
            after = rows[-1][:2]

    def calibrations(self, *, status: str | None = None, approved: bool | None = None) -> list[Calibration]:
        """Calibrations of all phases, each once, with their evidence.

        Args:
            status: "accepted" or "refused", the verdict of the execution; None: both.
            approved: True: the last decision of a person is an approval; False: a refusal; None: any or none.
        """
        found = {c.calibration_id: c for r in self.iter_results() for c in r.calibrations}
        last = {calibration_id: s.word for calibration_id, s in self.standings().items()}
        word = {True: "approved", False: "refused"}.get(approved) if approved is not None else None
        return [c for c in found.values() if status in (None, c.status) and word in (None, last.get(c.calibration_id))]

    # -- progress -------------------------------------------------------------------------------------------

    def _mark(self, phase: str, keys: Iterable[str]) -> None:
        self._insert("IGNORE", "progress", *((phase, key) for key in keys))

    def mark_done(self, phase: str, keys: Iterable[str]) -> None:
        """Mark units of work as done."""
        with self._writing():
            self._mark(phase, keys)

    def done(self, phase: str) -> set[str]:
        """Keys of the units of work of a phase that are done."""
        return {row[0] for row in self._rows("SELECT key FROM progress WHERE phase = ?", phase)}

    # -- export ---------------------------------------------------------------------------------------------

    def export_jsonl(self, folder: Path) -> list[Path]:
        """Write ``trajectories``, ``results`` and ``decisions`` as JSON lines; returns the files.

        Lines are ordered by their keys, except that a few come first which show the types of all fields: Hugging Face
        ``datasets`` takes the types of a file from its first part.

        Raises:
            StorageError: the buffer cannot be read, or a file cannot be written.
        """
        lines = {
            "trajectories": self._trajectory_lines(),
            "results": typed_first(
                lambda: ((key, result_line({"phase": key[0]}, payload)) for key, payload in self._iter_payloads())
            ),
            "decisions": (json.dumps(asdict(d), ensure_ascii=False) for d in self.decisions()),
        }
        return [write_lines(folder / f"{name}.jsonl", rows) for name, rows in lines.items()]

    def _trajectory_lines(self) -> Iterator[str]:
        """Trajectories as lines; one with token ids first, because ids are the only field that may be null."""
        # A text that holds this pattern has its quotation marks escaped.
        pattern = '*"token_ids": [[][0-9]*'
        columns = "kind, task_id, trajectory_id, round, payload"
        typed = self._rows(f"SELECT {columns} FROM trajectories WHERE payload GLOB ? LIMIT 1", pattern)
        first = None
        for *key, payload in typed:
            first = tuple(key)
            yield trajectory_line({"kind": key[0], "round": key[3]}, payload)
        for found, payload in self._iter_rows():
            if found != first:
                yield trajectory_line({"kind": found[0], "round": found[3]}, payload)

    def export_parquet(self, folder: Path) -> list[Path]:
        """Write every table as ``TABLE.parquet``; returns the files.

        ``datasets.load_dataset("parquet", ...)`` reads them; a table without rows only with ``streaming=True``.

        Raises:
            ConfigError: pyarrow is not installed.
            StorageError: the buffer cannot be read, or a file cannot be written.
        """
        try:
            self._refresh()
            return write_tables(self._db, folder)
        except sqlite3.Error as error:
            raise self._cannot_read(error) from error
