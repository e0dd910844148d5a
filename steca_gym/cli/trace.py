"""`steca trace MODEL [form=text|json]`: what trained a model, back to each demonstration, correction and decision.

  steca trace runs/mine/model                 a summary, and a line for each correction
  steca trace runs/mine/model form=json       everything, for a program

The samples are those that the training wrote beside the weights (`samples.json`); corrections and decisions are read
from the run's buffer. The audit trail is checked: its chain, and that it still holds the entry that was the last one
when the model was trained. Decisions made after the training that would change it are named: the model is then stale.
"""

from __future__ import annotations

import json
from pathlib import Path

from steca_gym.cli.options import read_options
from steca_gym.errors import ConfigError


def main(args: list[str]) -> int:
    """Run the command; 6 where the model is stale."""
    from steca_gym.reports.trace import trace_model

    given, paths = read_options("trace", args, {"form": "text"}, positional=True)
    if len(paths) != 1:
        raise ConfigError(f"trace takes one model folder, got {len(paths)}; e.g. `steca trace runs/mine/model`")
    if given["form"] not in ("text", "json"):
        raise ConfigError(f"form must be text or json, got {given['form']!r}")
    found = trace_model(Path(paths[0]))
    if given["form"] == "json":
        print(json.dumps(found.as_dict(), indent=1))
    else:
        print("\n".join(found.lines()))
    return 6 if found.stale else 0
