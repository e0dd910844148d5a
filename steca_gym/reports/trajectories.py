"""What a report shows of single trajectories: their turns, step values, where they were lost, and their corrections.

Everything here is plain data for JSON. Steps are counted from 0, as in the buffer; a page that shows them adds one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from steca_gym.buffer import CalibrationBuffer, Decision
from steca_gym.calibration.records import Calibration, ExpertResult, StepVerdict
from steca_gym.calibration.weights import WeightSettings, calibration_weight
from steca_gym.distances import Encoder, HashEncoder, dndtw_path
from steca_gym.errors import ConfigError
from steca_gym.reports.text import one_line
from steca_gym.review.config import ReviewConfig
from steca_gym.review.policy import effective, standing_of
from steca_gym.runs.folder import RunFolder
from steca_gym.settings import read_settings
from steca_gym.step_rewards.values import Estimate
from steca_gym.trajectory import Step, Trajectory

JSON = dict[str, Any]

MAX_ALIGNED = 64
"""steps on either side of an alignment whose costs are kept; of longer ones only the distance is"""
MAX_OUTCOMES = 200
"""Monte Carlo outcomes of one value that are listed"""
LOST = ("deviated", "fatal")
"""verdicts at which a trajectory is lost"""


def explored(run: RunFolder, run_index: int) -> Iterator[tuple[JSON, JSON]]:
    """(row of the list, whole record) of each trajectory of a run; nothing where the run has stored none yet."""
    if not (run.path / "buffer.sqlite").exists():
        return
    with run.buffer() as buffer:
        yield from _Reader(run, run_index, buffer).records()


class _Reader:
    """Reads one run's buffer."""

    def __init__(self, run: RunFolder, run_index: int, buffer: CalibrationBuffer) -> None:
        self.run_index = run_index
        self.buffer = buffer
        settings = run.record.settings
        self.encoder, self.encoder_note = _encoder(settings.get("encoder"))
        self.weights = _weights(settings.get("method"))
        self.review = _review(settings.get("review"))
        self.standings = buffer.standings()
        self.decisions: dict[str, list[Decision]] = {}
        for decision in buffer.decisions():
            self.decisions.setdefault(decision.calibration_id, []).append(decision)

    def records(self) -> Iterator[tuple[JSON, JSON]]:
        """Demonstrations with what was found along them, then every other trajectory."""
        demonstrations = {
            t.trajectory_id or t.with_id().trajectory_id: t for t in self.buffer.iter_trajectories(kind="expert")
        }
        known = dict(demonstrations)
        by_task: dict[str, Trajectory] = {}
        for t in demonstrations.values():
            by_task.setdefault(t.task_id, t)
        shown: set[str] = set()
        for phase in sorted(self.buffer.phases(), key=_round_of):
            for result in self.buffer.iter_results(phase):
                shown.add(result.expert_id)
                # A later round explores along what the round before corrected.
                for c in result.calibrations:
                    t = c.trajectory
                    known.setdefault(t.trajectory_id or t.with_id().trajectory_id, t)
                yield self._explored(phase, result, known.get(result.expert_id))
        for key, t in demonstrations.items():
            if key not in shown:
                yield self._played("expert", t, None)
        for kind in self.buffer.kinds():
            if kind != "expert":
                for t in self.buffer.iter_trajectories(kind=kind):
                    yield self._played(kind, t, by_task.get(t.task_id))

    def _explored(self, phase: str, result: ExpertResult, expert: Trajectory | None) -> tuple[JSON, JSON]:
        """A demonstration, and what the agent did in its states."""
        lost = next((v for v in result.verdicts if v.verdict in LOST), None)
        cards = [self._card(c) for c in result.calibrations]
        head = self._head(result.expert_id, phase, expert, result.task_id)
        row = {
            **head,
            "kind": "explored",
            "phase": phase,
            "round": _round_of(phase),
            "won": None,
            "lost": None if lost is None else lost.step,
            "lost_by": "" if lost is None else "values",
            "action": "" if lost is None else one_line(lost.agent_action, 80),
            "verb": "" if lost is None else verb(lost.agent_action),
            "calibration": "accepted" if any(c["status"] == "accepted" for c in cards) else "refused" if cards else "",
            "decision": next((c["decision"] for c in cards if c["decision"]), ""),
            "waiting": sum(c["state"] == "waiting" for c in cards),
            "error": one_line(result.error),
        }
        detail = {
            **_whole(expert),
            "values": [_value(v) for v in result.verdicts],
            "calibrations": cards,
            "error": result.error,
        }
        return row, detail

    def _played(self, kind: str, t: Trajectory, expert: Trajectory | None) -> tuple[JSON, JSON]:
        """An episode without step values."""
        lost, lost_by = (None, "") if t.won or kind == "expert" else where_lost(t, expert)
        row = {
            **self._head(t.trajectory_id or t.with_id().trajectory_id, kind, t, t.task_id),
            "kind": kind,
            "phase": "",
            "round": 0,
            "won": t.won,
            "lost": lost,
            "lost_by": lost_by,
            "action": "" if lost is None else one_line(t.steps[lost].action, 80),
            "verb": "" if lost is None else verb(t.steps[lost].action),
            "calibration": "",
            "decision": "",
            "waiting": 0,
            "error": one_line(t.error),
        }
        return row, {**_whole(t), "values": [], "calibrations": [], "error": t.error}

    def _head(self, trajectory_id: str, of: str, t: Trajectory | None, task_id: str) -> JSON:
        return {
            "id": f"{self.run_index}-{trajectory_id}-{of}",
            "run": self.run_index,
            "task": one_line(task_id),
            "type": "" if t is None else one_line(t.task_type, 60),
            "goal": "" if t is None else one_line(t.goal or t.first_observation),
            "agent": "" if t is None else one_line(t.agent, 60),
            "steps": 0 if t is None else len(t),
            "score": None if t is None else round(t.score, 4),
            "status": "" if t is None else t.status,
        }

    def _card(self, c: Calibration) -> JSON:
        """A calibration with its evidence, as the last edit made it."""
        standing = self.standings.get(c.calibration_id)
        state = standing_of(c.calibration_id, c.status, self.standings, self.review)
        c = effective(c, standing)
        failed = c.failed_continuation
        right, wrong = compared_actions(c, self.weights)
        alignment = align(right, wrong, self.encoder) if right and wrong and c.status == "accepted" else None
        used = ("fatal" if c.kind == "fatal" else "calibrated") in self.weights.kinds
        weight = 0.0
        value = next((_value(v) for v in c.verdicts if v.step == c.step), None)
        if alignment is not None and used and state in ("approved", "free"):
            weight = round(calibration_weight(alignment["distance"], self.weights), 4)
        return {
            "id": c.calibration_id,
            "step": c.step,
            "kind": c.kind,
            "status": c.status,
            "repaired": c.repaired,
            "reason": c.reason,
            "wrong": _turn(c.deviated, c.step),
            "expert_action": c.expert_action,
            "demonstrated": _demonstrated(c, value),
            "reflection": c.reflection.text,
            "reflection_source": c.reflection.source,
            "value": value,
            "corrected": [_turn(s, i) for i, s in enumerate(c.trajectory.steps) if i >= c.step],
            "won": c.trajectory.won,
            "score": c.trajectory.score,
            "failed": None if failed is None else [_turn(s, i) for i, s in enumerate(failed.steps) if i > c.step],
            "alignment": alignment,
            "encoder": self.encoder_note,
            "weight": weight,
            "state": state,
            "edited_by": "" if standing is None or standing.edit is None else standing.edit.who,
            "decision": "" if standing is None else standing.word,
            "decisions": [
                {"decision": d.decision, "who": d.who, "why": d.why, "at": d.at}
                for d in self.decisions.get(c.calibration_id, ())
            ],
        }


