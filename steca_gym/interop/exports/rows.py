"""A run as rows: trajectories with their weights and loss masks, and preference pairs, one at a time."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steca_gym import provenance
from steca_gym.agent import Message, Prompt
from steca_gym.buffer import CalibrationBuffer
from steca_gym.calibration.records import Calibration
from steca_gym.chat.control_tokens import encodable
from steca_gym.errors import DataError
from steca_gym.methods.context import PromptConfig
from steca_gym.runs import RunFolder
from steca_gym.settings import read_settings
from steca_gym.trajectory import PreferencePair, Step, Trajectory
from steca_gym.turns import TOOL_NAME, ToolsFormat

(TOOL,) = ToolsFormat.tools
"""the function of tool-call messages, in OpenAI's schema: the one that agents are shown"""


@dataclass(frozen=True, slots=True)
class Row:
    """A trajectory of a run, as training data."""

    trajectory: Trajectory
    kind: str
    """under which the buffer holds it"""
    weight: float
    """that the run's last training gave it, finite and >= 0; 1.0 where none did"""


class RunData:
    """A run's data, read one trajectory at a time.

    Args:
        run: the run's folder.
        kind: only trajectories of this kind; None: all.

    Raises:
        DataError: no run, a run without trajectories, or none of the kind; names the kinds that there are.
    """

    def __init__(self, run: str | Path, kind: str | None = None) -> None:
        """Look into the folder."""
        self.folder = RunFolder(run)
        self.kind = kind
        record = self.folder.record
        env = record.settings.get("env")
        self.env: dict[str, Any] = dict(env) if isinstance(env, dict) else {}
        self.prompt: Prompt = read_settings(PromptConfig, self.env.get("prompt") or {}, where="env.prompt").prompt()
        self.seed, self.method, self.version = record.seed, record.method, record.version
        with self.folder.buffer() as buffer:
            kinds = buffer.kinds()
        if not kinds:
            raise DataError(f"{str(self.folder.path)!r} holds no trajectories to export; run a stage of it first")
        if kind is not None and kind not in kinds:
            raise DataError(
                f"{str(self.folder.path)!r} holds no trajectories of kind {kind!r}, only {', '.join(kinds)}"
            )
        self.kinds = kinds if kind is None else [kind]

    def rows(self) -> Iterator[Row]:
        """Trajectories with the weights of the last stage that trained on them, ordered by kind, task and id."""
        weights = self._weights()
        with self.folder.buffer() as buffer:
            for kind in self.kinds:
                for trajectory in buffer.iter_trajectories(kind=kind):
                    yield Row(trajectory, kind, weights.get(trajectory.trajectory_id, 1.0))

    def _weights(self) -> dict[str, float]:
        weights: dict[str, float] = {}
        for stage in self.folder.record.stages.values():
            if stage.model is None:
                continue
            note = provenance.read_samples(self.folder.path / stage.model) or {"samples": []}
            for sample in note["samples"]:
                weight = sample["weight"]
                if isinstance(weight, int | float) and math.isfinite(weight) and weight >= 0:
                    weights[str(sample["trajectory_id"])] = float(weight)
        return weights

    def pairs(self) -> Iterator[PreferencePair]:
        """Preference pairs of the run: fatal actions, corrections, and won against lost episodes of one task.

        - ``fatal``: at a fatal action, the right action against it;
        - ``step``: from a deviation on, the demonstration against the agent's own failed continuation;
        - ``outcome``: two whole episodes of one task from one start, the one with the higher score preferred.
        """
        with self.folder.buffer() as buffer:
            if self.kind is None:
                for result in buffer.iter_results():
                    for calibration in result.calibrations:
                        pair = calibration.pair or _correction_pair(calibration)
                        if pair is not None:
                            yield pair
            yield from self._outcome_pairs(buffer)

    def _outcome_pairs(self, buffer: CalibrationBuffer) -> Iterator[PreferencePair]:
        # Per task in memory: the best episode of each start. Evaluations are never training data.
        best: dict[tuple[str, str], tuple[float, str, str]] = {}
        kinds = [k for k in self.kinds if k not in ("evaluation", "repeat") or self.kind == k]
        for kind in kinds:
            for t in buffer.iter_trajectories(kind=kind):
                start = (t.task_id, t.first_observation)
                if t.steps and t.status != "error" and t.score > best.get(start, (-1.0, "", ""))[0]:
                    best[start] = (t.score, kind, t.trajectory_id)
        seen: set[str] = set()
        for kind in kinds:
            for t in buffer.iter_trajectories(kind=kind):
                found = best.get((t.task_id, t.first_observation))
                if found is None or t.trajectory_id in seen or t.score >= found[0] or t.status == "error":
                    continue
                seen.add(t.trajectory_id)
                chosen = next(
                    x for x in buffer.iter_trajectories(kind=found[1], task_id=t.task_id) if x.trajectory_id == found[2]
                )
                pair = _pair(chosen, t, 0, "outcome")
                if pair is not None:
                    yield pair


