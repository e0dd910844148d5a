"""Ctrl-C and SIGTERM end a command within ten seconds, whatever hangs, and say how to go on."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

GRACE_S = 8.0
"""seconds that a command has for ending by itself: storing what is done, closing worlds, workers and trackers"""

IMPATIENT_S = 1.0
"""seconds that are left of them after a second Ctrl-C"""

GO_ON = "the same command continues from here"
_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


class Terminated(KeyboardInterrupt):
    """SIGTERM: what ends a command on Ctrl-C ends it then, too."""


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Watch a command of this process, in its main thread.

    The first signal interrupts the main thread. Where that does not end within ``GRACE_S`` (a world that spins, a
    server that does not answer, a tracker that hangs), or ``IMPATIENT_S`` after a second Ctrl-C, the process ends with
    its children. What was reported as stored is on disk by then: the stores commit as they go.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    told, tell = socket.socketpair()
    tell.setblocking(False)
    # The interpreter writes each signal's number here at once, also while the main thread is in compiled code.
    before = signal.set_wakeup_fd(tell.fileno(), warn_on_full_buffer=False)
    handler = None
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        handler = signal.signal(signal.SIGTERM, _terminate)
    signal.signal(signal.SIGURG, _nothing)
    threading.Thread(target=_watch, args=(told, GRACE_S), name="signals", daemon=True).start()
    try:
        yield
    finally:
        # The watch goes on: what runs at the interpreter's exit may hang as well.
        if handler is not None:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if before != -1:
            signal.set_wakeup_fd(before, warn_on_full_buffer=False)
        _KEPT.append((told, tell))


_KEPT: list[tuple[socket.socket, socket.socket]] = []


def _nothing(number: int, frame: FrameType | None) -> None:
    """Handle a nudge: a system call that the main thread waits in returns, and pending signals are handled."""


def _nudge(main: int) -> None:
    """Wake the main thread: a signal that came as a line editor began to wait would be heard at the next key only."""
    while True:
        time.sleep(0.5)
        with contextlib.suppress(OSError, ValueError):
            signal.pthread_kill(main, signal.SIGURG)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def _watch(told: socket.socket, grace_s: float) -> None:
    timer: threading.Timer | None = None
    while True:
        try:
            numbers = told.recv(64)
        except OSError:
            return
        for number in numbers:
            if number not in _CODES:
                continue
            code = _CODES[signal.Signals(number)]
            if timer is None:
                main = threading.main_thread().ident or 0
                threading.Thread(target=_nudge, args=(main,), name="nudges", daemon=True).start()
                timer = _end_in(grace_s, code, f"stopped: something still ran {grace_s:g} s after the signal")
            elif number == signal.SIGINT:
                # Not at once: a line editor that began to wait as the first one came hears this one only, and what
                # was played is stored in between.
                _end_in(IMPATIENT_S, code, "stopped at the second Ctrl-C")


def _end_in(seconds: float, code: int, why: str) -> threading.Timer:
    timer = threading.Timer(seconds, _end, (code, why))
    timer.daemon = True
    timer.start()
    return timer


def _end(code: int, why: str) -> None:
    """End the process without asking it, with the processes that it started."""
    with contextlib.suppress(OSError, ValueError):
        print(f"steca: {why}; {GO_ON}", file=sys.stderr, flush=True)
    for child in _descendants():
        with contextlib.suppress(OSError):
            os.kill(child, signal.SIGKILL)
    os._exit(code)


def _descendants() -> list[int]:
    """Processes that this one started, and those that they started, where the system tells (Linux)."""
    found: list[int] = []
    ahead = [os.getpid()]
    while ahead:
        for file in Path(f"/proc/{ahead.pop()}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                children = [int(pid) for pid in file.read_text(encoding="ascii").split()]
                found += children
                ahead += children
    return found