def _demonstrated(c: Calibration, value: JSON | None) -> str:
    """The demonstration's action at the step, where another one is taught (a repair's, an edit's, the agent's own)."""
    shown = "" if value is None else str(value["expert_action"])
    return "" if shown == c.expert_action else shown


def compared_actions(c: Calibration, weights: WeightSettings) -> tuple[Sequence[str], Sequence[str]]:
    """What a calibration teaches and what the agent did instead: the two sides of its weight's distance."""
    if c.kind == "fatal":
        return c.trajectory.actions[c.step :], (c.deviated.action,)
    failed = (c.deviated.action,) if c.failed_continuation is None else c.failed_continuation.actions[c.step :]
    if not weights.wrong_action_in_distance and len(failed) > 1:
        failed = failed[1:]
    return c.trajectory.actions[c.step + 1 :], failed


def _weights(method: Any) -> WeightSettings:
    """The run's weights; the defaults for a method that has none."""
    raw = method.get("weights") if isinstance(method, Mapping) else None
    if not isinstance(raw, Mapping):
        return WeightSettings()
    try:
        return read_settings(WeightSettings, raw, where="method.weights")
    except ConfigError:  # a run of an earlier version
        return WeightSettings()


def _review(raw: Any) -> ReviewConfig:
    """The run's rules for reviews; the defaults where it has none."""
    if not isinstance(raw, Mapping):
        return ReviewConfig()
    try:
        return read_settings(ReviewConfig, raw, where="review")
    except ConfigError:  # a run of an earlier version
        return ReviewConfig()


