"""Running the jobs of a command under Hydra: one, or those of a sweep."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steca_gym import errors
from steca_gym.cli.composing import explain_overrides, own_objects
from steca_gym.cli.exits import exit_code
from steca_gym.cli.helping import run_help
from steca_gym.cli.options import CONFIG_DIR, config_dirs, without_config_dirs
from steca_gym.redaction import redact
from steca_gym.registry import explain_unknown

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from steca_gym.evaluation import EvaluationReport
    from steca_gym.runs import Runner
    from steca_gym.sweeps import JobOutcome

Job = Callable[["Runner"], "EvaluationReport | None"]

_MULTIRUN = ("-m", "--multirun")
_NUMBER_TYPES = ("dtype", "precision")
"""keys of settings that name a number type"""
_PASSIVE = ("--hydra-help", "--cfg", "-c", "--info", "--resolve", "--package", "-p")


def run_jobs(command: str, args: Sequence[str], job: Job, *, help_text: str, extra: Mapping[str, Any] = {}) -> int:
    """Compose with Hydra (sweeps included) and hand a runner to each job; the worst exit code is returned.

    Args:
        command: for messages.
        args: overrides, ``-m``, ``--config-dir``, ``run=PATH``.
        job: called once for each composed configuration; the table of the report that it returns is shown.
        help_text: printed above groups and keys by ``--help``.
        extra: keys of the configuration that are set after composing, without Hydra's quoting.
    """
    args, rules = with_panel(args)
    args, folders, fixed = with_stored(args)
    fixed.update(rules)
    fixed.update(extra)
    if "--help" in args or "-h" in args:
        overrides = [a for a in without_config_dirs(args) if not a.startswith("-")]
        print(help_text.strip() + "\n\n" + run_help(overrides, folders))
        return 0
    check_flags(command, args)
    passive = any(a.split("=")[0] in _PASSIVE for a in args)
    _check_engines(args)
    cfg = explain_overrides([a for a in args if a not in (*_PASSIVE, "job", "hydra", "all")] if passive else args)
    if not (passive or folders or {*args} & {*_MULTIRUN} or any("hydra" in a for a in args)):
        # Hydra's own command line would compose the same twice more, which takes longer than all else.
        return _play(cfg, job, fixed, overrides=_of_the_task(own_objects(args)), config_dirs=[]).code
    return _under_hydra(command, args, folders, fixed, job)


# Hydra's flags that a user may want; some take a value after them.
_FLAGS = ("-m", "--multirun", "--resolve", "--hydra-help", "--shell-completion")
_FLAGS_WITH_VALUE: dict[str, tuple[str, ...]] = {
    "--cfg": ("job", "hydra", "all"),
    "-c": ("job", "hydra", "all"),
    "--info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
    "--package": (),
    "-p": (),
}


def _check_engines(args: Sequence[str]) -> None:
    """Raise ConfigError where a launcher or sweeper is asked for whose package is not installed."""
    from steca_gym.sweeps.plugins import missing_extra

    for arg in args:
        extra = missing_extra(arg)
        if extra is not None:
            raise errors.ConfigError(f"{arg} needs packages that are not installed; pip install 'steca-gym[{extra}]'")


def check_flags(command: str, args: Sequence[str]) -> None:
    """Raise ConfigError for a flag that does not exist, or that lacks its value."""
    plain = without_config_dirs(args)
    known = [*_FLAGS, *_FLAGS_WITH_VALUE, *CONFIG_DIR, "--help"]
    for at, arg in enumerate(plain):
        flag, equals, value = arg.partition("=")
        if not arg.startswith("-"):
            continue
        if flag not in known:
            raise errors.UnknownNameError(explain_unknown(f"flag of steca {command}", flag, known))
        choices = _FLAGS_WITH_VALUE.get(flag)
        if choices is None or flag == "--info":
            continue
        value = value if equals else plain[at + 1] if at + 1 < len(plain) else ""
        if (choices and value not in choices) or not value:
            raise errors.ConfigError(f"{flag} takes one of {', '.join(choices) or 'a package'}, got {value!r}")


def _under_hydra(command: str, args: list[str], folders: list[str], fixed: dict[str, Any], job: Job) -> int:
    import hydra
    from hydra.errors import HydraException

    from steca_gym.sweeps import end_with_parent, failure_lines, register, take_outcomes

    register()
    take_outcomes()
    codes: list[int] = []
    sweep, keys = sweep_name(args), swept_keys(args)
    types = sorted(key for key in keys if sweep and key.rpartition(".")[2] in _NUMBER_TYPES)
    if types:
        raise errors.ConfigError(
            f"{', '.join(types)} is swept: a sweep compares runs of one number type; start a sweep for each type"
        )

    @hydra.main(version_base="1.3", config_path="pkg://steca_gym.conf", config_name="config")
    def main(cfg: DictConfig) -> JobOutcome:
        end_with_parent()
        own = task_overrides()
        given = dict(o.lstrip("+~").split("=", 1) for o in own if "=" in o)
        swept = {key: value for key, value in given.items() if key in keys} if sweep else None
        outcome = _play(cfg, job, fixed, overrides=own, config_dirs=folders, sweep=sweep, swept=swept)
        codes.append(outcome.code)
        return outcome

    hydra_args = [a for a in args if not a.startswith("--config-dir=")]
    hydra_args = own_objects(without_config_dirs(hydra_args))
    from steca_gym.cli.composing import search_path

    hydra_args += search_path(folders)
    # It writes the whole configuration into a log of level DEBUG, before anything looks for secrets in it.
    logging.getLogger("hydra._internal.hydra").setLevel(logging.INFO)
    old, sys.argv = sys.argv, ["steca " + command, *hydra_args]
    # What Hydra cannot do itself, such as making its folders, comes back as the exception that it is.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    try:
        main()
    except HydraException as error:  # a sweeper or launcher of ours that refuses its settings
        if isinstance(error.__cause__, errors.StecaError):
            raise error.__cause__ from None
        raise
    except OSError as error:
        raise errors.StorageError(
            f"Hydra cannot write {error.filename or 'its folder'!r}: {error.strerror or error}; "
            "choose another hydra.run.dir or hydra.sweep.dir"
        ) from error
    except SystemExit as end:  # Hydra's way to end after --cfg, and after a defect that it has printed
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.argv = old
    outcomes = take_outcomes()
    for line in failure_lines(outcomes):
        print(line, file=sys.stderr)
    return max([*codes, *(o.code for o in outcomes)], default=0)


def _play(cfg: DictConfig, job: Job, fixed: Mapping[str, Any], **about: Any) -> JobOutcome:
    """Open a runner for a composed configuration and hand it to the job; what goes wrong is printed in one line.

    A sweep's jobs may run elsewhere: what became of one is what it returns.
    """
    from omegaconf import OmegaConf, open_dict
    from omegaconf.errors import OmegaConfBaseException

    from steca_gym.cli import missing_extras, storage_errors
    from steca_gym.sweeps import JobOutcome

    code, line, value = 0, "", math.nan
    # A failing job of a sweep must not take its siblings along, and Hydra would print a stack for it.
    try:
        with open_dict(cfg):
            for key, setting in fixed.items():
                OmegaConf.update(cfg, key, setting, force_add=True)
        with storage_errors(), missing_extras(), opened(cfg, **about) as runner:
            report = job(runner)
            show(runner, report)
            value = _objective(report)
            runner.context.console.print(f"run: {runner.folder}", markup=False, highlight=False, soft_wrap=True)
    except errors.StecaError as error:
        code, line = exit_code(error), " ".join(str(error).split())
    except OmegaConfBaseException as error:
        code, line = 2, f"a setting does not resolve: {redact(' '.join(str(error).split()))}"
    if code:
        print(f"steca: {line}", file=sys.stderr)
    return JobOutcome(value, code, line)


def _objective(report: EvaluationReport | None) -> float:
    """The figure that an optimizing sweeper names, else success."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    from steca_gym.sweeps.objective import objective_of

    if report is None:
        return math.nan
    hydra: Any = HydraConfig.get() if HydraConfig.initialized() else OmegaConf.create()
    return objective_of(report.as_dict(), str(OmegaConf.select(hydra, "sweeper.objective", default="success")))


