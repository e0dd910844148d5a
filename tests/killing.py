"""Commands killed with SIGKILL at random moments, and what is left; `benchmarks/kills.py` and a test use it.

Nothing is instrumented: the commands are those of a user, in processes of their own. Only the command's own process is
killed; its workers have to notice by themselves. A moment is drawn over the time for which the uninterrupted commands
worked on their folder, one in five over their whole time, imports included. A moment that comes after the end is no
kill.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.left_behind import TABLES, Row, contents, evaluation, is_temporary, loads, rows_left, rows_seen, tables

ROOT = Path(__file__).resolve().parents[1]
CONF = ["--config-dir", str(ROOT / "tests" / "conf")]
TOKEN = "STECA_TEST_KILLS"
"""environment variable by which the processes of a killed command are found"""
POLL_S = 0.005
ORPHAN_S = 60.0
"""seconds that workers may take to notice that their command is gone; Ray's have their own pace"""
MAX_KILLS = 6
"""of one folder"""
MAX_S = 600.0
"""seconds after which a command counts as hung"""


# -- playing commands -------------------------------------------------------------------------------------------------


@dataclass
class Played:
    """What became of a list of commands."""

    killed: bool
    next_command: int
    """index of the command to go on with"""
    seconds: float
    """wall time of all"""
    idle_seconds: float
    """of these, before anything in the folder changed"""
    problem: str = ""
    """the command that failed and the end of what it said; empty: none did"""


def play(
    commands: Sequence[Sequence[str]],
    folder: Path,
    *,
    first: int = 0,
    kill_after: float | None = None,
    from_start: bool = False,
    token: str = "",
    before_kill: Callable[[], None] = lambda: None,
) -> Played:
    """Run ``steca`` commands one after another, and kill the one that runs at a moment.

    Args:
        commands: arguments of ``steca``.
        folder: whose first change starts the clock.
        first: index of the first command to run.
        kill_after: seconds on the clock; None: no kill.
        from_start: the clock starts with the first process.
        token: put into the environment of every process.
        before_kill: called right before the kill.
    """
    began = time.monotonic()
    before, clock = _signature(folder), began if from_start else None
    said = folder.with_name(f"{folder.name}.said")
    for number in range(first, len(commands)):
        script = "import sys, tests.worlds; from steca_gym.cli import main; sys.exit(main(sys.argv[1:]))"
        env = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", TOKEN: token}
        # A file, since workers that outlive their command would keep a pipe open.
        with said.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-c", script, *commands[number]],
                cwd=ROOT,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started = time.monotonic()
        while process.poll() is None:
            now = time.monotonic()
            if clock is None and _signature(folder) != before:
                clock = now
            due = kill_after is not None and clock is not None and now - clock >= kill_after
            hung = now - started > MAX_S
            if due and not hung:
                before_kill()
            if due or hung:
                process.send_signal(signal.SIGKILL)
                if process.wait() == -signal.SIGKILL:
                    idle = (clock or now) - began
                    problem = f"{' '.join(commands[number][:2])} hung" if hung else ""
                    return Played(not hung, number, now - began, idle, problem)
                break  # it had just ended
            time.sleep(POLL_S)
        if process.returncode != 0:
            text = said.read_text(errors="replace").strip()[-600:]
            problem = f"{commands[number][0]} ended with {process.returncode}: {text}"
            return Played(False, number, time.monotonic() - began, 0.0, problem)
    ended = time.monotonic()
    return Played(False, len(commands), ended - began, (clock or ended) - began)


def _signature(folder: Path) -> tuple[int, int]:
    """Changes with every file that is made, written or removed."""
    newest = count = 0
    for where, _, names in os.walk(folder):
        for name in (".", *names):
            with contextlib.suppress(OSError):
                newest = max(newest, os.stat(os.path.join(where, name)).st_mtime_ns)
                count += 1
    return newest, count