def where_lost(t: Trajectory, expert: Trajectory | None) -> tuple[int | None, str]:
    """The step at which a lost episode without step values left the path, and how that is known.

    Returns:
        The step, and ``"demonstration"`` (the first action that is not the demonstration's), ``"refused"`` (the first
        action that the world refused or that could not be read) or ``"end"`` (the last step); (None, "") without steps.
    """
    if not t.steps:
        return None, ""
    if expert is not None:
        for i, (own, right) in enumerate(itertools.zip_longest(t.actions, expert.actions)):
            if own != right:
                return min(i, len(t) - 1), "demonstration"
    refused = next((i for i, s in enumerate(t.steps) if not (s.valid and s.parsed)), None)
    return (refused, "refused") if refused is not None else (len(t) - 1, "end")


def verb(action: str) -> str:
    """The kind of an action: its first word."""
    words = action.split(maxsplit=1)
    return one_line(words[0].casefold(), 24) if words else "(nothing)"


def align(right: Sequence[str], wrong: Sequence[str], encoder: Encoder) -> JSON:
    """The dnDTW alignment of two action sequences: distance, local costs, path."""
    distance, path = dndtw_path(list(right), list(wrong), encoder=encoder)
    found: JSON = {"distance": round(float(distance), 4), "right": list(right), "wrong": list(wrong)}
    if max(len(right), len(wrong)) > MAX_ALIGNED:
        return {**found, "cost": None, "path": None}
    a, b = (np.asarray(encoder.encode(list(x)), np.float64) for x in (right, wrong))
    a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (a, b))
    cost = np.clip(1.0 - a @ b.T, 0.0, 2.0)
    return {**found, "cost": np.round(cost, 3).tolist(), "path": path.tolist()}


def _encoder(settings: Any) -> tuple[Encoder, str]:
    """The run's own encoder where it needs no model, otherwise the default; and a note about a difference."""
    if not isinstance(settings, Mapping):
        return HashEncoder(), ""
    name = str(settings.get("_target_") or settings.get("name") or "")
    if name.endswith(("HashEncoder", "hash")):
        known = {k: settings[k] for k in ("dim", "min_n", "max_n", "word_weight") if k in settings}
        return HashEncoder(**known), ""
    short = name.rpartition(".")[2] or "another"
    return (
        HashEncoder(),
        f"drawn with the hash encoder; the run's own ({short}) needs a model, so its weight may differ",
    )


def _whole(t: Trajectory | None) -> JSON:
    if t is None:
        return {"turns": [], "first_observation": "", "goal": "", "seed": None}
    return {
        "turns": [_turn(s, i) for i, s in enumerate(t.steps)],
        "first_observation": t.first_observation,
        "goal": t.goal,
        "seed": t.seed,
    }


def _turn(s: Step, index: int) -> JSON:
    turn: JSON = {"t": index, "action": s.action, "observation": s.observation, "source": s.source}
    # What is usual is left out: it would be most of the file.
    if s.thought:
        turn["thought"] = s.thought
    if not s.parsed:
        turn["unread"] = s.text or s.action
    if not s.valid:
        turn["refused"] = True
    if s.score:
        turn["score"] = round(s.score, 4)
    if not s.trainable:
        turn["shown_only"] = True
    return turn


def _value(v: StepVerdict) -> JSON:
    return {
        "t": v.step,
        "expert_action": v.expert_action,
        "agent_action": v.agent_action,
        "verdict": v.verdict,
        "before": _estimate(v.expert_reward),
        "agent": _estimate(v.agent_reward),
        "after": _estimate(v.expert_step_reward),
        "observation": v.agent_observation,
        "explored_score": v.explored_score,
        "basis": v.basis,
        "fatal": v.fatal,
        "note": v.note,
    }


def _estimate(e: Estimate | None) -> JSON | None:
    if e is None:
        return None
    return {
        "mean": round(e.mean, 4),
        "low": round(e.low, 4),
        "high": round(e.high, 4),
        "n": len(e.outcomes),
        "num_cut": e.num_cut,
        "outcomes": [round(x, 3) for x in e.outcomes[:MAX_OUTCOMES]],
    }


def _round_of(phase: str) -> int:
    number = phase.rpartition(".")[2]
    return int(number) if number.isdecimal() else 0
