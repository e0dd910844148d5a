"""Trackers: where a run's metrics and tables go. JSON lines, Weights & Biases, or one of your own.

A tracker that fails while a run is under way never stops it: it is warned about once. A tracker of your own is a class
with the methods of ``Tracker``. Its ``__init__`` takes its settings as keywords, and ``folder`` (the run's) and
``settings`` (the composed configuration) if it has such parameters::

    steca run logger=my_module:MyTracker logger.key=value
"""

from __future__ import annotations

import inspect
import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from steca_gym.errors import ConfigError, one_line
from steca_gym.registry import trackers


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

    @staticmethod
    def check_settings(*, project: str, mode: str = "offline") -> None:
        """Raise ConfigError for a mode that W&B does not have."""
        if mode not in ("offline", "online", "disabled"):
            raise ConfigError(f"logger.mode must be offline, online or disabled, got {mode!r}")

    def __init__(self, *, folder: Path, settings: Mapping[str, Any], project: str, mode: str = "offline") -> None:
        """Start a W&B run named after the folder."""
        self.check_settings(project=project, mode=mode)
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
        except Exception as error:  # whatever a tracker's library raises, the run continues
            self.num_failures += 1
            if self.num_failures == 1:
                warnings.warn(f"the tracker failed and the run continues without it: {one_line(error)}", stacklevel=3)

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
    """The tracker that the group ``logger`` describes; ``metrics.jsonl`` is always written as well.

    Args:
        logger: ``name`` (registered, or ``module:Object``) or ``_target_``, and its settings.
        folder: the run's folder.
        settings: the composed configuration, for trackers that keep it.

    Raises:
        UnknownNameError, ConfigError: a tracker that does not exist, or settings that it does not take.
    """
    jsonl = SafeTracker(lambda: JsonlTracker(folder / "metrics.jsonl"))
    if not logger or logger.get("name") == "jsonl":
        check_tracker(logger)
        return jsonl
    offered = _offered(logger, folder=folder, settings=settings)

    def make() -> Tracker:
        made: Tracker = trackers.make(logger, **offered)
        return made

    return CompositeTracker([jsonl, SafeTracker(make)])


def check_tracker(logger: Mapping[str, Any]) -> None:
    """Raise ConfigError where the group ``logger`` describes no tracker; starts none."""
    if not logger:
        return
    if logger.get("name") == "jsonl":
        trackers.check(logger, path=Path("metrics.jsonl"))
        return
    trackers.check(logger, **_offered(logger, folder=Path(), settings={}))


def _offered(logger: Mapping[str, Any], *, folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a tracker is given beside its own settings: the folder and the configuration, where it takes them."""
    offered = {"folder": folder, "settings": settings}
    try:
        taken = inspect.signature(trackers.factory(logger)).parameters.values()
    except (TypeError, ValueError):  # no signature: it takes what it takes
        return {}
    names = {p.name for p in taken}
    any_name = any(p.kind is p.VAR_KEYWORD for p in taken)
    return {k: v for k, v in offered.items() if any_name or k in names}
