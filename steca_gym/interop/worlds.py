"""Makes worlds and prompts for other tools, by a configuration's name (``household``) or by a Gymnasium id."""

from __future__ import annotations

import importlib.resources
from typing import Any

from steca_gym.agent import Message, Prompt
from steca_gym.env import TextEnv
from steca_gym.errors import ConfigError
from steca_gym.registry import explain_unknown


def make_env(env_id: str, *, split: str = "train", **kwargs: Any) -> TextEnv:
    """Make a world.

    Args:
        env_id: a Gymnasium id such as ``steca/Household-v0`` or ``my_module:me/World-v0``, or the name of a packaged
            configuration such as ``household``, whose keyword arguments are then the defaults.
        split: the split that ``reset`` draws from.
        kwargs: keyword arguments of the world.

    Raises:
        ConfigError: no such id or name, keyword arguments that do not fit, or an environment that is no ``TextEnv``.
        DataError: the world's data is missing.
    """
    from steca_gym.runs.context import make_env as make

    if not isinstance(env_id, str) or not env_id:
        raise ConfigError(f"expected the id of a world, e.g. steca/Household-v0 or household, got {env_id!r}")
    if "/" in env_id or ":" in env_id or "-v" in env_id:
        return make(f"steca_gym.envs:{env_id}" if env_id.startswith("steca/") else env_id, kwargs, split)
    known = packaged_worlds()
    if env_id not in known:
        raise ConfigError(explain_unknown("world", env_id, known) + "; or give a Gymnasium id")
    config = known[env_id]
    return make(config["id"], {**config.get("kwargs", {}), **kwargs}, split)


def packaged_prompt(name: str) -> Prompt:
    """A packaged prompt, ``env/prompt=NAME``: react, or turns (for any turn format); raises ConfigError."""
    folder = importlib.resources.files("steca_gym.conf").joinpath("env", "prompt")
    known = sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))
    if name not in known:
        raise ConfigError(explain_unknown("prompt", name, known))
    settings: dict[str, Any] = {}
    loaded = _yaml(folder.joinpath(f"{name}.yaml").read_text(encoding="utf-8"))
    for base in loaded.pop("defaults", []):
        if base != "_self_":
            settings |= _yaml(folder.joinpath(f"{base}.yaml").read_text(encoding="utf-8"))
    settings |= loaded
    examples = tuple(Message(m["role"], m["content"]) for m in settings.get("examples", []))
    return Prompt(instruction=settings.get("instruction", ""), examples=examples)


def _yaml(text: str) -> dict[str, Any]:
    from omegaconf import OmegaConf

    loaded = OmegaConf.to_container(OmegaConf.create(text))
    assert isinstance(loaded, dict)
    return {str(k): v for k, v in loaded.items()}


def packaged_worlds() -> dict[str, dict[str, Any]]:
    """The packaged configurations ``env=NAME``: name to ``id``, ``kwargs``, ``train_split`` and so on."""
    found: dict[str, dict[str, Any]] = {}
    for file in importlib.resources.files("steca_gym.conf").joinpath("env").iterdir():
        if file.name.endswith(".yaml"):
            loaded = _yaml(file.read_text(encoding="utf-8"))
            if "id" in loaded:
                found[file.name.removesuffix(".yaml")] = loaded
    return found
