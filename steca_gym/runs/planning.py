"""Which stages a run has, whether its settings can work, and where its folder is; nothing is made or played."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steca_gym.methods.base import Method, Stage
from steca_gym.methods.context import RunConfig
from steca_gym.methods.stages import train_settings
from steca_gym.runs.context import check_parts, short_name
from steca_gym.settings import digest


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """A stage with its key."""

    stage: Stage
    key: str
    depends_on: Mapping[str, Any]


def plan(method: Method, config: RunConfig) -> list[PlannedStage]:
    """The stages that apply, with their keys."""
    planned: list[PlannedStage] = []
    key = ""
    for stage in method.stages():
        if stage.applies(config):
            depends_on = stage.depends_on(config)
            key = digest([key, stage.name, depends_on])
            planned.append(PlannedStage(stage, key, depends_on))
    return planned


def check_settings(planned: Sequence[PlannedStage], config: RunConfig) -> None:
    """Raise ConfigError for settings that a later stage would refuse; cheap, and before anything is played."""
    check_parts(config)
    for p in planned:
        p.stage.check(config)
    for which in ("warm_up", "train"):
        if getattr(config.agent, which) is not None:
            train_settings(config, which)


def run_folder(
    config: RunConfig, planned: Sequence[PlannedStage], name: str, swept: Mapping[str, str] | None = None
) -> Path:
    """``run_dir``, or a folder below ``runs_root`` whose name follows from what the result depends on.

    A job of a sweep shows what was swept: ``household-steca-s0-learning_rate-0.001-KEY``. A single command with the
    same settings finds that folder by its key.
    """
    if config.run_dir:
        return Path(config.run_dir).expanduser()
    world = short_name(config.env.id.split("/")[-1].split("-v")[0].lower())
    if planned:
        what, key = short_name(name), planned[-1].key
    else:
        what, key = short_name(agent_name(config)), digest([config.env.id, config.env.kwargs, config.agent])
    root, begin = Path(config.runs_root).expanduser(), f"{world}-{what}-s{config.seed}"
    plain = root / f"{begin}-{key}"
    # Method, seed and environment stand in the name anyhow.
    shown = {k.rpartition(".")[2]: v for k, v in (swept or {}).items() if k not in ("method", "seed", "env")}
    if shown and not plain.exists():
        middle = short_name("-".join(f"{k}-{v}" for k, v in shown.items()).replace(":", "-"))
        return root / f"{begin}-{middle[:60]}-{key}"
    if swept is None and not plain.exists():
        return min(root.glob(f"{glob.escape(begin)}-*-{key}"), default=plain)
    return plain


def method_name(config: RunConfig) -> str:
    """The method as it was named."""
    return str(config.method.get("name") or config.method.get("_target_"))


def agent_name(config: RunConfig) -> str:
    """A short name of the acting agent: of its model, or of what makes it."""
    if config.agent.model is not None:
        return Path(config.agent.model).name or config.agent.model
    target = str(config.agent.engine.get("name") or config.agent.engine.get("_target_", "agent"))
    return target.split(":")[-1].split(".")[-1]
