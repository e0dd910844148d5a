"""Workers as Ray actors, on one machine or a cluster (``pip install 'steca-gym[ray]'``)."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any

from steca_gym.collectors.executors.pool import Pool
from steca_gym.collectors.transports.base import WorkerEnd, WorkerEvent, WorkerId
from steca_gym.collectors.worker import NUM_WORKERS_VARIABLE, Reply, Worker, load_message
from steca_gym.errors import ConfigError, WorldError, one_line


class RayWorkers(Pool):
    """Environments in Ray actors; see ``Pool`` for what they share with worker processes.

    A job that was in progress when its actor died is tried again, even if the actor died before it began.

    Args:
        num_workers: actors, >= 1.
        step_timeout_s: see ``Pool``.
        start_timeout_s: see ``Pool``; it includes the time that Ray takes to find a place for an actor.
        address: of a running cluster, such as ``auto``; None: the one in use, else a new one on this machine.
        num_cpus: CPUs that each actor reserves.
    """

    def __init__(
        self,
        *,
        num_workers: int = 2,
        step_timeout_s: float | None = 60.0,
        start_timeout_s: float | None = 120.0,
        address: str | None = None,
        num_cpus: float = 1.0,
    ) -> None:
        """See the class; raises ConfigError if ray is not installed. Starts nothing yet."""
        super().__init__(
            RayTransport(num_workers, address=address, num_cpus=num_cpus),
            num_workers=num_workers,
            step_timeout_s=step_timeout_s,
            start_timeout_s=start_timeout_s,
        )


class RayTransport:
    """Starts actors and talks to them; see ``Transport``."""

    def __init__(self, num_workers: int, *, address: str | None = None, num_cpus: float = 1.0) -> None:
        """See ``RayWorkers``."""
        try:
            import ray  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ConfigError("executor=ray needs Ray; run `pip install 'steca-gym[ray]'`") from error
        self._ray: Any = ray
        self._address = address
        environment = {"CUDA_VISIBLE_DEVICES": "", NUM_WORKERS_VARIABLE: str(num_workers)}
        self._options = {"num_cpus": num_cpus, "max_restarts": 0, "runtime_env": {"env_vars": environment}}
        self._actors: dict[WorkerId, Any] = {}
        self._replies: dict[WorkerId, deque[tuple[int, Any]]] = {}
        self._number = 0

    def spawn(self, factory: bytes) -> WorkerId:
        """See ``Transport``."""
        if not self._ray.is_initialized():
            try:
                start_ray(address=self._address, include_dashboard=None if self._address else False)
            except Exception as error:
                raise WorldError(f"Ray did not start: {one_line(error)}; check the executor's address") from error
        self._number += 1
        self._actors[self._number] = self._ray.remote(_Actor).options(**self._options).remote(sys.path)
        self._replies[self._number] = deque()
        self.send(self._number, 0, load_message(factory))
        return self._number

    def send(self, worker: WorkerId, number: int, body: bytes) -> None:
        """See ``Transport``."""
        replies = self._actors[worker].handle.options(num_returns="streaming").remote(body)
        self._replies[worker].append((number, replies))

    def poll(self, timeout_s: float | None) -> list[WorkerEvent]:
        """See ``Transport``."""
        # An actor handles its messages in order, so only the first of each worker can have news.
        heads = {replies[0][1]: worker for worker, replies in self._replies.items() if replies}
        if not heads:
            return []
        ready, _ = self._ray.wait(list(heads), num_returns=1, timeout=timeout_s)
        if ready:  # whatever else is there by now
            ready, _ = self._ray.wait(list(heads), num_returns=len(heads), timeout=0)
        return [event for head in ready for event in self._news(heads[head], head)]

    def _news(self, worker: WorkerId, head: Any) -> Iterator[WorkerEvent]:
        number = self._replies[worker][0][0]
        try:
            kind, body = self._ray.get(next(head))
        except StopIteration:
            self._replies[worker].popleft()
        except self._ray.exceptions.RayError:
            self._replies[worker].clear()
            yield WorkerEvent(worker, "lost")
        else:
            yield WorkerEvent(worker, kind, number, body)

    def kill(self, worker: WorkerId) -> WorkerEnd:
        """See ``Transport``."""
        self._replies.pop(worker)
        with contextlib.suppress(Exception):  # it is gone already
            self._ray.kill(self._actors.pop(worker))
        return WorkerEnd("see Ray's log")


class _Actor:
    """A ``Worker`` inside an actor."""

    def __init__(self, path: list[str]) -> None:
        sys.path += [p for p in path if p not in sys.path]
        self._worker = Worker()

    def handle(self, message: bytes) -> Iterator[Reply]:
        yield from self._worker.handle(message)


def start_ray(**options: Any) -> None:
    """``ray.init``, which would take SIGTERM over: this process then ended with code 15 and without a word."""
    import ray  # pyright: ignore[reportMissingImports]

    before = signal.getsignal(signal.SIGTERM)
    ray.init(**options)
    if before is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)
