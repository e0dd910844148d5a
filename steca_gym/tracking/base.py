"""What a tracker is, and what it is given beside numbers: charts and artifacts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A line chart over an axis of its own, e.g. step values over the steps of one episode."""

    title: str
    x_label: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    """points (x, y) by the line's name; x ascends"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A file or folder that a stage has made, with what it was made from.

    Runs whose stages agree give equal names, so that a tracker can show which runs share what.
    """

    name: str
    """stage and digest of all settings that led to it, e.g. ``calibration-1a2b3c4d5e6f``"""
    kind: Literal["buffer", "model"]
    path: Path
    """a model's folder, or the buffer's file"""
    made_from: tuple[str, ...] = ()
    """names of the artifacts that this one was made from"""
    shared_from: str = ""
    """name of the run that made it, if another one did"""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """plain data: figures of the stage"""


class Tracker(Protocol):
    """Where metrics go.

    A tracker may have more methods, which are called where they exist: ``chart(name, chart)`` and
    ``artifact(artifact)`` take what ``Chart`` and ``Artifact`` describe; ``failed(reason)`` is called before ``finish``
    where the run ends with an error; ``opening_lines()`` and ``closing_lines()`` return lines that are shown to the
    user when the tracker has started and after ``finish``.
    """

    def log(self, metrics: Mapping[str, float], *, phase: str = "", step: int | None = None) -> None:
        """Numbers of a moment; names are prefixed with the phase. ``step`` counts within the phase."""
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


def named(metrics: Mapping[str, float], phase: str) -> dict[str, float]:
    """Metrics under their full names: ``phase/name``."""
    return {f"{phase}/{k}" if phase else k: v for k, v in metrics.items()}


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level: ``{"agent": {"lr": 1}}`` becomes ``{"agent.lr": 1}``; lists stay as they are."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found.update(flat(value, f"{name}."))
        else:
            found[name] = value
    return found
