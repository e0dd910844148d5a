"""Worlds that exist elsewhere, behind the same contract: any text-like Gymnasium environment, any OpenEnv server.

``steca/Gymnasium-v0`` and ``steca/OpenEnv-v0`` are configured by keywords alone, so that one YAML file is enough; see
``docs/your-own-environment.md``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from steca_gym.env import TextEnv
from steca_gym.errors import ConfigError

from .foreign import GymnasiumWorld
from .openenv import OpenEnvWorld
from .reading import Reading

__all__ = ["GymnasiumWorld", "OpenEnvWorld", "Reading", "make_gymnasium", "make_openenv"]


def make_gymnasium(
    *,
    env: str = "",
    env_kwargs: Mapping[str, Any] | None = None,
    name: str = "",
    describe: str = "",
    goal: str = "",
    expert: str = "",
    expert_reach: str = "any",
    action_names: Sequence[str] = (),
    check_space: bool = True,
    min_return: float = 0.0,
    max_return: float = 1.0,
    snapshots: str = "auto",
    num_train_tasks: int = 1000,
    num_eval_tasks: int = 100,
    split: str = "train",
    horizon: int = 30,
    with_admissible: bool = False,
    render_mode: str | None = None,
) -> TextEnv:
    """Make ``steca/Gymnasium-v0`` around the environment of a Gymnasium id; see ``GymnasiumWorld`` and ``Reading``.

    ``describe`` and ``expert`` are written ``module:function``.
    """
    if not env:
        raise ConfigError("env must name the Gymnasium id to wrap, e.g. env=FrozenLake-v1")
    world = GymnasiumWorld(
        env,
        env_kwargs=env_kwargs,
        name=name,
        reading=Reading(describe=describe or None, goal=goal, min_return=min_return, max_return=max_return),
        expert=expert or None,
        expert_reach=expert_reach,
        action_names=action_names,
        check_space=check_space,
        snapshots=snapshots,
        num_train_tasks=num_train_tasks,
        num_eval_tasks=num_eval_tasks,
    )
    return TextEnv(world, split=split, horizon=horizon, with_admissible=with_admissible, render_mode=render_mode)


def make_openenv(
    *,
    url: str = "",
    action: Mapping[str, Any] | None = None,
    name: str = "openenv",
    version: str = "1",
    describe: str = "",
    observation_field: str = "",
    goal: str = "",
    reset: Mapping[str, Any] | None = None,
    min_return: float = 0.0,
    max_return: float = 1.0,
    timeout_s: float = 60.0,
    num_train_tasks: int = 1000,
    num_eval_tasks: int = 100,
    split: str = "train",
    horizon: int = 30,
    with_admissible: bool = False,
    render_mode: str | None = None,
) -> TextEnv:
    """Make ``steca/OpenEnv-v0`` over a running OpenEnv server; see ``OpenEnvWorld`` and ``Reading``."""
    reading = Reading(
        describe=describe or None,
        observation_field=observation_field,
        goal=goal,
        min_return=min_return,
        max_return=max_return,
    )
    world = OpenEnvWorld(
        url,
        action=action or {},
        name=name,
        version=version,
        reading=reading,
        reset=reset,
        timeout_s=timeout_s,
        num_train_tasks=num_train_tasks,
        num_eval_tasks=num_eval_tasks,
    )
    return TextEnv(world, split=split, horizon=horizon, with_admissible=with_admissible, render_mode=render_mode)
