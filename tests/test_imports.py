"""What importing costs: the packages alone load nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "trl", "wandb", "ray", "datasets", "peft", "textworld", "minigrid", "scienceworld")


@pytest.mark.parametrize(
    "module", ["steca_gym", "steca_gym.envs", "steca_gym.agents", "steca_gym.cli", "steca_gym.buffer"]
)
def test_importing_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
