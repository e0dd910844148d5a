"""Secrets are planted in every way that we know, and everything that a command leaves behind is searched for them."""

from __future__ import annotations

import base64
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest

from steca_gym.cli import main
from tests.agents.test_openai import Server, running

SECRET = "sk-pl4nted/+=very~secret-Aa1"
FORMS = (
    SECRET,
    SECRET[:14],
    quote(SECRET, safe=""),
    json.dumps(SECRET)[1:-1],
    base64.b64encode(SECRET.encode()).decode()[:16],
    base64.b64encode(f":{SECRET}".encode()).decode()[:16],
)
GAMES = ["env=household", "env.num_eval_tasks=1", "env.kwargs.horizon=3", "env.kwargs.num_objects=3"]

WORLD = """
import os
from steca_gym import Outcome, World, register_world

class Leaky(World):
    name, version, data_hash = "leaky", "1", ""
    def splits(self):
        return ("train", "valid_seen")
    def task_ids(self, split):
        return [f"{split}-{i}" for i in range(3)]
    def start(self, task_id, seed):
        self.broken = task_id.endswith("0")
        return Outcome(observation="A room.")
    def admissible_actions(self):
        return ("log in",)
    @property
    def goal(self):
        return "Get out."
    def act(self, action):
        if not self.broken:
            return Outcome(observation="You are in.", won=True, over=True, score=1.0)
        raise RuntimeError(f"cannot log in with {os.environ['LEAKY_API_KEY']}")

class Tracker:
    log = table = summary = finish = lambda self, *a, **k: None
    def __init__(self, *, password="", folder=None, settings=None):
        (folder / "tracker.txt").write_text(repr(settings))
        raise RuntimeError(f"wrong password {password}")

register_world("me/Leaky-v0", Leaky)
"""


