"""From a model back to what trained it: samples, the corrections behind them, and who decided on these."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from steca_gym.buffer.decisions import Decision, Standing, standings, verify_trail
from steca_gym.errors import CheckpointError, DataError
from steca_gym.provenance import read_samples
from steca_gym.reports.text import one_line
from steca_gym.review.policy import effective
from steca_gym.runs.folder import RunFolder, is_run


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedSample:
    """A training sample."""

    trajectory_id: str
    task_id: str
    kind: str
    weight: float
    calibration_id: str
    """of the correction that made it; empty: none did"""
    step: int | None
    """of the correction, 0-based"""
    reflection_source: str
    decisions: tuple[Decision, ...]
    """about the correction, oldest first"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What trained a model."""

    model: Path
    run: str
    base: str
    """the model that the training began with; empty: unknown"""
    samples: tuple[TracedSample, ...]
    trail_at_training: str
    """the last digest of the audit trail when the model was trained"""
    stale: tuple[str, ...]
    """decisions made since that would change the training, one line each"""
    models_after: tuple[str, ...]
    """models of the run whose training began with this one"""

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "model": str(self.model)}

    def lines(self) -> list[str]:
        """For a person."""
        kinds = Counter(s.kind for s in self.samples)
        found = [
            f"{self.model}: trained by run {self.run or 'unknown'} on {len(self.samples)} samples ("
            + ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items()))
            + ")",
        ]
        if self.base:
            found.append(f"  it began with {self.base}; `steca trace` on that shows what trained it")
        for s in self.samples:
            if not s.calibration_id:
                continue
            said = "; ".join(f"{d.decision} by {d.who}{f' ({d.why})' if d.why else ''}" for d in s.decisions)
            found.append(
                f"  {s.kind} {s.calibration_id} at step {(s.step or 0) + 1} of {s.task_id}, weight {s.weight:.3g}, "
                f"reflection by {s.reflection_source}; {said or 'nobody decided'}"
            )
        count = len(self.samples) - sum(bool(s.calibration_id) for s in self.samples)
        if count:
            found.append(f"  and {count} whole trajectories that no correction made (form=json lists them)")
        found.append(
            f"  audit trail: whole; its last entry at the training was {self.trail_at_training[:16]}"
            if self.trail_at_training
            else "  audit trail: whole; nobody had decided when the model was trained"
        )
        found += [f"  STALE: {line}" for line in self.stale]
        if self.stale and self.models_after:
            found.append(f"  so are the models that were trained from it: {', '.join(self.models_after)}")
        return [one_line(line, 400) for line in found]


def trace_model(folder: Path) -> Trace:
    """Trace a model folder inside its run's.

    Raises:
        CheckpointError: the record of the samples beside the weights is damaged.
        DataError: there is no such record, no run around the model, or the audit trail was changed.
    """
    note = read_samples(folder)
    if note is None:
        raise DataError(
            f"{str(folder)!r} holds no samples.json: expected the folder of a model that a run's stage trained, e.g. "
            "runs/mine/model"
        )
    run_path = folder.resolve().parent
    if not is_run(run_path):
        raise DataError(f"{str(folder)!r} lies in no run: its corrections and decisions are in the run's buffer.sqlite")
    run = RunFolder(run_path)
    head = str(note.get("trail", ""))
    with run.buffer() as buffer:
        entries = buffer.decisions()
        verify_trail(entries)
        digests = [e.digest for e in entries]
        if head and head not in digests:
            raise DataError(
                f"the audit trail of {str(run_path)!r} no longer holds the entry that was the last one when the model "
                f"was trained ({head[:16]}): it was cut or exchanged; restore buffer.sqlite from a copy"
            )
        at = digests.index(head) + 1 if head else 0
        earlier = _stages_before(run, folder)
        used = {s["calibration_id"] for s in note["samples"] if s.get("calibration_id")}
        made, could_use = {}, set(used)
        for phase in buffer.phases():
            for result in buffer.iter_results(phase):
                made.update({c.calibration_id: c for c in result.calibrations})
                if phase in earlier:
                    could_use.update(c.calibration_id for c in result.calibrations)
        stale = _stale(entries, at, used, could_use)
        # As it was when the model was trained: an edit changes the text and its author.
        then = standings(entries[:at])
        made = {key: effective(c, then.get(key)) for key, c in made.items()}
        samples = []
        for s in note["samples"]:
            found = made.get(s.get("calibration_id", ""))
            samples.append(
                TracedSample(
                    trajectory_id=str(s["trajectory_id"]),
                    task_id=str(s["task_id"]),
                    kind=str(s["kind"]),
                    weight=float(s["weight"]),
                    calibration_id=str(s.get("calibration_id", "")),
                    step=None if found is None else found.step,
                    reflection_source="" if found is None else found.reflection.source,
                    decisions=tuple(e for e in entries[:at] if e.calibration_id == s.get("calibration_id")),
                )
            )
    return Trace(
        model=folder,
        run=run.name,
        base=str(note.get("base", "")),
        samples=tuple(samples),
        trail_at_training=head,
        stale=tuple(stale),
        models_after=tuple(_models_after(run, folder)),
    )


def _stages_before(run: RunFolder, folder: Path) -> list[str]:
    """The stages that were done when the model's own stage began, in order."""
    name = folder.resolve().name
    found: list[str] = []
    for stage, record in run.record.stages.items():
        if record.model is not None and str(record.model) == name:
            return found
        found.append(stage)
    return []


def _stale(entries: Sequence[Decision], at: int, used: set[str], could_use: set[str]) -> list[str]:
    """Decisions after the training that change what it would use.

    Args:
        entries: the whole audit trail.
        at: how many of them had been made when the model was trained.
        used: the calibrations that it was trained on.
        could_use: those that existed then; later ones, and those of a model trained before them, concern other models.
    """
    before, now = standings(entries[:at]), standings(entries)
    found = []
    for calibration_id in sorted({e.calibration_id for e in entries[at:]} & could_use):
        old, new = before.get(calibration_id, Standing()), now[calibration_id]
        last = next(e for e in reversed(entries) if e.calibration_id == calibration_id)
        by = f"by {last.who} at {last.at[:19]} UTC"
        if new.word == "refused":
            if calibration_id in used:
                found.append(f"{calibration_id}, which it was trained on, was refused {by}")
        elif (old.edit and old.edit.digest) != (new.edit and new.edit.digest):
            found.append(f"{calibration_id} was changed {by}")
        elif calibration_id not in used and old.word == "refused":
            found.append(f"{calibration_id}, which it was not trained on, is no longer refused (changed {by})")
        elif calibration_id not in used and old.edit is not None and new.word == "approved":
            found.append(f"{calibration_id}, which it was not trained on, was approved {by}")
    return found


def _models_after(run: RunFolder, folder: Path) -> list[str]:
    """Models of the run that came from this one, in order."""
    models = [str(s.model) for s in run.record.stages.values() if s.model is not None]
    name = folder.resolve().name
    return models[models.index(name) + 1 :] if name in models else []


def stale_models(run: RunFolder) -> list[str]:
    """The run's models that decisions after their training make stale, each with the reasons; see ``Trace``."""
    found = []
    for stage in run.record.stages.values():
        if stage.model is None or read_samples(run.path / stage.model) is None:
            continue
        try:
            trace = trace_model(run.path / stage.model)
        except (DataError, CheckpointError, json.JSONDecodeError) as error:
            found.append(f"{stage.model}: {error}")
            continue
        if trace.stale:
            found.append(f"{stage.model}: {'; '.join(trace.stale)}")
    return found
