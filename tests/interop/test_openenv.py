"""Our OpenEnv server: its messages, its sessions, our adapter and the real client."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("websockets", reason="needs the openenv extra")
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from steca_gym.cli import main
from steca_gym.errors import ConfigError
from steca_gym.interop.openenv import OpenEnvServer
from steca_gym.interop.worlds import make_env
from steca_gym.testing import check_text_env
from tests.interop.worlds import CORRIDOR


class Client:
    """Sends a message and reads the answer."""

    def __init__(self, url: str, **kwargs: Any) -> None:
        self.connection = contextlib.ExitStack().enter_context(
            connect(url.replace("http", "ws") + "/ws", proxy=None, **kwargs)
        )

    def ask(self, kind: str, **data: Any) -> dict[str, Any]:
        return self.raw(json.dumps({"type": kind, "data": data}))

    def raw(self, text: str | bytes) -> dict[str, Any]:
        self.connection.send(text)
        answer: dict[str, Any] = json.loads(self.connection.recv(timeout=60))
        return answer

    def ok(self, kind: str, **data: Any) -> dict[str, Any]:
        answer = self.ask(kind, **data)
        assert answer["type"] != "error", answer
        found: dict[str, Any] = answer["data"]
        return found

    def refused(self, kind: str, **data: Any) -> tuple[str, str]:
        answer = self.ask(kind, **data)
        assert answer["type"] == "error", answer
        assert "\n" not in answer["data"]["message"]
        return answer["data"]["code"], answer["data"]["message"]


@pytest.fixture(params=[True, False], ids=["saving", "replaying"])
def server(request: pytest.FixtureRequest) -> Iterator[OpenEnvServer]:
    make = functools.partial(make_env, CORRIDOR, can_save=request.param)
    with OpenEnvServer(make, port=0, max_sessions=3, max_snapshots=2) as made:
        yield made


def test_an_episode_over_the_wire_is_the_episode_played_directly(server: OpenEnvServer) -> None:
    client, env = Client(server.url), make_env(CORRIDOR)
    for seed in range(5):
        text, info = env.reset(seed=seed)
        got = client.ok("reset", seed=seed)
        assert got == {"observation": {"text": text, **info}, "reward": None, "done": False}
        over = False
        while not over:
            action = env.expert_action() or "jump"
            text, reward, terminated, truncated, info = env.step(action)
            over = terminated or truncated
            got = client.ok("step", action=action)
            assert got == {"observation": {"text": text, **info}, "reward": reward, "done": over}
        state = client.ok("state")
        assert state["step_count"] == env.num_steps and state["won"] is info["won"]
        assert client.refused("step", action="right")[0] == "EXECUTION_ERROR"


def test_a_snapshot_is_entered_again_also_by_another_session(server: OpenEnvServer) -> None:
    one, other = Client(server.url), Client(server.url)
    one.ok("reset", task_id="corridor-3", seed=4)
    here = one.ok("step", action="right")
    key = one.ok("snapshot")["snapshot"]
    ends = [one.ok("step", action=action) for action in ("right", "jump")]
    assert ends[-1]["done"]
    for client in (one, other):
        back = client.ok("restore", snapshot=key)
        assert back["observation"] == here["observation"] and not back["done"] and back["reward"] is None
        assert [client.ok("step", action=action) for action in ("right", "jump")] == ends
    ended = one.ok("snapshot")["snapshot"]
    assert other.ok("restore", snapshot=ended)["done"]
    assert one.refused("snapshot")[0] == "CAPACITY_REACHED"
    assert other.refused("drop", snapshot=key)[0] == "VALIDATION_ERROR"
    assert one.ok("drop", snapshot=key) == {"snapshot": key}
    for odd in ([key], {"a": 1}, 5, None):
        assert one.refused("drop", snapshot=odd)[0] == "VALIDATION_ERROR"
    assert "no snapshot" in other.refused("restore", snapshot=key)[1]


def test_a_session_takes_its_snapshots_and_its_place_with_it(server: OpenEnvServer) -> None:
    clients = [Client(server.url) for _ in range(3)]
    clients[0].ok("reset", seed=0)
    key = clients[0].ok("snapshot")["snapshot"]
    full = Client(server.url)
    assert json.loads(full.connection.recv(timeout=60))["data"]["code"] == "CAPACITY_REACHED"
    clients[0].connection.send(json.dumps({"type": "close"}))
    clients[0].connection.close()
    # The server gives the place free a moment after the connection is closed.
    end = time.monotonic() + 60
    while True:
        with contextlib.suppress(ConnectionClosed):
            answer = Client(server.url).ask("restore", snapshot=key)
            if answer["data"]["code"] != "CAPACITY_REACHED":
                break
        assert time.monotonic() < end
    assert answer["type"] == "error" and answer["data"]["code"] == "VALIDATION_ERROR"


WRONG: list[tuple[str, str]] = [
    ("{", "INVALID_JSON"),
    ("[" * 50_000, "INVALID_JSON"),
    ("5", "VALIDATION_ERROR"),
    ('{"type": "mcp", "data": {}}', "UNKNOWN_TYPE"),
    ('{"type": ["step"]}', "UNKNOWN_TYPE"),
    ('{"type": "step", "data": "right"}', "VALIDATION_ERROR"),
    ('{"type": "step", "data": {"message": "right"}}', "VALIDATION_ERROR"),
    ('{"type": "step", "data": {"action": 5}}', "VALIDATION_ERROR"),
    ('{"type": "reset", "data": {"seed": -1}}', "VALIDATION_ERROR"),
    ('{"type": "reset", "data": {"seed": true}}', "VALIDATION_ERROR"),
    ('{"type": "reset", "data": {"sed": 1}}', "VALIDATION_ERROR"),
    ('{"type": "reset", "data": {"task_id": "corridor-99"}}', "VALIDATION_ERROR"),
    ('{"type": "reset", "data": {"split": "tests"}}', "VALIDATION_ERROR"),
    ('{"type": "restore", "data": {"snapshot": {"a": 1}}}', "VALIDATION_ERROR"),
]


def test_a_wrong_message_is_answered_and_the_session_goes_on(server: OpenEnvServer) -> None:
    client = Client(server.url)
    assert client.refused("step", action="right")[0] == client.refused("snapshot")[0] == "EXECUTION_ERROR"
    client.ok("reset", task_id="corridor-2", seed=0)
    for text, code in WRONG:
        answer = client.raw(text)
        assert answer["type"] == "error" and answer["data"]["code"] == code, text
        assert len(answer["data"]["message"]) < 300
    assert client.refused("step", action="crash")[0] == "EXECUTION_ERROR"
    client.ok("reset", task_id="corridor-2", seed=0)
    assert client.ok("step", action="\ud800")["observation"]["valid"] is False


def test_health_other_paths_and_browsers(server: OpenEnvServer) -> None:
    open_url = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
    assert json.load(open_url(f"{server.url}/health")) == {"status": "healthy"}
    assert json.load(open_url(f"{server.url}/schema"))["action"]["required"] == ["action"]
    with pytest.raises(urllib.error.HTTPError, match="404"):
        open_url(f"{server.url}/")
    with pytest.raises(InvalidStatus, match="403"):
        Client(server.url, origin="http://evil.example")


@pytest.mark.slow
def test_our_adapter_plays_it_and_keeps_the_contract() -> None:
    with OpenEnvServer(functools.partial(make_env, "household", num_receptacles=4), port=0) as server:
        make = functools.partial(
            make_env,
            "steca/OpenEnv-v0",
            url=server.url,
            action={"action": "{action}"},
            observation_field="text",
            num_train_tasks=3,
            num_eval_tasks=2,
        )
        report = check_text_env(make)
        assert report.ok, report.failed
        env, direct = make(), make_env("household", num_receptacles=4)
        text, info = env.reset(options={"task_id": "seed/2"})
        expected, _ = direct.reset(seed=2)
        assert text == expected and info["goal"]
        won = False
        while not won:
            action = direct.expert_action()
            assert action is not None
            _, _, _, _, seen = env.step(action)
            direct.step(action)
            won = seen["won"]
        env.close()


REAL_PYTHON = os.environ.get("OPENENV_PYTHON") or (sys.executable if find_spec("openenv") else "")
"""an interpreter that has openenv, which brings so many packages that one may want it elsewhere"""


@pytest.mark.skipif(not REAL_PYTHON, reason="NOT PLAYED by the real client: pip install openenv, or set OPENENV_PYTHON")
def test_the_real_client_plays_it() -> None:
    with OpenEnvServer(functools.partial(make_env, CORRIDOR), port=0) as server:
        done = subprocess.run([REAL_PYTHON, "-c", REAL_CLIENT, server.url], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]


REAL_CLIENT = """
import sys
import time
from openenv.core.generic_client import GenericEnvClient
with GenericEnvClient(base_url=sys.argv[1]).sync() as env:
    first = env.reset(seed=3)
    assert first.observation["task_id"].startswith("corridor-") and not first.done and first.reward is None
    assert env.reset(seed=3).observation == first.observation
    result = env.step({"action": "jump"})
    assert result.done and result.reward == 0.0 and result.observation["text"] == "You fall."
    assert env.state()["step_count"] == 1
