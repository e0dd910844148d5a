"""``steca <command> [group=choice ...] [key=value ...]``: the command line. One file a command.

A command is a module of this package with a docstring (its first line goes into ``steca --help``, the whole is its
own help) and a function ``main(args) -> exit code``. ``steca my_module:function`` runs one of your own.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import importlib.util
import os
import pkgutil
import sys
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

from steca_gym import __version__, errors
from steca_gym.cli.exits import EXIT_CODES, exit_code
from steca_gym.cli.stopping import GO_ON, Terminated, watched
from steca_gym.files import STORAGE_ERRNOS
from steca_gym.redaction import redacted_traceback

__all__ = ["EXIT_CODES", "commands", "exit_code", "main", "usage"]

# Modules of this package that are no commands.
_HELPERS = frozenset({"__main__", "exits", "composing", "helping", "jobs", "options", "stopping"})

_VIEW = "STECA_VIEW"
"""what is shown of long work, see ``steca_gym.runs.view``"""

_ENDING = """\

`steca COMMAND --help` explains one. Stages are done once: a command on a run's folder resumes where it stopped.
Exit codes: 0 done, 1 a defect of ours, 2 settings, 3 data or environment, 4 agent or training, 5 storage,
6 waits for people's decisions, 130 interrupted, 143 terminated.
--quiet shows results and errors only; STECA_VIEW=live|plain|quiet chooses what is shown of long work.
Settings of a run that somebody sent may name code of steca_gym only; --trust PACKAGE allows more.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code, and prints one line on the error stream for each known error."""
    args = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        sys.excepthook = redacted_traceback  # the process is ours: a defect's stack shows no secret either
    # A module in the current folder, named as module:Object or _target_, is found as with `python -m`; after everything
    # installed.
    if "" not in sys.path:
        sys.path.append("")
    try:
        # The signals of a process that only imports steca are not ours to handle.
        with watched() if argv is None else contextlib.nullcontext(), storage_errors(), missing_extras():
            return _dispatch(args)
    except errors.StecaError as error:
        print(f"steca: {' '.join(str(error).split())}", file=sys.stderr)
        return exit_code(error)
    except BrokenPipeError:  # e.g. `steca run --help | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Terminated:
        print(f"steca: terminated; {GO_ON}", file=sys.stderr)
        return 143
    except KeyboardInterrupt:
        print(f"steca: interrupted; {GO_ON}", file=sys.stderr)
        return 130


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    name, own = args[0], args[1:]
    if name == "--version":
        print(f"steca-gym {__version__}")
        return 0
    from steca_gym.cli.options import expand_home, find_user_modules

    if any(a == "--trust" or a.startswith("--trust=") for a in own) or os.environ.get("STECA_TRUST"):
        from steca_gym.runs.trust import take_trust

        own = take_trust(own)
    own = expand_home(own)
    find_user_modules(own)
    with _view(own) as own:
        return command(name)(own)


@contextlib.contextmanager
def _view(args: list[str]) -> Iterator[list[str]]:
    """Take ``--quiet`` out: it goes into the environment, where the workers of a sweep find it as well."""
    if "--quiet" not in args:
        yield args
        return
    held = os.environ.get(_VIEW)
    os.environ[_VIEW] = "quiet"
    try:
        yield [a for a in args if a != "--quiet"]
    finally:
        if held is None:
            del os.environ[_VIEW]
        else:
            os.environ[_VIEW] = held


def command(name: str) -> Callable[[list[str]], int]:
    """The function of a command; raises UnknownNameError with the nearest name."""
    known = commands()
    if name in known:
        module = importlib.import_module(f"steca_gym.cli.{known[name]}")

        def run(args: list[str]) -> int:
            if any(a in ("-h", "--help") for a in args) and not getattr(module, "OWN_HELP", False):
                print(help_of(module))
                return 0
            code: int = module.main(args)
            return code

        return run
    if ":" in name:
        from steca_gym.registry import import_object

        return own_command(import_object(name, "command"), name)
    nearest = difflib.get_close_matches(name, list(known), n=1)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    raise errors.UnknownNameError(f"no command {name!r}; {hint}`steca --help` lists them")


def own_command(function: Any, name: str) -> Callable[[list[str]], int]:
    """A user's function as a command: its docstring is its help, its result the exit code."""
    from steca_gym.cli.options import without_config_dirs

    if not callable(function):
        raise errors.ConfigError(f"command {name!r} is a {type(function).__name__}, expected a function(args) -> int")

    def run(args: list[str]) -> int:
        if any(a in ("-h", "--help") for a in args):
            print((function.__doc__ or f"steca {name}: no help").strip())
            return 0
        with errors.foreign_errors(f"command {name!r}", errors.StecaError):
            code = function(without_config_dirs(args))  # these were for finding its module
        if code is not None and (isinstance(code, bool) or not isinstance(code, int)):
            raise errors.ConfigError(f"command {name!r} returned {code!r}, expected an exit code (0: done) or None")
        return int(code or 0)

    return run


def commands() -> dict[str, str]:
    """Names of the commands, and their modules."""
    modules = (m.name for m in pkgutil.iter_modules(__path__))
    return {name.strip("_").replace("_", "-"): name for name in sorted(modules) if name not in _HELPERS}


def help_of(module: ModuleType) -> str:
    """A command's help: its docstring."""
    return (module.__doc__ or "").strip()


def _first_line(module: str) -> str:
    """The first line of a command's docstring, read from its source: importing all commands takes half a second."""
    spec = importlib.util.find_spec(f"steca_gym.cli.{module}")
    get_source = getattr(spec.loader if spec is not None else None, "get_source", None)
    source = get_source(f"steca_gym.cli.{module}") if get_source is not None else None
    if source is None:
        return help_of(importlib.import_module(f"steca_gym.cli.{module}")).splitlines()[0]
    text = ast.get_docstring(ast.parse(source))
    return (text or module).splitlines()[0]


def usage() -> str:
    """What ``steca --help`` prints: a line for each command, from its docstring."""
    lines = ["steca: environments, rollouts and step-level trajectory calibration for LLM agents", ""]
    for name, module in commands().items():
        first = _first_line(module)
        form, _, summary = first.partition(": ")
        lines.append(f"  {form.strip('`'):<44} {summary.rstrip('.')}" if summary else f"  {name:<44} {first}")
    return "\n".join([*lines, "  steca --version", _ENDING])


# Modules of extras, and the extra that brings each; other optional modules have a line where they are used.
_OF_EXTRA = {
    **dict.fromkeys(
        ("accelerate", "datasets", "peft", "pyarrow", "safetensors", "tokenizers", "torch", "transformers", "trl"),
        "llm",
    ),
    "ray": "ray",
    "wandb": "wandb",
    "websockets": "openenv",
}


@contextlib.contextmanager
def missing_extras() -> Iterator[None]:
    """A library of an extra that is not installed gets a line that names the extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in _OF_EXTRA:
            raise
        raise errors.ConfigError(
            f"this needs {module}, which is not installed; run `pip install 'steca-gym[{_OF_EXTRA[module]}]'`"
        ) from error


@contextlib.contextmanager
def storage_errors() -> Iterator[None]:
    """A disk that is full or not writable gets its line wherever it is met, also inside a library."""
    try:
        yield
    except OSError as error:
        if error.errno in STORAGE_ERRNOS:
            raise errors.StorageError(
                f"cannot write: {error}; make the folder writable or free space and run the same command again: "
                "what was committed before is kept"
            ) from error
        raise
