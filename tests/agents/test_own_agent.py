"""A user's agent in a user's folder: what docs/your-own-agent.md says is what works."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from steca_gym.envs.support import SupportDesk

from steca_gym.agent import Agent
from steca_gym.collectors import Collector
from steca_gym.registration import make_text_env

make_support_desk = functools.partial(make_text_env, SupportDesk, horizon=12)
GUIDE = Path(__file__).parents[2] / "docs" / "your-own-agent.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE.read_text(), re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def guide() -> dict[str, Any]:
    """The names that the guide's code defines; running it checks the agent as the guide does."""
    names: dict[str, Any] = {"__name__": "guide"}
    for block in blocks("python"):
        exec(compile(block, str(GUIDE), "exec"), names)
    return names


def test_the_guides_agent_conforms_and_plays(guide: dict[str, Any]) -> None:
    agent = guide["KeywordAgent"](favourite="verify")
    assert isinstance(agent, Agent)
    episodes = guide["play"](make_support_desk, agent)
    assert len(episodes) == 4
    assert all(e.trajectory.status in ("terminated", "truncated") and e.trajectory.steps for e in episodes)
    assert all(step.parsed and step.valid for e in episodes for step in e.trajectory.steps)


def test_the_guides_agent_writes_other_formats(guide: dict[str, Any]) -> None:
    for name in ("tools", "json", "xml"):
        agent = guide["KeywordAgent"](turn_format=name)
        with Collector(make_support_desk, agent, turn_format=name) as collector:
            request = guide["EpisodeRequest"](task_id=make_support_desk().task_ids()[0], seed=0)
            (episode,) = collector.run([request])
        assert all(step.parsed for step in episode.trajectory.steps)


@pytest.mark.slow
def test_the_guides_command_evaluates_it(tmp_path: Path) -> None:
    folder = tmp_path / "my_agents"
    (folder / "agent").mkdir(parents=True)
    (folder / "my_agent.py").write_text(blocks("python")[0])
    (folder / "agent" / "keyword.yaml").write_text(blocks("yaml")[0])
    (line,) = blocks("bash")[0].splitlines()
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"COLUMNS": "160", "HF_HUB_OFFLINE": "1"}
    code = "import sys; from steca_gym.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, *line.split()[1:]]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 games" in done.stdout + done.stderr
