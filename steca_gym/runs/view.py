"""What a person sees of a run: one live view in a terminal, plain lines in a log file, or nothing.

The view is chosen by where the output goes: live in a terminal; plain without one, in CI (``CI`` is set) and in the
workers of a sweep. ``STECA_VIEW=live|plain|quiet`` decides otherwise, and ``--quiet`` sets it: then only results and
errors are shown.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from steca_gym.errors import ConfigError, escape_markup
from steca_gym.statistics import wilson

if TYPE_CHECKING:
    from rich.console import Console

    from steca_gym.collectors import Ledger
    from steca_gym.collectors.ledger import Cost
    from steca_gym.methods.context import OnProgress
    from steca_gym.prices import Prices

Mode = Literal["live", "plain", "quiet"]

ENVIRONMENT = "STECA_VIEW"

PLAIN_INTERVAL_S = 10.0
"""shortest time between two plain lines of one piece of work"""
_PLAIN_SHARE = 0.1
"""the same as a share of the time so far: ten hours leave some 60 lines, not thousands"""
NUM_TRACKED = 20
"""rows that a tracker gets of one piece of work, at most"""


def view_mode(*, is_terminal: bool) -> Mode:
    """The view for this process; raises ConfigError where ``STECA_VIEW`` names none."""
    asked = os.environ.get(ENVIRONMENT, "")
    if asked in ("live", "plain", "quiet"):
        return asked  # type: ignore[return-value]
    if asked:
        raise ConfigError(f"{ENVIRONMENT} must be live, plain or quiet, got {asked!r}")
    in_ci = os.environ.get("CI", "").lower() not in ("", "0", "false")
    # Workers of a sweep share their parent's terminal, and several live views would overwrite each other.
    in_worker = multiprocessing.parent_process() is not None
    return "live" if is_terminal and not in_ci and not in_worker else "plain"


class Meter:
    """How far a piece of work is, what it has cost so far, and how long the rest will take.

    Args:
        title: what is done.
        total: how many there are; None: not known yet.
        ledger: what the run costs.
        clock: seconds; for tests.
        prices: for amounts of money; None: none are shown.
    """

    def __init__(
        self,
        title: str,
        total: int | None,
        ledger: Ledger,
        *,
        clock: Callable[[], float] = time.perf_counter,
        prices: Prices | None = None,
    ) -> None:
        """Begin now."""
        self._prices = prices
        self.title, self.total = title, total
        self.done: int | None = None
        """None: nothing was heard yet"""
        self.note = ""
        self.won: int | None = None
        self.num_played = 0
        self.metrics: dict[str, float] = {}
        self._ledger, self._clock = ledger, clock
        self._start = clock()
        self._first: tuple[int, float] | None = None
        before = ledger.total()
        self._before = (before.num_sampled_tokens, before.num_prompt_tokens_read, before.num_env_steps)

    def update(
        self,
        done: int,
        note: str = "",
        total: int | None = None,
        *,
        won: int | None = None,
        num_played: int = 0,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Take what was heard.

        Args:
            done: how many are done.
            note: what else is worth seeing.
            total: how many there are now; None: as before.
            won: of ``num_played`` episodes, those that the agent has won; None: success is not measured here.
            num_played: episodes that count for success.
            metrics: further figures, for trackers.
        """
        self.done, self.note = done, note
        self.total = total if total is not None else self.total
        self.won, self.num_played = won, num_played
        self.metrics = dict(metrics or {})
        if self._first is None:
            self._first = done, self._clock()

    @property
    def seconds(self) -> float:
        """Wall time so far."""
        return self._clock() - self._start

    def seconds_left(self) -> float | None:
        """From the rate since the first was done; None: not known yet.

        Work of an earlier process counts as done and not for the rate: the first that is heard of sets the start.
        """
        if self._first is None or self.done is None or not self.total:
            return None
        done, since = self.done - self._first[0], self._clock() - self._first[1]
        if done <= 0 or since <= 0:
            return None
        return max(0, self.total - self.done) * since / done

    def cost(self) -> dict[str, float]:
        """Tokens sampled and read, environment steps, tokens per second and money of this piece of work."""
        now = self._ledger.total()
        values = (now.num_sampled_tokens, now.num_prompt_tokens_read, now.num_env_steps)
        sampled, read, steps = (a - b for a, b in zip(values, self._before, strict=True))
        found: dict[str, float] = {
            "num_sampled_tokens": sampled,
            "num_prompt_tokens_read": read,
            "num_env_steps": steps,
            "sampled_tokens_per_second": sampled / max(self.seconds, 1e-9),
        }
        if self._prices is not None:
            found["money"] = self._prices.of(
                num_sampled_tokens=sampled, num_prompt_tokens_read=read, seconds=self.seconds
            )
        return found

    def figures(self) -> dict[str, float]:
        """For trackers: success so far with its 95 % interval, cost, seconds."""
        found = {**self.cost(), "seconds": self.seconds, **self.metrics}
        if self.won is not None and self.num_played:
            found["success"] = self.won / self.num_played
            found["success_low"], found["success_high"] = wilson(self.won, self.num_played)
        return found

    def details(self) -> str:
        """Everything but how far, in one line."""
        parts = [self.note] if self.note else []
        if self.won is not None and self.num_played:
            parts.append(f"{self.won} of {self.num_played} won ({self.won / self.num_played:.0%})")
        cost = self.cost()
        if cost["num_sampled_tokens"]:
            parts.append(f"{cost['sampled_tokens_per_second']:,.0f} tokens/s")
            parts.append(f"{cost['num_sampled_tokens']:,.0f} tokens sampled")
        if cost["num_prompt_tokens_read"]:
            parts.append(f"{cost['num_prompt_tokens_read']:,.0f} read")
        if cost["num_env_steps"]:
            parts.append(f"{cost['num_env_steps']:,.0f} environment steps")
        if self._prices is not None:
            parts.append(self._prices.show(cost["money"]))
        return ", ".join(parts)

    def line(self) -> str:
        """The whole in one line, for log files."""
        far = f"{self.done or 0}" + (f" of {self.total}" if self.total is not None else "")
        over = self.total is not None and (self.done or 0) >= self.total
        left = None if over else self.seconds_left()
        ends = [duration(self.seconds)] + ([f"about {duration(left)} left"] if left is not None else [])
        return ", ".join(part for part in (f"  {self.title}: {far}", self.details(), *ends) if part)


