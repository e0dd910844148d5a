"""Options of commands that do not compose the whole configuration: ``key=value``, paths, and ``--config-dir``."""

from __future__ import annotations

import difflib
import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from steca_gym.errors import ConfigError, DataError, UnknownNameError

if TYPE_CHECKING:
    from steca_gym.runs.folder import RunFolder

CONFIG_DIR = ("--config-dir", "-cd")


def config_dirs(args: Sequence[str]) -> list[str]:
    """The user's own folders of configurations; raises ConfigError for one that is no folder."""
    if args and args[-1] in CONFIG_DIR:
        raise ConfigError(f"{args[-1]} needs a folder after it; give the folder that holds env/, agent/ ...")
    given = [b for a, b in itertools.pairwise(args) if a in CONFIG_DIR]
    given += [a.partition("=")[2] for a in args if a.startswith("--config-dir=")]
    for folder in given:
        if not Path(folder).is_dir():
            raise ConfigError(f"--config-dir {folder!r} is not a folder; give the folder that holds env/, agent/ ...")
    return given


def without_config_dirs(args: Sequence[str]) -> list[str]:
    """The arguments without ``--config-dir DIR``."""
    kept: list[str] = []
    skip = False
    for arg in args:
        if skip:
            skip = False
        elif arg in CONFIG_DIR:
            skip = True
        elif not arg.startswith("--config-dir="):
            kept.append(arg)
    return kept


def expand_home(args: Sequence[str]) -> list[str]:
    """Write ``key=~/path`` with the home folder: some shells leave it to us, and Hydra's grammar has no such value."""
    expanded: list[str] = []
    for arg in args:
        key, equals, value = arg.partition("=")
        if equals and key and (value == "~" or value.startswith("~/")):
            arg = f"{key}={Path(value).expanduser()}"
        expanded.append(arg)
    return expanded


def find_user_modules(args: Sequence[str]) -> None:
    """Let modules in the user's folders of configurations be found as well; after everything installed."""
    for folder in (str(Path(d).resolve()) for d in config_dirs(args)):
        if folder not in sys.path:
            sys.path.append(folder)


def read_options(
    command: str, args: Sequence[str], known: Mapping[str, str | None], *, positional: bool = False
) -> tuple[dict[str, str | None], list[str]]:
    """``key=value`` options with their defaults, and the other arguments.

    Raises:
        UnknownNameError: an option that the command does not have.
        ConfigError: an argument that is no option where none is taken.
    """
    values = dict(known)
    others: list[str] = []
    for arg in without_config_dirs(args):
        key, equals, value = arg.partition("=")
        if equals and key in known:
            values[key] = value
        elif equals and key.isidentifier():
            nearest = difflib.get_close_matches(key, list(known), n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            takes = ", ".join(f"{k}=..." for k in known) or "no options"
            raise UnknownNameError(f"steca {command} takes {takes}, got {key!r}{hint}; see `steca {command} --help`")
        elif positional and not arg.startswith("-"):
            others.append(arg)
        else:
            takes = ", ".join(f"{k}=..." for k in known)
            raise ConfigError(f"steca {command} takes {takes}, got {arg!r}; see `steca {command} --help`")
    return values, others


def whole_number(name: str, text: str) -> int:
    """The value of an option ``name=N``; raises ConfigError unless it is a whole number >= 1 of at most nine digits."""
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) >= 1):
        raise ConfigError(f"{name} must be a whole number >= 1, got {text!r}")
    return int(text)


def runs_at(paths: Sequence[str]) -> list[RunFolder]:
    """The runs at or below the paths, each once; damaged ones below a folder are named on stderr and left out.

    Raises:
        DataError: there is none that can be read.
    """
    from steca_gym.runs.folder import find_runs

    damaged: list[DataError] = []
    runs = {r.path.resolve(): r for p in paths for r in find_runs(Path(p), on_damaged=damaged.append)}
    if not runs:
        if damaged:
            raise damaged[0]
        raise DataError(f"no runs in {', '.join(paths)}; give folders that `steca run` printed, or their root")
    for error in damaged:
        print(f"steca: left out: {error}", file=sys.stderr)
    return list(runs.values())


def check_target(text: str) -> None:
    """Refuse a value of ``to=`` that names no file in an existing folder; raises ConfigError or DataError."""
    target = Path(text)
    if not text or target.is_dir():
        what = "a folder" if text else "empty"
        raise ConfigError(f"to={text!r} is {what}; give a file, e.g. to={str(target / 'report.html')!r}")
    if not target.parent.is_dir():
        raise DataError(f"to={text!r}: there is no folder {str(target.parent)!r}; make it first, or correct the path")
