"""`steca repair RUN...`: save what is readable of a damaged run, and say what is gone.

  steca repair runs/mine

Looks at `run.json` and at every page and every object of `buffer.sqlite`. A sound run is left as it is. Of a damaged
buffer all readable trajectories, calibrations and decisions go into a new `buffer.sqlite`; the damaged files are moved
to `damaged-1` in the run's folder. What is gone is named, and the stages that lost a piece are taken out of `run.json`:
the same `steca run` command plays them again, and only what is missing.
Exit codes: 0 nothing was damaged, 5 something was; what could be saved is saved.
"""

from __future__ import annotations

from pathlib import Path

from steca_gym.cli.options import read_options
from steca_gym.errors import ConfigError


def main(args: list[str]) -> int:
    """Run the command."""
    from steca_gym.runs.repairing import repair_run

    _, paths = read_options("repair", args, {}, positional=True)
    if not paths:
        raise ConfigError("repair takes the folders of runs, got none; e.g. `steca repair runs/mine`")
    code = 0
    for path in paths:
        found = repair_run(Path(path))
        for line in found.lines:
            print(f"{path}: {line}" if len(paths) > 1 else line)
        code = code if found.is_sound else 5  # as for storage that fails
    return code