"""


# -- the command --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_port_in_use_and_other_wrong_settings_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def line(*args: str) -> str:
        assert main(["serve", *args]) == 2
        told = capsys.readouterr().err.strip()
        assert "\n" not in told
        return told

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"port {port} of 127.0.0.1 is in use" in line("env=household", "--port", port)
    assert "did you mean 'household'" in line("env=houshold")
    assert "env=household" in line("--port", "8000")
    assert "'eight'" in line("env=household", "--port=eight")
    assert "65535" in line("env=household", "--port=99999")
    assert "--port needs a value" in line("env=household", "--port")
    assert "did you mean '--port'" in line("env=household", "--prt", "1")
    assert "num_objcts" in line("env=household", "env.kwargs.num_objcts=3")
    assert "valid_sen" in line("env=household", "split=valid_sen")
    assert "cannot listen" in line("env=household", "--port=0", "--host=203.0.113.1")
    with pytest.raises(ConfigError, match="max_sessions"):
        OpenEnvServer(functools.partial(make_env, CORRIDOR), max_sessions=0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_told_to_stop(number: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "steca_gym.cli", "serve", "env=household", "--port=0", "split=valid_seen"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=dict(os.environ)) as running:
        assert running.stderr is not None
        said = running.stderr.readline()
        assert said.startswith("serving ") and "http://127.0.0.1:" in said, said
        url = next(word for word in said.split() if word.startswith("http"))
        client = Client(url)
        assert client.ok("reset", seed=1)["observation"]["task_id"].startswith("valid_seen/")
        running.send_signal(number)
        assert running.wait(timeout=60) == 0
        assert running.stderr.read() == ""
