"""TextWorld's games, made from a seed and played with their parser (the ``textworld`` extra)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from steca_gym.env import TextEnv

from .games import DEFAULT_GAMES
from .world import TextWorldWorld

__all__ = ["DEFAULT_GAMES", "TextWorldWorld", "make_textworld"]


def make_textworld(
    *,
    games: Sequence[str] = DEFAULT_GAMES,
    num_train_tasks: int = 100,
    num_eval_tasks: int = 20,
    games_dir: str | Path | None = None,
    split: str = "train",
    horizon: int = 50,
    with_admissible: bool = False,
    render_mode: str | None = None,
) -> TextEnv:
    """Make ``steca/TextWorld-v0``; see ``TextWorldWorld`` and ``TextEnv`` for the arguments."""
    world = TextWorldWorld(
        games=tuple(games),
        num_train_tasks=num_train_tasks,
        num_eval_tasks=num_eval_tasks,
        games_dir=games_dir,
    )
    return TextEnv(world, split=split, horizon=horizon, with_admissible=with_admissible, render_mode=render_mode)
