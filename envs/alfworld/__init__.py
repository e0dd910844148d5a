"""ALFWorld's text games: the official ones from disk, and household games made from a seed."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from steca_gym.env import TextEnv

from .household import Household, HouseholdSettings, game_file
from .official import OfficialGames
from .world import AlfredWorld


def make_household(
    *,
    split: str = "train",
    horizon: int = 30,
    with_admissible: bool = False,
    render_mode: str | None = None,
    **settings: Any,
) -> TextEnv:
    """``steca/Household-v0``; further keywords are ``HouseholdSettings``."""
    if "task_types" in settings:
        settings["task_types"] = tuple(settings["task_types"])
    return TextEnv(
        AlfredWorld(_household(HouseholdSettings(**settings))),
        split=split,
        horizon=horizon,
        with_admissible=with_admissible,
        render_mode=render_mode,
    )


def make_alfworld(
    *,
    split: str = "train",
    data: str | None = None,
    horizon: int = 40,
    with_admissible: bool = False,
    render_mode: str | None = None,
) -> TextEnv:
    """``steca/ALFWorld-v0``; ``data`` is a folder or archive of official games, by default ``$ALFWORLD_DATA``."""
    return TextEnv(
        AlfredWorld(_official(data)),
        split=split,
        horizon=horizon,
        with_admissible=with_admissible,
        render_mode=render_mode,
    )


@lru_cache(maxsize=8)
def _official(data: str | None) -> OfficialGames:
    # One index and one set of compiled games for all environments of the process.
    return OfficialGames(data)


@lru_cache(maxsize=8)
def _household(settings: HouseholdSettings) -> Household:
    return Household(settings)


__all__ = [
    "AlfredWorld",
    "Household",
    "HouseholdSettings",
    "OfficialGames",
    "game_file",
    "make_alfworld",
    "make_household",
]
