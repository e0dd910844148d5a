"""Steps, trajectories and training samples, and trajectories as lines of JSON."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from steca_gym.agent import Message, Prompt, render_turn
from steca_gym.errors import DataError, StorageError, shown
from steca_gym.files import replace_file

Source = Literal["agent", "expert", "deviation", "reflection"]
"""who chose the action: the agent; the expert; a deviated action, which is shown but never trained on; a reflection"""

Status = Literal["terminated", "truncated", "error", "running"]
"""the world ended the episode; the horizon cut it; it failed (see ``error``); it continues (a prefix)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One turn of the agent and the observation that followed."""

    thought: str = ""
    action: str
    """the bare action; for a turn that did not parse, the first 200 characters of its text"""
    observation: str
    """the world's answer"""
    valid: bool = True
    """the world understood the action and it was possible"""
    parsed: bool = True
    """False: the turn did not parse, so the world did not change"""
    score: float = 0.0
    """score after the step, in [0, 1]"""
    source: Source = "agent"
    trainable: bool = True
    """whether the loss covers this turn's tokens"""
    text: str = ""
    """the turn as it was written; empty: ``render_turn(thought, action)``"""
    token_ids: tuple[int, ...] | None = None
    """ids that the model sampled for the turn; None: not known"""
    truncated: bool = False
    """the turn was cut at ``max_new_tokens``, so it has no end-of-turn mark to train on"""

    def turn_text(self) -> str:
        """The text of the assistant's message."""
        return self.text or render_turn(self.thought, self.action)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """An episode, or the beginning of one: ``(u, a_1, o_1, ..., a_n, o_n)``."""

    task_id: str
    task_type: str = ""
    goal: str = ""
    first_observation: str
    steps: tuple[Step, ...] = ()
    score: float = 0.0
    """outcome reward r_o(u, e) in [0, 1]"""
    won: bool = False
    status: Status = "running"
    error: str = ""
    """why ``status`` is ``error``: one line"""
    seed: int = 0
    """seed of the episode"""
    agent: str = ""
    """name of the agent that played"""
    fingerprint: str = ""
    """fingerprint of the environment"""
    content_key: str = ""
    """digest of the game's content, where the world gives one: equal for one game under two task ids. Not part of
    ``trajectory_id``"""
    trajectory_id: str = ""
    """digest of the content, set by ``with_id``; equal trajectories have equal ids, so that each is stored once"""

    def __len__(self) -> int:
        """Number of steps."""
        return len(self.steps)

    @property
    def actions(self) -> tuple[str, ...]:
        """The bare actions, in order."""
        return tuple(step.action for step in self.steps)

    def messages(self, prompt: Prompt) -> tuple[Message, ...]:
        """The conversation: the prompt, the first observation, then turn and observation of each step."""
        messages = [*prompt.begin(self.first_observation)]
        for step in self.steps:
            messages.append(Message("assistant", step.turn_text(), step.token_ids, step.truncated))
            messages.append(Message("user", step.observation))
        return tuple(messages)

    def with_id(self) -> Trajectory:
        """A copy whose ``trajectory_id`` is a digest of its content; raises DataError as ``to_json`` does."""
        plain = _plain(self)
        plain["trajectory_id"] = ""
        del plain["content_key"]
        digest = hashlib.blake2b(_encode(plain).encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
        return dataclasses.replace(self, trajectory_id=digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedTrajectory:
    """A training sample: the weighted loss covers the tokens of the trainable steps."""

    trajectory: Trajectory
    weight: float = 1.0
    """R(e) of the reward-weighted likelihood, >= 0"""
    kind: str = "expert"
    """what kind of sample this is; a name of the method's own choice, for counts and tables. STeCa uses "expert"
    (demonstrations), "calibrated" (D_c), "explored" (D_e), "expert_subtrajectory" (D_s) and "fatal" (the right action
    in place of a fatal one)"""
    calibration_id: str = ""
    """of the correction that made the sample; empty: none did"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferencePair:
    """A training sample for preference learning: two continuations of one shared prefix.

    The loss covers the trainable steps after the prefix. The prefix itself is context and is never trained on: its
    steps are marked ``trainable=False`` in ``chosen`` and ``rejected`` at construction. An empty prefix (no steps)
    compares whole episodes.

    Raises:
        DataError: the trajectories are of different tasks, do not begin with the prefix, add no trainable step to it,
            or say the same after it.
    """

    prefix: Trajectory
    """the shared beginning, e_{1:t-1}; may have no steps"""
    chosen: Trajectory
    """the better trajectory, prefix included"""
    rejected: Trajectory
    """the worse trajectory, prefix included"""
    kind: str = "preference"
    """what kind of pair this is; a name of the method's own choice, e.g. "outcome" or "step" """

    def __post_init__(self) -> None:
        """Check both trajectories against the prefix, and mask the prefix."""
        for name in ("chosen", "rejected"):
            given: Trajectory = getattr(self, name)
            _check_continues(self.prefix, given, name)
            steps = tuple(
                dataclasses.replace(step, trainable=False) if index < len(self.prefix) and step.trainable else step
                for index, step in enumerate(given.steps)
            )
            object.__setattr__(self, name, dataclasses.replace(given, steps=steps))
        if [s.turn_text() for s in self.chosen_steps] == [s.turn_text() for s in self.rejected_steps]:
            raise DataError(
                f"chosen and rejected of task {self.prefix.task_id!r} hold the same turns after step "
                f"{len(self.prefix)}; a pair must differ to train anything, leave it out"
            )

    @property
    def chosen_steps(self) -> tuple[Step, ...]:
        """The steps of ``chosen`` after the prefix; at least one."""
        return self.chosen.steps[len(self.prefix) :]

    @property
    def rejected_steps(self) -> tuple[Step, ...]:
        """The steps of ``rejected`` after the prefix; at least one."""
        return self.rejected.steps[len(self.prefix) :]


def _check_continues(prefix: Trajectory, trajectory: Trajectory, name: str) -> None:
    """Raise DataError unless ``trajectory`` begins with ``prefix`` and adds a trainable step."""
    for field in ("task_id", "first_observation", "content_key"):
        expected, got = getattr(prefix, field), getattr(trajectory, field)
        if expected != got and (field != "content_key" or (expected and got)):
            raise DataError(f"{name} and prefix differ in {field}: expected {expected!r:.80}, got {got!r:.80}")
    for index, expected_step in enumerate(prefix.steps):
        step = trajectory.steps[index] if index < len(trajectory) else None
        if step is None:
            raise DataError(f"{name} has {len(trajectory)} steps, expected more than the prefix's {len(prefix)}")
        # Marks (source, trainable) and token ids may differ: the context is what was said and what was seen.
        said, seen = step.turn_text(), step.observation
        if (said, seen) != (expected_step.turn_text(), expected_step.observation):
            raise DataError(
                f"{name} leaves the prefix at step {index}: expected turn {expected_step.turn_text()!r:.80} and "
                f"observation {expected_step.observation!r:.80}, got {said!r:.80} and {seen!r:.80}"
            )
    if not any(step.trainable for step in trajectory.steps[len(prefix) :]):
        raise DataError(
            f"{name} has no trainable step after the prefix's {len(prefix)} steps; there is nothing to train on"
        )


# -- JSON -----------------------------------------------------------------------------------------------------
#
# The checks are our own because lines are read and written by the million (a table of small functions is as fast as
# the loop without them), and because pydantic refuses the lone surrogates that a model can write.


class _Unfit(Exception):
    """A value that a field does not take; says what it takes."""


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise _Unfit("text")


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise _Unfit("true or false")


def _whole(value: Any) -> int:
    if type(value) is int and -(1 << 63) <= value < 1 << 63:
        return value
    raise _Unfit("a whole number of at most 64 bits")


def _finite(value: Any) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise _Unfit("a finite number")


def _score(value: Any) -> float:
    # A sum of rewards may be off by a rounding error.
    if isinstance(value, (int, float)) and not isinstance(value, bool) and -1e-6 <= value <= 1 + 1e-6:
        return float(value)
    raise _Unfit("a number in [0, 1]")


def _ids(value: Any) -> tuple[int, ...] | None:
    if value is None:
        return None
    if type(value) in (list, tuple) and set(map(type, value)) <= {int}:
        if not value or (min(value) >= 0 and max(value) < 1 << 63):
            return tuple(value)
    raise _Unfit("a list of token ids >= 0, or null")


def _numbers(value: Any) -> tuple[float, ...] | None:
    if value is None:
        return None
    if type(value) in (list, tuple):
        return tuple(map(_finite, value))
    raise _Unfit("a list of finite numbers, or null")


def _one_of(known: tuple[str, ...]) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if isinstance(value, str) and value in known:
            return value
        raise _Unfit(f"one of {', '.join(map(repr, known))}")

    return check


def _check_of(name: str, hint: Any) -> Callable[[Any], Any]:
    """The check for a field's declared type."""
    if get_origin(hint) is Literal:
        return _one_of(get_args(hint))
    known: dict[Any, Callable[[Any], Any]] = {
        str: _text,
        bool: _flag,
        int: _whole,
        float: _score if name == "score" else _finite,
        tuple[int, ...] | None: _ids,
        tuple[float, ...] | None: _numbers,
    }
    return known[hint]  # a field of another type needs a check here


def _checks_of(kind: type) -> dict[str, Callable[[Any], Any]]:
    hints = get_type_hints(kind)
    return {name: _check_of(name, hints[name]) for name in sorted(hints) if name != "steps"}


_STEP_CHECKS = _checks_of(Step)
_TRAJECTORY_CHECKS = _checks_of(Trajectory)
_STEP_REQUIRED = {"action", "observation"}
_TRAJECTORY_REQUIRED = {"task_id", "first_observation"}
_step_values = operator.attrgetter(*_STEP_CHECKS)
_trajectory_values = operator.attrgetter(*_TRAJECTORY_CHECKS)
# Lines as they were written before these fields had their names of today.
_OLD_NAMES = {"readable": "parsed", "ended": "status"}
_OLD_STATUS = {"over": "terminated", "horizon": "truncated", "failed": "error", "open": "running"}
# Columns that a buffer's export adds.
_EXPORTED = frozenset({"kind", "round"})

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def _plain(trajectory: Trajectory) -> dict[str, Any]:
    """The trajectory as JSON's objects, keys sorted; raises DataError for values that could not be read back."""
    # dataclasses.asdict copies every value, which is most of what a collector does with a short episode.
    plain = _checked(_TRAJECTORY_CHECKS, _trajectory_values(trajectory), "")
    plain["steps"] = [
        _checked(_STEP_CHECKS, _step_values(step), f"steps[{index}].") for index, step in enumerate(trajectory.steps)
    ]
    return plain


def _checked(checks: Mapping[str, Callable[[Any], Any]], values: tuple[Any, ...], where: str) -> dict[str, Any]:
    name = ""
    try:
        return {(name := key): check(value) for (key, check), value in zip(checks.items(), values, strict=True)}
    except _Unfit as error:
        got = dict(zip(checks, values, strict=True))[name]
        raise DataError(f"a trajectory's {where}{name} must be {error}, got {shown(got)}") from None


def to_json(trajectory: Trajectory) -> str:
    """One line of JSON, equal for equal trajectories.

    Raises:
        DataError: a value that ``from_json`` would refuse, such as a score that is NaN or outside [0, 1].
    """
    return _encode(_plain(trajectory))


def from_json(line: str) -> Trajectory:
    """Read a line that ``to_json`` or a buffer's export wrote, also one of an earlier version.

    Raises:
        DataError: what is wrong with the line, in one line.
    """
    try:
        raw = json.loads(line, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # also integers of thousands of digits, and nesting without end
        told = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise DataError(f"not a trajectory: not JSON ({told}) in {line[:120]!r}; {_EXPECTED}") from error
    return trajectory_from_dict(raw)


_EXPECTED = "expected a line written by to_json"


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def trajectory_from_dict(raw: Any) -> Trajectory:
    """Read the parsed form of a line; raises DataError with the field that is wrong."""
    values = _read(_TRAJECTORY_CHECKS, raw, "", _TRAJECTORY_REQUIRED, {"steps", *_EXPORTED})
    steps = raw.get("steps")
    if not isinstance(steps, list):
        raise DataError(f"not a trajectory: steps must be a list, got {shown(steps)}; {_EXPECTED}")
    made = [_step_from(step, f"steps[{index}]") for index, step in enumerate(steps)]
    return Trajectory(**values, steps=tuple(made))


def step_from_dict(raw: Any) -> Step:
    """Read the parsed form of a single step; raises DataError with the field that is wrong."""
    return _step_from(raw, "step")


def _step_from(raw: Any, where: str) -> Step:
    return Step(**_read(_STEP_CHECKS, raw, where, _STEP_REQUIRED, ()))


def _read(
    checks: Mapping[str, Callable[[Any], Any]],
    raw: Any,
    where: str,
    required: Iterable[str],
    beside: Iterable[str],
) -> dict[str, Any]:
    """The fields of an object, checked."""
    if not isinstance(raw, dict):
        raise DataError(f"not a trajectory: {where or 'the line'} must be an object, got {shown(raw)}; {_EXPECTED}")
    values = {}
    for name, value in raw.items():
        check = checks.get(name)
        if check is None:
            if name in beside:
                continue
            name, value = _renamed(name, value)
            check = checks.get(name)
            if check is None or name in values:
                raise DataError(
                    f"not a trajectory: unknown field {_place(where, name)}; expected the fields of this version of "
                    "steca-gym, so the line is damaged or a newer version wrote it"
                )
        try:
            values[name] = check(value)
        except _Unfit as error:
            raise DataError(
                f"not a trajectory: {_place(where, name)} must be {error}, got {shown(value)}; {_EXPECTED}"
            ) from None
    for name in required:
        if name not in values:
            raise DataError(f"not a trajectory: {_place(where, name)} is missing; {_EXPECTED}")
    return values


def _place(where: str, name: str) -> str:
    name = name if name.isidentifier() and len(name) <= 80 else shown(name)
    return f"{where}.{name}" if where else name


def _renamed(name: str, value: Any) -> tuple[str, Any]:
    """A field under its name of today."""
    new = _OLD_NAMES.get(name, name)
    return new, _OLD_STATUS.get(value, value) if new == "status" and isinstance(value, str) else value


def write_jsonl(path: Path, trajectories: Iterable[Trajectory]) -> int:
    """Write one trajectory a line, in order; returns how many. Readers see the old file or the whole new one.

    Raises:
        DataError: a trajectory cannot be written, see ``to_json``.
        StorageError: the file cannot be written.
    """
    count = 0

    def write(to: Path) -> None:
        nonlocal count
        with to.open("w", encoding="utf-8", errors="surrogatepass") as file:
            for count, trajectory in enumerate(trajectories, start=1):  # noqa: B007 - the count is the result
                file.write(to_json(trajectory) + "\n")

    try:
        if path.is_file() or not path.exists():
            replace_file(path.resolve(), write)
        else:
            write(path)  # a pipe, or /dev/stdout
    except OSError as error:
        raise StorageError(f"cannot write {str(path)!r}: {error}; free space or choose another file") from error
    return count


def read_jsonl(path: Path) -> Iterator[Trajectory]:
    """Read what ``write_jsonl`` or a buffer's export wrote, line by line; empty lines are skipped.

    Raises:
        DataError: the file cannot be read, or a line is not a trajectory; names the file and the line's number.
    """
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                if not raw.strip():
                    continue
                try:
                    yield from_json(_decoded(raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw))
                except DataError as error:
                    raise DataError(f"{path}:{number}: {error}") from error
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r}: {error}; expected a file with one trajectory a line") from error


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise DataError(
            f"not a trajectory: not UTF-8 text (byte 0x{raw[error.start]:02x} at position {error.start}); "
            "save the file as UTF-8"
        ) from error
