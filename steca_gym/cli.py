"""``steca <command> [group=choice ...] [key=value ...]``: the command line.

Knows commands, exit codes and how a mistyped override is explained. Knows no phase and no environment: a command
composes the configuration and hands it to ``steca_gym.run``.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import itertools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from steca_gym import __version__, errors

EXIT_CODES: tuple[tuple[type[errors.StecaError], int], ...] = (
    (errors.ConfigError, 2),
    (errors.DataError, 3),
    (errors.ContaminationError, 3),
    (errors.WorldError, 3),
    (errors.AgentError, 4),
    (errors.CheckpointError, 4),
    (errors.TrainingError, 4),
    (errors.StorageError, 5),
)

USAGE = """\
steca: environments, rollouts and step-level trajectory calibration for LLM agents

  steca demo                                      the main job, small: SFT, RFT and STeCa side by side
  steca run [-m] env=household method=steca seed=0   a whole run; `steca run --help` lists every group
  steca compare methods=[sft,rft,steca] seed=0    several methods from one warm-up, and their table
  steca collect ...                               up to the demonstrations
  steca train phase=warm_up run=PATH              up to a training phase (warm_up or reinforce)
  steca calibrate run=PATH                        up to the calibrations
  steca evaluate run=PATH                         evaluate what a run made
  steca export run=PATH [to=FOLDER]               its trajectories, evidence and decisions as JSON lines and Parquet
  steca fetch NAME                                import a world's data into a compact cache
  steca check-env ID [key=value ...]              prove that an environment keeps the contract; ID: env=... or a
                                                  Gymnasium id such as my_module:me/World-v0
  steca --version

Phases are idempotent: a command on a run's folder goes on where the folder stands.
Exit codes: 0 done, 1 a defect of ours, 2 settings, 3 data or environment, 4 agent or training, 5 storage,
130 interrupted.
"""

# The phase that each command stops behind.
_STOPS = {"run": None, "collect": "demonstrations", "calibrate": "calibration", "train": "reinforce", "evaluate": None}


def exit_code(error: errors.StecaError) -> int:
    """The process's exit code for an error."""
    return next((code for kind, code in EXIT_CODES if isinstance(error, kind)), 1)


_STORAGE_ERRNOS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
)


@contextlib.contextmanager
def _storage_errors() -> Iterator[None]:
    """A disk that is full or not writable gets its line wherever it is met, also inside a library."""
    try:
        yield
    except OSError as error:
        if error.errno in _STORAGE_ERRNOS:
            raise errors.StorageError(
                f"cannot write: {error}; make the folder writable or free space and run the same command again: "
                "what was committed before is kept"
            ) from error
        raise


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code, and prints one line on the error stream for each known error."""
    args = list(sys.argv[1:] if argv is None else argv)
    # A module beside the user, named as `module:id` or `_target_`, is found as with `python -m`; behind everything
    # installed.
    if "" not in sys.path:
        sys.path.append("")
    try:
        with _storage_errors():
            return _dispatch(args)
    except errors.StecaError as error:
        print(f"steca: {error}", file=sys.stderr)
        return exit_code(error)
    except BrokenPipeError:  # e.g. `steca run --help | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("steca: interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    command, rest = args[0], args[1:]
    if command == "--version":
        print(f"steca-gym {__version__}")
        return 0
    _find_users_modules(rest)
    if command in _STOPS:
        return _hydra(command, rest)
    if command in ("demo", "compare"):
        return _compare(rest, demo=command == "demo")
    if command == "export":
        return _export(rest)
    if command == "fetch":
        return _fetch(rest)
    if command == "check-env":
        return _check_env(rest)
    known = [*_STOPS, "demo", "compare", "export", "fetch", "check-env"]
    nearest = difflib.get_close_matches(command, known, n=1)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    raise errors.UnknownNameError(f"no command {command!r}; {hint}`steca --help` lists them")


# -- run, collect, calibrate, train, evaluate ---------------------------------------------------------------------


def _hydra(command: str, args: list[str]) -> int:
    """Compose with Hydra (sweeps included) and run each job; the worst exit code of a sweep is returned."""
    import hydra
    from omegaconf import DictConfig

    args, options = _own_options(command, args)
    passive = any(a in ("--help", "--hydra-help", "--cfg", "-c", "--info", "--resolve") for a in args)
    if not passive:
        explain_overrides(args)
    codes: list[int] = []

    @hydra.main(version_base="1.3", config_path="pkg://steca_gym.conf", config_name="config")
    def job(cfg: DictConfig) -> None:
        from steca_gym.run import Run, execute

        # A failing job of a sweep must not take its siblings along, and Hydra would print a stack for it.
        try:
            with _storage_errors():
                execute(Run.open(cfg), stop_after=options["stop_after"], evaluate_again=command == "evaluate")
            codes.append(0)
        except errors.StecaError as error:
            print(f"steca: {error}", file=sys.stderr)
            codes.append(exit_code(error))

    old, sys.argv = sys.argv, ["steca " + command, *args]
    try:
        job()
    except SystemExit as end:  # Hydra's way to end behind --help, and behind a defect that it has printed
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.argv = old
    return max(codes, default=0)


def _own_options(command: str, args: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Take ``run=PATH`` and ``phase=NAME`` out; a run's own overrides go before the new ones."""
    from steca_gym.run import PHASES, stored_overrides

    stop_after = _STOPS[command]
    kept: list[str] = []
    stored: list[str] = []
    for arg in args:
        key, _, value = arg.partition("=")
        if key == "run":
            folder = Path(value)
            stored = [*stored_overrides(folder), f"run_dir={json.dumps(str(folder))}"]
        elif key == "phase" and command == "train":
            if value not in PHASES:
                raise errors.UnknownNameError(explain("phase", value, PHASES))
            stop_after = value
        else:
            kept.append(arg)
    # Overrides of the command line come last and win; a group chosen twice would be refused by Hydra.
    given = {a.partition("=")[0].lstrip("+~") for a in kept}
    return [s for s in stored if s.partition("=")[0].lstrip("+~") not in given] + kept, {"stop_after": stop_after}


