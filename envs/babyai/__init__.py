"""BabyAI in text: instructions in a grid of rooms, played with short text actions (the ``babyai`` extra)."""

from __future__ import annotations

from collections.abc import Sequence

from steca_gym.env import TextEnv

from .world import DEFAULT_LEVELS, BabyAIWorld

__all__ = ["DEFAULT_LEVELS", "BabyAIWorld", "make_babyai"]


def make_babyai(
    *,
    levels: Sequence[str] = DEFAULT_LEVELS,
    num_train_tasks: int = 1000,
    num_eval_tasks: int = 100,
    split: str = "train",
    horizon: int = 64,
    with_admissible: bool = False,
    render_mode: str | None = None,
) -> TextEnv:
    """Make ``steca/BabyAI-v0``; see ``BabyAIWorld`` and ``TextEnv`` for the arguments."""
    world = BabyAIWorld(levels=tuple(levels), num_train_tasks=num_train_tasks, num_eval_tasks=num_eval_tasks)
    return TextEnv(world, split=split, horizon=horizon, with_admissible=with_admissible, render_mode=render_mode)
