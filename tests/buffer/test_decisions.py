"""The audit trail: a chain that shows every change, and where a calibration stands after it."""

import dataclasses
import sqlite3

import pytest

from steca_gym.buffer import CalibrationBuffer, Standing, verify_trail
from steca_gym.calibration.records import Reflection
from steca_gym.errors import ConflictError, DataError
from tests.buffer.test_store import open_buffer, result


@pytest.fixture
def buffer(tmp_path):
    with open_buffer(tmp_path) as opened:
        opened.add_result(result(1, num_calibrations=2), phase="calibration")
        yield opened


def reworded(buffer, calibration_id, text):
    known = buffer.calibration(calibration_id)
    return dataclasses.replace(known, reflection=Reflection(text=text, source="person:Ada"))


def test_each_entry_is_chained_to_the_one_before(buffer):
    buffer.decide("c1.0.0", "approved", who="Ada", why="")
    buffer.edit(reworded(buffer, "c1.1.0", "Better."), who="Ada", why="clearer \ud800")
    buffer.undo("c1.0.0", who="Ben")
    entries = buffer.decisions()
    assert [e.decision for e in entries] == ["approved", "edited", "undone"]
    assert [e.previous for e in entries] == ["", entries[0].digest, entries[1].digest]
    assert verify_trail(entries) == entries[-1].digest and len(entries[-1].digest) == 64
    assert verify_trail([]) == ""


@pytest.mark.parametrize("field", ["at", "calibration_id", "decision", "who", "why", "before", "after"])
def test_any_changed_field_shows(buffer, field):
    for who in ("Ada", "Ben", "Cleo"):
        buffer.decide("c1.0.0", "approved", who=who, why="")
    entries = buffer.decisions()
    entries[1] = dataclasses.replace(entries[1], **{field: "another"})
    with pytest.raises(DataError, match="broken at entry 2 of 3"):
        verify_trail(entries)


@pytest.mark.parametrize(
    ("change", "number"),
    [(lambda e: e[1:], 1), (lambda e: [e[0], e[2]], 2), (lambda e: [e[1], e[0], e[2]], 1), (lambda e: [*e, e[0]], 4)],
)
def test_a_removed_moved_or_repeated_entry_shows(buffer, change, number):
    for who in ("Ada", "Ben", "Cleo"):
        buffer.decide("c1.0.0", "approved", who=who, why="")
    with pytest.raises(DataError, match=f"broken at entry {number} "):
        verify_trail(change(buffer.decisions()))


def test_the_file_refuses_changes_and_a_forced_one_shows(buffer):
    buffer.decide("c1.0.0", "refused", who="Ada", why="wrong room")
    with sqlite3.connect(buffer.path) as db:
        db.execute("DROP TRIGGER decisions_stand")
        db.execute("UPDATE decisions SET who = 'Ben'")
    with pytest.raises(DataError, match="by 'Ben'"):
        verify_trail(buffer.decisions())


def test_an_undo_takes_back_the_last_entry_that_counts(buffer):
    buffer.decide("c1.0.0", "refused", who="Ada", why="no")
    buffer.decide("c1.0.0", "approved", who="Ben", why="yes")
    assert buffer.standings()["c1.0.0"].word == "approved"
    buffer.undo("c1.0.0", who="Ben")
    assert buffer.standings()["c1.0.0"].word == "refused" and buffer.refused_ids() == {"c1.0.0"}
    buffer.undo("c1.0.0", who="Ben")
    standing = buffer.standings()["c1.0.0"]
    assert standing.word == "" and standing.num_entries == 4 and buffer.refused_ids() == set()
    with pytest.raises(DataError, match="no decision that could be taken back"):
        buffer.undo("c1.0.0", who="Ben")


def test_an_edit_counts_until_it_is_undone_and_asks_for_a_new_decision(buffer):
    original = buffer.calibration("c1.0.0")
    buffer.decide("c1.0.0", "approved", who="Ada", why="")
    buffer.edit(reworded(buffer, "c1.0.0", "First."), who="Ada", why="")
    buffer.edit(reworded(buffer, "c1.0.0", "Second."), who="Ben", why="")
    standing = buffer.standings()["c1.0.0"]
    assert standing.word == "" and standing.editors == {"Ada", "Ben"}
    assert buffer.calibration("c1.0.0").reflection.text == "Second." and buffer.original("c1.0.0") == original
    buffer.undo("c1.0.0", who="Ben")
    assert buffer.calibration("c1.0.0").reflection.text == "First."
    buffer.undo("c1.0.0", who="Ben")
    assert buffer.calibration("c1.0.0") == original and buffer.standings()["c1.0.0"].word == "approved"
    with pytest.raises(DataError, match="changes nothing"):
        buffer.edit(original, who="Ada", why="")


def test_whoever_comes_second_is_told_and_changes_nothing(buffer):
    seen = buffer.standings().get("c1.0.0", Standing()).num_entries
    with CalibrationBuffer(buffer.path) as other:
        other.decide("c1.0.0", "refused", who="Ben", why="no", version=seen)
    for late in (
        lambda: buffer.decide("c1.0.0", "approved", who="Ada", why="", version=seen),
        lambda: buffer.edit(reworded(buffer, "c1.0.0", "x"), who="Ada", why="", version=seen),
        lambda: buffer.undo("c1.0.0", who="Ada", version=seen),
    ):
        with pytest.raises(ConflictError, match="somebody else"):
            late()
    assert [e.who for e in buffer.decisions()] == ["Ben"]
    buffer.decide("c1.0.0", "approved", who="Ada", why="", version=seen + 1)


def test_decisions_of_an_earlier_version_get_their_place_in_the_chain(tmp_path):
    with open_buffer(tmp_path) as buffer:
        buffer.add_result(result(1), phase="calibration")
    with sqlite3.connect(tmp_path / "buffer.sqlite") as db:
        db.execute("DROP TABLE decisions")
        db.execute(
            "CREATE TABLE decisions (number INTEGER PRIMARY KEY AUTOINCREMENT, at TEXT, calibration_id TEXT, "
            "decision TEXT, who TEXT, why TEXT)"
        )
        db.executemany(
            "INSERT INTO decisions (at, calibration_id, decision, who, why) VALUES (?,?,?,?,?)",
            [("2026-01-01", "c1.0.0", "refused", "Ada", "no"), ("2026-01-02", "c1.0.0", "approved", "Ben", "yes")],
        )
        db.execute("PRAGMA user_version = 2")
    with CalibrationBuffer(tmp_path / "buffer.sqlite", read_only=True) as old:
        assert [e.who for e in old.decisions()] == ["Ada", "Ben"] and old.decisions()[0].digest == ""
    with open_buffer(tmp_path) as buffer:
        buffer.decide("c1.0.0", "refused", who="Cleo", why="")
        entries = buffer.decisions()
        assert [e.who for e in entries] == ["Ada", "Ben", "Cleo"]
        assert verify_trail(entries) == entries[-1].digest
        with pytest.raises(sqlite3.IntegrityError, match="never"):
            buffer._db.execute("DELETE FROM decisions")
