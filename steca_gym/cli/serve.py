"""`steca serve env=NAME [--port 8000]`: an OpenEnv server of a world.

  steca serve env=household                                  on http://127.0.0.1:8000, until Ctrl-C
  steca serve env=alfworld --port 8001 split=valid_seen      another port and split
  steca serve env=household env.kwargs.num_objects=4         other settings of the world

Options:
  --port N             TCP port; 0 takes a free one (default 8000)
  --host HOST          interface to listen on (default 127.0.0.1). There is no authentication
  --max-sessions N     sessions at a time, each with an environment of its own (default 256)
  --config-dir DIR     a folder of your own configurations

`docs/interop/openenv.md` describes the messages, snapshots among them.
"""

from __future__ import annotations

import functools
import sys

from steca_gym.cli.composing import composed_env
from steca_gym.cli.options import config_dirs, without_config_dirs
from steca_gym.errors import ConfigError, UnknownNameError
from steca_gym.registry import explain_unknown

_OPTIONS = {"--port": "8000", "--host": "127.0.0.1", "--max-sessions": "256"}


def main(args: list[str]) -> int:
    """Run the command."""
    from steca_gym.interop.openenv import OpenEnvServer
    from steca_gym.runs.context import make_env

    folders = config_dirs(args)
    options, overrides = _options(without_config_dirs(args))
    split = next((o.partition("=")[2] for o in overrides if o.startswith("split=")), "")
    overrides = [o for o in overrides if not o.startswith("split=")]
    if not any(o.startswith("env=") for o in overrides):
        raise ConfigError("serve needs a world, e.g. `steca serve env=household`; see `steca serve --help`")
    env = composed_env(overrides, folders)
    make = functools.partial(make_env, env["id"], env["kwargs"], split or env["train_split"])
    make().close()  # a world that cannot be made is told now, not to the first client
    server = OpenEnvServer(
        make,
        host=options["--host"],
        port=_whole("--port", options["--port"]),
        max_sessions=_whole("--max-sessions", options["--max-sessions"]),
    )
    server.serve_until_signal(
        lambda: print(
            f"serving {env['id']} on {server.url} (sessions at /ws); Ctrl-C ends it", file=sys.stderr, flush=True
        )
    )
    return 0


def _options(args: list[str]) -> tuple[dict[str, str], list[str]]:
    """The options with their defaults, and the overrides."""
    values, overrides = dict(_OPTIONS), list[str]()
    waiting = ""
    for arg in args:
        name, equals, value = arg.partition("=")
        if waiting:
            values[waiting], waiting = arg, ""
        elif name in values and equals:
            values[name] = value
        elif name in values:
            waiting = name
        elif arg.startswith("-"):
            raise UnknownNameError(explain_unknown("option of steca serve", name, values))
        else:
            overrides.append(arg)
    if waiting:
        raise ConfigError(f"{waiting} needs a value, e.g. {waiting} {_OPTIONS[waiting]}")
    return values, overrides


def _whole(name: str, value: str) -> int:
    if not (value.isascii() and value.isdigit()):
        raise ConfigError(f"{name} must be a whole number, got {value!r}")
    return int(value)
