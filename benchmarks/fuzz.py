"""Feed damaged and hostile input to everything that reads what others wrote, and list what is not one clear line.

    .venv/bin/python benchmarks/fuzz.py --inputs 2000000                  all targets, resumed where it stopped
    .venv/bin/python benchmarks/fuzz.py --targets turns game --seconds 60
    .venv/bin/python benchmarks/fuzz.py --replay run.json 1234            one input again, with its stack

An input is made from a seed, the target's name and its number, so each can be made again. A finding is anything that
raises something other than a ``StecaError``, whose message is longer than 4,000 characters, that takes more than 10 s of
processor time, that writes or deletes outside the program's own folder, or that breaks the target's own promise (a
control token of a text that is read as one, an escape sequence that reaches the terminal). The state (inputs done,
findings) is kept in ``--state``, a JSON file, after each batch.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from steca_gym.errors import StecaError  # noqa: E402
from tests.hostile import TARGETS, Target, TooSlow  # noqa: E402

MAX_MESSAGE_CHARS = 4000
MAX_CPU_S = 10.0
BATCH = 100


@dataclass
class Guard:
    """Notes every file that is written, made, moved or deleted outside a folder."""

    folder: str
    outside: str = ""
    active: bool = False

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        """An audit hook; it cannot be removed, only put to sleep."""
        if not self.active or self.outside:
            return
        if event == "open":
            path, mode, flags = (*args, None, None)[:3]
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            touched = [path] if writes or (isinstance(mode, str) and set(mode) & set("wax+")) else []
        elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "shutil.rmtree"):
            touched = [args[0]]
        elif event in ("os.rename", "os.link", "os.symlink"):
            touched = list(args[:2])
        elif event == "pickle.find_class" and str(args[0]).startswith(
            ("numba", "llvmlite", "numpy", "builtins", "copyreg")
        ):
            return  # compiled functions, from a cache that is ours
        elif event in (
            "os.system",
            "subprocess.Popen",
            "os.exec",
            "os.posix_spawn",
            "socket.connect",
            "pickle.find_class",
        ):
            self.outside = f"{event} {args[0]!r:.120}"
            return
        else:
            return
        for path in touched:
            if isinstance(path, (str, bytes)):
                found = os.path.abspath(os.fsdecode(path))
                if not found.startswith((self.folder, "/dev/null")) and "/__pycache__" not in found:
                    self.outside = f"{event} {found}"


def tried(target: Target, number: int, seed: int, guard: Guard) -> dict[str, str] | bool:
    """A finding of one input; else whether it was refused in one line (True) or read (False)."""
    rng = random.Random(f"{seed} {target.name} {number}")
    made = target.make(rng)
    guard.outside, guard.active = "", True
    signal.setitimer(signal.ITIMER_VIRTUAL, MAX_CPU_S)
    problem: dict[str, str] | None = None
    refused = False
    try:
        target.run(made)
    except StecaError as error:
        refused = True
        if len(str(error)) > MAX_MESSAGE_CHARS:
            problem = {"error": f"a message of {len(str(error))} characters", "at": type(error).__name__}
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "hostile.py" not in f.filename]
        at = frames[-1] if frames else None
        ours = next((f for f in reversed(frames) if str(ROOT) in f.filename and "site-packages" not in f.filename), at)
        place = f"{Path(ours.filename).name}:{ours.lineno}" if ours else "the target"
        problem = {"error": f"{type(error).__name__}: {str(error)[:200]}", "at": f"{place} {type(error).__name__}"}
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        guard.active = False
    if problem is None and guard.outside:
        problem = {"error": guard.outside, "at": f"outside {guard.outside.split()[0]}"}
    return refused if problem is None else problem


def batches(names: list[str], state: dict[str, Any], total: int) -> Iterator[tuple[str, range]]:
    """Which inputs come next: the targets in turn, each its share."""
    share = {n: total * TARGETS[n].weight // sum(TARGETS[m].weight for m in names) for n in names}
    open_ = list(names)
    while open_:
        for name in list(open_):
            done = state["done"].get(name, 0)
            if done >= share[name]:
                open_.remove(name)
                continue
            yield name, range(done, min(done + BATCH * TARGETS[name].weight, share[name]))


def save(path: Path, state: dict[str, Any]) -> None:
    """Write the state so that a kill leaves the old or the new one."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(state, indent=1))
    part.replace(path)


