"""Metrics as JSON lines in the run's folder; always written, whatever other trackers there are."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from steca_gym.tracking.base import Artifact, Chart


class JsonlTracker:
    """One JSON object a line in ``metrics.jsonl``: ``{"time", "event", ...}``."""

    def __init__(self, path: Path) -> None:
        """Append to the file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")

    def _write(self, event: str, **data: Any) -> None:
        self._file.write(json.dumps({"time": time.time(), "event": event, **data}) + "\n")
        self._file.flush()

    def log(self, metrics: Mapping[str, float], *, phase: str = "", step: int | None = None) -> None:
        """See Tracker."""
        self._write("metrics", phase=phase, step=step, metrics=dict(metrics))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """See Tracker."""
        self._write("table", name=name, columns=list(columns), rows=[list(r) for r in rows])

    def chart(self, name: str, chart: Chart) -> None:
        """See Tracker."""
        lines = {label: [list(point) for point in points] for label, points in chart.lines.items()}
        self._write("chart", name=name, title=chart.title, x_label=chart.x_label, lines=lines)

    def artifact(self, artifact: Artifact) -> None:
        """See Tracker: its name and origin; the files stay where they are."""
        self._write(
            "artifact",
            name=artifact.name,
            kind=artifact.kind,
            path=str(artifact.path),
            made_from=list(artifact.made_from),
            shared_from=artifact.shared_from,
        )

    def summary(self, metrics: Mapping[str, Any]) -> None:
        """See Tracker."""
        self._write("summary", metrics=dict(metrics))

    def finish(self) -> None:
        """See Tracker."""
        self._file.close()
