"""Trajectories as ATIF, Harbor's Agent Trajectory Interchange Format, version 1.7: one JSON file each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from steca_gym.buffer.export import write_lines
from steca_gym.chat.control_tokens import encodable
from steca_gym.interop.exports.rows import TOOL, Row, RunData, file_name
from steca_gym.turns import TOOL_NAME

SCHEMA_VERSION = "ATIF-v1.7"


def write_atif(data: RunData, to: Path) -> list[Path]:
    """Write ``KIND/TRAJECTORY_ID.json`` for each trajectory; returns the folders.

    Raises:
        StorageError: the disk is full.
    """
    folders: dict[Path, None] = {}
    for row in data.rows():
        folder = to / file_name(row.kind)
        folders[folder] = None
        line = json.dumps(atif(row, data), ensure_ascii=False, allow_nan=False)
        write_lines(folder / f"{row.trajectory.trajectory_id}.json", [line])
    return list(folders)


def atif(row: Row, data: RunData) -> dict[str, Any]:
    """One trajectory as an ATIF document.

    Messages of the prompt's worked example are context that was copied (``is_copied_context``). A turn is an agent's
    step that calls ``act``; a turn that could not be read calls nothing. The loss mask, validity and score of a step
    are in its ``extra``.
    """
    t = row.trajectory
    steps: list[dict[str, Any]] = []
    for message in data.prompt.messages():
        source = {"system": "system", "user": "user", "assistant": "agent"}[message.role]
        step: dict[str, Any] = {"source": source, "message": encodable(message.content)}
        if message.role != "system":
            step["is_copied_context"] = True
        steps.append(step)
    steps.append({"source": "user", "message": encodable(t.first_observation)})
    for index, s in enumerate(t.steps):
        call: dict[str, Any] = {
            "tool_call_id": f"call_{index + 1}",
            "function_name": TOOL_NAME,
            "arguments": {"action": encodable(s.action)},
        }
        result = {"content": encodable(s.observation)}
        step = {"source": "agent", "message": encodable(s.turn_text())}
        if s.thought:
            step["reasoning_content"] = encodable(s.thought)
        if s.parsed:
            step["tool_calls"] = [call]
            result["source_call_id"] = str(call["tool_call_id"])
        step["observation"] = {"results": [result]}
        if s.token_ids is not None:
            step["metrics"] = {"completion_tokens": len(s.token_ids), "completion_token_ids": list(s.token_ids)}
        step["extra"] = {"trainable": s.trainable, "valid": s.valid, "score": s.score, "source": s.source}
        steps.append(step)
    extra = {
        "kind": row.kind,
        "weight": row.weight,
        "task_id": encodable(t.task_id),
        "task_type": encodable(t.task_type),
        "goal": encodable(t.goal),
        "score": t.score,
        "won": t.won,
        "status": t.status,
        "seed": t.seed,
        "environment": encodable(t.fingerprint),
    }
    return {
        "schema_version": SCHEMA_VERSION,
        "session_id": data.folder.name,
        "trajectory_id": t.trajectory_id,
        "agent": {
            "name": encodable(t.agent) or "unknown",
            "version": data.version,
            "tool_definitions": [TOOL],
        },
        "steps": [{"step_id": i, **step} for i, step in enumerate(steps, start=1)],
        "final_metrics": {"total_steps": len(steps)},
        "extra": extra,
    }
