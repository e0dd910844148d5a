"""What trackers cost a run: processor time and disk for the rows, tables and charts of a run, and what is read back.

    python benchmarks/trackers.py --rows 2000

Each tracker runs in a process of its own; processor time is that of the process and of those that it starts (W&B's
service). A row has ten metrics, as one of a training or of progress has; beside the rows there are a table of 200
calibrations and 12 charts of 20 steps.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks._machine import machine_line
from steca_gym.tracking import Chart, make_tracker

TRACKERS = ("jsonl", "wandb", "tensorboard", "trackio")
PACKAGES = ("wandb", "tensorboard", "trackio")


def seconds() -> float:
    """Processor time of this process and of its ended children."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    )


def size(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file() and not f.is_symlink())


def run(name: str, num_rows: int, folder: Path) -> dict[str, float]:
    """Log what a run logs; called in a process of its own."""
    settings = {"name": name, **({"project": "benchmark"} if name in ("wandb", "trackio") else {})}
    begin = seconds()
    tracker = make_tracker(settings, folder=folder, settings={"agent": {"lr": 1e-3}, "method": {"name": "steca"}})
    started = seconds()
    for step in range(num_rows):
        tracker.log({f"metric_{i}": step / (i + 1) for i in range(10)}, phase="train", step=step)
    logged = seconds()
    row = ["task-1", 3, "go to shelf 1", "open drawer 2", "I looked in the wrong place. " * 4, "accepted", 0.8, 0.2]
    tracker.table("calibration_table", [str(i) for i in range(len(row))], [row] * 200)
    points = [(float(x), 1 - x / 20) for x in range(20)]
    for number in range(12):
        chart = Chart(title=f"episode {number}", x_label="step", lines={"before": points, "after": points})
        tracker.chart(f"calibration_timeline/{number}", chart)
    tracker.summary({"success": 0.5})
    tracker.finish()
    if name == "wandb":  # its service has worked meanwhile, and counts once it has ended
        import wandb

        wandb.teardown()
    return {
        "start": started - begin,
        "row": (logged - started) / num_rows,
        "all": seconds() - begin,
        "bytes": size(folder) + size(Path(os.environ["TRACKIO_DIR"])),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000, help="rows of ten metrics")
    parser.add_argument("--repeats", type=int, default=3, help="the median is shown")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        name, folder = given.one.split(":", 1)
        print(json.dumps(run(name, given.rows, Path(folder))))
        return
    print(machine_line(*PACKAGES))
    print("| tracker | start, CPU s | a row, CPU ms | whole run, CPU s | of the whole, ms a row | disk, MB |")
    print("|---|---|---|---|---|---|")
    for name in TRACKERS:
        found = []
        for _ in range(given.repeats):
            with tempfile.TemporaryDirectory() as folder:
                home, at = Path(folder) / "home", Path(folder) / "run"
                home.mkdir()
                at.mkdir()
                env = {
                    **{k: v for k, v in os.environ.items() if not k.startswith("WANDB_")},
                    "HOME": str(home),
                    "TRACKIO_DIR": str(Path(folder) / "trackio"),
                }
                Path(env["TRACKIO_DIR"]).mkdir()
                command = [
                    sys.executable,
                    "-m",
                    "benchmarks.trackers",
                    "--rows",
                    str(given.rows),
                    "--one",
                    f"{name}:{at}",
                ]
                done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
                found.append(json.loads(done.stdout.splitlines()[-1]))
        middle = {key: sorted(f[key] for f in found)[len(found) // 2] for key in found[0]}
        print(
            f"| {name} | {middle['start']:.2f} | {1e3 * middle['row']:.3f} | {middle['all']:.2f} | "
            f"{1e3 * (middle['all'] - middle['start']) / given.rows:.3f} | {middle['bytes'] / 1e6:.2f} |"
        )


if __name__ == "__main__":
    main()
