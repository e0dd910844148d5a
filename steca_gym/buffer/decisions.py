"""What people decide about calibrations: an audit trail in which every entry is chained to the one before.

Entries are added, never changed: an edit or an undo is an entry of its own. Each entry holds the SHA-256 digest of its
own content together with the digest of the entry before, so that a changed, removed or inserted entry shows
(``verify_trail``). A trail that was cut at its end shows only against a digest that was kept elsewhere: a trained model
keeps the last one (``steca trace``).
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from steca_gym.buffer.schema import to_cell
from steca_gym.calibration.records import Calibration, calibration_from_json, calibration_to_json
from steca_gym.errors import ConflictError, DataError

Word = Literal["approved", "refused", "edited", "undone"]
WORDS: tuple[Word, ...] = ("approved", "refused", "edited", "undone")
FIRST = ""
"""stands for the digest before the first entry"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One entry of the audit trail."""

    at: str
    """UTC, ISO 8601"""
    calibration_id: str
    decision: Word
    who: str
    why: str
    before: str = ""
    """edited: the calibration before, as JSON; undone: the word that no longer counts; empty for others"""
    after: str = ""
    """edited: the calibration after, as JSON; empty for others"""
    previous: str = FIRST
    """``digest`` of the entry before; empty for the first one"""
    digest: str = ""
    """SHA-256 of everything above, 64 hex digits"""

    def sealed(self, previous: str) -> Decision:
        """The entry as it follows another one."""
        entry = replace(self, previous=previous, digest="")
        return replace(entry, digest=_digest(entry))


@dataclass(slots=True)
class Standing:
    """Where a calibration stands after all entries about it."""

    entries: list[Decision] = field(default_factory=list)
    """those that count: an undo takes the last one away"""
    num_entries: int = 0
    """all that were made, undone ones and undos included: the version that a page was made from"""

    @property
    def word(self) -> Literal["", "approved", "refused"]:
        """The last approval or refusal since the last edit; empty: nobody has decided."""
        last = self.entries[-1].decision if self.entries else ""
        return last if last in ("approved", "refused") else ""

    @property
    def edit(self) -> Decision | None:
        """The last edit that counts."""
        return next((d for d in reversed(self.entries) if d.decision == "edited"), None)

    @property
    def editors(self) -> set[str]:
        """Who made the edits that count."""
        return {d.who for d in self.entries if d.decision == "edited"}


def standings(decisions: Iterable[Decision]) -> dict[str, Standing]:
    """By calibration: where it stands. Calibrations without an entry have none."""
    found: dict[str, Standing] = {}
    for d in decisions:
        standing = found.setdefault(d.calibration_id, Standing())
        standing.num_entries += 1
        if d.decision != "undone":
            standing.entries.append(d)
        elif standing.entries:
            standing.entries.pop()
    return found


def verify_trail(decisions: Sequence[Decision]) -> str:
    """Check the chain; returns the last digest, empty for an empty trail.

    Raises:
        DataError: an entry does not fit the one before it, or was changed; the message names the first such entry.
    """
    previous = FIRST
    for number, entry in enumerate(decisions, start=1):
        if entry.previous != previous or entry.digest != _digest(entry):
            raise DataError(
                f"the audit trail is broken at entry {number} of {len(decisions)} ({entry.decision} of "
                f"{entry.calibration_id!r} by {entry.who!r}): an entry was changed, removed or put in; "
                "restore buffer.sqlite from a copy and compare"
            )
        previous = entry.digest
    return previous


def _digest(entry: Decision) -> str:
    content = {key: value for key, value in asdict(entry).items() if key != "digest"}
    text = json.dumps(content, sort_keys=True)  # ASCII, so that lone surrogates have a form too
    return hashlib.sha256(text.encode()).hexdigest()