def explain(kind: str, name: str, known: Sequence[str]) -> str:
    """One line with the nearest known name."""
    from steca_gym.registry import explain_unknown

    return explain_unknown(kind, name, known)


def explain_overrides(args: Sequence[str]) -> None:
    """Compose once ahead of Hydra, so that a wrong group, choice or key gets one line with the nearest right one.

    Raises UnknownNameError or ConfigError; returns quietly for what composes.
    """
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException

    config_dirs = _config_dirs(args)
    skip = {b for a, b in itertools.pairwise(args) if a in _CONFIG_DIR}
    texts = [a for a in args if not a.startswith("-") and a not in skip]
    for folder in config_dirs:
        if not Path(folder).is_dir():
            raise errors.ConfigError(
                f"--config-dir {folder!r} is not a folder; give the folder that holds env/, agent/ ..."
            )
    try:
        overrides = OverridesParser.create().parse_overrides(texts)
    except OverrideParseException as error:
        raise errors.ConfigError(f"not an override: {error.override!r}; expected group=choice or key=value") from error
    single: list[str] = []
    for override, text in zip(overrides, texts, strict=True):
        choices = _choices(override)
        key = override.key_or_group
        if override.is_sweep_override() and not {"-m", "--multirun"} & set(args):
            raise errors.ConfigError(
                f"{text} names several values; for one run of each put -m first: steca run -m {text}"
            )
        if key in _groups(config_dirs):
            known = _group_choices(key, config_dirs)
            for choice in choices or [str(override.value())]:
                if choice not in known and choice not in ("null", "None"):
                    raise errors.UnknownNameError(explain(key, choice, known))
        single.append(f"{text.partition('=')[0]}={choices[0]}" if choices else text)
    GlobalHydra.instance().clear()
    try:
        from hydra import compose, initialize_config_module

        with initialize_config_module("steca_gym.conf", version_base="1.3"):
            compose("config", overrides=single + _search_path(config_dirs))
    except (HydraException, OmegaConfBaseException) as error:
        raise errors.ConfigError(_compose_message(str(error), single, config_dirs)) from error
    finally:
        GlobalHydra.instance().clear()


_CONFIG_DIR = ("--config-dir", "-cd")


def _config_dirs(args: Sequence[str]) -> list[str]:
    """The user's own folders of configurations."""
    given = [b for a, b in itertools.pairwise(args) if a in _CONFIG_DIR]
    return given + [a.partition("=")[2] for a in args if a.startswith("--config-dir=")]


def _search_path(config_dirs: Sequence[str]) -> list[str]:
    """The override that lets Hydra find them."""
    places = ",".join("file://" + str(Path(d).resolve()) for d in config_dirs)
    return [f"hydra.searchpath=[{places}]"] if config_dirs else []


def _find_users_modules(args: Sequence[str]) -> None:
    """Let a module in the user's folder of configurations be found as well; behind everything installed."""
    for folder in (str(Path(d).resolve()) for d in _config_dirs(args)):
        if folder not in sys.path:
            sys.path.append(folder)


def _choices(override: Any) -> list[str]:
    """The values of a sweep over choices (``a,b``); empty for a plain override or another sweep."""
    if not override.is_sweep_override() or not override.is_choice_sweep():
        return []
    return [str(item) for item in override.sweep_string_iterator()]


def _conf_roots(config_dirs: Sequence[str]) -> list[Path]:
    import importlib.resources

    return [Path(str(importlib.resources.files("steca_gym.conf"))), *map(Path, config_dirs)]


def _groups(config_dirs: Sequence[str]) -> set[str]:
    return {d.name for root in _conf_roots(config_dirs) for d in root.iterdir() if d.is_dir() and any(d.glob("*.yaml"))}


