"""Demonstrations from elsewhere: conversations in the forms that people have, executed in a world.

What replays to a win becomes a trajectory with the world's own observations. What does not is listed with the step at
which it parted. Forms of a document (a JSON array, or JSON lines, UTF-8):

- ``{"conversations": [{"from": "human", "value": ...}, ...]}``: ShareGPT, and the data of ETO, IPR, STeCa and AgentGym;
- ``{"messages": [{"role": "user", "content": ...}, ...]}``: ChatML; a content may be a list of text parts;
- ``{"task_id": ..., "actions": [...]}``: bare actions;
- lines of ``steca export`` (trajectories);
- the folder of a Minari dataset of texts, such as ``steca export format=minari`` writes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from steca_gym.agent import Agent, Turn
from steca_gym.collectors import Collector, EpisodeRequest
from steca_gym.env import TextEnv
from steca_gym.errors import AgentError, DataError
from steca_gym.interop.exports.minari import is_minari, read_minari
from steca_gym.trajectory import Step, Trajectory, from_json
from steca_gym.turns import find_turn_format

FORMS = (
    "conversations [{from, value}], messages [{role, content}], task_id with actions, or trajectories of steca export"
)
MAX_LINE_BYTES = 64 << 20

Role = Literal["system", "user", "assistant"]
_ROLES: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "observation": "user",
    "environment": "user",
    "tool": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "agent": "assistant",
    "model": "assistant",
    "bot": "assistant",
}


@dataclass(frozen=True, slots=True)
class Recording:
    """A conversation, not executed yet."""

    where: str
    """file and line or index, for messages"""
    task_id: str
    """empty: to be found by its text"""
    seed: int
    messages: tuple[tuple[Role, str], ...]
    actions: tuple[tuple[str, str], ...] | None = None
    """(thought, action) where these are given instead of messages"""
    observations: tuple[str, ...] = ()
    """recorded beside the actions, as far as they were"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What became of a recording."""

    where: str
    trajectory: Trajectory | None
    """won, with the world's own observations; None: it is left out"""
    reason: str = ""
    """why it was left out"""


def read_recordings(path: Path) -> Iterator[Recording]:
    """Read a file in any of the known forms.

    Raises:
        DataError: the file cannot be read, or a document has none of the forms; names the file and the line.
    """
    if is_minari(path):
        for index, e in enumerate(read_minari(path)):
            turns = tuple(zip(e["thoughts"], e["actions"], strict=True))
            shown = tuple(e["observations"][1:])
            yield Recording(f"{path}[{index}]", e["task_id"], e["seed"], (), turns, shown)
        return
    for where, raw in _documents(path):
        if not isinstance(raw, dict):
            raise DataError(f"{where}: a {type(raw).__name__}, expected an object with {FORMS}")
        yield _recording(where, raw)