class DecisionTrail:
    """The part of ``CalibrationBuffer`` that keeps decisions."""

    path: Path
    _db: sqlite3.Connection
    _version: int

    def _rows(self, sql: str, *args: Any) -> list[tuple[Any, ...]]:
        raise NotImplementedError

    def _writing(self) -> AbstractContextManager[None]:
        raise NotImplementedError

    def decide(
        self,
        calibration_id: str,
        decision: Literal["approved", "refused"],
        *,
        who: str,
        why: str,
        version: int | None = None,
    ) -> Decision:
        """Record a person's decision; the last one on a calibration counts, all are kept.

        Args:
            calibration_id: what is decided.
            decision: the word.
            who: a name, not empty.
            why: the reason.
            version: ``Standing.num_entries`` that the person has seen; None: not checked.

        Raises:
            DataError: an unknown calibration, an anonymous decision.
            ConflictError: somebody else has decided since ``version``.
        """
        if decision not in ("approved", "refused"):
            raise DataError(f"a decision is 'approved' or 'refused', got {decision!r}")
        return self._append(calibration_id, decision, who, why, version=version)

    def edit(self, changed: Calibration, *, who: str, why: str, version: int | None = None) -> Decision:
        """Record another form of a calibration, which counts in its place; see ``decide`` for the rest.

        The caller has executed it: what is stored is taken as it stands.
        """
        known = self.calibration(changed.calibration_id)
        before, after = calibration_to_json(known), calibration_to_json(changed)
        if before == after:
            raise DataError(f"the edit of calibration {changed.calibration_id!r} changes nothing")
        return self._append(changed.calibration_id, "edited", who, why, before=before, after=after, version=version)

    def undo(self, calibration_id: str, *, who: str, why: str = "", version: int | None = None) -> Decision:
        """Take back the last decision or edit that counts; see ``decide``. Raises DataError where there is none."""
        standing = self.standings().get(calibration_id, Standing())
        if not standing.entries:
            raise DataError(f"calibration {calibration_id!r} has no decision that could be taken back")
        return self._append(calibration_id, "undone", who, why, before=standing.entries[-1].decision, version=version)

    def _append(
        self,
        calibration_id: str,
        decision: Word,
        who: str,
        why: str,
        *,
        before: str = "",
        after: str = "",
        version: int | None,
    ) -> Decision:
        if not who.strip():
            raise DataError("a decision needs the name of who made it, got an empty one; pass who=...")
        if not self._rows("SELECT 1 FROM calibrations WHERE calibration_id = ?", calibration_id):
            raise DataError(f"no calibration {calibration_id!r} in {str(self.path)!r}; see the table calibrations")
        entry = Decision(
            at=datetime.now(UTC).isoformat(),
            calibration_id=calibration_id,
            decision=decision,
            who=who,
            why=why,
            before=before,
            after=after,
        )
        with self._writing():
            # Inside the transaction: nobody else can add an entry in between.
            (seen,) = self._db.execute(
                "SELECT COUNT(*) FROM decisions WHERE calibration_id = ?", (to_cell(calibration_id),)
            ).fetchone()
            if version is not None and seen != version:
                raise ConflictError(
                    f"calibration {calibration_id!r} has been decided by somebody else since you opened it; "
                    "look at it again"
                )
            last = self._db.execute("SELECT digest FROM decisions ORDER BY number DESC LIMIT 1").fetchone()
            entry = entry.sealed(last[0] if last else FIRST)
            insert_decision(self._db, entry)
        return entry

    def keep_decisions(self, entries: Sequence[Decision]) -> None:
        """Take entries over as they stand, digests included, e.g. from a damaged buffer; nothing is checked."""
        with self._writing():
            for entry in entries:
                insert_decision(self._db, entry)

    def decisions(self) -> list[Decision]:
        """The audit trail, oldest first."""
        names = _COLUMNS if self._version >= 3 else _COLUMNS[:5]
        rows = self._rows(f"SELECT {', '.join(names)} FROM decisions ORDER BY number")
        return [Decision(**dict(zip(names, row, strict=True))) for row in rows]

    def standings(self) -> dict[str, Standing]:
        """By calibration: where it stands after all decisions."""
        return standings(self.decisions())

    def refused_ids(self) -> set[str]:
        """Calibrations whose last decision is a refusal."""
        return {calibration_id for calibration_id, s in self.standings().items() if s.word == "refused"}

    def calibration(self, calibration_id: str) -> Calibration:
        """A calibration as it counts: its last edit, or as it was found. Raises DataError for an unknown id."""
        standing = self.standings().get(calibration_id)
        if standing is not None and standing.edit is not None:
            return calibration_from_json(standing.edit.after)
        return self.original(calibration_id)

    def calibration_rows(self) -> list[dict[str, Any]]:
        """What was found, without the evidence: one row a calibration, ordered by task, step and id."""
        names = (
            "calibration_id", "phase", "task_id", "expert_id", "step", "status", "repaired", "reason",
            "deviated_action", "expert_action", "reflection", "reflection_source",
        )  # fmt: skip
        rows = self._rows(f"SELECT {', '.join(names)} FROM calibrations ORDER BY task_id, step, calibration_id")
        return [dict(zip(names, row, strict=True)) for row in rows]

    def original(self, calibration_id: str) -> Calibration:
        """A calibration as it was found. Raises DataError for an unknown id."""
        rows = self._rows(
            "SELECT r.payload FROM calibrations c JOIN results r USING (phase, expert_id) WHERE c.calibration_id = ?",
            calibration_id,
        )
        for (payload,) in rows:
            for found in _read_calibrations(payload):
                if found.calibration_id == calibration_id:
                    return found
        raise DataError(f"no calibration {calibration_id!r} in {str(self.path)!r}; see the table calibrations")


def _read_calibrations(payload: str) -> tuple[Calibration, ...]:
    from steca_gym.buffer.lines import read_result

    return read_result(payload).calibrations


_COLUMNS = ("at", "calibration_id", "decision", "who", "why", "before", "after", "previous", "digest")


def insert_decision(db: sqlite3.Connection, entry: Decision) -> None:
    """Add an entry inside the caller's transaction."""
    values = [getattr(entry, name) for name in _COLUMNS]
    db.execute(
        f"INSERT INTO decisions ({', '.join(_COLUMNS)}) VALUES ({','.join('?' * len(_COLUMNS))})",
        tuple(map(to_cell, values)),
    )


def seal_rows(rows: Iterable[Mapping[str, Any]]) -> list[Decision]:
    """Entries of a version without a chain, chained."""
    sealed: list[Decision] = []
    for row in rows:
        sealed.append(Decision(**row).sealed(sealed[-1].digest if sealed else FIRST))
    return sealed
