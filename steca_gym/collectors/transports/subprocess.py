"""Workers in processes of this machine, connected by socket pairs. POSIX only.

A worker is a fresh interpreter: nothing of the program that starts it is imported there (no torch, no ``__main__``),
and it sees no CUDA device. It leads a process group of its own, so that ending it ends whatever its worlds started.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import weakref
from typing import get_args

from steca_gym.collectors.transports.base import EventKind, WorkerEnd, WorkerEvent, WorkerId
from steca_gym.collectors.transports.channel import NonBlockingChannel
from steca_gym.collectors.worker import NUM_WORKERS_VARIABLE, load_message
from steca_gym.errors import ConfigError, WorldError

KINDS: tuple[EventKind, ...] = get_args(EventKind)
"""kinds of events by the number that stands for them in a message"""

BEGUN = struct.Struct("<Q")
"""how a worker notes the number of the job that it begins"""


class SubprocessTransport:
    """Starts worker processes and talks to them; see ``Transport``.

    Args:
        num_workers: how many workers share the machine; their worlds get the number.
    """

    def __init__(self, num_workers: int) -> None:
        """Start nothing yet; raises ConfigError on systems other than POSIX."""
        if os.name != "posix":
            raise ConfigError("executor=processes needs a POSIX system; use executor=local")
        self._num_workers = num_workers
        self._processes: dict[WorkerId, _Process] = {}
        self._selector = selectors.DefaultSelector()
        self._number = 0
        self._finalizer = weakref.finalize(self, _end_all, self._processes, os.getpid())

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the workers."""
        return tuple(process.pid for process in self._processes.values())

    def spawn(self, factory: bytes) -> WorkerId:
        """See ``Transport``."""
        process = _Process(self._num_workers)
        self._number += 1
        self._processes[self._number] = process
        self._selector.register(process.channel.socket, selectors.EVENT_READ, self._number)
        self.send(self._number, 0, load_message(factory))
        return self._number

    def send(self, worker: WorkerId, number: int, body: bytes) -> None:
        """See ``Transport``."""
        self._processes[worker].channel.send(0, number, body)

    def poll(self, timeout_s: float | None) -> list[WorkerEvent]:
        """See ``Transport``."""
        for key in list(self._selector.get_map().values()):
            events = selectors.EVENT_READ
            if self._processes[key.data].channel.has_unsent:
                events |= selectors.EVENT_WRITE
            if events != key.events:
                self._selector.modify(key.fileobj, events, key.data)
        found: list[WorkerEvent] = []
        for key, ready in self._selector.select(timeout_s):
            worker: WorkerId = key.data
            channel = self._processes[worker].channel
            if ready & selectors.EVENT_WRITE:
                channel.flush()
            found.append(WorkerEvent(worker, "alive"))
            found += [WorkerEvent(worker, KINDS[kind], number, body) for kind, number, body in channel.receive()]
            if channel.broken:
                found.append(WorkerEvent(worker, "lost"))
        return found

    def kill(self, worker: WorkerId) -> WorkerEnd:
        """See ``Transport``."""
        process = self._processes.pop(worker)
        self._selector.unregister(process.channel.socket)
        return process.end()


class _Process:
    """One worker process as its parent sees it."""

    def __init__(self, num_workers: int) -> None:
        ours, theirs = socket.socketpair()
        try:
            # A job that a dead worker never read was not the cause: the worker notes here what it begins.
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

    @staticmethod
    def _start(socket_fd: int, notes_fd: int, num_workers: int) -> subprocess.Popen[bytes]:
        code = (
            f"import sys; sys.path[:] = {[p for p in sys.path if isinstance(p, str)]!r}; "
            f"from steca_gym.collectors.transports.subprocess_main import main; main({socket_fd}, {notes_fd})"
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
        """Its process id, which is also its group's."""
        return self._process.pid

    def end(self) -> WorkerEnd:
        """End it and everything in its group."""
        # It has not been waited for, so the number cannot belong to another process.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        code = self._process.wait()
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        self.channel.close()
        how = f"exit code {code}"
        if code < 0:
            with contextlib.suppress(ValueError):
                how = signal.Signals(-code).name
        return WorkerEnd(how, BEGUN.unpack_from(self._begun)[0])


def _end_all(processes: dict[WorkerId, _Process], pid: int) -> None:
    """End the workers of a transport that was dropped; not in a forked copy of the process that started them."""
    while processes and os.getpid() == pid:
        processes.popitem()[1].end()
