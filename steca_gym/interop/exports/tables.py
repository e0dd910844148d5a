"""Hugging Face datasets on disk: Parquet in bounded memory, and a card."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from steca_gym.buffer.export import write_lines, write_rows
from steca_gym.errors import ConfigError, DataError
from steca_gym.interop.exports import rows
from steca_gym.interop.exports.rows import RunData

_ABOUT = {
    "trajectory_id": ("string", "digest of the trajectory's content"),
    "kind": ("string", "what the trajectory is, e.g. expert, calibrated, own, evaluation"),
    "task_id": ("string", "the task, as the environment names it"),
    "task_type": ("string", "the kind of task; empty where the environment has none"),
    "score": ("double", "outcome reward, in [0, 1]"),
    "won": ("bool", "the task was solved"),
    "status": ("string", "terminated, truncated (at the horizon), error, or running (a beginning)"),
    "seed": ("int64", "seed of the episode"),
    "agent": ("string", "who played"),
    "environment": ("string", "fingerprint of the environment: name, version and data"),
}
_MESSAGES = "messages"
_CALLS = "calls"
_WEIGHT = ("double", "weight in the loss, >= 0")
_TRAIN = ("flags", "one flag a message: the loss covers it")

COLUMNS: dict[str, dict[str, tuple[str, str]]] = {
    "messages": {
        "messages": (_MESSAGES, "the conversation up to the last turn, with the system prompt"),
        "train": _TRAIN,
        "weight": _WEIGHT,
        **_ABOUT,
    },
    "tools": {
        "messages": (_CALLS, "the conversation, each turn a call of the function `act`"),
        "tools": ("string", "JSON: the function that the turns call"),
        "train": _TRAIN,
        "weight": _WEIGHT,
        **_ABOUT,
    },
    "turns": {
        "prompt": (_MESSAGES, "everything before the turn"),
        "completion": (_MESSAGES, "one turn that trains"),
        "weight": _WEIGHT,
        **_ABOUT,
    },
    "preferences": {
        "prompt": (_MESSAGES, "the shared beginning"),
        "chosen": (_MESSAGES, "the better continuation"),
        "rejected": (_MESSAGES, "the worse continuation"),
        "chosen_score": ("double", "outcome reward of the better one, in [0, 1]"),
        "rejected_score": ("double", "outcome reward of the worse one, in [0, 1]"),
        "kind": ("string", "fatal (an action), step (from a deviation on) or outcome (whole episodes)"),
        "task_id": ("string", "the task, as the environment names it"),
    },
}
"""columns of each dataset, with the name of their type and their meaning"""

EXAMPLES = {
    "messages": 'SFTTrainer(model, train_dataset=load_dataset("FOLDER", split="train"))',
    "tools": 'SFTTrainer(model, train_dataset=load_dataset("FOLDER", split="train"))',
    "turns": 'SFTTrainer(model, train_dataset=load_dataset("FOLDER", split="train"))',
    "preferences": 'DPOTrainer(model, train_dataset=load_dataset("FOLDER", split="train"))',
}


def table_rows(data: RunData, form: str) -> Iterator[dict[str, Any]]:
    """The rows of a dataset."""
    if form == "preferences":
        yield from (rows.pair_row(pair, data.prompt) for pair in data.pairs())
        return
    for row in data.rows():
        if not row.trajectory.steps:  # a conversation without a turn teaches nothing
            continue
        if form == "turns":
            yield from rows.turn_rows(row, data.prompt)
        elif form == "tools":
            yield rows.tool_row(row, data.prompt)
        else:
            yield rows.message_row(row, data.prompt)


def write_dataset(data: RunData, to: Path, form: str) -> list[Path]:
    """Write ``data/train.parquet`` and ``README.md``, which ``datasets.load_dataset(FOLDER)`` reads.

    Raises:
        ConfigError: pyarrow is not installed.
        DataError: the run holds nothing for this dataset; no file is left.
        StorageError: the disk is full.
    """
    path = to / "data" / "train.parquet"
    counts = {"rows": 0}

    def counted() -> Iterator[dict[str, Any]]:
        for row in table_rows(data, form):
            counts["rows"] += 1
            yield row
        if not counts["rows"]:
            raise DataError(_NOTHING[form].format(run=str(data.folder.path)))

    write_rows(path, arrow_schema(form), counted())
    return [path, write_lines(to / "README.md", [card(data, form, counts["rows"])])]


_NOTHING = {
    "preferences": "{run!r} holds no preference pairs: they need two episodes of one task with different scores, or "
    "accepted corrections; run a method that plays the agent, or export format=messages",
    **dict.fromkeys(
        ("messages", "tools", "turns"), "{run!r} holds no trajectory with a turn to train on; run a stage of it first"
    ),
}


def arrow_schema(form: str) -> Any:
    """The schema of a dataset, for pyarrow."""
    try:
        import pyarrow as pa
    except ImportError as error:
        raise ConfigError(
            f"format={form} needs pyarrow, which is not installed; run `pip install 'steca-gym[llm]'`"
        ) from error
    text = pa.string()
    message = pa.struct([("role", text), ("content", text)])
    function = pa.struct([("name", text), ("arguments", pa.struct([("action", text)]))])
    call = pa.struct([("type", text), ("function", function)])
    types = {
        "string": text,
        "double": pa.float64(),
        "int64": pa.int64(),
        "bool": pa.bool_(),
        "flags": pa.list_(pa.bool_()),
        _MESSAGES: pa.list_(message),
        _CALLS: pa.list_(
            pa.struct([("role", text), ("content", text), ("tool_calls", pa.list_(call)), ("name", text)])
        ),
    }
    return pa.schema([(name, types[kind]) for name, (kind, _) in COLUMNS[form].items()])


def card(data: RunData, form: str, num_rows: int) -> str:
    """The dataset's card: YAML front matter and Markdown."""
    env = str(data.env.get("id", "unknown"))
    lines = [
        "---",
        "# license: choose one before you publish, e.g. apache-2.0; texts of the environment have their own",
        "pretty_name: " + _yaml(f"{form} of {data.folder.name}"),
        "task_categories: [text-generation]",
        "tags: [steca-gym, agent, " + ("preferences" if form == "preferences" else "trajectories") + "]",
        "size_categories: [" + _size(num_rows) + "]",
        "configs:",
        "- config_name: default",
        "  data_files: [{split: train, path: data/train.parquet}]",
        "---",
        "",
        f"# {form} of {data.folder.name}",
        "",
        f"{num_rows} rows, written by `steca export format={form}` (steca-gym {data.version}).",
        "",
        "## Provenance",
        "",
        f"- environment: `{env}`, settings `{data.env.get('kwargs') or {}}`",
        f"- method: `{data.method}`; seed of the run: {data.seed}; the seed of each episode is in the column `seed`"
        if form != "preferences"
        else f"- method: `{data.method}`; seed of the run: {data.seed}",
        f"- kinds of trajectories: {', '.join(data.kinds)}",
        "- licence: left to you",
        "",
        "## Columns",
        "",
        "| column | meaning |",
        "|---|---|",
        *(f"| `{name}` | {meaning} |" for name, (_, meaning) in COLUMNS[form].items()),
        "",
        "## Use",
        "",
        "```python",
        EXAMPLES[form].replace("FOLDER", "."),
        "```",
    ]
    return "\n".join(lines)


def _yaml(text: str) -> str:
    import json

    return json.dumps(text)  # a JSON text is a YAML text


def _size(num_rows: int) -> str:
    for limit, name in ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")):
        if num_rows < limit:
            return name
    return "n>1M"
