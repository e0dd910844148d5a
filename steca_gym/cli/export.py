"""`steca export run=PATH [to=FOLDER]`: a run's trajectories, evidence and decisions as JSON lines and Parquet.

`to` is PATH/export where it is not given. `datasets.load_dataset("parquet", data_files=...)` reads the tables.
Parquet needs the llm extra; without it the JSON lines are written.
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

    given, _ = read_options("export", args, {"run": None, "to": None})
    if not given["run"]:
        raise ConfigError("export takes run=PATH and to=FOLDER, got no run=; e.g. `steca export run=runs/mine`")
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
