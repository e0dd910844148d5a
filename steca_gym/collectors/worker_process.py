"""One worker process as its parent sees it: started, talked to, and ended for certain.

Knows processes and their groups. Knows no job and no environment.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass

from steca_gym.collectors.channel import CLOSE, NonBlockingChannel
from steca_gym.errors import WorldError

BEGUN = struct.Struct("<Q")
"""how a worker notes the number of the job that it begins"""
NUM_WORKERS_VARIABLE = "STECA_NUM_WORKERS"
"""environment variable of a worker: how many of them share the machine"""


@dataclass(frozen=True, slots=True)
class Pending:
    """A job that the worker has not answered; the first of several is the one that it is doing."""

    number: int
    episode_id: str
    makes_env: bool
    """it may have to make an environment first"""
    num_steps: int
    """environment steps until the next sign of life"""


class WorkerProcess:
    """A fresh interpreter that runs ``worker.main``, leads its own process group and sees no CUDA device.

    Args:
        num_workers: how many workers share the machine; told to the worker's worlds.
    """

    def __init__(self, num_workers: int) -> None:
        """Start it; raises WorldError where the system does not let us."""
        ours, theirs = socket.socketpair()
        try:
            # A job that lies in the socket of a dead worker was not its death: the worker notes what it begins here.
            with tempfile.TemporaryFile() as notes:
                notes.truncate(BEGUN.size)
                self._begun = mmap.mmap(notes.fileno(), BEGUN.size)
                self._process = self._start(theirs.fileno(), notes.fileno(), num_workers)
        except OSError as error:
            ours.close()
            raise WorldError(f"a worker process did not start ({error}); use fewer workers") from error
        finally:
            theirs.close()
        self.channel = NonBlockingChannel(ours)
        self.ready = False
        """it has taken the factory"""
        self.num_episodes = 0
        self.under_way: deque[Pending] = deque()
        self.watched_for_writing = False
        self._alive_at = time.monotonic()
        self._env_at_hand = False

    @staticmethod
    def _start(socket_fd: int, notes_fd: int, num_workers: int) -> subprocess.Popen[bytes]:
        code = (
            f"import sys; sys.path[:] = {[p for p in sys.path if isinstance(p, str)]!r}; "
            f"from steca_gym.collectors.worker import main; main({socket_fd}, {notes_fd})"
        )
        return subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            pass_fds=(socket_fd, notes_fd),
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", NUM_WORKERS_VARIABLE: str(num_workers)},
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """Its process id, which is its group's too."""
        return self._process.pid

    # -- time limits ---------------------------------------------------------------------------------------

    def give(self, pending: Pending) -> None:
        """Note a job that is sent."""
        self.under_way.append(pending)
        if len(self.under_way) == 1:
            self._begin_next()

    def answered(self) -> Pending:
        """Note that the first job is done; returns it."""
        done = self.under_way.popleft()
        self._begin_next()
        return done

    def take_blame(self) -> Pending | None:
        """Behind its end: the job in which it ended, taken off those under way; None if it was between two."""
        begun = BEGUN.unpack_from(self._begun)[0]
        return self.under_way.popleft() if self.under_way and self.under_way[0].number == begun else None

    def sign_of_life(self, *, env_at_hand: bool = False) -> None:
        """The worker took or gave something; its time begins anew."""
        self._alive_at = time.monotonic()
        self._env_at_hand = self._env_at_hand or env_at_hand

    def seconds_left(self, step_timeout_s: float | None, start_timeout_s: float | None) -> float | None:
        """Until the limit of what it is doing, negative behind it; None: no limit, or nothing to do."""
        if not self.under_way:
            return None
        limit = start_timeout_s
        if self.ready and self._env_at_hand:
            limit = None if step_timeout_s is None else step_timeout_s * self.under_way[0].num_steps
        return None if limit is None else self._alive_at + limit - time.monotonic()

    @property
    def is_making_env(self) -> bool:
        """Whether it starts or makes an environment, and so is under ``start_timeout_s``."""
        return not (self.ready and self._env_at_hand)

    def _begin_next(self) -> None:
        # While this process was busy the worker may long have begun: that errs on the patient side.
        self._alive_at = time.monotonic()
        self._env_at_hand = not (self.under_way and self.under_way[0].makes_env)

    # -- its end -------------------------------------------------------------------------------------------

    def ask_to_end(self) -> None:
        """Let it close its environments and end."""
        self.channel.send(CLOSE)

    def end(self, patience_s: float = 0.0) -> str:
        """End it and everything in its group; returns how it ended: a signal's name or an exit code.

        Args:
            patience_s: seconds that it gets to end by itself.
        """
        deadline = time.monotonic() + patience_s
        while patience_s and not self.channel.broken and (left := deadline - time.monotonic()) > 0:
            self.channel.flush()
            select.select([self.channel.socket], [], [], min(left, 0.05 if self.channel.has_unsent else left))
            for _ in self.channel.receive():
                pass
        # Not yet waited for, so that the number cannot belong to anybody else.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        code = self._process.wait()
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        self.channel.close()
        if code < 0:
            with contextlib.suppress(ValueError):
                return signal.Signals(-code).name
        return f"exit code {code}"
