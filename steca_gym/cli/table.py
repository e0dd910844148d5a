"""`steca table PATH... [by=KEY] [format=...]`: any set of runs in one table, aggregated over seeds.

  steca table runs                             all runs below a folder, also while a sweep runs
  steca table runs by=agent.train.learning_rate
  steca table runs/a runs/b format=markdown    or latex, csv, text

A row for each method (and for each value of `by`, any key of the configuration): runs, mean over seeds with its 95 %
interval, interquartile mean over seeds and task types with a stratified bootstrap interval, the probability that a run
is better than one of the first row, steps, distance to the expert, robustness after a wrong action, and cost.
"""

from __future__ import annotations

from steca_gym.cli.options import read_options, runs_at
from steca_gym.errors import ConfigError


def main(args: list[str]) -> int:
    """Run the command."""
    from steca_gym.reports.tables import FORMATS, runs_table

    given, paths = read_options("table", args, {"by": None, "format": "text"}, positional=True)
    if not paths:
        raise ConfigError("table needs a path, e.g. `steca table runs`; see `steca table --help`")
    if given["format"] not in FORMATS:
        raise ConfigError(f"format must be one of {', '.join(FORMATS)}, got {given['format']!r}")
    print(runs_table([run.path for run in runs_at(paths)], by=given["by"], form=str(given["format"])))
    return 0
