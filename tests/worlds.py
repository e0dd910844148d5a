"""A world and agents for tests of the whole command line: ``steca run --config-dir tests/conf env=corridor``.

``STECA_TEST_KILL_AT=TEXT#N`` ends the process, as ``kill -9`` does, at the N-th moment named TEXT: ``act`` is an action
of the world; any other text stands in the path of a file that is about to be opened for writing or to be renamed.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import gymnasium

from steca_gym.agent import Need, Turn, TurnRequest, render_turn
from steca_gym.env import Outcome, TextEnv
from steca_gym.errors import AgentError

from .calibration_world import Corridor

KILL_AT = "STECA_TEST_KILL_AT"


class _Moments:
    """Counts the moments of one name in this process, and ends it at the one that was asked for."""

    name, _, number = os.environ.get(KILL_AT, "").partition("#")
    left = int(number or 0)

    @classmethod
    def pass_one(cls) -> None:
        cls.left -= 1
        if cls.left == 0 and cls._is_first():
            os.kill(os.getpid(), signal.SIGKILL)

    @staticmethod
    def _is_first() -> bool:
        """Whether no process has died yet; always, unless ``STECA_TEST_KILL_ONCE`` names a file to mark it."""
        mark = os.environ.get("STECA_TEST_KILL_ONCE")
        with contextlib.suppress(FileExistsError):
            if mark:
                os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
            return True
        return False


def _watch_files(event: str, args: tuple[Any, ...]) -> None:
    written = event == "open" and isinstance(args[1], str) and args[1][:1] in ("w", "a", "x")
    if (written or event == "os.rename") and any(_Moments.name in str(a) for a in args[:2]):
        _Moments.pass_one()


if _Moments.name not in ("", "act"):
    sys.addaudithook(_watch_files)


class SplitCorridor(Corridor):
    """The corridor with a training split, a held-out one and an empty one."""

    def splits(self) -> tuple[str, ...]:
        return ("train", "valid", "empty")

    def task_ids(self, split: str) -> Sequence[str]:
        first = {"train": 0, "valid": 1000, "empty": 0}[split]
        return () if split == "empty" else tuple(f"walk-{first + i}" for i in range(self._tasks))

    def act(self, action: str) -> Outcome:
        if _Moments.name == "act":
            _Moments.pass_one()
        return super().act(action)


class OtherCorridor(SplitCorridor):
    """The same under another name: another environment."""

    name = "other-corridor"


def make(*, split: str = "train", horizon: int = 14, num_tasks: int = 8, other: bool = False) -> TextEnv:
    """``steca-test/Corridor-v0``."""
    return TextEnv((OtherCorridor if other else SplitCorridor)(num_tasks), split=split, horizon=horizon)


gymnasium.register("steca-test/Corridor-v0", entry_point=make, disable_env_checker=True)


class ScriptedAgent:
    """Answers by ``say``; without a model, and so without training."""

    name = "scripted"
    needs: frozenset[Need] = frozenset()

    def say(self, request: TurnRequest) -> str:
        raise NotImplementedError

    def act(self, requests: Sequence[TurnRequest]) -> list[Turn]:
        return [Turn(text=self.say(r), num_sampled_tokens=1) for r in requests]

    def release(self, episode_ids: Iterable[str]) -> None:
        return None


class StumblingAgent(ScriptedAgent):
    """Continues as a rule, and does something else now and then; seed and turn decide."""

    def say(self, request: TurnRequest) -> str:
        rng = random.Random(f"{request.seed}/{request.turn}")
        if "locked" in request.messages[-1].content and rng.random() < 0.7:
            return render_turn("it is locked", "unlock")
        return render_turn("", rng.choices(["go on", "detour", "lock", "jump", "wait"], [12, 2, 2, 2, 1])[0])


class EmptyAgent(ScriptedAgent):
    def say(self, request: TurnRequest) -> str:
        return ""


class LongAgent(ScriptedAgent):
    def say(self, request: TurnRequest) -> str:
        return "Action: go on " + 100_000 * "x"


class BrokenAgent(ScriptedAgent):
    """Fails at every turn, as an endpoint does whose server is away; works once it is back."""

    def say(self, request: TurnRequest) -> str:
        if os.environ.get("STECA_TEST_SERVER") != "up":
            raise AgentError("no answer from the server")
        return render_turn("", "go on")


class MixedAgent(ScriptedAgent):
    """Empty on the first turn, 100 kB on the second, then it continues."""

    def say(self, request: TurnRequest) -> str:
        return ["", 100_000 * "x"][request.turn] if request.turn < 2 else render_turn("", "go on")
