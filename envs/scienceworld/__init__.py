"""ScienceWorld's experiments in a house of rooms, on a bundled Java runtime (the ``scienceworld`` extra)."""

from __future__ import annotations

from collections.abc import Sequence

from steca_gym.env import TextEnv

from .world import ScienceWorldWorld

__all__ = ["ScienceWorldWorld", "make_scienceworld"]


def make_scienceworld(
    *,
    tasks: Sequence[str] = (),
    simplification: str = "",
    num_train_variations: int | None = None,
    num_eval_variations: int | None = None,
    max_jvms: int | None = None,
    split: str = "train",
    horizon: int = 100,
    with_admissible: bool = False,
    render_mode: str | None = None,
) -> TextEnv:
    """Make ``steca/ScienceWorld-v0``; see ``ScienceWorldWorld`` and ``TextEnv`` for the arguments."""
    world = ScienceWorldWorld(
        tasks=tuple(tasks),
        simplification=simplification,
        num_train_variations=num_train_variations,
        num_eval_variations=num_eval_variations,
        max_jvms=max_jvms,
    )
    return TextEnv(world, split=split, horizon=horizon, with_admissible=with_admissible, render_mode=render_mode)
