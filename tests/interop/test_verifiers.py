"""verifiers plays our worlds against a local server: turns, rewards, metrics, masks, its own evaluation command."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

vf = pytest.importorskip("verifiers.v1", reason="SKIPPED: needs the verifiers extra", exc_type=ImportError)

from steca_gym.errors import ConfigError  # noqa: E402
from steca_gym.interop.verifiers import INFO, WorldTaskset, _weigh, load_environment, taskset  # noqa: E402
from steca_gym.turns import find_turn_format  # noqa: E402
from tests.agents.test_openai import Server, running  # noqa: E402
from tests.interop.worlds import CORRIDOR  # noqa: E402

WORLD = f"tests.interop.worlds:{CORRIDOR}"


class Player(Server):
    """Walks to the door and opens it; in ``turn_format``."""

    turn_format = "react"
    first: tuple[str, ...] = ()
    """what it says first"""

    def plan(self, body: dict[str, Any]) -> tuple[int, bytes, dict[str, str]]:
        said = sum(m["role"] == "assistant" for m in body["messages"])
        seen = [m["content"] for m in body["messages"] if m["role"] in ("user", "tool")]
        rooms = int(seen[0].split(" rooms away")[0].rsplit(" ", 1)[1])
        at_door = sum("You are in" in text for text in seen) - 1 == rooms
        text = find_turn_format(self.turn_format).render("on", "open" if at_door else "right")
        message: dict[str, Any] = {"role": "assistant", "content": self.first[said] if said < len(self.first) else text}
        if self.turn_format == "tools":
            arguments = json.dumps({"action": "open" if at_door else "right"})
            call = {"id": f"c{said}", "type": "function", "function": {"name": "act", "arguments": arguments}}
            message |= {"content": "on", "tool_calls": [call]}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        usage = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
        answer = {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [choice],
            "usage": usage,
        }
        return 200, json.dumps(answer).encode(), {"Content-Type": "application/json"}


@pytest.fixture
def server() -> Iterator[Player]:
    with running(Player) as live:
        assert isinstance(live, Player)
        yield live


def play(server: Server, num_tasks: int = 2, **settings: Any) -> list[Any]:
    env = load_environment(**{"world": WORLD, **settings})
    model = vf.ModelContext(
        client=vf.EvalClientConfig(base_url=server.url), model="m", sampling=vf.SamplingConfig(temperature=0.0)
    )

    async def all_tasks() -> list[Any]:
        async with env.serving():
            episodes = [await env.run_episode(task, model) for task in env.taskset.take(num_tasks)]
            assert sum(map(len, env._free.values())) == 1  # one world, played again
            return episodes

    episodes = asyncio.run(all_tasks())
    assert not any(env._free.values())
    return [trace for episode in episodes for trace in episode.traces]


@pytest.mark.parametrize("turn_format", ["react", "tools", "json"])
def test_a_model_plays_and_is_scored(server: Player, turn_format: str) -> None:
    server.turn_format = turn_format
    traces = play(server, turn_format=turn_format)
    assert [t.task.key.rpartition("/")[0] for t in traces] == [f"{WORLD}/train/corridor-{n}" for n in (1, 2)]
    for number, trace in enumerate(traces, start=1):
        assert trace.ok and trace.rewards["outcome"].score == 1.0
        expected = {"won": 1.0, "num_turns": number + 1.0, "num_invalid_turns": 0.0, "num_unreadable_turns": 0.0}
        assert trace.metrics == expected
        played = trace.info[INFO]
        assert played["status"] == "terminated" and played["task_id"] == f"corridor-{number}"
        assert [turn["action"] for turn in played["turns"]] == ["right"] * number + ["open"]
        roles = [n.message.role for n in trace.nodes]
        answer = "tool" if turn_format == "tools" else "user"
        assert roles == ["system", "user", "assistant", *[answer, "assistant"] * number]
        assert [n.sampled for n in trace.nodes] == [role == "assistant" for role in roles]
    body = server.bodies[-1]
    assert find_turn_format(turn_format).instructions in body["messages"][0]["content"]
    assert body["temperature"] == 0.0 and ("tools" in body) == (turn_format == "tools")


def test_turns_that_nobody_understands_are_counted_and_answered(server: Player) -> None:
    server.first = ("I do not know.", "Action: fly", "Action: go\nup", "Thought: x\nAction: right")
    (trace,) = play(server, num_tasks=1)
    assert trace.metrics == {"won": 1.0, "num_turns": 5.0, "num_invalid_turns": 1.0, "num_unreadable_turns": 2.0}
    turns = trace.info[INFO]["turns"]
    assert [t["parsed"] for t in turns] == [False, True, False, True, True]
    assert "could not be read" in turns[0]["observation"] and "2 lines" in turns[2]["observation"]
    # The loss weights, on a trace whose server told tokens.
    sampled = [node for node in trace.nodes if node.sampled]
    for node in sampled:
        node.token_ids, node.mask = [1, 2, 3], [False, True, True]
    _weigh(trace, turns)
    weights = [node.loss_weights["steca"] for node in sampled]
    assert weights == [[0.0] * 3, [0.0] * 3, [0.0] * 3, [0.0, 1.0, 1.0], [0.0, 1.0, 1.0]]
    assert trace.branches[0].loss_weights("steca") == [w for node in weights for w in node]


def test_the_horizon_and_a_server_that_fails(server: Player) -> None:
    (trace,) = play(server, num_tasks=1, kwargs={"horizon": 1})
    assert trace.info[INFO]["status"] == "truncated" and trace.rewards["outcome"].score == 0.0
    server.path = "/elsewhere"
    server.plan = lambda body: (404, b"{}", {})  # type: ignore[method-assign]
    env = load_environment(world=WORLD)
    model = vf.ModelContext(client=vf.EvalClientConfig(base_url=server.url), model="m", sampling=vf.SamplingConfig())

    async def one() -> Any:
        async with env.serving():
            return await env.run_episode(next(iter(env.taskset)), model)

    episode = asyncio.run(one())
    assert not episode.ok and "404" in str([e.message for t in episode.traces for e in t.errors])


def test_a_prompt_with_a_worked_example() -> None:
    made = load_environment(world="household", prompt="turns", turn_format="json", kwargs={"horizon": 2}).taskset
    task = next(iter(made))
    assert isinstance(made, WorldTaskset)
    roles = [m.role for m in task.data.prompt]
    assert roles[-1] == "user" and roles.count("assistant") > 3
    assert json.loads(task.data.prompt[1].content)["action"] and "{turn_format}" not in task.data.system_prompt


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"wrold": "household"}, "'wrold' of a verifiers task set.*known: world, split"),
        ({"world": 7}, "'world' of a verifiers task set"),
        ({"seed": "x"}, "'seed' of a verifiers task set"),
    ],
)
def test_bad_settings_are_one_line(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        load_environment(**settings)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError):
        taskset(**{"world": "household", **settings})


def test_a_world_that_does_not_exist_is_one_line() -> None:
    for settings, words in (({"world": "houshold"}, "did you mean 'household'"), ({"prompt": "raect"}, "no prompt")):
        with pytest.raises(ConfigError, match=words):
            next(iter(load_environment(**settings).taskset))


@pytest.mark.slow
def test_its_own_evaluation_command_runs_a_package(server: Player, tmp_path: Path) -> None:
    (tmp_path / "my_corridor.py").write_text(
        "from steca_gym.interop.verifiers import ChatHarness, WorldEnv, taskset\n"
        f"CorridorTaskset = taskset({WORLD!r}, kwargs={{'horizon': 9}}, turn_format='xml')\n"
        "__all__ = ['ChatHarness', 'CorridorTaskset', 'WorldEnv']\n"
    )
    root = Path(__file__).resolve().parents[2]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(root)]), "HOME": str(tmp_path)}
    command = [sys.executable, "-c", "from verifiers.v1.cli.eval.main import main; main()", "my-corridor", "-n", "2"]
    command += [
        "-m",
        "m",
        "--client.base-url",
        server.url,
        "--no-push",
        "--no-rich",
        "--env.taskset.turn-format",
        "react",
    ]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (file,) = tmp_path.glob("outputs/*/traces.jsonl")
    episodes = [json.loads(line) for line in file.read_text().splitlines()]
    traces = [trace for episode in episodes for trace in episode["traces"]]
    assert sorted(t["info"][INFO]["task_id"] for t in traces) == ["corridor-1", "corridor-2"]
    assert all(t["rewards"]["outcome"]["score"] == 1.0 and t["metrics"]["won"] == 1.0 for t in traces)
