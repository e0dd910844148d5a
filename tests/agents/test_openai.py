"""The endpoint's agent, reflector and judge against a real HTTP server on this machine."""

from __future__ import annotations

import base64
import json
import logging
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote

import pytest
import steca_gym.agents  # noqa: F401 - registers
from steca_gym.agents.openai import (
    Endpoint,
    EndpointSettings,
    OpenAIAgent,
    OpenAIJudge,
    OpenAIReflector,
)

from steca_gym.agent import (
    GREEDY,
    Agent,
    Message,
    Prompt,
    Sampling,
    StreamingAgent,
    Turn,
    TurnRequest,
    find_turn_format,
)
from steca_gym.calibration.foresight import foresee
from steca_gym.calibration.reflection import ReflectionCase
from steca_gym.collectors import Collector, EpisodeRequest
from steca_gym.errors import AgentError, ConfigError
from steca_gym.registry import agents, reflectors
from steca_gym.trajectory import Step, Trajectory
from tests.fakes import corridor


class Server(ThreadingHTTPServer):
    """Answers chat completions by a list of planned failures first, and then by ``answer``."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.bodies: list[dict[str, Any]] = []
        self.headers_seen: list[dict[str, str]] = []
        self.planned: list[tuple[int, bytes, dict[str, str]]] = []
        self.in_flight = self.most_in_flight = 0
        self.hold: threading.Barrier | None = None
        self.path = "/v1/chat/completions"
        self.released = threading.Event()
        """set at the end: handlers that hold a request let it go"""
        self.respond: Callable[[Handler], None] | None = None
        """writes the whole answer to the socket, instead of the usual one"""

    def answer(self, body: dict[str, Any]) -> str:
        return f"Thought: I saw {body['messages'][-1]['content']}\nAction: go on"

    def plan(self, body: dict[str, Any]) -> tuple[int, bytes, dict[str, str]] | None:
        """An answer in place of the usual one."""
        return None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        server = self.server
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        with server.lock:
            server.in_flight += 1
            server.most_in_flight = max(server.most_in_flight, server.in_flight)
            server.bodies.append(json.loads(raw))
            server.headers_seen.append(dict(self.headers))
            planned = server.planned.pop(0) if server.planned else server.plan(json.loads(raw))
        try:
            if server.hold is not None:
                server.hold.wait(timeout=10)
            if server.respond is not None:
                with suppress(ConnectionError):
                    server.respond(self)
                return
            if self.path != server.path:
                planned = (404, b"no such path", {})
            status, answer, headers = planned or (200, self._completion(json.loads(raw)), {})
        finally:
            with server.lock:
                server.in_flight -= 1
        try:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)
        except ConnectionError:
            return  # the client gave up; that is what is tested

    def _completion(self, body: dict[str, Any]) -> bytes:
        text = self.server.answer(body)
        usage = {
            "prompt_tokens": 50,
            "completion_tokens": len(text.split()),
            "prompt_tokens_details": {"cached_tokens": 30},
        }
        return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}], "usage": usage}).encode()

    def log_message(self, *args: object) -> None:
        return None


@contextmanager
def running(kind: type[Server] = Server) -> Iterator[Server]:
    server = kind()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    with running() as live:
        yield live


class Clock:
    def __init__(self) -> None:
        self.waits: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.waits.append(seconds)


def endpoint(server: Server, clock: Clock | None = None, **options: Any) -> Endpoint:
    return Endpoint(EndpointSettings(base_url=server.url, model="m", **options), sleep=clock or Clock())


def request(text: str, *, fork: str | None = None, seed: int = 3, turn: int = 0) -> TurnRequest:
    return TurnRequest(
        episode_id=text,
        messages=(Message("system", "Play."), Message("user", text)),
        seed=seed,
        turn=turn,
        sampling=Sampling(temperature=0.5, max_new_tokens=9, top_p=0.9),
        fork_of=fork,
    )


def prefix(action: str = "open door") -> Trajectory:
    return Trajectory(
        task_id="t",
        goal="get out",
        first_observation="You are in.",
        steps=(Step(action=action, observation="It is locked."),),
    )


def test_the_agent_answers_in_order_with_its_settings_and_counts(server: Server) -> None:
    agent = OpenAIAgent(endpoint=endpoint(server))
    assert isinstance(agent, Agent)
    turns = agent.act([request(f"room {i}", fork=f"f{i % 2}") for i in range(8)])
    assert [t.text for t in turns] == [f"Thought: I saw room {i}\nAction: go on" for i in range(8)]
    assert turns[0].num_prompt_tokens_read == 20 and turns[0].num_prompt_tokens_reused == 30
    assert turns[0].num_sampled_tokens == 8
    body = server.bodies[0]
    assert (body["model"], body["temperature"], body["top_p"], body["max_tokens"]) == ("m", 0.5, 0.9, 9)
    assert body["messages"][0] == {"role": "system", "content": "Play."}
    agent.release(["room 0"])
    assert agent.act([]) == []


def test_the_seed_follows_the_episode_and_its_turn(server: Server) -> None:
    agent = OpenAIAgent(endpoint=endpoint(server))
    for turn in (0, 1, 0):
        agent.act([request("x", turn=turn)])
    seeds = [b["seed"] for b in server.bodies]
    assert seeds[0] == seeds[2] != seeds[1]
    OpenAIAgent(endpoint=endpoint(server, send_seed=False)).act([request("x")])
    assert "seed" not in server.bodies[-1]


def test_no_more_in_flight_than_the_setting_says(server: Server) -> None:
    # The barrier lets nobody pass until four are there at once, and eight requests come in fours.
    server.hold = threading.Barrier(4)
    OpenAIAgent(endpoint=endpoint(server, max_in_flight=4)).act([request(str(i)) for i in range(8)])
    assert server.most_in_flight == 4


def test_turns_come_back_as_they_are_done_and_places_fill_again() -> None:
    class Held(Server):
        def __init__(self) -> None:
            super().__init__()
            self.may_go = threading.Event()

        def answer(self, body: dict[str, Any]) -> str:
            if body["messages"][-1]["content"] == "slow":
                assert self.may_go.wait(10)
            return super().answer(body)

    with running(Held) as server:
        assert isinstance(server, Held)
        agent = OpenAIAgent(endpoint=endpoint(server, max_in_flight=2))
        assert isinstance(agent, StreamingAgent)
        agent.submit([request("slow"), request("a"), request("b")])
        with pytest.raises(AgentError, match="in progress already"):
            agent.submit([request("slow")])
        with pytest.raises(AgentError, match="poll"):
            agent.act([request("c")])
        # The slow one holds its place; the others pass through the second one after another.
        assert [[key for key, _ in agent.poll()] for _ in range(2)] == [["a"], ["b"]]
        server.may_go.set()
        assert [key for key, _ in agent.poll()] == ["slow"]
        assert agent.poll() == []


def test_a_released_episode_is_not_answered_and_its_place_comes_free() -> None:
    class Held(Server):
        def __init__(self) -> None:
            super().__init__()
            self.may_go = threading.Event()

        def answer(self, body: dict[str, Any]) -> str:
            assert self.may_go.wait(10)
            return super().answer(body)

    with running(Held) as server:
        assert isinstance(server, Held)
        agent = OpenAIAgent(endpoint=endpoint(server, max_in_flight=1))
        agent.submit([request("gone"), request("never sent")])
        agent.release(["gone", "never sent"])
        agent.submit([request("stays")])
        server.may_go.set()
        assert [key for key, _ in agent.poll()] == ["stays"]
        assert agent.poll() == []
        assert [b["messages"][-1]["content"] for b in server.bodies] == ["gone", "stays"]


def test_one_failure_is_one_episodes(server: Server) -> None:
    server.planned = [(400, b"too long", {})] * 2  # the second time without the fields that a server may not know
    agent = OpenAIAgent(endpoint=endpoint(server, max_in_flight=1))
    agent.submit([request("bad"), request("good")])
    answers = dict(agent.poll() + agent.poll())
    assert isinstance(answers["bad"], AgentError) and isinstance(answers["good"], Turn)


def test_requests_of_one_fork_go_next_to_each_other(server: Server) -> None:
    agent = OpenAIAgent(endpoint=endpoint(server, max_in_flight=1))
    agent.submit([request("a0", fork="a"), request("b0", fork="b")])
    agent.submit([request("a1", fork="a"), request("b1", fork="b"), request("plain"), request("a2", fork="a")])
    while agent.poll():
        pass
    assert [b["messages"][-1]["content"] for b in server.bodies] == ["a0", "a1", "a2", "b0", "b1", "plain"]


def test_an_episodes_prompts_only_grow(server: Server) -> None:
    agent = OpenAIAgent(endpoint=endpoint(server))
    asked = [EpisodeRequest(task_id=f"corridor-{i}", seed=i) for i in (3, 4, 5)]
    with Collector(corridor(horizon=5), agent, prompt=Prompt(instruction="Play.")) as collector:
        assert all(e.trajectory.status == "truncated" for e in collector.run(asked))
        cost = collector.ledger.total()
    assert len(server.bodies) == 15
    bodies = sorted((b["messages"] for b in server.bodies), key=len)
    for length in (4, 6, 8, 10):
        for messages in (b for b in bodies if len(b) == length):
            assert any(messages[:-2] == before for before in bodies if len(before) == length - 2)
    assert cost.num_prompt_tokens_read == 15 * 20 and cost.num_prompt_tokens_reused == 15 * 30


def test_passing_failures_are_retried_with_growing_waits(server: Server) -> None:
    clock = Clock()
    server.planned = [(503, b"busy", {}), (429, b"slow down", {"Retry-After": "7"}), (200, b"<html>", {})]
    asked = endpoint(server, clock, backoff_s=0.5)
    (turn,) = OpenAIAgent(endpoint=asked).act([request("x")])
    assert turn.text.endswith("go on") and asked.num_retries == 3
    assert clock.waits == [0.5, 7.0, 2.0]


def test_a_refusal_is_not_retried_and_names_itself(server: Server) -> None:
    server.planned = [(401, b'{"error": "bad key"}', {})]
    with pytest.raises(AgentError, match="401.*bad key"):
        OpenAIAgent(endpoint=endpoint(server)).act([request("x")])
    assert len(server.bodies) == 1


def test_endless_failure_ends_in_one_clear_line(server: Server) -> None:
    server.planned = [(500, b"oops", {})] * 10
    with pytest.raises(AgentError, match="3 attempts.*500.*oops") as caught:
        OpenAIAgent(endpoint=endpoint(server, max_retries=2)).act([request("x")])
    assert "\n" not in str(caught.value)


def test_a_server_that_is_not_there(server: Server) -> None:
    gone = endpoint(server, max_retries=1)
    server.shutdown()
    server.server_close()
    with pytest.raises(AgentError, match="2 attempts"):
        OpenAIAgent(endpoint=gone).act([request("x")])


def hang(handler: Handler) -> None:
    handler.server.released.wait(30)


def drip(handler: Handler) -> None:
    """Headers at once, and then a body that never ends, byte after byte."""
    handler.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n")
    while not handler.server.released.wait(0.002):
        handler.wfile.write(b" ")
        handler.wfile.flush()


def drip_headers(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.0 200 OK\r\n")
    while not handler.server.released.wait(0.002):
        handler.wfile.write(b"X-More: 1\r\n")
        handler.wfile.flush()


@pytest.mark.parametrize("respond", [hang, drip, drip_headers])
def test_an_attempt_has_a_limit_in_time_as_a_whole(server: Server, respond: Callable[[Handler], None]) -> None:
    server.respond = respond
    agent = OpenAIAgent(endpoint=endpoint(server, timeout_s=0.1, max_retries=1))
    with pytest.raises(AgentError, match=r"2 attempts.*(timed out after 0.1 s|header)"):
        agent.act([request("x")])
    assert agent.endpoint.num_retries == 1


def test_an_answer_has_a_limit_in_size(server: Server) -> None:
    def flood(handler: Handler) -> None:
        handler.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n")
        for _ in range(10_000):
            handler.wfile.write(b" " * 1000)

    server.respond = flood
    with pytest.raises(AgentError, match="more than 5000 bytes; raise max_answer_bytes"):
        OpenAIAgent(endpoint=endpoint(server, max_answer_bytes=5000)).act([request("x")])
    assert len(server.bodies) == 1


def test_an_interrupt_does_not_wait_for_the_server(server: Server) -> None:
    server.respond = hang
    agent = OpenAIAgent(endpoint=endpoint(server, timeout_s=600, max_in_flight=2))

    def interrupt() -> None:
        while not server.bodies:
            server.released.wait(0.001)
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            agent.act([request("a"), request("b"), request("c")])
    finally:
        signal.signal(signal.SIGINT, before)
    server.respond = None
    assert agent.act([request("d")])[0].text.endswith("go on")


def test_a_program_with_a_hung_request_can_end(server: Server) -> None:
    server.respond = hang
    code = (
        "import sys; from steca_gym.agents.openai import OpenAIAgent; from steca_gym.agent import *; "
        f"a = OpenAIAgent({server.url!r}, 'm', timeout_s=600); "
        "a.submit([TurnRequest(episode_id='e', messages=(Message('user', 'x'),), seed=0, turn=0)]); print('sent')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "sent\n"), done.stderr


SECRET = "sk-pl4nted/+=very~secret"


@pytest.mark.parametrize(
    "echo",
    [
        SECRET,
        f"bad key: Bearer {SECRET}",
        json.dumps({"error": {"message": f"Incorrect API key provided: {SECRET}."}}),
        quote(SECRET, safe=""),
        base64.b64encode(f":{SECRET}".encode()).decode(),
        f"{'x' * 290}{SECRET}",
    ],
)
@pytest.mark.parametrize("status", [401, 500, 200])
def test_the_key_is_in_no_message(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, status: int, echo: str
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("MY_KEY", f" {SECRET}\n")
    server.planned = [(status, echo.encode(), {})] * 5
    agent = OpenAIAgent(endpoint=endpoint(server, api_key_env="MY_KEY", max_retries=1))
    with pytest.raises(AgentError) as caught:
        agent.act([request("x")])
    assert server.headers_seen[0]["Authorization"] == f"Bearer {SECRET}"
    told = "".join(traceback.format_exception(caught.value)) + caplog.text
    for form in (SECRET, quote(SECRET, safe=""), SECRET[:12], base64.b64encode(SECRET.encode()).decode()[:12]):
        assert form not in told
    assert SECRET not in repr(agent.endpoint.settings) + repr(vars(agent))


@pytest.mark.parametrize("key", ["sk\nsecret", "sk secret", "ключ-secret"])
def test_a_key_that_no_header_can_carry_is_refused_unseen(
    server: Server, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("MY_KEY", key)
    with pytest.raises(ConfigError, match="MY_KEY contains a line break") as caught:
        OpenAIAgent(endpoint=endpoint(server, api_key_env="MY_KEY")).act([request("x")])
    assert "secret" not in "".join(traceback.format_exception(caught.value)) and not server.bodies


@pytest.mark.parametrize(
    "url",
    [
        "http://user:hunter2@127.0.0.1:1/v1",
        "http://hunter2@127.0.0.1/v1",
        "https://h.example/v1?api_key=hunter2",
        "https://h.example/v1?sig=hunter2",
        "user:hunter2@127.0.0.1/v1",
        "ftp://a:hunter2@h/v1",
        "http://h.example:99999/hunter2",
        "http:///v1",
        "http://h.example/v1#hunter2",
        "http://h.exam ple/v1",
    ],
)
def test_credentials_in_the_address_are_refused_unseen(url: str) -> None:
    with pytest.raises(ConfigError, match="base_url") as caught:
        OpenAIAgent(url, "m")
    assert "hunter2" not in str(caught.value)


def test_a_redirect_to_another_host_gets_no_key(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", SECRET)
    for status in (301, 302, 307, 308):
        with running() as elsewhere:
            server.planned = [(status, b"", {"Location": f"{elsewhere.url}/chat/completions"})]
            with pytest.raises(AgentError, match="redirects with status.*set base_url"):
                OpenAIAgent(endpoint=endpoint(server, api_key_env="MY_KEY")).act([request("x")])
            assert not elsewhere.headers_seen
    server.planned = [(308, b"", {"Location": "/v1/chat/completions"})]
    assert OpenAIAgent(endpoint=endpoint(server, api_key_env="MY_KEY")).act([request("x")])[0].text
    server.planned = [(308, b"", {"Location": "/v1/chat/completions"})] * 9
    with pytest.raises(AgentError, match="more than 3 times"):
        OpenAIAgent(endpoint=endpoint(server)).act([request("x")])


def test_a_proxy_is_not_asked_for_this_machine(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert OpenAIAgent(endpoint=endpoint(server, max_retries=0)).act([request("x")])[0].text.endswith("go on")


def test_a_proxy_is_asked_for_other_machines(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.url.removesuffix("/v1"))
    monkeypatch.delenv("no_proxy", raising=False)
    server.path = "http://model.example/v1/chat/completions"
    agent = OpenAIAgent("http://model.example/v1", "m", max_retries=0)
    assert agent.act([request("x")])[0].text.endswith("go on")


def test_fields_of_the_request_can_be_renamed_and_added(server: Server) -> None:
    extra = {"top_k": 20, "top_p": None, "stop": ["\n\n"]}
    agent = OpenAIAgent(endpoint=endpoint(server, max_tokens_field="max_completion_tokens", extra_body=extra))
    agent.act([request("x")])
    body = server.bodies[0]
    assert body["max_completion_tokens"] == 9 and "max_tokens" not in body and "top_p" not in body
    assert body["top_k"] == 20 and body["stop"] == ["\n\n"]
    OpenAIAgent(endpoint=endpoint(server, max_tokens_field="")).act([request("x")])
    assert not [name for name in server.bodies[-1] if "max" in name]
    server.planned = [(400, b"Unsupported parameter: 'max_tokens'", {})] * 2
    with pytest.raises(AgentError, match="set max_tokens_field"):
        OpenAIAgent(endpoint=endpoint(server)).act([request("x")])


def answer_of(message: Any = None, usage: Any = None, **choice: Any) -> bytes:
    message = {"content": "Action: a"} if message is None else message
    return json.dumps({"choices": [{"message": message, **choice}], "usage": usage}).encode()


@pytest.mark.parametrize(
    ("raw", "text", "num_sampled", "truncated"),
    [
        (answer_of(), "Action: a", 2, False),
        (answer_of(usage={"completion_tokens": None, "prompt_tokens_details": None}), "Action: a", 2, False),
        (answer_of(usage={"completion_tokens": 7}, finish_reason="length"), "Action: a", 7, True),
        (answer_of({"content": None}), "", 0, False),
        (
            answer_of({"content": [{"type": "text", "text": "Act"}, {"type": "text", "text": "ion: a"}]}),
            "Action: a",
            2,
            False,
        ),
    ],
)
def test_answers_that_are_well_formed(server: Server, raw: bytes, text: str, num_sampled: int, truncated: bool) -> None:
    server.planned = [(200, raw, {})]
    (turn,) = OpenAIAgent(endpoint=endpoint(server)).act([request("x")])
    assert (turn.text, turn.num_sampled_tokens, turn.truncated) == (text, num_sampled, truncated)


def test_a_tool_call_that_the_server_has_parsed_is_a_turn_of_the_tools_format(server: Server) -> None:
    call = {"type": "function", "function": {"name": "act", "arguments": '{"action": "go"}'}}
    server.planned = [(200, answer_of({"content": None, "tool_calls": [call]}), {})]
    (turn,) = OpenAIAgent(endpoint=endpoint(server)).act([request("x")])
    assert find_turn_format("tools").parse(turn.text).action == "go"


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"", "not JSON"),
        (answer_of()[:30], "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff\xfe{", "not JSON"),
        (b"[]", "expected a JSON object"),
        (b"{}", "no choices"),
        (b'{"choices": {"0": 1}}', "no choices"),
        (b'{"choices": [null]}', "no choices"),
        (b'{"choices": [{"message": "hello"}]}', "message must be an object"),
        (answer_of({"content": 5}), "content must be"),
        (answer_of({"content": [{"type": "image_url", "image_url": {"url": "x"}}]}), "content must be"),
        (answer_of({"tool_calls": [3]}), "tool_calls must be"),
        (answer_of(usage="12"), "usage must be"),
        (answer_of(usage={"completion_tokens": "12"}), "completion_tokens must be a whole number"),
        (answer_of(usage={"completion_tokens": -1}), "completion_tokens must be a whole number"),
        (answer_of(usage={"prompt_tokens": 1e400}), "prompt_tokens must be a whole number"),
        (answer_of(usage={"prompt_tokens": True}), "prompt_tokens must be a whole number"),
        (answer_of(usage={"prompt_tokens_details": [1]}), "prompt_tokens_details must be"),
    ],
)
def test_answers_of_the_wrong_type_end_in_one_line(server: Server, raw: bytes, problem: str) -> None:
    server.planned = [(200, raw, {})] * 2
    with pytest.raises(AgentError, match=problem) as caught:
        OpenAIAgent(endpoint=endpoint(server, max_retries=1)).act([request("x")])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


def test_the_key_comes_from_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    OpenAIAgent(endpoint=endpoint(server, api_key_env="MY_KEY")).act([request("x")])
    monkeypatch.delenv("MY_KEY")
    OpenAIAgent(endpoint=endpoint(server, api_key_env="MY_KEY")).act([request("x")])
    assert server.headers_seen[0]["Authorization"] == "Bearer secret"
    assert "Authorization" not in server.headers_seen[1]


def test_the_reflector_asks_with_the_history_and_labels_its_source() -> None:
    class Thinker(Server):
        def answer(self, body: dict[str, Any]) -> str:
            return 'Thought: "The door is locked,\nI need the key."\nAction: ignored'

    with running(Thinker) as server:
        reflector = OpenAIReflector(endpoint=endpoint(server), prompt=Prompt(instruction="Be brief."))
        case = ReflectionCase(history=prefix(), right_action="take key")
        found = reflector.reflect([case, case])
        (foreseen,) = foresee([case], reflector)
    assert foreseen == found[0]
    assert [m["role"] for m in server.bodies[-1]["messages"]] == ["system", "user"]  # nothing wrong has happened yet
    assert "It is locked." not in server.bodies[-1]["messages"][-1]["content"]
    assert [r.source for r in found] == ["openai:m"] * 2
    assert found[0].text == "The door is locked, I need the key."
    messages = server.bodies[0]["messages"]
    assert messages[0]["content"] == "Be brief."
    assert messages[2]["content"] == "Action: open door"
    assert "take key" in messages[-1]["content"] and "It is locked." in messages[-1]["content"]


def test_the_judge_asks_for_json_and_asks_again() -> None:
    class Wavering(Server):
        def answer(self, body: dict[str, Any]) -> str:
            if "first" in body["messages"][1]["content"] + body["messages"][2]["content"]:
                return '<think>1 of 2?</think>{"probability": 0.75}'
            return "I see 1 desk. My estimate is 0.35" if body["temperature"] == 0 else '{"probability": 2e-1}'

    with running(Wavering) as server:
        judge = OpenAIJudge(endpoint=endpoint(server))
        assert judge.values([prefix("first"), prefix("second")]) == [0.75, 0.2]
        assert len(server.bodies) == 3 and judge.num_refused == 0
        schema = server.bodies[0]["response_format"]["json_schema"]["schema"]
        assert schema["required"] == ["probability"]
        OpenAIJudge(endpoint=endpoint(server), send_schema=False).values([prefix("first")])
        assert "response_format" not in server.bodies[-1]


def test_states_that_a_judge_does_not_value_are_counted() -> None:
    class Partial(Server):
        def answer(self, body: dict[str, Any]) -> str:
            return "no idea" if "second" in body["messages"][1]["content"] else '{"probability": 1}'

    with running(Partial) as server:
        judge = OpenAIJudge(endpoint=endpoint(server))
        assert judge.values([prefix("first"), prefix("second")]) == [1.0, None]
        assert judge.values([prefix("second")]) == [None]
        assert judge.num_refused == 2


def test_a_judge_without_numbers_raises() -> None:
    class Vague(Server):
        def answer(self, body: dict[str, Any]) -> str:
            return "Rather likely; 7 of 10 times."

    with running(Vague) as server, pytest.raises(AgentError, match="no number"):
        OpenAIJudge(endpoint=endpoint(server)).values([prefix()])


def test_settings_and_names() -> None:
    with pytest.raises(ConfigError, match="http"):
        OpenAIAgent("127.0.0.1:80", "m")
    with pytest.raises(ConfigError, match="max_in_flight"):
        OpenAIAgent("http://127.0.0.1", "m", max_in_flight=0)
    with pytest.raises(ConfigError, match="known: base_url"):
        OpenAIAgent("http://127.0.0.1", "m", max_flight=3)
    for wrong in ({"timeout_s": 0}, {"max_retries": "4"}, {"extra_body": {"x": {1, 2}}}, {"max_answer_bytes": 0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            OpenAIAgent("http://127.0.0.1", "m", **wrong)
    with pytest.raises(ConfigError, match="model"):
        OpenAIAgent("http://127.0.0.1", "")
    assert agents.get("openai") is OpenAIAgent
    assert reflectors.get("openai") is OpenAIReflector
    assert GREEDY.temperature == 0