def table(state: dict[str, Any]) -> str:
    """The counts as a table."""
    lines = ["| target | what reads it | inputs | refused in one line | findings |", "|---|---|---|---|---|"]
    for name, done in sorted(state["done"].items()):
        found = sum(f["count"] for f in state["findings"] if f["target"] == name)
        lines.append(f"| {name} | {TARGETS[name].what} | {done:,} | {state['refused'].get(name, 0):,} | {found:,} |")
    total, found = sum(state["done"].values()), sum(f["count"] for f in state["findings"])
    refused = sum(state["refused"].values())
    return "\n".join([*lines, f"| all | | {total:,} | {refused:,} | {found:,} |"])


def main() -> int:
    """Run; returns 1 where there are findings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000, help="in total, over all targets")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this time; run again to go on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--targets", nargs="+", choices=sorted(TARGETS), default=sorted(TARGETS))
    parser.add_argument("--state", type=Path, default=Path("fuzz.json"))
    parser.add_argument("--replay", nargs=2, metavar=("TARGET", "NUMBER"))
    given = parser.parse_args()
    if given.replay:
        target = TARGETS[given.replay[0]]
        made = target.make(random.Random(f"{given.seed} {target.name} {int(given.replay[1])}"))
        print(repr(made)[:4000])
        print(target.run(made))
        return 0
    state: dict[str, Any] = {"seed": given.seed, "done": {}, "refused": {}, "seconds": {}, "findings": []}
    if given.state.exists():
        state = json.loads(given.state.read_text())
        if state["seed"] != given.seed:
            parser.error(f"{given.state} is of seed {state['seed']}; give --seed {state['seed']} or another --state")
    state_file = given.state.resolve()
    scratch = tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
    os.environ["STECA_CACHE"] = f"{scratch}/cache"
    tempfile.tempdir = scratch
    os.chdir(scratch)
    guard = Guard(folder=scratch)
    sys.addaudithook(guard)
    sys.dont_write_bytecode = True
    logging.disable()

    def too_slow(*_: object) -> None:
        raise TooSlow(f"more than {MAX_CPU_S:g} s of processor time")

    signal.signal(signal.SIGVTALRM, too_slow)
    begin = time.monotonic()
    seen = {(f["target"], f["at"]): f for f in state["findings"]}
    try:
        for name, numbers in batches(given.targets, state, given.inputs):
            target, started = TARGETS[name], time.process_time()
            for number in numbers:
                found = tried(target, number, given.seed, guard)
                if isinstance(found, bool):
                    state["refused"][name] = state["refused"].get(name, 0) + found
                    continue
                key = (name, found["at"])
                if key not in seen:
                    seen[key] = {"target": name, "number": number, "count": 0, **found}
                    state["findings"].append(seen[key])
                    print(f"{name} {number}: {found['error']} at {found['at']}", flush=True)
                seen[key]["count"] += 1
            state["done"][name] = numbers.stop
            state["seconds"][name] = round(state["seconds"].get(name, 0) + time.process_time() - started, 1)
            save(state_file, state)
            if time.monotonic() - begin > given.seconds:
                break
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    code = hashlib.blake2b((ROOT / "tests" / "hostile.py").read_bytes(), digest_size=4).hexdigest()
    print(f"seed {given.seed}, inputs made by {code}\n{table(state)}")
    return int(bool(state["findings"]))


if __name__ == "__main__":
    sys.exit(main())
