"""What runs in a worker process: jobs in, answers out, until the collector's process is done or gone.

Knows a host of environments and a channel. Knows no agent and no model: a worker imports no torch, and sees no
CUDA device (its parent hides them).
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import signal
import socket
import sys
import threading
import time

import cloudpickle  # type: ignore[import-untyped]

from steca_gym.collectors.channel import (
    ANSWER,
    CLOSE,
    LEAVE,
    RAISED,
    READY,
    REFUSED,
    RUN,
    SERVE,
    TICK,
    BlockingChannel,
    pickled,
)
from steca_gym.collectors.host import Host
from steca_gym.collectors.jobs import Answer, one_line
from steca_gym.collectors.worker_process import BEGUN
from steca_gym.errors import WorldError


def main(socket_fd: int, notes_fd: int) -> None:
    """Serve a socket; standard input ends when the parent does.

    Args:
        socket_fd: file descriptor of the socket.
        notes_fd: of the file in which the number of the job under way is noted.
    """
    # Ctrl-C is the parent's business: it ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with_parent()
    # What a world prints must not mix with the output of the program.
    sys.stdout.flush()
    os.dup2(2, 1)
    # What the worlds start must not keep the line to the parent open.
    os.set_inheritable(socket_fd, False)
    notes = mmap.mmap(notes_fd, BEGUN.size)
    os.close(notes_fd)
    with contextlib.suppress(ConnectionError):
        _serve(BlockingChannel(socket.socket(fileno=socket_fd)), notes)


def _end_with_parent() -> None:
    """End this process and all that it started as soon as the parent is gone, even in the middle of a step."""
    lifeline = os.dup(0)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)

    def watch() -> None:
        while os.read(lifeline, 1):
            pass
        if os.getpgrp() == os.getpid():
            os.killpg(os.getpgrp(), signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _serve(channel: BlockingChannel, notes: mmap.mmap) -> None:
    host: Host | None = None
    while (message := channel.receive()) is not None:
        kind, number, body = message
        if kind == RUN and host is not None:
            BEGUN.pack_into(notes, 0, number)
            _run(channel, host, number, body)
        elif kind == LEAVE and host is not None:
            host.leave(pickle.loads(body))
        elif kind == SERVE:
            if host is not None:
                _close(host)
            try:
                host = Host(cloudpickle.loads(body))
            except Exception as error:
                channel.send(REFUSED, body=pickled(one_line(error)))
            else:
                channel.send(READY)
        elif kind == CLOSE:
            break
    if host is not None:
        _close(host)


def _run(channel: BlockingChannel, host: Host, number: int, body: bytes) -> None:
    started = time.perf_counter()
    try:
        episode_id, job, rebuild = pickle.loads(body)
    except Exception as error:
        _send(channel, number, Answer(error=_unreadable(error)))
        return
    try:
        answer = host.run(episode_id, job, rebuild, lambda: channel.send(TICK, number))
    except Exception as error:  # only the factory raises
        channel.send(RAISED, number, _pickled_error(error))
        return
    answer.seconds = time.perf_counter() - started
    if not _send(channel, number, answer):
        host.discard(episode_id)


def _send(channel: BlockingChannel, number: int, answer: Answer) -> bool:
    """Send an answer; one that cannot be pickled becomes an error, and False comes back."""
    try:
        body = pickled(answer)
    except Exception as error:
        why = WorldError(
            f"what the world gave cannot be sent to the collector's process ({one_line(error)}); texts, state keys and "
            "what World.save returns must be picklable, by classes of a module that can be imported"
        )
        channel.send(ANSWER, number, pickled(Answer(error=one_line(why), seconds=answer.seconds)))
        return False
    channel.send(ANSWER, number, body)
    return True


def _unreadable(error: Exception) -> str:
    return one_line(
        WorldError(
            f"a job cannot be read in the worker ({one_line(error)}); snapshots must hold classes of a module that "
            "can be imported there"
        )
    )


def _pickled_error(error: Exception) -> bytes:
    try:
        body = pickled(error)
        pickle.loads(body)  # exceptions with arguments of their own often fail only here
    except Exception:
        return pickled(WorldError(f"making an environment failed in a worker process: {one_line(error)}"))
    return body


def _close(host: Host) -> None:
    try:
        host.close()
    except Exception as error:
        print(f"steca worker: closing an environment failed: {one_line(error)}", file=sys.stderr)
