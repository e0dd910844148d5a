"""`steca report RUN... [to=FILE]`: one HTML file that shows what happened in the runs.

  steca report runs/mine                      writes runs/mine/report.html
  steca report runs to=sweep.html             all runs below a folder, side by side, aggregated over seeds
  steca report runs/a runs/b to=both.html     two runs, compared on the same games
  steca report runs/mine prices=prices.yaml   with money; sampled_tokens, prompt_tokens (per million), hour, currency
  steca report runs/mine form=my_module:Mine  a report of your own; form=text: as text

The file needs no network: results with intervals, costs, the step values of any trajectory beside its turns, each
calibration with its evidence, and a map of where trajectories are lost. Runs are only read; one that is still going
can be reported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from steca_gym.cli.options import check_target, read_options, runs_at
from steca_gym.errors import ConfigError


def main(args: list[str]) -> int:
    """Run the command."""
    from steca_gym.prices import read_prices
    from steca_gym.registry import checked_call, reports
    from steca_gym.reports.base import Report

    given, paths = read_options("report", args, {"to": None, "form": "html", "prices": None}, positional=True)
    if not paths:
        raise ConfigError("report needs a run, e.g. `steca report runs/mine`; see `steca report --help`")
    runs = runs_at(paths)
    report: Report = checked_call("form", reports.get(str(given["form"])))
    if not callable(getattr(report, "render", None)):
        raise ConfigError(f"form={given['form']!r} is no report: expected a class with render(runs)")
    if given["prices"]:
        if not hasattr(report, "prices"):
            raise ConfigError(f"form={given['form']!r} shows no money; leave prices= out, or take form=html")
        cast(Any, report).prices = read_prices(Path(given["prices"]))
    if given["to"] is not None:
        check_target(given["to"])
    page = report.render(runs)
    target = Path(given["to"] or Path(paths[0]) / f"report{page.suffix}")
    print(page.write(target))
    return 0
