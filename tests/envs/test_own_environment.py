"""A user's world in a user's folder: what docs/your-own-environment.md says is what works, from another directory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import steca_gym.envs.support as support

GUIDE = Path(__file__).parents[2] / "docs" / "your-own-environment.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE.read_text(), re.DOTALL | re.MULTILINE)


def commands() -> list[list[str]]:
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    assert [line.split()[:2] for line in lines] == [["steca", "check-env"], ["steca", "run"]]
    return [line.split()[1:] for line in lines]


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder that holds ``my_envs`` as the guide has it, and nothing of the repository."""
    folder = tmp_path / "my_envs"
    (folder / "env").mkdir(parents=True)
    register = blocks("python")[1]
    assert "register_world" in register
    (folder / "my_desk.py").write_text(f"{Path(support.__file__).read_text()}\n\n{register}")
    (folder / "env" / "desk.yaml").write_text(blocks("yaml")[0])
    return tmp_path


def steca(args: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"COLUMNS": "160", "HF_HUB_OFFLINE": "1"}
    code = "import sys; from steca_gym.cli import main; sys.exit(main())"
    return subprocess.run([sys.executable, "-c", code, *args], cwd=cwd, env=env, capture_output=True, text=True)


@pytest.mark.slow
def test_the_guides_world_conforms(elsewhere: Path) -> None:
    done = steca(commands()[0], elsewhere)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "me/SupportDesk-v0" in done.stdout and "conforms" in done.stdout


def test_a_folder_that_is_none_and_a_world_that_is_none_are_explained(elsewhere: Path) -> None:
    wrong = steca(["check-env", "desk", "--config-dir", "nowhere"], elsewhere)
    assert wrong.returncode == 2 and "not a folder" in wrong.stderr
    wrong = steca(["run", "--config-dir", "my_envs", "env=dask"], elsewhere)
    assert wrong.returncode == 2 and "did you mean 'desk'" in wrong.stderr


@pytest.mark.slow
@pytest.mark.skipif(find_spec("trl") is None, reason="a run trains a model: pip install 'steca-gym[llm]'")
def test_the_guides_run_goes_through_all_phases(elsewhere: Path) -> None:
    smaller = {
        "env.num_train_tasks": 6,
        "env.num_eval_tasks": 2,
        "agent.build.num_layers": 1,
        "agent.build.hidden_size": 32,
        "agent.warm_up.max_steps": 4,
        "agent.train.max_steps": 2,
        "exploration.num_experts": 2,
        "runs_root": "runs",
    }
    done = steca([*commands()[1], *(f"{key}={value}" for key, value in smaller.items())], elsewhere)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(elsewhere.glob("runs/supportdesk-steca-*/evaluation.json"))) == 1