def orphans(token: str) -> list[int]:
    """Processes whose environment holds a token."""
    mark, found = f"{TOKEN}={token}".encode(), []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def orphans_left(token: str) -> int:
    """How many processes are still there after ``ORPHAN_S``; they are then ended."""
    deadline = time.monotonic() + ORPHAN_S
    while (left := orphans(token)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in left:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    return len(left)


# -- scenarios --------------------------------------------------------------------------------------------------------

CORRIDOR = [
    *CONF,
    "env=corridor",
    "env.kwargs.num_tasks=24",
    "env.num_train_tasks=24",
    "evaluation.stress=false",
]
# A fixed number of samples, so that most continuations are under way for long.
FIXED = ["preset.step_rewards.estimator=fixed", "preset.step_rewards.num_samples=3"]
# A model that has learnt nothing: short turns, short continuations.
TINY = [
    "agent=tiny",
    "agent.max_new_tokens=12",
    "++agent.engine.kv_cache_gib=0.1",
    "preset.calibration.max_steps=2",
    "preset.step_rewards.max_steps=2",
    "agent.build.num_layers=1",
    "agent.build.hidden_size=32",
    "agent.warm_up.num_epochs=8",
    "agent.warm_up.save_every_steps=1",
    "agent.train.max_steps=4",
    "agent.train.save_every_steps=1",
    "preset.num_replayed=8",
    "env.num_train_tasks=12",
]
_MANY = ["agent=stumbling", "env.kwargs.num_tasks=48", "env.num_train_tasks=48", "env.num_eval_tasks=30"]
# Trained enough to say something.
_SPEAKING = [
    "agent.warm_up.per_device_batch_size=2",
    "agent.warm_up.num_epochs=3",
    "agent.warm_up.learning_rate=2.0e-3",
    "agent.train.learning_rate=1.0e-3",
]
_FEW = [*TINY, *_SPEAKING, "env.num_train_tasks=8", "preset.step_rewards.num_samples=1"]
_ONLINE = [
    "method=grpo",
    *(f"method.rollout.{k}" for k in ("num_steps=4", "num_tasks=2", "group_size=4", "save_every_steps=1")),
]


@dataclass(frozen=True)
class Scenario:
    """Commands that do one kind of work, and what to compare.

    ``commands`` are made from the folder that they write and from a finished run that some of them read.
    """

    title: str
    commands: Callable[[Path, Path], list[list[str]]]
    kind: str = "run"
    """run: a run's folder; files: a folder of files"""
    weight: int = 10
    """share of the kills"""
    models: tuple[str, ...] = ()
    """model folders, whose weights have to be equal and load"""
    costs: bool = True
    """whether what each result has cost has to be equal, too"""


def _collecting(*overrides: str) -> Callable[[Path, Path], list[list[str]]]:
    def commands(folder: Path, source: Path) -> list[list[str]]:
        calibrate = ["calibrate", *CORRIDOR, *_MANY, *overrides, f"run_dir={folder}"]
        return [calibrate, ["evaluate", *CONF, f"run={folder}"]]

    return commands


def _running(*overrides: str) -> Callable[[Path, Path], list[list[str]]]:
    return lambda folder, source: [["run", *CORRIDOR, *FIXED, *_FEW, *overrides, f"run_dir={folder}"]]


def _exporting(folder: Path, source: Path) -> list[list[str]]:
    forms = ("tables", "messages", "preferences", "turns", "atif", "minari")
    return [["export", f"run={source}", f"format={form}", f"to={folder / form}"] for form in forms]


def _importing(folder: Path, source: Path) -> list[list[str]]:
    demos = source.with_name("export") / "trajectories.jsonl"
    return [["import", *CONF, str(demos), "env=corridor", "env.kwargs.num_tasks=48", f"to={folder / 'demos.jsonl'}"]]


def _reporting(folder: Path, source: Path) -> list[list[str]]:
    return [["report", str(source), f"to={folder / 'report.html'}"]]


SCENARIOS: dict[str, Scenario] = {
    "collection": Scenario("collection, calibration, evaluation; this process", _collecting(*FIXED), weight=50),
    "racing": Scenario("the same, racing step rewards", _collecting(), weight=30, costs=False),
    "processes": Scenario(
        "the same, `executor=processes`", _collecting(*FIXED, "executor=processes", "executor.num_workers=2"), weight=30
    ),
    "ray": Scenario(
        "the same, `executor=ray`", _collecting(*FIXED, "executor=ray", "executor.num_workers=2"), weight=4
    ),
    "training": Scenario(
        "`method=steca`: warm-up, calibration, training, evaluation; saved at every step",
        _running("method=steca"),
        weight=24,
        models=("warm-up", "model"),
    ),
    "online": Scenario(
        "`method=grpo`: warm-up, online steps, evaluation; saved at every step",
        _running(*_ONLINE),
        weight=18,
        models=("warm-up", "model"),
    ),
    "export": Scenario("export in six formats", _exporting, kind="files", weight=20),
    "import": Scenario("import", _importing, kind="files", weight=12),
    "report": Scenario("report", _reporting, kind="files", weight=12),
}


# -- rounds -----------------------------------------------------------------------------------------------------------


@dataclass
class Whole:
    """An uninterrupted play of a scenario."""

    folder: Path
    seconds: float
    idle_seconds: float


@dataclass
class Round:
    """One folder: two to ``MAX_KILLS`` kills, each followed by the same command, the last of these to its end."""

    kills: int = 0
    resumed: int = 0
    """kills after which the same command went on without an error"""
    lost: int = 0
    """rows seen in the buffer before or after a kill that the end does not hold; files likewise"""
    doubled: int = 0
    torn: int = 0
    """unsound buffers, and files under their own names that are neither the old nor the new content"""
    equal: bool = True
    """rows of the buffer, or files, as without a kill"""
    evaluation_equal: bool | None = None
    loadable: bool | None = None
    weights_equal: bool | None = None
    again_unchanged: bool = True
    """one more time the same commands changes nothing"""
    left_over: int = 0
    """temporary files that nobody removes"""
    orphans: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether everything held."""
        held = [self.equal, self.evaluation_equal, self.loadable, self.weights_equal, self.again_unchanged]
        counts = self.lost + self.doubled + self.torn + self.left_over + self.orphans + self.kills - self.resumed
        return not counts and not self.problems and all(h is not False for h in held)

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def _make(folder: Path, scenario: Scenario) -> None:
    """The folder of files, as a user has it; a run's is made by its command."""
    (folder if scenario.kind == "files" else folder.parent).mkdir(parents=True, exist_ok=True)


def play_whole(scenario: Scenario, folder: Path, source: Path) -> Whole:
    """Play a scenario without a kill; raises RuntimeError where it fails."""
    _make(folder, scenario)
    played = play(scenario.commands(folder, source), folder)
    if played.problem:
        raise RuntimeError(played.problem)
    return Whole(folder, played.seconds, played.idle_seconds)


def make_source(folder: Path) -> Path:
    """A small finished run with its export beside it, which exports, imports and reports read; returns its folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    export = ["export", f"run={folder}", f"to={folder.with_name('export')}"]
    played = play([*SCENARIOS["collection"].commands(folder, folder), export], folder)
    if played.problem:
        raise RuntimeError(played.problem)
    return folder


def play_round(scenario: Scenario, whole: Whole, folder: Path, source: Path, rng: random.Random) -> Round:
    """Kill, go on, and compare with the whole; the folder stays."""
    _make(folder, scenario)
    commands, found, first = scenario.commands(folder, source), Round(), 0
    token, seen = uuid.uuid4().hex, set[Row]()
    is_run = scenario.kind == "run"

    def see() -> None:
        if is_run:
            seen.update(rows_seen(folder))

    left_s = work_s = whole.seconds - whole.idle_seconds
    for _ in range(rng.randint(2, MAX_KILLS)):
        from_start = rng.random() < 0.2
        span = whole.idle_seconds + left_s if from_start else left_s
        moment = rng.uniform(0, span)
        # What is done by now is not done again, so that a later moment would come after the end.
        left_s = max(0.15 * work_s, left_s - moment)
        played = play(
            commands,
            folder,
            first=first,
            kill_after=moment,
            from_start=from_start,
            token=token,
            before_kill=see,
        )
        if played.problem:
            break
        found.resumed, first = found.kills, played.next_command
        if not played.killed:
            break
        found.kills += 1
        if is_run:
            rows, sound = rows_left(folder)
            seen |= rows
            found.torn += not sound
        else:
            goal = contents(whole.folder)
            now = {k: v for k, v in contents(folder).items() if not is_temporary(k)}
            torn = [k for k, v in now.items() if goal.get(k) != v]
            found.torn += len(torn)
            found.problems += [f"torn: {k}" for k in torn]
    if not played.problem:
        played = play(commands, folder, first=first, token=token)
    if played.problem:
        found.problems.append(played.problem)
    else:
        found.resumed = found.kills
    found.orphans = orphans_left(token)
    if not played.problem:
        _compare(scenario, whole.folder, folder, seen, found)
        _play_again(commands, folder, is_run, found)
    return found


def _compare(scenario: Scenario, whole: Path, folder: Path, seen: set[Row], found: Round) -> None:
    """What the folder holds at the end, against the uninterrupted one."""
    names = contents(folder)
    found.left_over = sum(map(is_temporary, names))
    if scenario.kind == "files":
        expected, held = contents(whole), {k: v for k, v in names.items() if not is_temporary(k)}
        found.lost = len(set(expected) - set(held))
        found.doubled = len(set(held) - set(expected))
        found.equal = held == expected
        found.problems += [f"differs: {k}" for k in sorted(set(held) | set(expected)) if held.get(k) != expected.get(k)]
        return
    flat = {(name, *row) for name, table in tables(folder).items() for row in table}
    expected_rows, rows = (tables(f, costs=scenario.costs) for f in (whole, folder))
    found.lost = len(seen - flat)
    found.equal = rows == expected_rows
    found.problems += [f"table {name} differs" for name in TABLES if rows[name] != expected_rows[name]]
    # kind, round and task: an episode that was played and stored twice, whatever its id.
    played, wanted = (Counter(row[1:4] for row in t["trajectories"]) for t in (rows, expected_rows))
    found.doubled = (played - wanted).total()
    report, wanted_report = evaluation(folder), evaluation(whole)
    found.evaluation_equal = report == wanted_report
    found.doubled += len(report["games"]) - len({g["task_id"] for g in report["games"]})
    for name in ("metrics.jsonl",):
        for line in (folder / name).read_text(encoding="utf-8").splitlines():
            try:
                json.loads(line)
            except ValueError:
                found.torn += 1
                found.problems.append(f"torn line in {name}")
    if scenario.models:
        found.loadable = all(loads(folder / m) for m in scenario.models)
        weights = [[(f / m / "model.safetensors").read_bytes() for m in scenario.models] for f in (whole, folder)]
        found.weights_equal = weights[0] == weights[1]


def _play_again(commands: Sequence[Sequence[str]], folder: Path, is_run: bool, found: Round) -> None:
    """The same commands on the finished folder: nothing is played, nothing changes."""
    before = tables(folder) if is_run else {}
    leave_out = ("run.lock", "run.json", "metrics.jsonl", "buffer.sqlite", "buffer.sqlite-wal", "buffer.sqlite-shm")
    files = contents(folder, leave_out=leave_out)
    played = play(commands, folder)
    same = not played.problem and files == contents(folder, leave_out=leave_out)
    found.again_unchanged = same and (not is_run or tables(folder) == before)
    if played.problem:
        found.problems.append(f"again: {played.problem}")