def _documents(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        with path.open("rb") as file:
            beginning = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
            file.seek(0)
            if beginning[:1] == b"[":
                try:
                    listed = json.loads(file.read().decode("utf-8-sig"))
                except (ValueError, RecursionError) as error:
                    raise DataError(f"{path}: no JSON array ({' '.join(str(error).split())[:150]})") from error
                yield from ((f"{path}[{index}]", raw) for index, raw in enumerate(listed))
                return
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                if len(line) > MAX_LINE_BYTES:
                    raise DataError(f"{path}:{number}: a line of {len(line)} bytes, expected at most {MAX_LINE_BYTES}")
                try:
                    yield f"{path}:{number}", json.loads(line.decode("utf-8-sig"))
                except (ValueError, RecursionError) as error:
                    raise DataError(f"{path}:{number}: no JSON ({' '.join(str(error).split())[:150]})") from error
    except OSError as error:
        raise DataError(
            f"cannot read {str(path)!r}: {error.strerror}; expected a file of JSON or JSON lines"
        ) from error


def _recording(where: str, raw: dict[str, Any]) -> Recording:
    task_id = raw.get("task_id", "")
    seed = raw.get("seed", 0)
    if not isinstance(task_id, str) or type(seed) is not int:
        raise DataError(
            f"{where}: task_id must be a text and seed a whole number, got {task_id!r:.60} and {seed!r:.60}"
        )
    if isinstance(raw.get("steps"), list):
        t = from_json(json.dumps({k: v for k, v in raw.items() if k not in ("kind", "round")}))
        turns = tuple((s.thought, s.action) for s in t.steps)
        return Recording(where, t.task_id, t.seed, (), turns, tuple(s.observation for s in t.steps))
    if isinstance(raw.get("actions"), list):
        if not all(isinstance(a, str) for a in raw["actions"]):
            raise DataError(f"{where}: actions must be texts")
        return Recording(where, task_id, seed, (), tuple(("", a) for a in raw["actions"]))
    for name, role_key, text_key in (("conversations", "from", "value"), ("messages", "role", "content")):
        if isinstance(raw.get(name), list):
            messages = tuple(_message(where, m, role_key, text_key) for m in raw[name])
            return Recording(where, task_id, seed, messages)
    held = ", ".join(map(str, list(raw)[:6])) or "nothing"
    raise DataError(f"{where}: an object with {held}, expected one with {FORMS}")


def _message(where: str, raw: Any, role_key: str, text_key: str) -> tuple[Role, str]:
    if not isinstance(raw, dict):
        raise DataError(f"{where}: a message is a {type(raw).__name__}, expected an object")
    role = _ROLES.get(str(raw.get(role_key, "")).lower())
    content = raw.get(text_key)
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    if role is None or not isinstance(content, str):
        raise DataError(
            f"{where}: a message with {role_key}={raw.get(role_key)!r:.40} and {text_key} of type "
            f"{type(content).__name__}, expected one of {', '.join(_ROLES)} and a text"
        )
    return role, content


# -- reading turns ---------------------------------------------------------------------------------------------

_ACTION = re.compile(r"^[ \t>*#-]*(?:\*\*)?act(?:ion)?(?:\s+input)?(?:\*\*)?\s*[:：](?:\*\*)?[ \t]*(.+)$", re.I | re.M)
_THOUGHT = re.compile(r"^[ \t>*#-]*(?:\*\*)?th(?:ought|ink|inking)(?:\*\*)?\s*[:：](?:\*\*)?[ \t]*", re.I | re.M)


def read_turn(text: str) -> tuple[str, str]:
    """(thought, action) of a turn, read leniently; an empty action where the turn only thinks."""
    parsed = find_turn_format("react").parse(text)
    if parsed.action is not None:
        return parsed.thought, parsed.action
    found = list(_ACTION.finditer(text))
    if found:
        thought = _THOUGHT.sub("", text[: found[-1].start()])
        return " ".join(thought.split()), found[-1][1].strip().strip("`*")
    line = text.strip().removeprefix(">").strip()
    if _THOUGHT.match(line):
        return " ".join(_THOUGHT.sub("", line).split()), ""
    return "", line if "\n" not in line else ""


def _turns(messages: Sequence[tuple[Role, str]]) -> tuple[list[tuple[str, str]], list[str]]:
    """Turns after the task's first observation, and what was recorded after each; turns that only think are joined."""
    turns: list[tuple[str, str]] = []
    answers: list[str] = []
    thought = ""
    for role, text in messages:
        if role == "assistant":
            own, action = read_turn(text)
            thought = " ".join(part for part in (thought, own) if part)
            if action:
                turns.append((thought, action))
                thought = ""
        elif role == "user" and len(answers) < len(turns):
            answers.append(_OBSERVATION.sub("", text))
    return turns, answers


_OBSERVATION = re.compile(r"^\s*observation\s*[:：]\s*", re.I)


# -- finding tasks and executing -------------------------------------------------------------------------------


class _Nobody:
    """Never asked: every turn is given."""

    name = "imported"
    needs: frozenset[Any] = frozenset()

    def act(self, requests: Sequence[Any]) -> list[Turn]:
        raise AgentError("the recording ended before the episode did")

    def release(self, episode_ids: Iterable[str]) -> None:
        return None


def _squeezed(text: str) -> str:
    return " ".join(text.split())


class TaskIndex:
    """Finds a task by the text with which it begins.

    Args:
        env: its tasks are begun once each, as far as it is needed to find what is asked for.
        split: of the tasks.
    """

    def __init__(self, env: TextEnv, split: str) -> None:
        """Begin no task yet."""
        self.ids = list(env.task_ids(split))
        self._env = env
        self._num_read = 0
        self._by_end: dict[str, list[tuple[str, str]]] = {}

    def find(self, messages: Sequence[tuple[Role, str]]) -> tuple[str, int] | None:
        """(task, index of the message that shows it), the last such message; None where none does."""
        shown = [(i, _squeezed(text)) for i, (role, text) in enumerate(messages) if role != "assistant"]
        while True:
            for index, squeezed in reversed(shown):
                for text_of_task, task_id in self._by_end.get(squeezed[-60:], ()):
                    if squeezed.endswith(text_of_task):
                        return task_id, index
            if self._num_read == len(self.ids):
                return None
            for task_id in self.ids[self._num_read : self._num_read + 100]:
                text = _squeezed(self._env.reset(options={"task_id": task_id})[0])
                self._by_end.setdefault(text[-60:], []).append((text, task_id))
                self._num_read += 1


def import_recordings(
    recordings: Sequence[Recording], make_env: Callable[[], TextEnv], *, split: str, num_envs: int = 32
) -> list[Imported]:
    """Execute recordings in a world; one result each, in order.

    Args:
        recordings: what ``read_recordings`` gave.
        make_env: makes the environment.
        split: of the tasks.
        num_envs: episodes in progress.
    """
    env = make_env()
    bare = env.unwrapped
    assert isinstance(bare, TextEnv)
    index = TaskIndex(bare, split) if any(not r.task_id for r in recordings) else None
    known = set(bare.task_ids(split)) if index is None else set(index.ids)
    found: list[Imported | None] = [None] * len(recordings)
    requests, recorded = [], {}
    for number, r in enumerate(recordings):
        task_id, turns, answers = r.task_id, list(r.actions or ()), list(r.observations)
        if r.actions is None:
            place = index.find(r.messages) if index is not None else None
            begin = 1 + place[1] if place is not None else 1
            task_id = task_id or (place[0] if place is not None else "")
            turns, answers = _turns(r.messages[begin:])
        if not task_id:
            found[number] = Imported(
                where=r.where, trajectory=None, reason=f"no task of split {split!r} begins like it"
            )
        elif task_id not in known:
            found[number] = Imported(
                where=r.where, trajectory=None, reason=f"task {task_id!r:.80} is none of split {split!r}"
            )
        elif not turns:
            found[number] = Imported(where=r.where, trajectory=None, reason="it holds no turn with an action")
        else:
            script = tuple(Step(thought=t, action=a, observation="", source="expert") for t, a in turns)
            recorded[number] = answers
            requests.append(EpisodeRequest(task_id=task_id, seed=r.seed, script=script, max_agent_turns=0, tag=number))
    env.close()
    nobody: Agent = _Nobody()
    with Collector(make_env, nobody, num_envs=num_envs) as collector:
        for episode in collector.run(requests):
            number, played = episode.request.tag, episode.trajectory
            where = recordings[number].where
            if played.won:
                # What the world refused is played, since it is part of the history, and not taught.
                steps = tuple(replace(s, trainable=s.valid) for s in played.steps)
                found[number] = Imported(where=where, trajectory=replace(played, steps=steps).with_id())
            else:
                found[number] = Imported(
                    where=where, trajectory=None, reason=_parted(played, recorded[number], len(episode.request.script))
                )
    return [f for f in found if f is not None]


def _parted(played: Trajectory, answers: Sequence[str], num_turns: int) -> str:
    """Why a replay did not win: the first step at which it parted from the recording."""
    if played.status == "error":
        return f"it failed: {played.error}"
    for t, step in enumerate(played.steps):
        if t < len(answers) and _squeezed(answers[t]) != _squeezed(step.observation):
            return (
                f"it parts at step {t + 1} of {num_turns}, {step.action[:60]!r}: recorded "
                f"{answers[t].strip()[:80]!r}, the world says {step.observation[:80]!r}"
            )
        if not step.valid:
            return f"it parts at step {t + 1} of {num_turns}: the world refuses {step.action[:60]!r}"
    return f"all {num_turns} steps were played and the task is not solved"
