"""``hydra/sweeper=steca``, the default: every combination, as Hydra's own sweeper, with outcomes."""

from __future__ import annotations

from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

from steca_gym.sweeps.outcomes import WatchedLauncher


class Sweeper(BasicSweeper):
    """Plays every combination; a job that fails stops no other."""

    def setup(self, **kwargs: Any) -> None:
        """As Hydra's, with a watched launcher."""
        super().setup(**kwargs)
        self.launcher: Any = WatchedLauncher(self.launcher)
