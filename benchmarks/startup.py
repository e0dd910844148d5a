"""How long commands take to begin: ``steca --help``, ``steca run --help``, and a finished run that is called again.

    python benchmarks/startup.py [--rounds 7]

Every command runs in a new process; the rounds go through the commands in turn. Wall time, and the processor time of the
process (user and system), which other work on the machine disturbs less; medians, with the smallest and largest.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

try:
    from benchmarks._machine import machine_line
except ModuleNotFoundError:  # started by its path
    from _machine import machine_line

SMALL = ["env=household", "method=sft", "preset=smoke", "seed=0"]
GOALS_S = {"--version": None, "--help": 0.3, "run --help": 1.5, "report --help": None, "a finished run, again": 2.0}


def timed(command: list[str]) -> tuple[float, float]:
    """Wall and processor seconds of a command that has to succeed."""
    before, begun = os.times(), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall, after = time.perf_counter() - begun, os.times()
    return wall, after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    steca = [str(Path(sys.executable).with_name("steca"))]
    with tempfile.TemporaryDirectory() as folder:
        finished = [*steca, "run", *SMALL, f"run_dir={folder}/run", f"runs_root={folder}"]
        timed(finished)
        commands = {
            "--version": [*steca, "--version"],
            "--help": [*steca, "--help"],
            "run --help": [*steca, "run", "--help"],
            "report --help": [*steca, "report", "--help"],
            "a finished run, again": finished,
        }
        assert commands.keys() == GOALS_S.keys()
        for command in commands.values():
            timed(command)  # the files are in the page cache, as they are for whoever works with the tool
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(rounds):
            for name, command in commands.items():
                found[name].append(timed(command))
    print(machine_line("hydra-core", "numpy", "torch") + f"; {rounds} rounds\n")
    print("| command | wall s, median (range) | processor s | goal s |\n|---|---:|---:|---:|")
    for name, times in found.items():
        wall, cpu = [w for w, _ in times], [c for _, c in times]
        goal = "-" if GOALS_S[name] is None else f"{GOALS_S[name]:g}"
        print(
            f"| `steca {name}` | {statistics.median(wall):.2f} ({min(wall):.2f} to {max(wall):.2f}) | "
            f"{statistics.median(cpu):.2f} | {goal} |"
        )


if __name__ == "__main__":
    main()
