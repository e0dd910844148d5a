"""VirtualHome in text by its evolving-graph simulator, the STeCa paper's second world."""

from __future__ import annotations

from pathlib import Path

from steca_gym.env import TextEnv

from .cache import fetch
from .world import VirtualHomeWorld

__all__ = ["VirtualHomeWorld", "fetch", "make_virtualhome"]


def make_virtualhome(
    *,
    cache_dir: str | Path | None = None,
    split: str = "train",
    horizon: int = 40,
    with_admissible: bool = False,
    render_mode: str | None = None,
) -> TextEnv:
    """Make ``steca/VirtualHome-v0``; see ``VirtualHomeWorld`` and ``TextEnv`` for the arguments."""
    world = VirtualHomeWorld(cache_dir=cache_dir)
    return TextEnv(world, split=split, horizon=horizon, with_admissible=with_admissible, render_mode=render_mode)
