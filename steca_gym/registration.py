"""Register a text world with Gymnasium, or make an environment around it without registering.

Example:
    >>> register_world("me/Lamp-v0", Lamp)
    >>> env = gymnasium.make("me/Lamp-v0", horizon=10)
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from typing import Any, cast

import gymnasium

from steca_gym.env import TextEnv, World, kind_of
from steca_gym.errors import ConfigError, StecaError
from steca_gym.registry import explain_unknown

WorldFactory = type[World] | Callable[..., World]
"""a World class, or a function that makes a World"""

_ENV_SETTINGS = tuple(name for name in inspect.signature(TextEnv).parameters if name != "world")


def register_world(env_id: str, world: WorldFactory | str, **defaults: Any) -> None:
    """Register a world with Gymnasium, so that ``gymnasium.make(env_id, ...)`` plays it.

    Keywords of ``gymnasium.make`` go to where they belong: ``split``, ``horizon``, ``with_admissible``,
    ``list_actions`` and ``render_mode`` to ``TextEnv``, all others to the world. An unknown one raises ConfigError with
    the nearest name.

    Args:
        env_id: a Gymnasium id, e.g. ``"me/Lamp-v0"``.
        world: a World class, a function that makes a World, or ``"module:Object"`` of either, which is imported at the
            first use. A class or function at the top level of a module works in other processes too.
        defaults: default settings of the world and of ``TextEnv``, e.g. ``horizon=12``.

    Raises:
        ConfigError: the id is malformed or taken by something else, or ``world`` is not a world.

    Example:
        >>> register_world("me/Lamp-v0", Lamp, horizon=10)
        >>> env = gymnasium.make("me/Lamp-v0", num_rooms=3)
    """
    if isinstance(world, World):
        raise ConfigError(
            f"{env_id}: give the class or a function that makes the world, not a {type(world).__name__}: "
            "each environment needs a world of its own"
        )
    if isinstance(world, str):
        target: Any = world
    elif callable(world):
        target = _importable_name(world) or world
        _check_settings(env_id, world, defaults)
    else:
        raise ConfigError(f"{env_id}: world must be a World class, a function or 'module:Object', got {kind_of(world)}")
    taken = gymnasium.registry.get(env_id)
    if taken is not None and not _is_same_world(taken, target):
        raise ConfigError(f"the id {env_id!r} is already registered to {taken.entry_point}; choose another id")
    try:
        gymnasium.registry.pop(env_id, None)
        # max_episode_steps stays unset: TextEnv counts its own horizon, so that snapshots hold the count. Gymnasium's
        # checker and order wrappers stay off: a state may be entered by restore() without a reset().
        gymnasium.register(
            env_id,
            entry_point="steca_gym.registration:make_text_env",
            order_enforce=False,
            disable_env_checker=True,
            kwargs={"_world": target, **defaults},
        )
    except gymnasium.error.Error as error:
        raise ConfigError(f"{env_id!r} is not a Gymnasium id such as 'me/Lamp-v0': {error}") from error


def make_text_env(_world: WorldFactory | str, **settings: Any) -> TextEnv:
    """Make an environment around a world without registering it; see ``register_world`` for both arguments."""
    factory = _resolved(_world)
    for_env = {key: value for key, value in settings.items() if key in _ENV_SETTINGS}
    for_world = {key: value for key, value in settings.items() if key not in _ENV_SETTINGS}
    what = _importable_name(factory) or getattr(factory, "__name__", repr(factory))
    _check_settings(what, factory, settings)
    try:
        world = factory(**for_world)
    except StecaError:
        raise
    except (TypeError, ValueError) as error:
        if not for_world:
            raise
        given = ", ".join(f"{key}={value!r:.60}" for key, value in for_world.items())
        raise ConfigError(f"{what} cannot be made with {given}: {type(error).__name__}: {error}") from error
    if not isinstance(world, World):
        raise ConfigError(f"{what} must make a steca_gym.World, got {kind_of(world)}")
    return TextEnv(world, **for_env)


make_text_env.metadata = TextEnv.metadata  # type: ignore[attr-defined]  # read by gymnasium.make for render_mode


def _resolved(world: WorldFactory | str) -> Callable[..., World]:
    if callable(world):
        return world
    module, colon, name = world.partition(":")
    try:
        if not colon:
            raise ValueError("no colon")
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"world must be 'module:Object', got {world!r} ({error})") from error
    if not callable(found):
        raise ConfigError(f"world {world!r} must be a class or function, got {kind_of(found)}")
    return cast("Callable[..., World]", found)


def _importable_name(factory: Any) -> str:
    """``module:Object`` if another process finds the object there, else empty."""
    module, name = getattr(factory, "__module__", ""), getattr(factory, "__qualname__", "")
    if not module or not name or module == "__main__":
        return ""
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return f"{module}:{name}" if found is factory else ""


def _is_same_world(spec: Any, target: Any) -> bool:
    old = (spec.kwargs or {}).get("_world")
    if isinstance(old, str) or isinstance(target, str):
        return bool(old == target)
    # The cell of a notebook is run again: the same class, made again.
    return old is not None and (old.__module__, old.__qualname__) == (target.__module__, target.__qualname__)


def _check_settings(what: str, factory: Callable[..., World], settings: dict[str, Any]) -> None:
    """Refuse settings that neither the world nor TextEnv takes, and those that both do."""
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # a builtin: it will complain by itself
        return
    both = [name for name in parameters if name in _ENV_SETTINGS]
    if both:
        raise ConfigError(f"{what} takes {both[0]!r}, which is a setting of TextEnv; rename the world's")
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    known = [*parameters, *_ENV_SETTINGS]
    for name in settings:
        if name not in known:
            raise ConfigError(f"{what}: {explain_unknown('setting', name, known)}")
