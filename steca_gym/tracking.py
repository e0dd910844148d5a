"""Metrics and tables of a run, to JSON lines or Weights & Biases, behind one protocol.

Knows how to hand numbers on. Knows no phase: whoever logs names it. A tracker that fails never stops a run.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from steca_gym.errors import ConfigError, UnknownNameError
from steca_gym.registry import explain_unknown


class Tracker(Protocol):
    """Where metrics go."""

    def log(self, metrics: Mapping[str, float], *, phase: str = "", step: int | None = None) -> None:
        """Numbers of a moment; names are prefixed with the phase."""
        ...

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table, e.g. of calibrations."""
        ...

    def summary(self, metrics: Mapping[str, Any]) -> None:
        """Final figures of the run."""
        ...

    def finish(self) -> None:
        """Flush and close."""
        ...


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

    def summary(self, metrics: Mapping[str, Any]) -> None:
        """See Tracker."""
        self._write("summary", metrics=dict(metrics))

    def finish(self) -> None:
        """See Tracker."""
        self._file.close()


class WandbTracker:
    """Weights & Biases; ``mode="offline"`` needs no account and writes below ``folder``."""

    def __init__(self, *, folder: Path, settings: Mapping[str, Any], project: str, mode: str = "offline") -> None:
        """Start a W&B run named after the folder."""
        if mode not in ("offline", "online", "disabled"):
            raise ConfigError(f"logger.mode must be offline, online or disabled, got {mode!r}")
        import wandb

        self._wandb = wandb
        self._run = wandb.init(
            project=project,
            mode=mode,  # type: ignore[arg-type]
            dir=str(folder),
            name=folder.name,
            config=dict(settings),
            settings=wandb.Settings(silent=True, console="off"),
        )

    def log(self, metrics: Mapping[str, float], *, phase: str = "", step: int | None = None) -> None:
        """See Tracker; W&B counts its own steps, ours goes along as a metric."""
        named = {f"{phase}/{k}" if phase else k: v for k, v in metrics.items()}
        if step is not None:
            named[f"{phase}/step" if phase else "step"] = step
        self._run.log(named)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """See Tracker."""
        self._run.log({name: self._wandb.Table(columns=list(columns), data=[list(r) for r in rows])})

    def summary(self, metrics: Mapping[str, Any]) -> None:
        """See Tracker."""
        self._run.summary.update(dict(metrics))

    def finish(self) -> None:
        """See Tracker."""
        self._run.finish()


class SafeTracker:
    """A tracker whose failures are counted and warned about once, and never raised."""

    def __init__(self, make: Callable[[], Tracker]) -> None:
        """Make the tracker; a failure to start is a failure like any other."""
        self.num_failures = 0
        self._inner: Tracker | None = None
        self._guard(lambda: setattr(self, "_inner", make()))

    def _guard(self, call: Callable[[], object]) -> None:
        try:
            call()
        except (ConfigError, KeyboardInterrupt):
            raise
        except Exception as error:  # whatever a tracker's library raises, the run goes on
            self.num_failures += 1
            if self.num_failures == 1:
                warnings.warn(f"the tracker failed and the run goes on without it: {error}", stacklevel=3)

    def _call(self, name: str, *args: Any, **kwargs: Any) -> None:
        if self._inner is not None:
            self._guard(lambda: getattr(self._inner, name)(*args, **kwargs))

    def log(self, metrics: Mapping[str, float], *, phase: str = "", step: int | None = None) -> None:
        """See Tracker."""
        self._call("log", metrics, phase=phase, step=step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """See Tracker."""
        self._call("table", name, columns, rows)

    def summary(self, metrics: Mapping[str, Any]) -> None:
        """See Tracker."""
        self._call("summary", metrics)

    def finish(self) -> None:
        """See Tracker; further calls do nothing."""
        self._call("finish")
        self._inner = None


class CompositeTracker:
    """Several trackers as one; each is guarded on its own."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        """Hand everything to each."""
        self._trackers = list(trackers)

    def log(self, metrics: Mapping[str, float], *, phase: str = "", step: int | None = None) -> None:
        """See Tracker."""
        for tracker in self._trackers:
            tracker.log(metrics, phase=phase, step=step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """See Tracker."""
        for tracker in self._trackers:
            tracker.table(name, columns, rows)

    def summary(self, metrics: Mapping[str, Any]) -> None:
        """See Tracker."""
        for tracker in self._trackers:
            tracker.summary(metrics)

    def finish(self) -> None:
        """See Tracker."""
        for tracker in self._trackers:
            tracker.finish()


def make_tracker(logger: Mapping[str, Any], *, folder: Path, settings: Mapping[str, Any]) -> Tracker:
    """The tracker of a ``logger`` group: JSON lines always, W&B beside them where asked for."""
    options = dict(logger)
    name = str(options.pop("name"))
    jsonl = SafeTracker(lambda: JsonlTracker(folder / "metrics.jsonl"))
    if name == "jsonl":
        return jsonl
    if name == "wandb":
        return CompositeTracker([jsonl, SafeTracker(lambda: WandbTracker(folder=folder, settings=settings, **options))])
    raise UnknownNameError(explain_unknown("logger", name, ("jsonl", "wandb")))