@contextlib.contextmanager
def opened(
    cfg: DictConfig,
    *,
    overrides: Sequence[str],
    config_dirs: Sequence[str],
    sweep: str = "",
    swept: Mapping[str, str] | None = None,
) -> Iterator[Runner]:
    """A runner for a composed configuration, with other libraries' bars and warnings kept out of its view."""
    from steca_gym.runs import Runner
    from steca_gym.runs.quiet import undisturbed

    with (
        Runner.open(cfg, overrides=overrides, config_dirs=config_dirs, sweep=sweep, swept=swept) as runner,
        undisturbed(runner.folder),
    ):
        yield runner


def swept_keys(args: Sequence[str]) -> set[str]:
    """The keys that the arguments sweep, by Hydra's own grammar; what does not parse is refused elsewhere."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    keys: set[str] = set()
    for arg in without_config_dirs(args):
        if arg.startswith("-"):
            continue
        with contextlib.suppress(HydraException):
            override = OverridesParser.create().parse_override(arg)
            if override.is_sweep_override():
                keys.add(override.key_or_group)
    return keys


def sweep_name(args: Sequence[str]) -> str:
    """A name for the sweep that the arguments start, equal whenever they are: a killed sweep continues under it.

    Empty for a single run. The name says what is swept: ``sweep-method-seed-1a2b3c``.
    """
    from steca_gym.settings import digest

    given = set(without_config_dirs(args))
    if not given & set(_MULTIRUN):
        return ""
    # Where the jobs run does not make another sweep of it.
    overrides = sorted(a for a in given - set(_MULTIRUN) if not a.startswith("hydra"))
    swept = [key.rpartition(".")[2] for key in sorted(swept_keys(overrides))]
    return "-".join(["sweep", *swept, digest(overrides)[:6]])[:100]


def show(runner: Runner, report: EvaluationReport | None) -> None:
    """Print an evaluation's table on the error stream, beside the progress."""
    from steca_gym.evaluation import pass_lines
    from steca_gym.reports import comparison_table

    if report is not None:
        table, _ = comparison_table({runner.label: report})
        runner.context.console.print(table)
        for line in pass_lines(report.repeats):
            runner.context.console.print(line, highlight=False, soft_wrap=True)


