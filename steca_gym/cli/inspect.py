"""`steca inspect RUN... [--plain]`: runs, trajectories and calibrations in the terminal.

  steca inspect runs/mine                    browse: a list, and one trajectory replayed step by step
  steca inspect runs/mine --plain            the run, and a line for each trajectory, as text; so it is in a pipe
  steca inspect runs/mine show=0-90f7d98f    one trajectory step by step as text, by its id or its task

Keys: Up and Down choose, Left and Right replay a step, d goes to where it went wrong, / searches, r t c change between
runs, trajectories and calibrations, q ends. Browsing needs the terminal extra; without it the text is printed. Escape
sequences in texts are shown, not obeyed. Runs are only read. `steca report` shows the same with charts.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

from steca_gym.cli.options import read_options
from steca_gym.errors import ConfigError, DataError


def main(args: list[str]) -> int:
    """Run the command."""
    from steca_gym.reports.data import report_data
    from steca_gym.reports.plain import TextReport, trajectory_text
    from steca_gym.runs.folder import find_runs

    plain = "--plain" in args
    given, paths = read_options("inspect", [a for a in args if a != "--plain"], {"show": None}, positional=True)
    if not paths:
        raise ConfigError("inspect needs a run, e.g. `steca inspect runs/mine`; see `steca inspect --help`")
    runs = list({run.path.resolve(): run for path in paths for run in find_runs(Path(path))}.values())
    if not runs:
        raise DataError(f"no runs in {', '.join(paths)}; give folders that `steca run` printed, or their root")
    if not plain and not given["show"] and sys.stdout.isatty() and find_spec("textual") is not None:
        from steca_gym.reports.terminal import InspectApp

        InspectApp(report_data(runs)).run()
        return 0
    text = trajectory_text(report_data(runs), given["show"]) if given["show"] else TextReport().render(runs).text
    print(text, end="")
    return 0
