"""Keeps a run safe from its trackers: whatever one raises, and however long one hangs, the run continues."""

from __future__ import annotations

import contextlib
import queue
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from steca_gym.errors import ConfigError
from steca_gym.redaction import redact
from steca_gym.tracking.base import Artifact, Chart, Tracker


class TrackerHangs(Exception):
    """A call did not return in time."""


_Call = tuple[Callable[[], object], threading.Event, list[BaseException]]


class _Worker:
    """Makes calls in a thread of its own, one after the other, so that the caller can stop waiting.

    The thread is a daemon: a call that never returns does not keep the process alive.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        threading.Thread(target=self._serve, name="tracker", daemon=True).start()

    def _serve(self) -> None:
        while (waiting := self._calls.get()) is not None:
            call, done, raised = waiting
            try:
                call()
            except BaseException as error:  # also SystemExit: it ends the thread only, and the caller must know
                raised.append(error)
            finally:
                done.set()

    def do(self, call: Callable[[], object]) -> None:
        """Raises what the call raises, or TrackerHangs where it takes too long."""
        done, raised = threading.Event(), list[BaseException]()
        self._calls.put((call, done, raised))
        if not done.wait(self._timeout_s):
            raise TrackerHangs(f"no answer in {self._timeout_s:.0f} s")
        if raised:
            raise raised[0]

    def close(self) -> None:
        """End the thread, once the call under way has returned."""
        self._calls.put(None)


class SafeTracker:
    """A tracker whose failures are counted and warned about once, and never raised.

    Args:
        make: makes the tracker; a failure to start is a failure like any other.
        timeout_s: seconds after which a call counts as hanging; the tracker is not called again then. None: calls are
            made directly, and waited for.
        abandon: called once a call hangs: ends what the tracker's library left running.
    """

    def __init__(
        self,
        make: Callable[[], Tracker],
        *,
        timeout_s: float | None = None,
        abandon: Callable[[], None] | None = None,
    ) -> None:
        """See the class."""
        self._abandon = abandon
        self.num_failures = 0
        self._inner: Tracker | None = None
        self._finished: Tracker | None = None
        self._worker = _Worker(timeout_s) if timeout_s is not None else None

        def start() -> None:
            self._inner = make()

        self._guard(start, starting=True)

    def _guard(self, call: Callable[[], object], *, starting: bool = False) -> None:
        try:
            if self._worker is None:
                call()
            else:
                self._worker.do(call)
        except KeyboardInterrupt:
            raise
        except TrackerHangs as error:
            self._give_up()
            self._fail(error)
        except (Exception, SystemExit) as error:  # whatever a tracker's library raises, the run continues
            if starting and isinstance(error, ConfigError):
                raise
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self.num_failures += 1
        if self.num_failures == 1:
            why = redact(" ".join(str(error).split())) or type(error).__name__
            warnings.warn(f"the tracker failed and the run continues without it: {why}", stacklevel=4)

    def _give_up(self) -> None:
        """Never call it again; what its library left running must not keep the process from ending."""
        self._inner = None
        self._close_worker()
        if self._abandon is not None:
            with contextlib.suppress(Exception):
                self._abandon()

    def _call(self, name: str, *args: Any, **kwargs: Any) -> None:
        method = getattr(self._inner, name, None)
        if method is not None:
            self._guard(lambda: method(*args, **kwargs))

    def log(self, metrics: Mapping[str, float], *, phase: str = "", step: int | None = None) -> None:
        """See Tracker."""
        self._call("log", metrics, phase=phase, step=step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """See Tracker."""
        self._call("table", name, columns, rows)

    def chart(self, name: str, chart: Chart) -> None:
        """See Tracker; nothing where the tracker draws no charts."""
        self._call("chart", name, chart)

    def artifact(self, artifact: Artifact) -> None:
        """See Tracker; nothing where the tracker keeps no artifacts."""
        self._call("artifact", artifact)

    def summary(self, metrics: Mapping[str, Any]) -> None:
        """See Tracker."""
        self._call("summary", metrics)

    def failed(self, reason: str) -> None:
        """See Tracker."""
        self._call("failed", reason)

    def finish(self) -> None:
        """See Tracker; further calls do nothing."""
        self._call("finish")
        self._finished, self._inner = self._inner, None
        self._close_worker()

    def _close_worker(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()

    def opening_lines(self) -> list[str]:
        """See Tracker; nothing where it failed to start."""
        return self._lines(self._inner, "opening_lines")

    def closing_lines(self) -> list[str]:
        """See Tracker; nothing where it failed to start or hangs."""
        return self._lines(self._finished, "closing_lines")

    def _lines(self, tracker: Tracker | None, name: str) -> list[str]:
        lines: list[str] = []
        say = getattr(tracker, name, None)
        if say is not None:
            self._guard(lambda: lines.extend(say()))
        return lines


class CompositeTracker:
    """Several trackers as one; each is guarded on its own."""

    def __init__(self, trackers: Sequence[SafeTracker]) -> None:
        """Hand everything to each."""
        self._trackers = list(trackers)

    def log(self, metrics: Mapping[str, float], *, phase: str = "", step: int | None = None) -> None:
        """See Tracker."""
        for tracker in self._trackers:
            tracker.log(metrics, phase=phase, step=step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """See Tracker."""
        for tracker in self._trackers:
            tracker.table(name, columns, rows)

    def chart(self, name: str, chart: Chart) -> None:
        """See Tracker."""
        for tracker in self._trackers:
            tracker.chart(name, chart)

    def artifact(self, artifact: Artifact) -> None:
        """See Tracker."""
        for tracker in self._trackers:
            tracker.artifact(artifact)

    def summary(self, metrics: Mapping[str, Any]) -> None:
        """See Tracker."""
        for tracker in self._trackers:
            tracker.summary(metrics)

    def failed(self, reason: str) -> None:
        """See Tracker."""
        for tracker in self._trackers:
            tracker.failed(reason)

    def finish(self) -> None:
        """See Tracker."""
        for tracker in self._trackers:
            tracker.finish()

    def opening_lines(self) -> list[str]:
        """See Tracker."""
        return [line for tracker in self._trackers for line in tracker.opening_lines()]

    def closing_lines(self) -> list[str]:
        """See Tracker."""
        return [line for tracker in self._trackers for line in tracker.closing_lines()]
