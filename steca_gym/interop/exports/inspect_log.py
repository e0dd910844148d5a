"""Trajectories as logs of Inspect, which ``inspect view`` opens; written by Inspect's own ``write_eval_log``."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from steca_gym.chat.control_tokens import encodable
from steca_gym.errors import ConfigError
from steca_gym.files import storage_errors
from steca_gym.interop.exports.rows import Row, RunData, conversation, file_name

SAMPLES_PER_LOG = 1_000
"""Inspect writes a log from memory, so that a large run becomes several logs"""


def write_inspect(data: RunData, to: Path) -> list[Path]:
    """Write ``NAME-KIND-NUMBER.eval``; returns the files.

    Raises:
        ConfigError: inspect_ai is not installed.
        StorageError: the disk is full.
    """
    try:
        from inspect_ai.log import write_eval_log
    except ImportError as error:
        raise ConfigError(
            "format=inspect needs inspect_ai, which is not installed; run `pip install 'steca-gym[inspect]'`"
        ) from error
    written: list[Path] = []
    with storage_errors("the log of Inspect", to):
        to.mkdir(parents=True, exist_ok=True)
        for kind, rows in itertools.groupby(data.rows(), key=lambda row: row.kind):
            for number in itertools.count():
                part = list(itertools.islice(rows, SAMPLES_PER_LOG))  # noqa: B031 - one group, read in parts
                if not part:
                    break
                path = to / f"{file_name(f'{data.folder.name}-{kind}-{number}')}.eval"
                write_eval_log(_log(part, data, kind, number), str(path))
                written.append(path)
    return written


def _log(rows: list[Row], data: RunData, kind: str, number: int) -> Any:
    from inspect_ai import log

    now = datetime.now(UTC).isoformat()
    samples = [_sample(row, data, index) for index, row in enumerate(rows)]
    num_errors = sum(row.trajectory.status == "error" for row in rows)
    means = {
        "score": sum(row.trajectory.score for row in rows) / len(rows),
        "won": sum(row.trajectory.won for row in rows) / len(rows),
    }
    scores = [
        log.EvalScore(name=name, scorer=name, metrics={"mean": log.EvalMetric(name="mean", value=value)})
        for name, value in means.items()
    ]
    spec = log.EvalSpec(
        created=now,
        task=f"{data.env.get('id', 'environment')} ({kind})",
        task_id=f"{data.folder.name}-{kind}-{number}",
        eval_id=f"{data.folder.name}-{kind}-{number}",
        run_id=data.folder.name,
        dataset=log.EvalDataset(
            name=str(data.env.get("id", "")), samples=len(rows), sample_ids=[str(s.id) for s in samples]
        ),
        model=f"steca-gym/{encodable(rows[0].trajectory.agent) or 'unknown'}",
        config=log.EvalConfig(),
        metadata={"method": data.method, "seed": data.seed, "steca_gym": data.version, "kind": kind},
    )
    return log.EvalLog(
        status="success",
        eval=spec,
        results=log.EvalResults(total_samples=len(rows), completed_samples=len(rows) - num_errors, scores=scores),
        stats=log.EvalStats(started_at=now, completed_at=now),
        samples=samples,
    )


def _sample(row: Row, data: RunData, index: int) -> Any:
    from inspect_ai.log import EvalSample
    from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageUser, ModelOutput
    from inspect_ai.scorer import Score

    t = row.trajectory
    messages, train = conversation(t, data.prompt)
    if t.steps:  # what the world answered last belongs to the picture, though no turn follows it
        messages, train = list(t.messages(data.prompt)), [*train, False]
    made: list[Any] = []
    for i, (message, trains) in enumerate(zip(messages, train, strict=True)):
        content = encodable(message.content)
        if message.role == "assistant":
            made.append(ChatMessageAssistant(id=f"{index}-{i}", content=content, metadata={"train": trains}))
        else:
            kind = ChatMessageSystem if message.role == "system" else ChatMessageUser
            made.append(kind(id=f"{index}-{i}", content=content))
    first = len(data.prompt.messages()) + 1
    return EvalSample(
        id=f"{encodable(t.task_id)}#{t.trajectory_id[:8]}",
        epoch=1,
        input=made[:first],
        target="",
        messages=made,
        output=ModelOutput.from_content("steca-gym", encodable(t.steps[-1].turn_text()) if t.steps else ""),
        scores={"score": Score(value=t.score), "won": Score(value=float(t.won))},
        metadata={
            "trajectory_id": t.trajectory_id,
            "task_type": encodable(t.task_type),
            "goal": encodable(t.goal),
            "status": t.status,
            "error": encodable(t.error),
            "seed": t.seed,
            "weight": row.weight,
            "environment": encodable(t.fingerprint),
        },
    )