def with_stored(args: Sequence[str]) -> tuple[list[str], list[str], dict[str, Any]]:
    """Take ``run=PATH`` out: the run's own overrides go before the new ones, and its folder past Hydra's grammar.

    Returns:
        Arguments, the user's folders of configurations, and keys to set after composing.
    """
    from steca_gym.runs import RunFolder

    kept: list[str] = []
    stored: list[str] = []
    folders = config_dirs(args)
    fixed: dict[str, Any] = {}
    for arg in args:
        key, _, value = arg.partition("=")
        if key == "run":
            folder = RunFolder(value)
            folder.check_trusted()
            record = folder.record
            stored = list(record.overrides)
            folders = folders or [d for d in record.config_dirs if Path(d).is_dir()]
            # The folder's name is literal: "${" in it is no reference to a setting.
            fixed["run_dir"] = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
        elif key == "run_dir":
            fixed["run_dir"] = None if value in ("", "null") else value
        else:
            kept.append(arg)
    # Overrides of the command line come last and win; a group chosen twice would be refused by Hydra.
    given = {a.partition("=")[0].lstrip("+~") for a in kept}
    stored = [s for s in stored if s.partition("=")[0].lstrip("+~") not in given]
    from steca_gym.cli.options import find_user_modules

    if folders and not any(a in CONFIG_DIR or a.startswith("--config-dir=") for a in kept):
        kept += [f"--config-dir={d}" for d in folders]
    find_user_modules(kept)
    return stored + kept, folders, fixed


def with_panel(args: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Take ``panel=FILE.json`` out (``panel=NAME`` is a choice of ``conf/panel``).

    Returns:
        The other arguments, and keys to set after composing: where the file lies, and its rules, unless the command
        gives them itself.
    """
    from steca_gym.evaluation.panel import read_panel

    kept = [a for a in args if not (a.startswith("panel=") and a.endswith(".json"))]
    files = [a.partition("=")[2] for a in args if a not in kept]
    if not files:
        return kept, {}
    panel = read_panel(Path(files[-1]))
    given = {a.partition("=")[0].lstrip("+~") for a in kept}
    if "env.num_eval_tasks" in given:
        raise errors.ConfigError(
            f"panel={files[-1]} names its {len(panel.games)} games, so env.num_eval_tasks has no effect; leave it out"
        )
    extra: dict[str, Any] = {"env.panel": files[-1], "env.eval_split": panel.split}
    if "run" not in given:
        extra |= {f"env.kwargs.{key}": value for key, value in panel.rules.items()}
    return kept, {key: value for key, value in extra.items() if key not in given}


def task_overrides() -> list[str]:
    """The overrides of the Hydra job under way, without those that only say where the folder is."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    if not HydraConfig.initialized():
        return []
    # As they were given: `key=${oc.env:PASSWORD}` must neither be stored as the password, nor come back as another one.
    task: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    return _of_the_task(map(str, task))


def _of_the_task(overrides: Iterable[str]) -> list[str]:
    """Without those that say where the run lies."""
    return [o for o in overrides if o.partition("=")[0].lstrip("+") not in ("run_dir", "runs_root")]
