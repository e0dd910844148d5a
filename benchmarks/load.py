"""Load: ten thousand environments in one process, a long soak of a fast world, a million stored steps.

    .venv/bin/python benchmarks/load.py                       all parts
    .venv/bin/python benchmarks/load.py --parts soak --episodes 20000

Each part runs in a process of its own, so that its peak memory is its own. It exits 1 where a bound does not hold:

- environments: memory per live environment;
- soak: in the second half of the episodes memory grows by less than 2 % or 4 MiB, no more files are open, and no more
  threads run than in the first; the time per episode is printed, not bounded, since machines are shared;
- buffer: peak memory of opening, inserting, querying and exporting (``benchmarks/buffer.py``).
"""

from __future__ import annotations

import argparse
import functools
import gc
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from _machine import machine_line  # noqa: E402

PARTS = ("environments", "soak", "buffer")
MAX_KIB_PER_ENV = 64
MAX_BUFFER_MIB = 700


def resident_mib() -> float:
    """Resident memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def peak_mib() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def num_files() -> int:
    """Files that this process has open."""
    return len(os.listdir("/proc/self/fd"))


def environments(num_envs: int) -> bool:
    """Live episodes, all at once, stepped together by the collector."""
    from steca_gym.agents.scripted import RandomAgent

    from steca_gym.collectors import Collector, EpisodeRequest
    from steca_gym.interop.worlds import make_env

    make = functools.partial(make_env, "household", horizon=5)
    env = make()
    ids = env.task_ids("train")
    env.close()
    before = resident_mib()
    began = time.perf_counter()
    requests = [EpisodeRequest(task_id=ids[n % 200], seed=n) for n in range(num_envs)]
    with Collector(make, RandomAgent(), num_envs=num_envs) as collector:
        played = collector.run(requests)
    seconds = time.perf_counter() - began
    steps = sum(len(e.trajectory) for e in played)
    broken = sum(e.trajectory.status == "error" for e in played)
    kib = (peak_mib() - before) * 1024 / num_envs
    print(
        f"environments: {num_envs:,} live at once, {steps:,} steps in {seconds:.0f} s, {broken} broken; peak {peak_mib():,.0f} MiB, "
        f"{kib:.1f} KiB for each with its trajectory; {num_files()} open files, {threading.active_count()} threads"
    )
    return broken == 0 and len(played) == num_envs and kib <= MAX_KIB_PER_ENV


def soak(num_episodes: int) -> bool:
    """Episodes of a fast world, stored as they are played; memory, files and threads in ten parts."""
    from steca_gym.buffer import CalibrationBuffer
    from steca_gym.collectors import Collector, EpisodeRequest
    from tests.fakes import corridor

    rows = []
    with (
        tempfile.TemporaryDirectory() as folder,
        CalibrationBuffer(Path(folder, "buffer.sqlite")) as buffer,
        Collector(corridor(horizon=20), _Walker(), num_envs=64) as collector,
    ):
        for tenth in range(10):
            began, steps = time.perf_counter(), 0
            for block in range(0, num_episodes // 10, 500):
                first = tenth * (num_episodes // 10) + block
                many = min(500, num_episodes // 10 - block)
                requests = [EpisodeRequest(task_id=f"corridor-{1 + n % 5}", seed=n) for n in range(first, first + many)]
                played = [e.trajectory for e in collector.run(requests)]
                steps += sum(map(len, played))
                buffer.add_trajectories([t.with_id() for t in played], kind="own")
            gc.collect()
            rows.append((resident_mib(), num_files(), threading.active_count()))
            each = (time.perf_counter() - began) / (num_episodes // 10) * 1000
            print(
                f"soak: {(tenth + 1) * 10:3d} %  {rows[-1][0]:7.1f} MiB  {rows[-1][1]} files  {rows[-1][2]} threads  {each:.2f} ms an episode, {steps:,} steps"
            )
    (half, files, threads), (end, files_end, threads_end) = rows[4], rows[-1]
    return end - half < max(4.0, 0.02 * half) and files_end <= files and threads_end <= threads


class _Walker:
    """Walks right and tries the door at times; decides by the turn, so that it costs nothing."""

    name = "walker"
    needs: frozenset[str] = frozenset()

    def act(self, requests: list) -> list:
        from steca_gym.agent import Turn

        return [Turn(text="Action: " + ("open" if (r.seed + r.turn) % 3 == 0 else "right")) for r in requests]

    def release(self, episode_ids: object) -> None:
        return None


def stored(num_steps: int) -> bool:
    """The parts of ``benchmarks/buffer.py``."""
    command = [sys.executable, str(Path(__file__).with_name("buffer.py")), "--steps", str(num_steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    print(done.stdout, end="")
    peaks = [float(line.split(" MiB peak")[0].split()[-1]) for line in done.stdout.splitlines() if "MiB peak" in line]
    return max(peaks) <= MAX_BUFFER_MIB


def main() -> int:
    """Run the parts; returns 1 where a bound does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--envs", type=int, default=10_000)
    parser.add_argument("--episodes", type=int, default=100_000, help="of the soak")
    parser.add_argument("--steps", type=int, default=1_000_000, help="stored in the buffer")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        sizes = {"environments": given.envs, "soak": given.episodes, "buffer": given.steps}
        held = {"environments": environments, "soak": soak, "buffer": stored}[given.part](sizes[given.part])
        print(f"{given.part}: {'within its bounds' if held else 'OUT OF ITS BOUNDS'}", flush=True)
        return int(not held)
    print(machine_line("numpy", "gymnasium"), flush=True)
    own = ["--envs", str(given.envs), "--episodes", str(given.episodes), "--steps", str(given.steps)]
    codes = [
        subprocess.run([sys.executable, __file__, "--part", part, *own], check=False).returncode for part in given.parts
    ]
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main())