class Left:
    """What a command has left: files, output, logs."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
        self.folder, self.capsys, self.caplog = folder, capsys, caplog

    def places(self, forms: tuple[str, ...] = FORMS) -> list[str]:
        """Where any form of the secret stands."""
        shown = self.capsys.readouterr()
        held = {"stdout": shown.out, "stderr": shown.err, "log": self.caplog.text}
        for file in self.folder.rglob("*"):
            if file.is_file() and file.suffix != ".py":
                held[str(file.relative_to(self.folder))] = file.read_bytes().decode("utf-8", "surrogateescape")
        assert any(held.values())
        return [place for place, text in held.items() if any(form in text for form in forms)]


@pytest.fixture
def left(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
) -> Left:
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.DEBUG)
    for name in ("httpx", "httpcore.http11", "httpcore.connection"):
        caplog.set_level(logging.DEBUG, logger=name)
    return Left(tmp_path, capsys, caplog)


def plan_echo(server: Server, how: str) -> None:
    body = json.dumps({"error": {"message": f"Incorrect API key provided: {SECRET}."}}).encode()
    turn = {"choices": [{"message": {"content": f"Thought: my key is {SECRET}\nAction: look"}}]}
    plans: dict[str, tuple[int, bytes, dict[str, str]]] = {
        "4xx": (401, body, {}),
        "5xx": (503, f"failed: Authorization: Bearer {SECRET}".encode(), {"Retry-After": "0"}),
        "no JSON": (200, SECRET.encode(), {}),
        "encoded": (400, (quote(SECRET, safe="") + base64.b64encode(f":{SECRET}".encode()).decode()).encode(), {}),
        "header": (400, b"no", {"X-Key": SECRET}),
        "redirect": (302, b"", {"Location": f"http://127.0.0.2:1/{quote(SECRET, safe='')}?api_key={SECRET}"}),
        "turn": (200, json.dumps(turn).encode(), {}),
    }
    server.plan = lambda _: plans[how]  # type: ignore[method-assign]


@pytest.mark.parametrize("how", ["4xx", "5xx", "no JSON", "encoded", "header", "redirect", "turn"])
def test_a_key_that_a_server_echoes_is_nowhere(left: Left, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setenv("MY_CREDENTIAL", SECRET)
    with running() as server:
        plan_echo(server, how)
        code = main(
            ["evaluate", *GAMES, "agent=openai", f"agent.engine.base_url={server.url}", "agent.engine.model=m"]
            + ["+agent.engine.api_key_env=MY_CREDENTIAL", "agent.engine.max_retries=1", "run_dir=runs/mine"]
            + ["+agent.engine.backoff_s=0"]
        )
        assert server.headers_seen[0]["Authorization"] == f"Bearer {SECRET}"
    assert code == (0 if how == "turn" else 4)
    for command in (["inspect", "runs/mine", "--plain"], ["report", "runs/mine"], ["export", "run=runs/mine"]):
        main(command)
    assert left.places() == []


@pytest.mark.parametrize("key", [f"{SECRET}\nmore-{SECRET}", f"{SECRET} x"])
def test_a_key_that_cannot_be_sent_is_nowhere(left: Left, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with running() as server:
        at = [f"agent.engine.base_url={server.url}", "agent.engine.model=m", "run_dir=runs/mine"]
        assert main(["evaluate", *GAMES, "agent=openai", *at]) == 2
        assert not server.bodies
    assert left.places() == []


URLS = [
    f"http://user:{SECRET.replace('/', '_')}@127.0.0.1:1/v1",
    f"http://{SECRET.replace('/', '_')}@127.0.0.1:1/v1",
    f"https://h.example/v1?api-key={SECRET.replace('/', '_')}",
]
PLACES: list[tuple[str, Callable[[str], list[str]]]] = [
    ("openai", lambda url: ["agent=openai", f"agent.engine.base_url='{url}'", "agent.engine.model=m"]),
    ("judge", lambda url: ["agent=random", f"+judge.base_url='{url}'", "judge.model=m"]),
    ("world", lambda url: ["agent=random", f"+env.kwargs.url='{url}'"]),
    ("logger", lambda url: ["agent=random", f"+logger.url='{url}'"]),
]


@pytest.mark.parametrize(("place", "url"), [(p, URLS[i % 3]) for i, (p, _) in enumerate(PLACES)])
def test_credentials_in_a_url_are_nowhere(left: Left, place: str, url: str) -> None:
    settings = dict(PLACES)[place](url)
    assert main(["evaluate", *GAMES, *settings, "run_dir=runs/mine"]) == 2
    assert not (left.folder / "runs").exists()
    assert left.places((SECRET[:9],)) == []


@pytest.mark.parametrize(
    "setting",
    [
        f"+logger.api_key='{SECRET}'",
        f"+env.kwargs.password='{SECRET}'",
        f"+agent.engine.api_key_env='{SECRET}'",
        f"+agent.engine.extra_body.access_token='{SECRET}'",
        f"+agent.engine.api_key='{SECRET}'",
        f"agent.engine.api_key='{SECRET}",
    ],
)
def test_a_secret_that_a_command_spells_out_is_nowhere(left: Left, setting: str) -> None:
    at = ["agent.engine.base_url=http://127.0.0.1:1/v1", "agent.engine.model=m"]
    assert main(["evaluate", *GAMES, "agent=openai", *at, setting, "run_dir=runs/mine"]) == 2
    assert left.places() == []


def test_secrets_of_the_environment_are_in_no_record_and_no_failure(
    left: Left, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setenv("LEAKY_API_KEY", SECRET)
    monkeypatch.setenv("ODDLY_NAMED", f"other-{SECRET}")
    (left.folder / "leaky_world.py").write_text(WORLD)
    monkeypatch.syspath_prepend(left.folder)
    settings = ["env.id=leaky_world:me/Leaky-v0", "~env.kwargs", "logger=leaky_world:Tracker"]
    settings += ["+logger.password='${oc.env:ODDLY_NAMED}'", "agent=random", "env.num_eval_tasks=2"]
    main(["evaluate", "env=household", *settings, "run_dir=runs/mine"])
    warned = " ".join(str(w.message) for w in recwarn)
    assert "wrong password [hidden]" in warned and SECRET not in warned
    assert "[hidden]" in (left.folder / "runs/mine/tracker.txt").read_text()
    assert "${oc.env:ODDLY_NAMED}" in (left.folder / "runs/mine/run.json").read_text()
    for command in (["inspect", "runs/mine", "--plain"], ["report", "runs/mine"], ["export", "run=runs/mine"]):
        main(command)
    assert left.places() == []


def test_the_stack_of_a_defect_shows_no_secret(tmp_path: Path) -> None:
    code = (
        "import sys; from steca_gym import cli; sys.argv = ['steca', 'table'];"
        "cli.command = lambda name: lambda args: 1 / 0 if args else [].index(__import__('os').environ['A_TOKEN']);"
        "cli.main()"
    )
    env = {"A_TOKEN": SECRET, "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=env)
    assert "ValueError" in done.stderr and "[hidden]" in done.stderr and SECRET not in done.stderr
