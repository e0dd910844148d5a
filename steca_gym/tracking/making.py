"""From the group ``logger`` of the configuration to trackers: one, or several at once."""

from __future__ import annotations

import importlib.util
import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steca_gym.errors import ConfigError
from steca_gym.registry import trackers
from steca_gym.tracking.base import Tracker
from steca_gym.tracking.guard import CompositeTracker, SafeTracker
from steca_gym.tracking.jsonl import JsonlTracker

GRACE_S = 15.0
"""seconds beyond a tracker's own ``timeout_s``, within which its library should have given up by itself"""


def make_tracker(
    logger: Mapping[str, Any], *, folder: Path, settings: Mapping[str, Any], sweep: str = ""
) -> CompositeTracker:
    """The trackers that the group ``logger`` describes, as one; ``metrics.jsonl`` is always written as well.

    Args:
        logger: the settings of one tracker, with its ``name`` (registered, or ``module:Object``) or ``_target_``; or
            a group of such settings, e.g. ``{"jsonl": {"name": "jsonl"}, "wandb": {"name": "wandb", ...}}``.
        folder: the run's folder.
        settings: the composed configuration, for trackers that keep it.
        sweep: name of the sweep that the run belongs to; empty: none.

    Raises:
        UnknownNameError, ConfigError: a tracker that does not exist, or settings that it does not take.
    """
    check_tracker(logger)
    made = [SafeTracker(lambda: JsonlTracker(folder / "metrics.jsonl"))]
    for one in chosen(logger):
        if one.get("name") != "jsonl":
            made.append(_guarded(one, folder=folder, settings=settings, sweep=sweep))
    return CompositeTracker(made)


def _guarded(one: Mapping[str, Any], **offered: Any) -> SafeTracker:
    taken = _offered(one, **offered)

    def make() -> Tracker:
        made: Tracker = trackers.make(one, **taken)
        return made

    limit = one.get("timeout_s", _default(one, "timeout_s"))
    abandon = getattr(trackers.factory(one), "abandon", None)
    return SafeTracker(make, timeout_s=None if limit is None else float(limit) + GRACE_S, abandon=abandon)


def chosen(logger: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The settings of each tracker; raises ConfigError where the group holds something else."""
    if not logger:
        return []
    if "name" in logger or "_target_" in logger:
        return [logger]
    for key, one in logger.items():
        if not isinstance(one, Mapping):
            raise ConfigError(
                f"logger.{key} is {one!r}, expected the settings of a tracker; choose trackers with logger=NAME or "
                "logger=[jsonl,wandb] and set theirs with logger.NAME.key=value"
            )
    return [one for one in logger.values() if one]


def check_tracker(logger: Mapping[str, Any]) -> None:
    """Raise ConfigError where the group ``logger`` describes no trackers; starts none."""
    for one in chosen(logger):
        if one.get("name") == "jsonl":
            trackers.check(one, path=Path("metrics.jsonl"))
        else:
            trackers.check(one, **_offered(one, folder=Path(), settings={}, sweep=""))


def _offered(one: Mapping[str, Any], **offered: Any) -> dict[str, Any]:
    """What a tracker is given beside its own settings, where it takes it."""
    parameters = _parameters(one)
    any_name = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return {k: v for k, v in offered.items() if any_name or k in parameters}


def _default(one: Mapping[str, Any], name: str) -> Any:
    parameter = _parameters(one).get(name)
    return None if parameter is None or parameter.default is parameter.empty else parameter.default


def _parameters(one: Mapping[str, Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(trackers.factory(one)).parameters
    except (TypeError, ValueError):  # no signature: it takes what it takes
        return {}


def results_are_awaited() -> bool:
    """Whether a program outside waits for figures of this very process, also where nothing was left to do.

    `wandb agent` starts a command for each set of values and reads its results from the W&B run that it made.
    """
    return bool(os.environ.get("WANDB_SWEEP_ID"))


def require(package: str, extra: str) -> None:
    """Raise ConfigError where a tracker's package is not installed."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.loader is None:  # a folder of that name in the working directory has no loader
        raise ConfigError(
            f"logger={extra} needs the package {package}, which is not installed; "
            f"pip install 'steca-gym[{extra}]', or choose another logger"
        )
