"""What became of the jobs of a sweep, brought back from wherever they ran."""

from __future__ import annotations

import contextlib
import ctypes
import math
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from steca_gym.errors import ConfigError, StecaError

_MAX_RELAUNCHES = 2
_PR_SET_PDEATHSIG = 1  # of prctl(2)
_DEATHS = frozenset(
    {
        "TerminatedWorkerError",  # joblib
        "BrokenProcessPool",
        "BrokenExecutor",
        "WorkerCrashedError",  # Ray
        "UncompletedJobError",  # submitit
    }
)


class JobOutcome(float):
    """What a job returns to its sweeper: the objective as a number, and how it ended.

    Args:
        value: the objective; NaN where there is none.
        code: exit code; 0 is success.
        line: why it failed, one line.
        overrides: what the sweep set for this job.
    """

    code: int
    line: str
    overrides: tuple[str, ...]

    def __new__(cls, value: float, code: int = 0, line: str = "", overrides: Sequence[str] = ()) -> JobOutcome:
        """See the class."""
        made = super().__new__(cls, value)
        made.code, made.line, made.overrides = code, line, tuple(overrides)
        return made

    def __reduce__(self) -> tuple[type[JobOutcome], tuple[Any, ...]]:
        """Pickle with everything: jobs end in other processes."""
        return JobOutcome, (float(self), self.code, self.line, self.overrides)


_outcomes: list[JobOutcome] = []


def take_outcomes() -> list[JobOutcome]:
    """The outcomes since the last call, in the order of the jobs."""
    taken = list(_outcomes)
    _outcomes.clear()
    return taken


def failure_lines(outcomes: Sequence[JobOutcome]) -> list[str]:
    """One line in all and one for each failed job; none where all succeeded."""
    failed = [(number, o) for number, o in enumerate(outcomes) if o.code]
    if not failed:
        return []
    # Over all jobs: a launcher may get them in batches of one.
    common = set.intersection(*(set(o.overrides) for o in outcomes)) if len(outcomes) > 1 else set()
    lines = [f"steca: {len(failed)} of {len(outcomes)} jobs failed; the same command does what is missing"]
    for number, outcome in failed:
        lines.append(f"  #{number} {' '.join(o for o in outcome.overrides if o not in common)}: {outcome.line}")
    return lines


def end_with_parent() -> None:
    """In a worker process of joblib: be killed when the process that started it is, so that no job outlives its sweep.

    Does something on Linux only; elsewhere the workers end after their job.
    """
    if not sys.platform.startswith("linux") or not multiprocessing.current_process().name.startswith("Loky"):
        return
    parent = os.getppid()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died in between
        os._exit(1)


class WatchedLauncher:
    """A Hydra launcher whose jobs all come back with an outcome.

    A job that raises is a failed outcome. Where a worker process dies, the launcher's other jobs die with it: they are
    launched again (what is finished is not done again), and in the end one by one, so that only the one that keeps
    dying fails.
    """

    def __init__(self, launcher: Any) -> None:
        """``launcher``: a Hydra ``Launcher`` that is set up."""
        self.launcher = launcher

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[Any]:
        """As Hydra's ``Launcher.launch``; no result raises."""
        from hydra.core.utils import JobReturn, JobStatus, filter_overrides

        results = self._launch(job_overrides, initial_job_idx)
        returned = []
        for overrides, result in zip(job_overrides, results, strict=True):
            outcome = _outcome(result)
            outcome.overrides = tuple(filter_overrides(overrides))
            _outcomes.append(outcome)
            done = JobReturn()
            done.overrides, done.status, done.return_value = list(overrides), JobStatus.COMPLETED, outcome
            returned.append(done)
        return returned

    def _launch(self, jobs: Sequence[Sequence[str]], first: int) -> list[Any]:
        for attempt in range(1 + _MAX_RELAUNCHES):
            try:
                return list(self.launcher.launch(jobs, initial_job_idx=first))
            except Exception as error:
                if not _is_death(error):
                    raise _not_launched(error) from error
                again = "launching the jobs again" if attempt < _MAX_RELAUNCHES else "launching them one by one"
                print(f"steca: a worker process died (killed, or out of memory); {again}", file=sys.stderr)
        results: list[Any] = []
        for number, job in enumerate(jobs):
            try:
                results += self.launcher.launch([job], initial_job_idx=first + number)
            except Exception as error:
                if not _is_death(error):
                    raise _not_launched(error) from error
                results.append(JobOutcome(math.nan, 1, "its process died each time (killed, or out of memory)"))
        return results


def _not_launched(error: Exception) -> StecaError:
    if isinstance(error, StecaError):
        return error
    return ConfigError(f"the launcher cannot run the jobs: {type(error).__name__}: {' '.join(str(error).split())}")


def _is_death(error: BaseException) -> bool:
    return any(cls.__name__ in _DEATHS for cls in type(error).__mro__)


def _outcome(result: Any) -> JobOutcome:
    if isinstance(result, JobOutcome):
        return result
    try:
        value = result.return_value  # raises what the job raised
    except StecaError as error:
        return JobOutcome(math.nan, 1, " ".join(str(error).split()))
    except Exception as error:
        return JobOutcome(math.nan, 1, f"{type(error).__name__}: {' '.join(str(error).split())}")
    if isinstance(value, JobOutcome):
        return value
    number = math.nan
    with contextlib.suppress(TypeError, ValueError):
        number = float(value)
    return JobOutcome(number)
