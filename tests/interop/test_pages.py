"""The programs of the pages run, and are short."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.agents.test_openai import Server, running
from tests.interop.games import write_games

DOCS = Path(__file__).resolve().parents[2] / "docs"
INTEROP = ["alfworld", "trl", "openenv", "verifiers"]
PAGES = [*(f"interop/{name}.md" for name in INTEROP), "turn-formats.md", "snapshots.md"]
NEEDS = {"interop/trl.md": "trl", "interop/openenv.md": "websockets", "interop/verifiers.md": "verifiers"}


def programs(page: str) -> list[str]:
    found = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    assert found
    return found


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_programs_of_a_page_run(page: str, tmp_path: Path) -> None:
    if page in NEEDS and find_spec(NEEDS[page]) is None:
        pytest.skip(f"needs {NEEDS[page]}")
    write_games(tmp_path / "data" / "json_2.1.1")
    arguments = []
    if page == "interop/trl.md":
        from tests.fakes import tiny_model, tiny_tokenizer

        tiny_model().save_pretrained(tmp_path / "model")
        tiny_tokenizer().save_pretrained(tmp_path / "model")
        arguments = [str(tmp_path / "model")]
    with contextlib.ExitStack() as servers:
        if page in ("interop/verifiers.md", "turn-formats.md"):
            arguments = [servers.enter_context(running(Looker)).url, "m"]
        _run_all(page, arguments, tmp_path)


class Looker(Server):
    """A model that only looks."""

    def plan(self, body: dict[str, Any]) -> tuple[int, bytes, dict[str, str]]:
        message: dict[str, Any] = {"role": "assistant", "content": "Thought: where am I?\nAction: look"}
        if "tools" in body:
            function = {"name": "act", "arguments": '{"action": "look"}'}
            message |= {"content": "", "tool_calls": [{"id": "c", "type": "function", "function": function}]}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        answer = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        return 200, json.dumps(answer).encode(), {"Content-Type": "application/json"}


def _run_all(page: str, arguments: list[str], tmp_path: Path) -> None:
    env = {
        **os.environ,
        "ALFWORLD_DATA": str(tmp_path / "data"),
        "STECA_CACHE": str(tmp_path / "cache"),
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    for program in programs(page):
        (tmp_path / "program.py").write_text(program)
        command = [sys.executable, "program.py", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.strip() and (page != "snapshots.md" or done.stdout == "conforms\n")


@pytest.mark.parametrize("page", PAGES)
def test_the_programs_have_at_most_thirty_lines(page: str) -> None:
    for program in programs(page):
        assert len(program.strip().splitlines()) <= 30
