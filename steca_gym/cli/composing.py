"""Composing the configuration with Hydra, and one line with the nearest name for whatever does not compose."""

from __future__ import annotations

import difflib
import importlib.resources
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steca_gym.cli.options import config_dirs, without_config_dirs
from steca_gym.errors import ConfigError, UnknownNameError
from steca_gym.registry import explain_unknown

if TYPE_CHECKING:
    from omegaconf import DictConfig

# Groups whose choice may be an object of the user's own, and the key that names it.
_OWN_OBJECTS = {
    "method": "method.name",
    "agent": "agent.engine.name",
    "encoder": "encoder.name",
    "reflector": "reflector.name",
    "executor": "executor.name",
    "expert": "expert.name",
}

_OPTIONAL_GROUPS = ("experiment", "launcher")

# Keys of earlier versions and what they are called now.
RENAMED = {
    "agent.reinforce": "agent.train",
    "method.num_rehearsed": "preset.num_replayed",
    "method.num_replayed": "",
    "method.weights": "preset.weights",
    "method.weights.expert_rests": "preset.weights.expert_subtrajectories",
    "preset.weights.expert_rests": "preset.weights.expert_subtrajectories",
    "preset.calibration.first_deviation_only": "preset.calibration.detector",
    "preset.step_rewards.patience": "preset.step_rewards.max_length_ratio",
    "preset.step_rewards.count_own_way": "preset.step_rewards.count_greedy_rollout",
    "collector.num_workers": "executor.num_workers",
    "collector.step_timeout_s": "executor.step_timeout_s",
    "collector.start_timeout_s": "executor.start_timeout_s",
    "collector=processes": "executor=processes",
    "collector=in_process": "executor=local",
    "expert._target_": "expert=module:Object",
}


def composed_env(overrides: Sequence[str], folders: Sequence[str] = ()) -> dict[str, Any]:
    """The ``env`` group of the composed configuration as plain data, for commands that need a world only."""
    from omegaconf import OmegaConf

    explain_overrides([*overrides, *(f"--config-dir={d}" for d in folders)])
    env = OmegaConf.to_container(compose(overrides, folders).env, resolve=True)
    assert isinstance(env, dict)
    return {str(key): value for key, value in env.items()}


def compose(overrides: Sequence[str], folders: Sequence[str] = ()) -> DictConfig:
    """Compose the packaged configuration without Hydra's command line."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("steca_gym.conf", version_base="1.3"):
            return hydra_compose("config", overrides=[*own_objects(overrides), *search_path(folders)])
    finally:
        GlobalHydra.instance().clear()


def own_objects(overrides: Sequence[str]) -> list[str]:
    """Write ``method=module:Object`` in Hydra's terms.

    The settings of such an object are known to the object only, and so they are added freely.
    """
    made: list[str] = []
    prefixes: list[str] = []
    for override in _own_logger(overrides):
        group, _, value = override.partition("=")
        if group in _OWN_OBJECTS and ":" in value and "," not in value:
            key = _OWN_OBJECTS[group]
            made += [f"{group}=custom", f"{key}={value}"]
            prefixes.append(key.rpartition(".")[0] + ".")
        else:
            made.append(override)
    return [f"++{o}" if o.startswith(tuple(prefixes)) and prefixes else o for o in made]


def _own_logger(overrides: Sequence[str]) -> list[str]:
    """Write the settings of loggers in Hydra's terms: those of NAME are under ``logger.NAME``.

    ``logger=my_module:MyTracker logger.tag=x`` names one of the user's own, alone or in a list. Where one logger is
    chosen, its name may be left out: ``logger=wandb logger.mode=online``.
    """
    choice = next((o.partition("=")[2] for o in overrides if o.partition("=")[0] == "logger"), "jsonl")
    names = [n.strip() for n in choice.removeprefix("[").removesuffix("]").split(",") if n.strip()]
    own = [n for n in names if ":" in n]
    if len(own) > 1:
        raise ConfigError(
            f"one logger of your own can be named, got {', '.join(own)}; give each a file logger/NAME.yaml in a folder "
            "of --config-dir that begins with `# @package logger.NAME`"
        )
    names = ["custom" if ":" in n else n for n in names]
    alone = names[0] if len(names) == 1 and names[0] in group_choices("logger") else None
    made: list[str] = []
    for override in overrides:
        key, equals, value = override.partition("=")
        plain = key.lstrip("+~")
        marks = key[: len(key) - len(plain)]
        inside = plain.removeprefix("logger.")
        if key == "logger" and own:
            chosen = ",".join(names)
            made += [
                f"logger=[{chosen}]" if value.startswith("[") else f"logger={chosen}",
                f"logger.custom.name={own[0]}",
            ]
        elif inside != plain and alone and inside.partition(".")[0] not in group_choices("logger"):
            free = "++" if alone == "custom" and not marks and inside != "name" else marks
            made.append(f"{free}logger.{alone}.{inside}{equals}{value}")
        elif own and inside.startswith("custom.") and not marks and inside != "custom.name":
            made.append(f"++{override}")
        else:
            made.append(override)
    return made


def search_path(folders: Sequence[str]) -> list[str]:
    """The override that lets Hydra find the user's folders."""
    places = ",".join("file://" + str(Path(d).resolve()) for d in folders)
    return [f"hydra.searchpath=[{places}]"] if folders else []


