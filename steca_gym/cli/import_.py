"""`steca import FILE... env=NAME to=FILE`: demonstrations from elsewhere, executed in a world.

  steca import demos.json env=household to=demos.jsonl       conversations, ChatML messages, or bare actions
  steca import sharegpt.json env=alfworld split=train to=demos.jsonl
  steca run env=household expert=imported expert.path=demos.jsonl

Known forms (a JSON array or JSON lines): {"conversations": [{"from", "value"}]} (ShareGPT, ETO, IPR, STeCa, AgentGym),
{"messages": [{"role", "content"}]}, {"task_id", "actions"}, trajectories of `steca export`, and the folder of a
Minari dataset of texts (`steca export format=minari`). Turns are read
leniently. A conversation without a task_id is matched by the text with which a task begins. What replays to a win is
written with the world's own observations; what does not is listed, line by line, with the step at which it parted.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

from steca_gym.cli.composing import composed_env
from steca_gym.cli.options import config_dirs, without_config_dirs
from steca_gym.errors import ConfigError, DataError


def main(args: list[str]) -> int:
    """Run the command; 3 where nothing replays."""
    from steca_gym.interop.demonstrations import import_recordings, read_recordings
    from steca_gym.runs.context import make_env
    from steca_gym.trajectory import write_jsonl

    folders = config_dirs(args)
    files: list[Path] = []
    overrides: list[str] = []
    own = {"to": "", "split": ""}
    for arg in without_config_dirs(args):
        key, equals, value = arg.partition("=")
        if equals and key in own:
            own[key] = value
        elif equals:
            overrides.append(arg)
        elif arg.startswith("-"):
            raise ConfigError(f"steca import takes files, env=..., split=... and to=..., got {arg!r}")
        else:
            files.append(Path(arg))
    if not files or not own["to"] or not any(o.startswith("env=") for o in overrides):
        raise ConfigError(
            "import takes files, a world and where to write, e.g. `steca import demos.json env=household "
            "to=demos.jsonl`"
        )
    env = composed_env(overrides, folders)
    split = own["split"] or env["train_split"]
    recordings = [r for file in files for r in read_recordings(file)]
    if not recordings:
        raise DataError(f"nothing in {', '.join(map(str, files))}; expected one conversation a line, or a JSON array")
    found = import_recordings(recordings, functools.partial(make_env, env["id"], env["kwargs"], split), split=split)
    kept = [f.trajectory for f in found if f.trajectory is not None]
    for f in found:
        if f.trajectory is None:
            print(f"{f.where}: left out: {f.reason}", file=sys.stderr)
    if not kept:
        raise DataError(
            f"none of {len(found)} demonstrations replays to a win in {env['id']!r}; the lines above say why"
        )
    write_jsonl(Path(own["to"]), kept)
    print(f"{len(kept)} of {len(found)} demonstrations in {own['to']}")
    return 0
