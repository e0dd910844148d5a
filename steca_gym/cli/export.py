"""`steca export run=PATH [format=NAME] [to=FOLDER] [kind=NAME]`: a run's data in the formats of other tools.

  format=tables       JSON lines and Parquet of everything: trajectories, evidence, decisions (the default)
                        steca export run=runs/mine
  format=messages     Hugging Face dataset of conversations with system prompt, loss mask and weight, for SFTTrainer
                        steca export run=runs/mine format=messages kind=expert
  format=tools        the same with tool calls in place of written turns
                        steca export run=runs/mine format=tools
  format=turns        a prompt and a completion for each turn that trains: the exact loss mask in any trainer
                        steca export run=runs/mine format=turns
  format=preferences  prompt, chosen and rejected, for DPOTrainer
                        steca export run=runs/mine format=preferences
  format=minari       Minari dataset; `steca import` reads it back
                        steca export run=runs/mine format=minari to=minari_data
  format=atif         ATIF, Harbor's trajectory format: one JSON file for each trajectory
                        steca export run=runs/mine format=atif
  format=inspect      Inspect's log, a sample for each trajectory
                        steca export run=runs/mine format=inspect kind=evaluation to=logs && inspect view --log-dir logs

`to`: PATH/export for tables, else PATH/export/FORMAT. `kind` takes only trajectories of one kind (expert,
own, evaluation ...). Datasets have a card (README.md), whose licence is left to you.
Parquet needs the llm extra; without it the tables' JSON lines are written.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

from steca_gym.cli.options import read_options
from steca_gym.errors import ConfigError


def main(args: list[str]) -> int:
    """Run the command."""
    from steca_gym.runs import RunFolder

    given, _ = read_options("export", args, {"run": None, "format": "tables", "to": None, "kind": None})
    if not given["run"]:
        raise ConfigError("export takes run=PATH and to=FOLDER, got no run=; e.g. `steca export run=runs/mine`")
    form = given["format"] or "tables"
    if form == "tables":
        if given["kind"]:
            raise ConfigError("kind=... is for the other formats: format=tables writes every trajectory")
        folder = RunFolder(given["run"])
        target = Path(given["to"] or folder.path / "export")
        with folder.buffer() as buffer:
            for path in buffer.export_jsonl(target):
                print(path)
            if find_spec("pyarrow") is None:
                print("steca: no Parquet without pyarrow: pip install 'steca-gym[llm]'", file=sys.stderr)
            else:
                for path in buffer.export_parquet(target):
                    print(path)
        return 0
    from steca_gym.interop.exports import export

    target = Path(given["to"] or Path(given["run"]) / "export" / form)
    for path in export(given["run"], target, form, kind=given["kind"]):
        print(path)
    return 0
