"""Holding a run's folder for one process, and noticing that the process before it was killed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO

from steca_gym.errors import ConfigError

LOCK = "run.lock"
"""file in the run's folder; removed when a command ends, so that one that is left tells of a kill"""


@dataclass(slots=True)
class Held:
    """A folder that this process holds."""

    file: IO[str]
    path: Path
    ended_badly: str
    """what is known of the command before, where it ended without closing the run; empty: none did"""

    def let_go(self) -> None:
        """Let another process work on the run."""
        with contextlib.suppress(OSError):
            self.path.unlink()  # while it is held: nobody else's is removed
        self.file.close()


def hold(folder: Path, on_wait: Callable[[str], None] | None = None) -> Held:
    """Hold a run's folder for this process.

    Args:
        folder: of the run.
        on_wait: called with one line where another process holds it, which is then waited for; None: raise.

    Raises:
        ConfigError: another process works on it.
        OSError: the folder cannot be written.
    """
    path = folder / LOCK
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.readline().strip() or "another process, which has just begun"
            if on_wait is not None:
                on_wait(f"waiting for {holder}, which works on {str(folder)!r}")
                fcntl.flock(file, fcntl.LOCK_EX)
                file.close()  # it may be a file that was removed: look again
                continue
            file.close()
            raise ConfigError(
                f"{str(folder)!r} is being worked on by {holder}; wait for it, stop it, or choose another run_dir"
            ) from error
        # Its holder may have removed the file after we opened it: who opens it next would not see our lock.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
        file.close()
    file.seek(0)
    left = file.read(1000)
    file.truncate(0)
    now = f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S %Z}"
    file.write(f"process {os.getpid()} on {socket.gethostname()} since {now}\n{_memory_kills()}\n")
    file.flush()
    return Held(file, path, _explain(left))


def _explain(left: str) -> str:
    """What a lock that was left behind tells, as a clause; empty for an empty one."""
    holder, _, then = left.strip().partition("\n")
    if not holder:
        return ""
    before, now = (re.fullmatch(r"boot (\S+), (\d+) killed for memory", text) for text in (then, _memory_kills()))
    if before and now and before[1] == now[1] and int(now[2]) > int(before[2]):
        return (
            f"{holder} ended without closing the run, and the kernel has killed {int(now[2]) - int(before[2])} "
            "process(es) of this machine for lack of memory since; lower agent.train.per_device_batch_size, "
            "agent.engine.max_batch_size or collector.num_envs if it happens again"
        )
    return f"{holder} ended without closing the run (kill -9, lack of memory, or the machine stopped)"


def _memory_kills() -> str:
    """How many processes the kernel has killed for lack of memory since the machine started; empty where unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        counters = Path("/proc/vmstat").read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""
    found = re.search(r"^oom_kill (\d+)$", counters, re.MULTILINE)
    return f"boot {boot}, {found[1]} killed for memory" if found else ""
