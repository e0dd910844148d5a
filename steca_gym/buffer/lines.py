"""Stored payloads as lines of JSON: valid, under the names of today, and of one type along a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from steca_gym.calibration.records import ExpertResult, result_from_json
from steca_gym.errors import DataError
from steca_gym.trajectory import from_json, to_json

# Names in results of earlier versions, at any depth, and the values that changed with them.
_OLD_NAMES = {
    "readable": "parsed",
    "ended": "status",
    "expert_rests": "expert_subtrajectories",
    "failed_rest": "failed_continuation",
}
_OLD_STATUS = {"over": "terminated", "horizon": "truncated", "failed": "error", "open": "running"}


def read_result(payload: str) -> ExpertResult:
    """Read a stored calibration result, also one of an earlier version; raises DataError."""
    try:
        return result_from_json(payload)
    except DataError:
        if not any(f'"{name}": ' in payload for name in _OLD_NAMES):
            raise
    return result_from_json(json.dumps(_renamed(_loaded(payload)), ensure_ascii=False))


def _loaded(payload: str) -> Any:
    """A stored payload as data, its NaN and infinities null; raises DataError where it is not JSON."""
    try:
        return json.loads(payload, parse_constant=lambda _: None)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"the buffer holds a damaged row ({' '.join(str(error).split())[:150]}) that begins {payload[:60]!r}; "
            "restore the buffer from a copy"
        ) from error


def _renamed(value: Any) -> Any:
    if isinstance(value, list):
        return [_renamed(item) for item in value]
    if not isinstance(value, dict):
        return value
    renamed = {_OLD_NAMES.get(name, name): _renamed(item) for name, item in value.items()}
    if "ended" in value:
        renamed["status"] = _OLD_STATUS.get(value["ended"], value["ended"])
    return renamed


def check_is_json(payload: str) -> str:
    """Return the payload; raises DataError where it holds NaN or an infinity, which JSON does not have."""
    if "NaN" in payload or "Infinity" in payload:  # in a text or as a number
        try:
            json.loads(payload, parse_constant=_refuse)
        except ValueError as error:
            raise DataError(f"cannot store a calibration result: {error}; expected finite numbers") from None
    return payload


def _refuse(name: str) -> Any:
    raise ValueError(f"it holds the number {name}")


def trajectory_line(extra: dict[str, Any], payload: str) -> str:
    """A stored trajectory as a line of the export: the extra fields, then its own."""
    if '"content_key": ' not in payload:  # written by an earlier version
        try:
            payload = to_json(from_json(payload))
        except DataError:  # what was stored is exported, even if it could not be stored today
            payload = json.dumps(_loaded(payload), ensure_ascii=False)
    held = _loaded(payload)  # a line that no reader takes would spoil the whole file
    if not isinstance(held, dict) or not held:
        raise DataError(f"the buffer holds a damaged row that begins {payload[:60]!r}; restore it from a copy")
    if "NaN" in payload or "Infinity" in payload or "\n" in payload or "\r" in payload:  # not JSON, or not one line
        payload = json.dumps(held, ensure_ascii=False)
    return f"{json.dumps(extra, ensure_ascii=False)[:-1]}, {payload[1:]}"


def result_line(extra: dict[str, Any], payload: str) -> str:
    """A stored calibration result as a line of the export: the extra fields, then its own."""
    raw = _loaded(payload)
    if not isinstance(raw, dict):
        raise DataError(f"the buffer holds a damaged row that begins {payload[:60]!r}; restore it from a copy")
    if any(f'"{name}": ' in payload for name in _OLD_NAMES):
        raw = _renamed(raw)
    return json.dumps({**extra, **raw}, ensure_ascii=False)


def typed_first(rows: Callable[[], Iterable[tuple[Any, str]]]) -> Iterator[str]:
    """Lines with those first that show the type of each field.

    Readers such as Hugging Face ``datasets`` take the types of a file from its first part, and fail on a field that is
    null or an empty list there and filled later. So the few lines that are the first to fill a field go first; the
    others keep their order.

    Args:
        rows: gives (key, line), keys unique; called twice, so that nothing is kept in memory.
    """
    seen: set[tuple[str, ...]] = set()
    first: dict[Any, tuple[int, str]] = {}
    for key, line in rows():
        shown = set(_filled(_loaded(line), ()))
        if not shown <= seen:
            seen |= shown
            first[key] = (len(shown), line)
    # The fullest first: whatever the size of a line, one that shows much is among the first that are read.
    yield from (line for _, line in sorted(first.values(), key=lambda found: -found[0]))
    for key, line in rows():
        if key not in first:
            yield line


def _filled(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The paths of an object that are filled, each with the type of what is there."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _filled(item, (*path, name))
    elif isinstance(value, list):
        for item in value:
            yield from _filled(item, (*path, "[]"))
    elif value is not None:
        yield (*path, type(value).__name__)
