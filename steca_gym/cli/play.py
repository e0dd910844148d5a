"""`steca play env=NAME [agent=human] [to=FILE]`: play tasks one by one, and keep the wins as demonstrations.

  steca play env=household                                    a person plays at the terminal (docs/human.md)
  steca play env=household to=mine.jsonl num_tasks=5 agent.engine.player=anna
  steca play env=household agent=expert num_tasks=50          any other agent: expert, searching, openai, transformers
  steca run env=household expert=imported expert.path=mine.jsonl

Options:
  to=FILE          where wins go, as expert trajectories for `expert=imported` and `steca import` (default demos.jsonl);
                   everything else that was played goes beside it, into FILE's name with `.not-won`
  split=NAME       the tasks' split (default: the training split)
  num_tasks=N      tasks that are played at most, in the order of a run with this seed (default: all of the split)
  task=ID          one task

Each episode is stored when it ends. The same command goes on: tasks that are won in FILE are not played again, and a
task that was left in the middle continues there. Takes the overrides of `steca run`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from steca_gym.cli.composing import compose, explain_overrides
from steca_gym.cli.options import config_dirs, whole_number, without_config_dirs
from steca_gym.errors import AgentError, ConfigError, DataError
from steca_gym.files import storage_errors

if TYPE_CHECKING:
    from steca_gym.agent import Agent, Need, PlayerLeft, Turn, TurnRequest
    from steca_gym.collectors.episodes import Episode, EpisodeRequest
    from steca_gym.runs.context import RunContext
    from steca_gym.trajectory import Trajectory

_OPTIONS = {"to": "demos.jsonl", "split": "", "num_tasks": "", "task": ""}


def main(args: list[str]) -> int:
    """Run the command; 130 after Ctrl-C."""
    from steca_gym.agent import is_interactive
    from steca_gym.runs.context import RunContext, read_config

    folders = config_dirs(args)
    own, overrides = dict(_OPTIONS), list[str]()
    for arg in without_config_dirs(args):
        key, equals, value = arg.partition("=")
        if not equals:
            raise ConfigError(f"steca play takes overrides and {', '.join(f'{k}=...' for k in own)}, got {arg!r}")
        if key in own:
            own[key] = value
        else:
            overrides.append(arg)
    if not any(o.startswith("env=") for o in overrides):
        raise ConfigError("play needs a world, e.g. `steca play env=household`; see `steca play --help`")
    limit = whole_number("num_tasks", own["num_tasks"]) if own["num_tasks"] else None
    if not own["to"]:
        raise ConfigError("to= names no file; give where wins go, e.g. to=demos.jsonl, or leave it out")
    if not any(o.startswith("agent=") for o in overrides):
        overrides.insert(0, "agent=human")
    overrides.insert(0, "method=none")
    explain_overrides([*overrides, *(f"--config-dir={d}" for d in folders)])
    config, _ = read_config(compose(overrides, folders))
    if config.agent.build is not None and config.agent.model is None:
        raise ConfigError("this agent is trained before it plays; play a model: agent=transformers agent.model=PATH")
    context = RunContext(config, Path("."))
    split = own["split"] or config.env.train_split
    env = context.make_env(split)
    fingerprint, known = env.fingerprint, list(env.task_ids(split))
    env.close()
    task_ids = context.task_ids(split, len(known))
    if own["task"]:
        if own["task"] not in known:
            raise DataError(f"split {split!r} of {config.env.id!r} has no task {own['task']!r}")
        task_ids = [own["task"]]
    store = _Store(Path(own["to"]), fingerprint)
    todo = [t for t in task_ids[: limit or len(task_ids)] if t not in store.won]
    if not todo:
        print(f"nothing to play: {store.path} has a win for each task; raise num_tasks, or choose another to=")
        return 0
    model = None if config.agent.model is None else Path(config.agent.model)
    agent = context.agent(model)
    player = _UntilLeft(agent) if is_interactive(agent) else None
    source = _Tasks(context, store, todo, player)
    if player is not None:  # one game after the other
        context.config = dataclasses.replace(config, collector=dataclasses.replace(config.collector, num_envs=1))
    try:
        with _signals_as_ctrl_c(player is not None), context.collector(player or agent, split=split) as collector:
            collector.drive(source)
    finally:
        context.close()
        source.say(f"{len(store.won)} won in {store.path}, {store.num_others} other episodes in {store.others}")
    return 130 if player is not None and player.left is not None and player.left.interrupted else 0


class _Store:
    """The two files: wins as demonstrations, and beside them what was not won. Lines are appended."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        """Read what is there; raises DataError where it is of another world."""
        self.path, self.others = path, path.with_name(f"{path.stem}.not-won{path.suffix or '.jsonl'}")
        self.won = {t.task_id for t in self._read(path, fingerprint)}
        self.last = {t.task_id: t for t in self._read(self.others, fingerprint)}
        """of each task the last episode that was not won"""
        self.num_others = 0

    @staticmethod
    def _read(path: Path, fingerprint: str) -> Iterator[Trajectory]:
        from steca_gym.trajectory import read_jsonl

        if not path.exists():
            return
        for trajectory in read_jsonl(path):
            if trajectory.fingerprint != fingerprint:
                raise DataError(
                    f"{str(path)!r} holds episodes of {trajectory.fingerprint!r}, the world is {fingerprint!r}; choose "
                    "another file with to=..."
                )
            yield trajectory

    def add(self, played: Trajectory) -> Path:
        """Append an episode where it belongs; returns the file. Raises StorageError."""
        from steca_gym.trajectory import to_json

        if played.won:
            steps = [
                dataclasses.replace(s, source="expert", trainable=s.valid and s.parsed, token_ids=None)
                for s in played.steps
            ]
            played = dataclasses.replace(played, steps=tuple(steps))
        path = self.path if played.won else self.others
        with storage_errors("what was played", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8", errors="surrogatepass") as file:
                file.write(to_json(played.with_id()) + "\n")
                file.flush()
                os.fsync(file.fileno())
        if played.won:
            self.won.add(played.task_id)
        else:
            self.num_others += 1
        return path


class _Tasks:
    """The source of the collector's episodes: announces each task, stores and reports each end."""

    def __init__(self, context: RunContext, store: _Store, todo: Sequence[str], player: _UntilLeft | None) -> None:
        self._context, self._store, self._todo, self._player = context, store, todo, player
        self._next = 0

    def next_request(self) -> EpisodeRequest | None:
        """The next task, from where it was left."""
        if self._next == len(self._todo) or (self._player is not None and self._player.left is not None):
            return None
        task_id = self._todo[self._next]
        self._next += 1
        begun = self._store.last.get(task_id)
        steps = begun.steps if begun is not None and begun.status == "running" else ()
        if self._player is not None:
            going_on = f", continued after {len(steps)} steps" if steps else ""
            self.say(f"\n--- task {self._next} of {len(self._todo)}: {task_id}{going_on} (? for help, quit to end)")
        return self._context.request(task_id, script=steps)

    def finished(self, episode: Episode) -> None:
        """Store an episode, then say how it ended."""
        played = episode.trajectory
        # The person left or skipped the task; what the world does wrong has another error.
        left = self._player is not None and played.status == "error" and played.error.startswith("AgentError")
        if left:
            played = dataclasses.replace(played, status="running", error="")
        if left and not played.steps:
            return  # nothing was played
        path = self._store.add(played)
        if self._player is not None and played.steps and not left:
            self.say(f"\n{played.steps[-1].observation}")
        end = f"{len(played.steps)} steps, score {played.score:.2f}: {path}"
        if left:
            self.say(f"left after {end}; the same command continues there")
        elif played.status == "error":
            self.say(f"{played.task_id}: failed ({played.error}) after {end}")
        else:
            self.say(f"{played.task_id}: {'won' if played.won else 'not won'} after {end}")

    @staticmethod
    def say(text: str) -> None:
        """Print a text of a world or of ours; a terminal that is gone stops nothing."""
        from steca_gym.reports.text import print_text, visible

        with contextlib.suppress(OSError):
            print_text(visible(text))


class _UntilLeft:
    """An interactive agent whose leaving ends the episode in progress, and no other work."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self.name = agent.name
        self.needs: frozenset[Need] = agent.needs
        self.left: PlayerLeft | None = None

    def act(self, requests: Sequence[TurnRequest]) -> list[Turn]:
        """Ask the person; raises AgentError once they have left."""
        from steca_gym.agent import PlayerLeft

        if self.left is None:
            try:
                return self._agent.act(requests)
            except PlayerLeft as left:
                self.left = left
                _ignore_signals()  # an impatient second Ctrl-C must not stop the storing
        raise AgentError(str(self.left))

    def release(self, episode_ids: Iterable[str]) -> None:
        """Pass it on."""
        self._agent.release(episode_ids)


_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def _ignore_signals() -> None:
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def _signals_as_ctrl_c(wanted: bool) -> Iterator[None]:
    """Let a closed terminal and `kill` end the game as Ctrl-C does, so that what was played is stored."""
    before = {}
    if wanted and threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, signal.default_int_handler) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
