"""Resident memory of every trainer stays flat while batch shapes vary, in both number types."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Each program trains on samples of random lengths and prints the resident memory (MiB) after each step.
_HEAD = """
import dataclasses, json, random, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.training.conftest import PROMPT, trajectory
from steca_gym.training import *
from steca_gym.trajectory import PreferencePair, WeightedTrajectory

base, out, precision, num_steps = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
rng = random.Random(0)
trajectories = [dataclasses.replace(trajectory(i, rng.randint(1, 16)), task_id="task") for i in range(256)]
memory = []

def measure(metrics=None):
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    memory.append(pages * 4096 / 2**20)
"""

_OFFLINE = """
common = dict(max_steps=num_steps, per_device_batch_size=4, precision=precision, log_every_steps=1)
common["group_by_length"] = False
"""

_PROGRAMS = {
    "weighted_sft": _OFFLINE
    + """
samples = [WeightedTrajectory(trajectory=t) for t in trajectories]
WeightedSFT(TrainSettings(**common)).fit(base, samples, out, prompt=PROMPT, on_log=measure)
""",
    "preference": _OFFLINE
    + """
empty = dataclasses.replace(trajectories[0], steps=())
pairs = [PreferencePair(prefix=empty, chosen=a, rejected=b) for a, b in zip(trajectories[::2], trajectories[1::2])]
Preference(PreferenceSettings(**common)).fit(base, pairs, out, prompt=PROMPT, on_log=measure)
""",
    "policy_gradient": """
from tests.training.test_policy_gradient import LiveFake
trainer = PolicyGradient(PolicyGradientSettings(precision=precision), agent=LiveFake(base), prompt=PROMPT)
for step in range(num_steps):
    episodes = tuple(rng.sample(trajectories, 4))
    advantages = tuple((rng.uniform(-1, 1),) * len(e) for e in episodes)
    trainer.step([EpisodeGroup(episodes=episodes, advantages=advantages)])
    measure()
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("trainer", list(_PROGRAMS))
def test_memory_is_flat_in_the_last_half(base: Path, tmp_path: Path, trainer: str, precision: str) -> None:
    code = _HEAD.format(root=str(ROOT)) + _PROGRAMS[trainer] + "\nprint(json.dumps(memory))"
    # bfloat16 is slow on most processors, and its batches have few shapes.
    num_steps = int(os.environ.get("STECA_SOAK_STEPS", "400" if precision == "fp32" else "200"))
    done = subprocess.run(
        [sys.executable, "-c", code, str(base), str(tmp_path / "out"), precision, str(num_steps)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    memory = json.loads(done.stdout.strip().splitlines()[-1])
    assert len(memory) == num_steps
    # Means of windows, since the allocator takes and returns memory in steps.
    middle, end = memory[num_steps // 2 : num_steps // 2 + num_steps // 8], memory[-(num_steps // 8) :]
    print(f"{sum(middle) / len(middle):.1f} MiB in the middle, {sum(end) / len(end):.1f} MiB at the end")  # see -rP
    assert sum(end) / len(end) < 1.01 * sum(middle) / len(middle)
