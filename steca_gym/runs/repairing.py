"""Repair a run's folder after damage: save what is readable, put the damaged files aside, and say what is gone."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from steca_gym.buffer.salvage import SUFFIXES, Salvage, find_damage, salvage
from steca_gym.errors import DataError
from steca_gym.files import storage_errors, write_atomically
from steca_gym.redaction import redact_data
from steca_gym.runs.folder import RECORD, read_raw, read_record
from steca_gym.runs.holding import hold
from steca_gym.runs.trust import check_trusted, seal

BUFFER = "buffer.sqlite"


@dataclass(slots=True)
class Repair:
    """What was found and done."""

    lines: list[str] = field(default_factory=list)
    """for people, one finding each"""
    is_sound: bool = True
    """nothing was damaged, so nothing was changed"""


def repair_run(folder: Path) -> Repair:
    """Look at a run's record and buffer, and repair what is damaged.

    Damaged files are moved to ``damaged-N`` in the folder, never changed. Stages that lost a piece are taken out of
    ``run.json``, so that the same command plays what is missing.

    Raises:
        DataError: no folder of a run, or its stored settings would run code of packages that are not allowed.
        ConfigError: another process works on the run.
        StorageError: the folder cannot be written.
    """
    if not folder.is_dir() or not ((folder / RECORD).exists() or (folder / BUFFER).exists()):
        raise DataError(f"no run in {str(folder)!r}: expected {RECORD} or {BUFFER}; give the folder of a run")
    repair = Repair()
    with storage_errors("the run's folder", folder):
        held = hold(folder)
        try:
            aside = _next_name(folder)
            record_is_whole = _look_at_record(folder, aside, repair)
            if (folder / BUFFER).exists():
                _look_at_buffer(folder, aside, repair, record_is_whole)
            elif record_is_whole and read_record(folder).stages:
                repair.is_sound = False
                _drop(
                    folder, {s.name for s in read_record(folder).stages.values() if s.model is None}, evaluations=True
                )
                repair.lines.append(f"{BUFFER}: missing; the same command plays what it held again, models are kept")
        finally:
            held.let_go()
    return repair


def _next_name(folder: Path) -> Path:
    number = 1
    while (folder / f"damaged-{number}").exists():
        number += 1
    return folder / f"damaged-{number}"


def _look_at_record(folder: Path, aside: Path, repair: Repair) -> bool:
    if not (folder / RECORD).exists():
        repair.is_sound = False
        repair.lines.append(f"{RECORD}: missing; settings and finished stages are gone")
    else:
        try:
            read_record(folder)
        except DataError as error:
            repair.is_sound = False
            aside.mkdir(exist_ok=True)
            shutil.move(folder / RECORD, aside / RECORD)
            repair.lines.append(f"{RECORD}: {error}")
            repair.lines.append(f"{RECORD}: moved to {aside.name}; settings and finished stages are gone")
        else:
            check_trusted(folder, read_raw(folder))
            repair.lines.append(f"{RECORD}: sound")
            return True
    repair.lines.append(
        f"give the command of this run, with its settings and run_dir={folder}: it takes over what {BUFFER} holds and "
        "does the rest again (with other settings the folder would mix two runs)"
    )
    return False


def _look_at_buffer(folder: Path, aside: Path, repair: Repair, record_is_whole: bool) -> None:
    damage = find_damage(folder / BUFFER)
    if not damage:
        repair.lines.append(f"{BUFFER}: sound")
        return
    repair.is_sound = False
    repair.lines.append(f"{BUFFER}: {damage}")
    part = folder / f".{BUFFER}.repaired"
    _remove(part)
    found = salvage(folder / BUFFER, part)
    aside.mkdir(exist_ok=True)
    # Stages first: a kill in between leaves stages that are played again, never stages without their pieces.
    if record_is_whole:
        # Where marks may be gone, every stage that stores pieces looks for what is missing; models stay.
        marks_gone = {"trajectories", "results", "progress"} & set(found.unreadable)
        lost = {s.name for s in read_record(folder).stages.values() if marks_gone and s.model is None}
        _drop(folder, lost | set(found.replayed), evaluations="trajectories" in found.unreadable)
    for suffix in SUFFIXES:
        if (file := folder / f"{BUFFER}{suffix}").exists():
            shutil.move(file, aside / file.name)
    part.rename(folder / BUFFER)
    _remove(part)
    repair.lines += [*_say(found), f"{BUFFER}: the damaged files are in {aside.name}"]


def _say(found: Salvage) -> list[str]:
    lines = [
        f"{BUFFER}: saved {found.num_trajectories} trajectories, {found.num_results} calibrated demonstrations, "
        f"{found.num_decisions} decisions"
    ]
    for table, places in sorted(found.unreadable.items()):
        named = found.named_and_gone.get(table, 0)
        known = f"; {named} rows that something else names are gone" if named else ""
        lines.append(f"{BUFFER}: {table}: not readable at {places} place{'s' if places != 1 else ''}{known}")
    for stage, count in sorted(found.replayed.items()):
        lines.append(f"{BUFFER}: stage {stage}: {count} pieces will be played again by the same command")
    if found.trail:
        lines.append(f"{BUFFER}: {found.trail}; decisions that are gone have to be made again")
    return lines


def _drop(folder: Path, names: set[str], *, evaluations: bool) -> None:
    """Take stages out of the record; what they have cost counts as that of an earlier attempt."""
    raw, record = read_raw(folder), read_record(folder)
    dropped = {k: v for k, v in record.stages.items() if k in names}
    spent = {k: {**v.cost, "elapsed": v.seconds} for k, v in dropped.items() if not v.shared_from}
    kept = {k: v for k, v in raw.get("stages", {}).items() if k not in dropped}
    parts = {
        "stages": kept,
        "unfinished": {**record.unfinished, **spent},
        **({"evaluations": {}} if evaluations else {}),
    }
    changed = redact_data({**raw, **parts})
    write_atomically(folder / RECORD, json.dumps({**changed, "seal": seal(changed)}, indent=1))


def _remove(path: Path) -> None:
    for suffix in SUFFIXES:
        path.with_name(path.name + suffix).unlink(missing_ok=True)
