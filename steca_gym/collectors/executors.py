"""Where environments live: the protocol between a collector and them, and the simplest place, this process.

Knows jobs and their answers. Knows no agent; worker processes are in ``processes``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol, runtime_checkable

from steca_gym.collectors.host import Host, MakeEnv
from steca_gym.collectors.jobs import Answer, Job
from steca_gym.env import TextEnv
from steca_gym.errors import WorldError

Wait = Literal["none", "one", "all"]
"""for nothing, for at least one answer, or for the answers to all jobs under way"""


@runtime_checkable
class Executor(Protocol):
    """A place where environments live and take their steps.

    The loop that it serves::

        executor.serve(make_env)
        executor.submit(episode_id, Enter(task_id="boil/3", seed=0))     # any number of episodes
        for episode_id, answer in executor.gather("all"):
            executor.submit(episode_id, Act(action, asks=True))          # until its answer ended the episode
        executor.close()                                                 # starts again when it is used again

    Each job is answered once, an episode has at most one under way, and its environment is free again when an
    answer ended it (or failed). One collector at a time uses an executor; several may share it in turn.
    """

    def serve(self, make_env: Callable[[], TextEnv]) -> None:
        """Take on environments of this factory; those of another one are closed.

        Raises ConfigError for a factory that cannot be used here, WorldError while episodes are under way.
        """
        ...

    def submit(self, episode_id: str, job: Job) -> None:
        """Take a job."""
        ...

    def gather(self, wait: Wait) -> list[tuple[str, Answer]]:
        """Answers that are there; with ``"all"`` in the order of the jobs. Raises what ``make_env`` raised."""
        ...

    def leave(self, episode_id: str) -> None:
        """Free the environment of an episode that ended for a reason outside of its world."""
        ...

    def abandon(self) -> None:
        """Drop all episodes under way, at once and whatever they do, and close their environments."""
        ...

    def close(self) -> None:
        """Close all environments and end what was started for them."""
        ...


def in_use(num_live: int) -> WorldError:
    """What ``Executor.serve`` raises while episodes are under way."""
    return WorldError(
        f"the executor has {num_live} episodes of another run under way; runs may share an executor only in turn"
    )


class InProcess:
    """Environments in this process, one step after another; right for fast worlds."""

    def __init__(self) -> None:
        """Create an executor without environments."""
        self._host: Host | None = None
        self._make_env: MakeEnv | None = None
        self._jobs: list[tuple[str, Job]] = []

    def serve(self, make_env: MakeEnv) -> None:
        """See ``Executor``; another object is another factory."""
        if self._host is not None and self._host.num_live:
            raise in_use(self._host.num_live)
        if make_env is not self._make_env:
            self.close()
            self._make_env = make_env
        if self._host is None:
            self._host = Host(make_env)

    def submit(self, episode_id: str, job: Job) -> None:
        """Take a job; it is done by ``gather``."""
        self._jobs.append((episode_id, job))

    def gather(self, wait: Wait) -> list[tuple[str, Answer]]:
        """Do all jobs that were submitted, in order, whatever ``wait`` says."""
        assert self._host is not None, "gather() before serve()"
        jobs, self._jobs = self._jobs, []
        run = self._host.run
        return [(episode_id, run(episode_id, job)) for episode_id, job in jobs]

    def leave(self, episode_id: str) -> None:
        """See ``Executor``."""
        if self._host is not None:
            self._host.leave(episode_id)

    def abandon(self) -> None:
        """See ``Executor``."""
        self._jobs.clear()
        if self._host is not None:
            self._host.abandon()

    def close(self) -> None:
        """See ``Executor``."""
        self._jobs.clear()
        host, self._host = self._host, None
        if host is not None:
            host.close()