def counting(on_progress: OnProgress) -> Callable[[object], None]:
    """A function that tells how often it has been called, e.g. with each episode that ends."""
    num_done = 0

    def count(_: object) -> None:
        nonlocal num_done
        num_done += 1
        on_progress(num_done)

    return count


def duration(seconds: float) -> str:
    """``12 s``, ``3 min 20 s``, ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class View:
    """Shows lines and progress on the error stream; results go to ``console`` in every mode.

    Args:
        console: where to; None: the error stream.
        mode: None: chosen by where the console writes to.
        clock: seconds; for tests.
        prices: what tokens and hours cost; None: no amounts of money are shown.
    """

    def __init__(
        self,
        console: Console | None = None,
        *,
        mode: Mode | None = None,
        clock: Callable[[], float] = time.perf_counter,
        prices: Prices | None = None,
    ) -> None:
        """See the class."""
        from rich.console import Console as RichConsole

        self.console = console if console is not None else RichConsole(stderr=True)
        self.mode: Mode = mode or view_mode(is_terminal=self.console.is_terminal)
        self._clock = clock
        self.prices = prices

    def say(self, *lines: str, style: str = "") -> None:
        """Show lines; texts from outside are shown as they are."""
        if self.mode == "quiet":
            return
        for line in lines:
            self.console.print(line, style=style or None, highlight=False, soft_wrap=True, markup=False)

    def money(self, cost: Cost, seconds: float) -> str:
        """What a stage has cost, as the end of a line; empty where no prices are given."""
        if self.prices is None:
            return ""
        sampled, read = cost.num_sampled_tokens, cost.num_prompt_tokens_read
        amount = self.prices.of(num_sampled_tokens=sampled, num_prompt_tokens_read=read, seconds=seconds)
        return f", {self.prices.show(amount)}"

    @contextlib.contextmanager
    def working(self, title: str) -> Iterator[Callable[[str], None]]:
        """Show what is being done where its end is not known; the yielded function takes each part's name."""
        if self.mode == "live":
            with self.console.status(escape_markup(title)) as status:
                yield lambda part: status.update(f"{escape_markup(title)}: {escape_markup(part)}")
        else:
            yield lambda part: self.say(f"{title}: {part}")

    @contextlib.contextmanager
    def progress(
        self, title: str, total: int | None, ledger: Ledger, *, on_share: Callable[[Meter], None] | None = None
    ) -> Iterator[OnProgress]:
        """Show how far a piece of work is; the yielded function takes what ``Meter.update`` takes.

        ``on_share`` is called with the meter after each further twentieth of the work, for trackers.
        """
        meter = Meter(title, total, ledger, clock=self._clock, prices=self.prices)
        shown = 0

        def heard(*args: Any, **kwargs: Any) -> None:
            nonlocal shown
            meter.update(*args, **kwargs)
            share = (meter.done or 0) * NUM_TRACKED // meter.total if meter.total else 0
            if on_share is not None and share > shown:
                shown = share
                on_share(meter)

        show = {"live": self._live, "plain": self._plain, "quiet": self._nothing}[self.mode]
        with show(meter) as refresh:

            def on_progress(*args: Any, **kwargs: Any) -> None:
                heard(*args, **kwargs)
                refresh()

            yield on_progress

    @contextlib.contextmanager
    def _nothing(self, meter: Meter) -> Iterator[Callable[[], None]]:
        yield lambda: None

    @contextlib.contextmanager
    def _plain(self, meter: Meter) -> Iterator[Callable[[], None]]:
        """A line from time to time, and one at the end."""
        last = 0.0

        def refresh() -> None:
            nonlocal last
            now = meter.seconds
            finished = meter.total is not None and (meter.done or 0) >= meter.total  # its line follows at the end
            if not finished and now - last >= max(PLAIN_INTERVAL_S, _PLAIN_SHARE * now):
                last = now
                self.say(meter.line())

        try:
            yield refresh
        finally:
            if meter.done is not None:
                self.say(meter.line())

    @contextlib.contextmanager
    def _live(self, meter: Meter) -> Iterator[Callable[[], None]]:
        """A bar with the time left, and a line of details below it; gone when the work is done."""
        from rich.padding import Padding
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn
        from rich.progress import TimeElapsedColumn as Elapsed
        from rich.text import Text

        class Bar(Progress):
            def get_renderables(self) -> Iterator[Any]:
                yield self.make_tasks_table(self.tasks)
                if details := meter.details():
                    yield Padding(Text(details, style="dim"), (0, 0, 0, 4))

        def left() -> str:
            seconds = meter.seconds_left()
            return "" if seconds is None else f"about {duration(seconds)} left"

        columns = (
            TextColumn("  {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TaskProgressColumn(),
            Elapsed(),
        )
        with Bar(*columns, TextColumn("{task.fields[left]}"), console=self.console, transient=True) as bar:
            task = bar.add_task(escape_markup(meter.title), total=meter.total, left="")
            yield lambda: bar.update(task, completed=meter.done or 0, total=meter.total, left=left())
