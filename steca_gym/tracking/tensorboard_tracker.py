"""TensorBoard: event files below the run's folder, written with TensorBoard's own package (no TensorFlow, no torch).

Scalars are drawn over the step of their phase. A chart is a run of its own below ``charts/``, drawn over its own axis.
Tables are texts in Markdown; settings and final figures are a session of the HPARAMS page.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from steca_gym.errors import ConfigError
from steca_gym.tracking.base import Chart, flat, named
from steca_gym.tracking.making import require
from steca_gym.tracking.secrets import without_secrets

MAX_ROWS = 200
"""of a table that is shown; the whole table is in metrics.jsonl"""


class TensorBoardTracker:
    """Event files in ``folder / "tensorboard"``, or below ``logdir``.

    Args:
        folder: the run's folder.
        settings: the composed configuration.
        logdir: a folder for many runs, to compare them; each gets a folder of its name. None: the run's folder.
    """

    @staticmethod
    def check_settings(*, logdir: str | None = None) -> None:
        """Raise ConfigError where TensorBoard is missing, or logdir names nothing."""
        require("tensorboard", "tensorboard")
        if logdir == "":
            raise ConfigError("logger.logdir must be a folder, or null for the run's own, got ''")

    def __init__(self, *, folder: Path, settings: Mapping[str, Any], logdir: str | None = None) -> None:
        """Open an event file; those of earlier commands on this folder stay, and TensorBoard shows them as one run."""
        name = folder.resolve().name
        self._name = name
        self._logdir = folder / "tensorboard" if logdir is None else Path(logdir).expanduser() / name
        self._settings = without_secrets(settings)
        self._writers: dict[str, Any] = {}

    def _add(self, summary: Any, step: int = 0, run: str = "") -> None:
        from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        writer = self._writers.get(run)
        if writer is None:
            writer = self._writers[run] = EventFileWriter(str(self._logdir / run if run else self._logdir))
        writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))

    def log(self, metrics: Mapping[str, float], *, phase: str = "", step: int | None = None) -> None:
        """See Tracker."""
        from tensorboard.plugins.scalar.summary_v2 import scalar_pb

        for name, value in named(metrics, phase).items():
            self._add(scalar_pb(name, float(value)), step or 0)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """See Tracker."""
        from tensorboard.plugins.text.summary_v2 import text_pb

        lines = [_row(columns), _row(["---"] * len(columns)), *(_row(r) for r in rows[:MAX_ROWS])]
        if len(rows) > MAX_ROWS:
            lines += ["", f"{MAX_ROWS} of {len(rows)} rows; all are in metrics.jsonl"]
        self._add(text_pb(name, "\n".join(lines)))

    def chart(self, name: str, chart: Chart) -> None:
        """See Tracker."""
        from tensorboard.plugins.scalar.summary_v2 import scalar_pb

        for label, points in chart.lines.items():
            run = f"charts/{name}/{label}".replace(":", "-")
            for x, y in points:
                self._add(scalar_pb(chart.title, float(y), description=f"over {chart.x_label}"), int(x), run)
            self._writers.pop(run).close()  # complete: hundreds of charts must not hold hundreds of files

    def summary(self, metrics: Mapping[str, Any]) -> None:
        """See Tracker."""
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb
        from tensorboard.plugins.scalar.summary_v2 import scalar_pb

        plain = {k: v for k, v in flat(self._settings).items() if isinstance(v, bool | int | float | str)}
        self._add(hparams_pb(plain, trial_id=self._name))
        for name, value in metrics.items():
            if isinstance(value, int | float):
                self._add(scalar_pb(name, float(value)))

    def finish(self) -> None:
        """See Tracker."""
        for writer in self._writers.values():
            writer.close()
        self._writers = {}

    def closing_lines(self) -> list[str]:
        """The command that shows the run."""
        return [f"tensorboard --logdir {self._logdir}"]


def _row(cells: Sequence[Any]) -> str:
    texts = ("" if c is None else f"{c:.4g}" if isinstance(c, float) else str(c) for c in cells)
    return "| " + " | ".join(" ".join(t.split()).replace("|", "\\|") for t in texts) + " |"