def explain_overrides(args: Sequence[str]) -> DictConfig:
    """Compose once ahead of Hydra, so that a wrong group, choice or key gets one line with the nearest right one.

    Returns:
        What composes; of a sweep its first job.

    Raises:
        UnknownNameError: a group, choice or key that does not exist.
        ConfigError: what is no override, or does not compose.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException

    folders = config_dirs(args)
    texts = own_objects([a for a in without_config_dirs(args) if not a.startswith("-")])
    _explain_renamed(texts)
    try:
        overrides = OverridesParser.create().parse_overrides(texts)
    except OverrideParseException as error:
        hint = (
            ""
            if "=" not in str(error.override)
            else ("; a value with brackets, braces or commas is quoted twice: \"key='[a] {b}'\"")
        )
        raise ConfigError(f"not an override: {error.override!r}; expected group=choice or key=value{hint}") from error
    single: list[str] = []
    for override, text in zip(overrides, texts, strict=True):
        key = override.key_or_group
        values = _swept(override)
        if override.is_sweep_override() and not {"-m", "--multirun"} & set(args):
            raise ConfigError(f"{text} names several values; for one run of each put -m first: steca run -m {text}")
        if key in groups(folders):
            known = group_choices(key, folders)
            for choice in values or _chosen(override.value(), key):
                if choice not in known and not (choice in ("null", "None") and key in _OPTIONAL_GROUPS):
                    raise UnknownNameError(explain_unknown(key, choice, known))
        single.append(f"{text.partition('=')[0]}={values[0]}" if values else text)
    try:
        return compose(single, folders)
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # Hydra raises ValueError for odd groups
        raise ConfigError(_reason(str(error), single, folders)) from error


def _explain_renamed(texts: Sequence[str]) -> None:
    for text in texts:
        plain = text.lstrip("+~")
        key = plain.partition("=")[0]
        for old, new in RENAMED.items():
            if new and plain == old:
                raise UnknownNameError(f"{old} is now called {new}")
            if new and "=" not in old and (key == old or key.startswith(f"{old}.")):
                raise UnknownNameError(f"{key} is now called {new + key[len(old) :]}")


def _chosen(value: Any, group: str) -> list[str]:
    """The choices that an override makes: one, or several loggers."""
    if not isinstance(value, list):
        return [str(value)]
    if group != "logger":
        raise ConfigError(f"{group} takes one choice, got {value}; for one run of each: steca run -m {group}=a,b")
    return list(map(str, value))


def _swept(override: Any) -> list[str]:
    """The values of a sweep (``a,b``, ``choice(a,b)``, ``range(3)``; of an interval its start), or none."""
    if not override.is_sweep_override():
        return []
    if override.is_interval_sweep():
        return [str(override.value().start)]
    return [str(item) for item in override.sweep_string_iterator()]


def conf_roots(folders: Sequence[str]) -> list[Path]:
    """Our folder of configurations, and the user's."""
    return [Path(str(importlib.resources.files("steca_gym.conf"))), *map(Path, folders)]


def groups(folders: Sequence[str] = ()) -> set[str]:
    """Names of the groups."""
    return {d.name for root in conf_roots(folders) for d in root.iterdir() if d.is_dir() and any(d.glob("*.yaml"))}


def group_choices(group: str, folders: Sequence[str] = ()) -> list[str]:
    """Choices of a group."""
    return sorted({f.stem for root in conf_roots(folders) for f in (root / group).glob("*.yaml")})


_OPEN = ("env.kwargs.", "agent.engine.")
"""groups of arguments for code that the files of ``conf`` need not list in full"""


def _reason(message: str, overrides: Sequence[str], folders: Sequence[str]) -> str:
    """Hydra's reason in one line, with the nearest known key for the override that it is about."""
    from omegaconf import OmegaConf

    known_groups = groups(folders)
    chosen = [o for o in overrides if o.partition("=")[0].lstrip("+") in known_groups]
    try:
        known = list(_keys(OmegaConf.to_container(compose(chosen, folders))))
    except Exception:  # the chosen groups alone do not compose: Hydra's own words must do
        known = []
    for override in overrides:
        key = override.partition("=")[0]
        if known and not key.startswith(("+", "~", "hydra")) and key not in known_groups and key not in known:
            nearest = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {nearest[0]!r}? " if nearest else ""
            if key.startswith(_OPEN):
                hint += f"+{override} adds an argument that its file does not list; "
            return f"no setting or group {key!r}; {hint}`steca run --help` lists groups and keys"
    return " ".join(message.split())


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from _keys(value, f"{prefix}{key}.")
