"""trackio: the local-first tracker of Hugging Face, with W&B's way of calling it.

Runs are stored under ``TRACKIO_DIR`` (``~/.cache/huggingface/trackio``) and shown by `trackio show`; with ``space_id``
they are sent to a Space. trackio has one step for all metrics of a row, so that each phase is drawn over its own steps.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from steca_gym.errors import ConfigError
from steca_gym.tracking.base import Chart, named
from steca_gym.tracking.making import require
from steca_gym.tracking.secrets import without_secrets


class TrackioTracker:
    """A run of trackio, named after the run's folder; a resumed run continues in it.

    Args:
        folder: the run's folder.
        settings: the composed configuration.
        sweep: name of the sweep that the run belongs to.
        project: of trackio.
        group: None: the sweep's name.
        space_id: a Hugging Face Space that shows the runs; None: this machine.
        timeout_s: seconds that a call may take, > 0.
    """

    @staticmethod
    def check_settings(
        *, project: str, group: str | None = None, space_id: str | None = None, timeout_s: float = 60
    ) -> None:
        """Raise ConfigError for what trackio would refuse, and where its package is missing."""
        require("trackio", "trackio")
        if not project.strip():
            raise ConfigError(f"logger.project must be a name, got {project!r}")
        if not timeout_s > 0:
            raise ConfigError(f"logger.timeout_s must be > 0, got {timeout_s}")

    def __init__(
        self,
        *,
        folder: Path,
        settings: Mapping[str, Any],
        project: str,
        sweep: str = "",
        group: str | None = None,
        space_id: str | None = None,
        timeout_s: float = 60,
    ) -> None:
        """Start the run, or continue it."""
        with _silent():
            import trackio

            self._trackio = trackio
            self._project = project
            self._run = trackio.init(
                project=project,
                name=folder.resolve().name,
                group=group or sweep or None,
                space_id=space_id,
                config={k: v for k, v in without_secrets(settings).items() if not k.startswith("_")},
                resume="allow",
                embed=False,
            )

    def log(self, metrics: Mapping[str, float], *, phase: str = "", step: int | None = None) -> None:
        """See Tracker."""
        self._run.log(named(metrics, phase), step=step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """See Tracker."""
        self._run.log({name: self._trackio.Table(columns=list(columns), data=[list(r) for r in rows])})

    def chart(self, name: str, chart: Chart) -> None:
        """See Tracker: a metric for each line, over the chart's own axis."""
        for label, points in chart.lines.items():
            for x, y in points:
                self._run.log({f"{name}/{label}": y}, step=int(x))

    def summary(self, metrics: Mapping[str, Any]) -> None:
        """See Tracker: trackio has no summary, and shows the last value of each metric."""
        self._run.log({k: v for k, v in metrics.items() if v is not None})

    def finish(self) -> None:
        """See Tracker."""
        with _silent():
            self._run.finish()

    def closing_lines(self) -> list[str]:
        """The command that shows the run."""
        return [f'trackio show --project "{self._project}"']


def _silent() -> contextlib.redirect_stdout[io.StringIO]:
    """Without trackio's own lines on the output, which is a command's result."""
    return contextlib.redirect_stdout(io.StringIO())
