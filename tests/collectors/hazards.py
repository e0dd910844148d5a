"""Corridors in which a worker process can die, hang or misbehave. Importable in a worker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from steca_gym.env import Outcome, TextEnv
from steca_gym.errors import ConfigError
from tests.fakes import CorridorWorld

HEAVY = ("torch", "transformers", "trl", "wandb", "ray")


class HazardousWorld(CorridorWorld):
    """Understands, beside the corridor's actions: ``die``, ``hang``, ``leave`` (the process), each also with
    `` once`` after it (the second time it is ``right``); ``start a child``; ``print``; ``look around``.

    Args:
        folder: where it notes what happened once, and the child's process id.
        token: what ``save`` gives beside the state.
    """

    def __init__(self, folder: str, *, token: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.folder = Path(folder)
        self.token = token

    def act(self, action: str) -> Outcome:
        name, _, once = action.partition(" once")
        if name in ("die", "hang", "leave"):
            mark = self.folder / f"{name}-happened"
            if not action.endswith(" once") or not mark.exists():
                mark.touch()
                {"die": self._die, "hang": self._hang, "leave": self._leave}[name]()
            return super().act("right")
        if action == "start a child":
            child = subprocess.Popen(["sleep", "600"])
            (self.folder / "child").write_text(str(child.pid))
            return super().act("right")
        if action == "print":
            print("noise")
            os.write(1, b"more noise\n")
            return super().act("right")
        if action == "look around":
            heavy = [name for name in HEAVY if name in sys.modules]
            return self._outcome(f"modules {heavy} devices {os.environ.get('CUDA_VISIBLE_DEVICES')!r}")
        return super().act(action)

    @staticmethod
    def _die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    @staticmethod
    def _hang() -> None:
        threading.Event().wait()

    @staticmethod
    def _leave() -> None:
        os._exit(3)

    def save(self) -> Any:
        return super().save() if self.token is None else (*super().save(), self.token())

    def load(self, token: Any) -> None:
        super().load(token[:5])


def unpicklable() -> Any:
    return threading.Lock()


def make(folder: str, *, horizon: int = 8, **kwargs: Any) -> TextEnv:
    return TextEnv(HazardousWorld(folder, **kwargs), horizon=horizon)


def make_nothing() -> TextEnv:
    raise ConfigError("there is no such corridor")


class Forgetful:
    """A factory that pickles but does not come back."""

    def __call__(self) -> TextEnv:
        raise AssertionError

    def __reduce__(self) -> Any:
        return _nobody, ()


def _nobody() -> Any:
    raise LookupError("nobody here")
