"""Training in several processes: losses, weights and speed of two processes beside those of one.

    python benchmarks/processes.py            # about two minutes; prints Markdown

Each row is a run of its own, started by `accelerate launch` with the shipped configuration (one process: by Python). The
batch of an optimizer step is the same in all rows. On a CPU accelerate does not shard; the row fsdp2 tells it that its
processes are those of GPUs, so that it does, over gloo.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from _machine import machine_line  # noqa: E402

BATCH_SIZE = 8
ROWS = (("", 1), ("ddp", 2), ("fsdp2", 2))


def work(out: Path, base: Path, num_steps: int) -> None:
    """What each process does."""
    import resource

    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        _as_gpus()
    import torch

    from steca_gym.agent import Prompt
    from steca_gym.training import TrainSettings, WeightedSFT

    torch.set_num_threads(1)
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    settings = TrainSettings(
        max_steps=num_steps,
        per_device_batch_size=BATCH_SIZE // num_processes,
        learning_rate=1e-3,
        group_by_length=False,
    )
    report = WeightedSFT(settings).fit(base, samples(), out, prompt=Prompt())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if os.environ.get("RANK", "0") == "0":
        figures = {
            "world_size": report.world_size,
            "first": report.first_loss,
            "last": report.last_loss,
            "seconds": report.train_seconds,
            "peak_mib": peak,
        }
        out.with_suffix(".json").write_text(json.dumps(figures))


def samples() -> list:
    """128 made-up trajectories of one to eight turns."""
    import random

    from steca_gym.trajectory import Step, Trajectory, WeightedTrajectory

    made = []
    for index in range(128):
        rng = random.Random(index)
        steps = tuple(
            Step(
                thought=f"I look in drawer {(k := rng.randint(1, 40))}.",
                action=f"go to drawer {k}",
                observation=f"You arrive at drawer {k}. It is {rng.choice(['open', 'closed', 'empty', 'locked'])}.",
            )
            for _ in range(1 + index % 8)
        )
        made.append(
            WeightedTrajectory(
                trajectory=Trajectory(task_id=f"task-{index}", first_observation="A room with drawers.", steps=steps)
            )
        )
    return made


def _as_gpus() -> None:
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    begin = PartialState.__init__

    def init(self: PartialState, *args: object, **kwargs: object) -> None:
        begin(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = init  # type: ignore[method-assign]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--work", type=Path, nargs=2, metavar=("OUT", "BASE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(*args.work, args.steps)
        return
    from safetensors.torch import load_file
    from steca_gym.agents.tiny import build_tiny

    from steca_gym.agent import Prompt
    from steca_gym.training.launch import launch_config

    print(f"{machine_line('torch', 'accelerate', 'transformers', 'trl')}; a Llama of 4 layers and width 256,")
    print(f"{args.steps} steps of {BATCH_SIZE} samples, one thread a process\n")
    print(
        "| configuration | processes | first loss | last loss | largest difference of a weight | steps/s | peak MiB of a process |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        texts = [m.content for s in samples() for m in s.trajectory.messages(Prompt())]
        base = build_tiny(texts, folder / "base", seed=0, num_layers=4, hidden_size=256, num_heads=4, vocab_size=600)
        alone = None
        for config, processes in ROWS:
            out = folder / f"out-{config}"
            command = [sys.executable]
            if config:
                launcher = ["-m", "accelerate.commands.launch", "--config_file", str(launch_config(config))]
                command += [*launcher, "--num_processes", str(processes)]
            command += [__file__, "--steps", str(args.steps), "--work", str(out), str(base)]
            env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stderr[-3000:])
            found = json.loads(out.with_suffix(".json").read_text())
            weights = load_file(out / "model.safetensors")
            alone = alone or weights
            gap = max(float((weights[name] - alone[name]).abs().max()) for name in alone)
            print(
                f"| {config or 'none'} | {found['world_size']} | {found['first']:.5f} | {found['last']:.5f} | {gap:.1e} "
                f"| {args.steps / found['seconds']:.2f} | {found['peak_mib']:,.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