def _group_choices(group: str, config_dirs: Sequence[str]) -> list[str]:
    return sorted({f.stem for root in _conf_roots(config_dirs) for f in (root / group).glob("*.yaml")})


def _compose_message(message: str, overrides: Sequence[str], config_dirs: Sequence[str]) -> str:
    """Hydra's reason in one line, with the nearest known key for the override that it is about."""
    from hydra import compose, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    GlobalHydra.instance().clear()
    groups = _groups(config_dirs)
    chosen = [o for o in overrides if o.partition("=")[0].lstrip("+") in groups]
    with initialize_config_module("steca_gym.conf", version_base="1.3"):
        try:
            composed = compose("config", overrides=chosen + _search_path(config_dirs))
            known = list(_keys(OmegaConf.to_container(composed)))
        except Exception:  # the chosen groups alone do not compose: Hydra's own words must do
            known = []
    for override in overrides:
        key = override.partition("=")[0]
        if known and not key.startswith(("+", "~", "hydra")) and key not in groups and key not in known:
            nearest = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {nearest[0]!r}? " if nearest else ""
            return f"no setting or group {key!r}; {hint}`steca run --help` lists groups, `--cfg job` every key"
    return " ".join(message.split())


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from _keys(value, f"{prefix}{key}.")


# -- the other commands -------------------------------------------------------------------------------------------


def _compare(args: list[str], *, demo: bool) -> int:
    from steca_gym.compare import compare

    overrides = (["experiment=demo"] if demo else []) + args
    methods = ["sft", "rft", "steca"]
    kept: list[str] = []
    for override in overrides:
        key, _, value = override.partition("=")
        if key == "methods":
            methods = [m.strip() for m in value.strip("[]").split(",") if m.strip()]
        else:
            kept.append(override)
    for method in methods:
        explain_overrides([*kept, f"method={method}"])
    compare(kept, methods)
    return 0


def _export(args: list[str]) -> int:
    from steca_gym.buffer import CalibrationBuffer
    from steca_gym.run import stored_overrides

    given = {key: value for key, _, value in (a.partition("=") for a in args)}
    unknown = sorted(set(given) - {"run", "to"})
    if unknown or "run" not in given:
        got = f"got {unknown[0]!r}" if unknown else "got no run="
        raise errors.ConfigError(f"export takes run=PATH and to=FOLDER, {got}; e.g. `steca export run=runs/mine`")
    folder = Path(given["run"])
    stored_overrides(folder)  # raises where there is no run
    target = Path(given.get("to") or folder / "export")
    with CalibrationBuffer(folder / "buffer.sqlite") as buffer:
        for path in [*buffer.export_jsonl(target), *buffer.export_parquet(target)]:
            print(path)
    return 0


def _fetch(args: list[str]) -> int:
    import importlib

    from steca_gym.registry import fetchers

    # Worlds register what they can fetch; which worlds there are is not the core's to know.
    importlib.import_module("steca_gym.envs")
    print(fetchers.get(args[0] if args else "")())
    return 0


def _check_env(args: list[str]) -> int:
    """Run the conformance kit on an environment of the configuration, or on any Gymnasium id."""
    import functools

    from omegaconf import OmegaConf
    from rich.console import Console

    from steca_gym.compare import compose
    from steca_gym.run import make_env
    from steca_gym.testing import check_text_env

    config_dirs = _config_dirs(args)
    pairs = {b for a, b in itertools.pairwise(args) if a in _CONFIG_DIR}
    plain = [a for a in args if not a.startswith("-") and a not in pairs]
    if not plain or "=" in plain[0]:
        raise errors.ConfigError("check-env needs an id first, e.g. `steca check-env household`; `steca --help`")
    name, overrides = plain[0], plain[1:]
    settings: dict[str, Any]
    if "/" in name or ":" in name or "-v" in name:
        kwargs = OmegaConf.to_container(OmegaConf.from_dotlist(overrides))
        assert isinstance(kwargs, dict)
        split = kwargs.pop("split", None)
        settings = {"id": name, "kwargs": kwargs}
    else:
        explain_overrides([f"env={name}", *overrides, *(f"--config-dir={d}" for d in config_dirs)])
        composed = compose([f"env={name}", *overrides, *_search_path(config_dirs)])
        loaded = OmegaConf.to_container(composed.env, resolve=True)
        assert isinstance(loaded, dict)
        settings = {"id": loaded["id"], "kwargs": loaded["kwargs"]}
        split = loaded["train_split"]
    console = Console()
    with Console(stderr=True).status(f"{settings['id']}: checking") as status:
        report = check_text_env(
            functools.partial(make_env, settings, split or "train"),
            title=f"{settings['id']} ({split or 'train'})",
            on_check=lambda check: status.update(f"{settings['id']}: {check}"),
        )
    console.print(report.table())
    num_failed = len(report.failed)
    console.print(f"{num_failed} of {len(report.results)} checks failed" if num_failed else "conforms")
    return 0 if report.ok else 3


if __name__ == "__main__":
    sys.exit(main())