def _correction_pair(calibration: Calibration) -> PreferencePair | None:
    failed = calibration.failed_continuation
    if calibration.status != "accepted" or failed is None:
        return None
    return _pair(calibration.trajectory, failed, calibration.step, "step")


def _pair(chosen: Trajectory, rejected: Trajectory, num_shared: int, kind: str) -> PreferencePair | None:
    """The pair after as many shared steps; None where the two make no pair."""
    prefix = dataclasses.replace(
        chosen, steps=chosen.steps[:num_shared], score=0.0, won=False, status="running", trajectory_id=""
    )
    try:
        return PreferencePair(prefix=prefix, chosen=chosen, rejected=rejected, kind=kind)
    except DataError:  # equal turns, or nothing to train on
        return None


# -- messages ---------------------------------------------------------------------------------------------------


def message_row(row: Row, prompt: Prompt) -> dict[str, Any]:
    """A trajectory as a ChatML conversation with its loss mask.

    Returns:
        ``messages`` (role and content, up to the last turn), ``train`` (one flag a message: the loss covers it),
        ``weight``, and the columns of ``about``. Texts are UTF-8: lone surrogates become U+FFFD.
    """
    messages, train = conversation(row.trajectory, prompt)
    return {
        "messages": [{"role": m.role, "content": encodable(m.content)} for m in messages],
        "train": train,
        "weight": row.weight,
        **about(row.trajectory, row.kind),
    }


def conversation(t: Trajectory, prompt: Prompt) -> tuple[list[Message], list[bool]]:
    """The messages up to the last turn, and which of them the loss covers."""
    messages = list(t.messages(prompt))
    train = [False] * len(messages)
    first = len(prompt.messages()) + 1
    for index, step in enumerate(t.steps):
        train[first + 2 * index] = step.trainable
    # No turn follows the last observation.
    return (messages[:-1], train[:-1]) if t.steps else (messages, train)


def tool_row(row: Row, prompt: Prompt) -> dict[str, Any]:
    """A trajectory as tool calls: each turn calls ``act``, each observation is the message of a tool.

    The prompt's worked example is left out: it shows the turn format of text.
    """
    t = row.trajectory
    messages: list[dict[str, Any]] = []
    if prompt.instruction:
        messages.append(_tool_message("system", prompt.instruction))
    messages.append(_tool_message("user", t.first_observation))
    train = [False] * len(messages)
    for index, step in enumerate(t.steps):
        messages.append(_tool_message("assistant", step.thought, step))
        messages.append({**_tool_message("tool", step.observation), "name": TOOL_NAME})
        train += [step.trainable and step.parsed, False]
        if index == len(t.steps) - 1:
            messages, train = messages[:-1], train[:-1]
    return {
        "messages": messages,
        "tools": json.dumps([TOOL]),
        "train": train,
        "weight": row.weight,
        **about(t, row.kind),
    }


def _tool_message(role: str, content: str, step: Step | None = None) -> dict[str, Any]:
    calls = None
    if step is not None:
        function = {"name": TOOL_NAME, "arguments": {"action": encodable(step.action)}}
        calls = [{"type": "function", "function": function}]
    return {"role": role, "content": encodable(content), "tool_calls": calls, "name": None}


def turn_rows(row: Row, prompt: Prompt) -> Iterator[dict[str, Any]]:
    """One row for each turn that trains, as ``prompt`` and ``completion``: the exact loss mask in any trainer."""
    messages, train = conversation(row.trajectory, prompt)
    plain = [{"role": m.role, "content": encodable(m.content)} for m in messages]
    for index, trains in enumerate(train):
        if trains:
            yield {
                "prompt": plain[:index],
                "completion": [plain[index]],
                "weight": row.weight,
                **about(row.trajectory, row.kind),
            }


def pair_row(pair: PreferencePair, prompt: Prompt) -> dict[str, Any]:
    """A pair as ``prompt``, ``chosen`` and ``rejected``, each a list of messages."""
    shared = len(prompt.messages()) + 1 + 2 * len(pair.prefix)
    chosen, _ = conversation(pair.chosen, prompt)
    rejected, _ = conversation(pair.rejected, prompt)

    def plain(messages: list[Message]) -> list[dict[str, str]]:
        return [{"role": m.role, "content": encodable(m.content)} for m in messages]

    return {
        "prompt": plain(chosen[:shared]),
        "chosen": plain(chosen[shared:]),
        "rejected": plain(rejected[shared:]),
        "chosen_score": pair.chosen.score,
        "rejected_score": pair.rejected.score,
        "kind": pair.kind,
        "task_id": encodable(pair.chosen.task_id),
    }


def about(t: Trajectory, kind: str) -> dict[str, Any]:
    """Where a trajectory comes from: the columns that every table has."""
    return {
        "trajectory_id": t.trajectory_id,
        "kind": kind,
        "task_id": encodable(t.task_id),
        "task_type": encodable(t.task_type),
        "score": t.score,
        "won": t.won,
        "status": t.status,
        "seed": t.seed,
        "agent": encodable(t.agent),
        "environment": encodable(t.fingerprint),
    }


def file_name(text: str) -> str:
    """A text as a part of a file's name: letters, digits, dashes and underscores only."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in text)
