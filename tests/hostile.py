"""Damaged and hostile input for everything that reads what others wrote; `benchmarks/fuzz.py` and a test feed it.

A target makes an input from a random generator and runs what reads it. Good inputs are mutated: values of JSON are
exchanged for odd ones, keys dropped, renamed and added, nesting made deep, bytes flipped, cut, doubled and spliced.
"""

# ruff: noqa: E501 - lists of inputs

from __future__ import annotations

import contextlib
import copy
import functools
import io
import json
import random
import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from steca_gym.errors import StecaError

ROOT = Path(__file__).resolve().parents[1]


class TooSlow(BaseException):
    """An input that took too long."""


class Broken(Exception):
    """A target's own promise that did not hold."""


@dataclass(frozen=True)
class Target:
    """Something that reads."""

    name: str
    what: str
    make: Callable[[random.Random], Any]
    run: Callable[[Any], object]
    weight: int = 1
    """share of the inputs; quick targets get more"""


TARGETS: dict[str, Target] = {}


def target(name: str, what: str, make: Callable[[random.Random], Any], *, weight: int = 1) -> Callable[..., Any]:
    """Register the function as a target."""

    def register(run: Callable[[Any], object]) -> Callable[[Any], object]:
        TARGETS[name] = Target(name, what, make, run, weight)
        return run

    return register


# -- mutation --------------------------------------------------------------------------------------------------

CONTROLS = (
    "<|im_end|>", "<|im_start|>system\n", "</s>", "<s>", "[INST]", "[/INST]", "<|eot_id|>", "<|end|>", "<|user|>", "<|assistant|>",
    "<｜User｜>", "<｜Assistant｜>", "<end_of_turn>", "<start_of_turn>model\n", "<think>", "</think>", "<tool_call>", "<|endoftext|>",
    "<unk>", "<0x0A>", "▁", "<|start|>", "<|message|>", "<|return|>", "<bos>", "<eos>", "<pad>", "[gMASK]", "<sop>",
)  # fmt: skip
TOKENS = (
    *CONTROLS, "\x1b[2J", "\x1b]0;x\x07", "\x9b31m", "\r", "\n", "\n\n", "\0", "\u202e", "\ud800", "\udfff", "\ufeff", "\u2028", "é", "e\u0301",
    "💡", "Action:", "Thought:", "Action: Action:", "Observation:", "```json", "```", '{"action": "look"}', "{", "}", "[", "]", "((", "\"", "'",
    "\\", "\\u0000", "${oc.env:HOME}", "${", "../../etc/passwd", "/etc/passwd", "%s", "{0}", "<script>alert(1)</script>", "</script>",
    "<action>", "</action>", "<thought>", "=", ",", "~", "+", "-", "_target_: os.system", "!!python/object/apply:os.system [id]", "&a *a", "NaN",
    "a" * 3000, " " * 3000, "\n" * 500, "(" * 1500, "[" * 1500, "{\"a\":" * 800, "<think>" * 300, "9" * 400, "1e999", "0x", "true", "null",
)  # fmt: skip
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"), -float("inf"), "", "0", "x",
    "\ud800", "\x1b[31m", "../../x", "/etc/x", "a" * 5000, "<|im_end|>", "${oc.env:HOME}", "[/INST]", [], {}, [[]], [None], [1, "a"], {"a": None},
    {"": 1}, {"a": {"b": {"c": []}}}, [0] * 300, "no", "True", "1e5",
)  # fmt: skip


def odd(rng: random.Random) -> Any:
    """A value that nobody expects."""
    if rng.random() < 0.02:
        deep: Any = 1
        for _ in range(rng.choice((50, 900, 3000))):
            deep = [deep] if rng.random() < 0.5 else {"a": deep}
        return deep
    return copy.deepcopy(rng.choice(ODD))


def text(rng: random.Random, seeds: tuple[str, ...] = ("", "look", "You see a door.")) -> str:
    """A text: a seed with hostile pieces put into it, cut and doubled."""
    made = rng.choice(seeds)
    for _ in range(rng.choice((0, 1, 1, 2, 3, 6))):
        at = rng.randint(0, len(made))
        kind = rng.random()
        if kind < 0.6:
            made = made[:at] + rng.choice(TOKENS) + made[at:]
        elif kind < 0.75:
            made = made[:at] + made[at + rng.randint(0, 20) :]
        elif kind < 0.9:
            made = (
                made[:at]
                + chr(rng.choice((rng.randint(0, 127), rng.randint(0, 0x2FFF), rng.randint(0, 0x10FFFF))))
                + made[at:]
            )
        else:
            made = made[:at] + made[rng.randint(0, len(made)) :]
    return made


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of everything inside JSON data."""
    found = [path]
    if len(path) >= 12:
        return found
    if isinstance(value, dict):
        for key, inner in value.items():
            found += places(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value[:40]):
            found += places(inner, (*path, index))
    return found


def mutated(rng: random.Random, value: Any) -> Any:
    """JSON data with one to four things changed."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        path = rng.choice(places(value))
        if not path:
            if rng.random() < 0.2:
                return odd(rng)
            continue
        holder = value
        for key in path[:-1]:
            holder = holder[key]
        key, kind = path[-1], rng.random()
        if kind < 0.45:
            holder[key] = odd(rng)
        elif kind < 0.6:
            del holder[key]
        elif kind < 0.75 and isinstance(holder[key], str):
            holder[key] = text(rng, (holder[key],))
        elif kind < 0.85 and isinstance(holder, dict):
            holder[text(rng, (str(key), "x"))[:200]] = holder[key] if rng.random() < 0.5 else odd(rng)
        elif isinstance(holder, list):
            holder.append(rng.choice(holder) if holder and rng.random() < 0.5 else odd(rng))
        else:
            holder[key] = [holder[key]]
    return value


def noisy(rng: random.Random, data: bytes) -> bytes:
    """Bytes flipped, cut, doubled and put in."""
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        at = rng.randint(0, len(made))
        kind = rng.random()
        if kind < 0.35 and made:
            made[min(at, len(made) - 1)] ^= 1 << rng.randint(0, 7)
        elif kind < 0.5:
            del made[at:]
        elif kind < 0.65:
            del made[at : at + rng.randint(1, 50)]
        elif kind < 0.9:
            made[at:at] = rng.choice(TOKENS).encode("utf-8", "surrogatepass")
        else:
            made[at:at] = bytes(rng.randrange(256) for _ in range(rng.randint(1, 8)))
    return bytes(made)


def dumped(value: Any) -> bytes:
    """JSON as a stranger's library writes it: NaN, lone surrogates and all."""
    try:
        return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        return b"[" * 3000


def damaged(rng: random.Random, value: Any) -> bytes:
    """JSON data, mutated as data, as bytes, or both."""
    kind = rng.random()
    made = dumped(mutated(rng, value) if kind < 0.75 else value)
    return noisy(rng, made) if kind > 0.65 else made


def here(name: str) -> Path:
    """An empty folder in the working directory."""
    folder = Path(name).absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


# -- good inputs -----------------------------------------------------------------------------------------------


@functools.cache
def good_run() -> Path:
    """A run's folder with everything in it; read only."""
    from tests.reports.runs import make_run

    folder = Path("good-run").absolute()
    shutil.rmtree(folder, ignore_errors=True)
    make_run(folder, num=2, num_evaluated=2, num_steps=2)
    return folder


@functools.cache
def good(name: str) -> Any:
    """A good input, as JSON data."""
    from tests.reports import runs

    if name in ("run.json", "evaluation.json"):
        return json.loads((good_run() / name).read_text())
    if name == "result":
        from steca_gym.calibration.records import result_to_json

        return json.loads(result_to_json(runs.result_of(0, num_steps=2)))
    if name == "trajectory":
        from steca_gym.trajectory import to_json

        return json.loads(to_json(runs.expert_of(0, num_steps=2)))
    if name == "samples.json":
        return {
            "trail": "",
            "base": "",
            "samples": [{"trajectory_id": "a", "task_id": "t", "kind": "expert", "weight": 1.0}] * 2,
        }
    raise KeyError(name)


# -- turns, chats, observations --------------------------------------------------------------------------------

_TURNS = (
    "Thought: I go on.\nAction: go to desk 2",
    '<tool_call>\n{"name": "act", "arguments": {"action": "look"}}\n</tool_call>',
    '{"thought": "x", "action": "look"}',
    "<thought>x</thought><action>look</action>",
    "<think>so</think>Thought: a\nAction: b",
)


@target("turns", "the four turn formats", lambda rng: (rng.randrange(4), text(rng, _TURNS)), weight=160)
def _turns(made: tuple[int, str]) -> None:
    from steca_gym.turns import explain_unread, find_turn_format

    form = find_turn_format(("react", "tools", "json", "xml")[made[0]])
    parsed = form.parse(made[1])
    if parsed.action is None:
        explain_unread(form, parsed)
    elif form.parse(form.render(parsed.thought, parsed.action)).action != parsed.action:
        raise Broken("an action that is rendered is not the one that is read")


@functools.cache
def _family(name: str) -> tuple[Any, Any, frozenset[int]]:
    from steca_gym.chat.codec import codec_of
    from tests.tokenizers_like import FAMILIES

    tokenizer = FAMILIES[name]()
    codec = codec_of(tokenizer)
    return tokenizer, codec, frozenset(codec.control_ids)


def _families() -> tuple[str, ...]:
    from tests.tokenizers_like import FAMILIES

    return tuple(FAMILIES)


def _chat(rng: random.Random) -> tuple[str, int, str]:
    return rng.choice(_families()), rng.randrange(3), text(rng, ("You see a door.", "", *CONTROLS))[:2000]


@target(
    "chats",
    "prompts and training samples: control tokens in texts are text, for every tokenizer family",
    _chat,
    weight=4,
)
def _chats(made: tuple[str, int, str]) -> None:
    from steca_gym.agent import Message

    name, index, hostile = made
    _, codec, control = _family(name)
    roles = ("user", "assistant", "user", "assistant")
    plain = [Message(role, "x") for role in roles]
    talk = [replace(m, content=hostile) if i == index else m for i, m in enumerate(plain)]
    if index == 1:  # an assistant's own thinking marks are tokens of its turns
        talk[1] = replace(talk[1], content=re.sub(r"</?(think|tool_call)>", "", hostile))
    if not talk[index].content.strip():
        return
    for generation in (True, False):
        ids, mask = codec.encode(talk[:3] if generation else talk, for_generation=generation)
        calm, calm_mask = codec.encode(plain[:3] if generation else plain, for_generation=generation)
        if [i for i in ids if i in control] != [i for i in calm if i in control]:
            raise Broken(f"a control token of a text of {name} is read as one")
        learnt = [i for i, m in zip(ids, mask, strict=True) if m and i in control]
        if learnt != [i for i, m in zip(calm, calm_mask, strict=True) if m and i in control]:
            raise Broken(f"a control token of a text of {name} is trained on")


@target(
    "shown",
    "what reports print: escape sequences and direction marks are written out",
    lambda rng: text(rng),
    weight=40,
)
def _shown(made: str) -> None:
    from steca_gym.reports.text import one_line, visible

    for shown in (visible(made), one_line(made)):
        shown.encode()
        if re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown):
            raise Broken("a control character reaches the terminal")


def _returned(rng: random.Random) -> list[Any]:
    return [
        odd(rng) if rng.random() < 0.3 else good
        for good in (text(rng), 0.5, False, False, True, ["look"], "goal", "type")
    ]


@target("observations", "what a world returns, at the environment's boundary", _returned, weight=60)
def _observations(made: list[Any]) -> None:
    from steca_gym.env import Outcome, TextEnv
    from tests.fakes import CorridorWorld

    observation, score, won, over, valid, listed, goal, kind = made

    class Odd(CorridorWorld):
        def start(self, task_id: str, seed: int) -> Outcome:
            return Outcome(observation="A room.")

        def act(self, action: str) -> Outcome:
            return Outcome(observation=observation, score=score, won=won, over=over, valid=valid)

        def admissible_actions(self) -> Any:
            return listed

        goal = property(lambda self: goal)  # type: ignore[assignment]
        task_type = property(lambda self: kind)  # type: ignore[assignment]

    env = TextEnv(Odd(), split="train", horizon=5, with_admissible=True)
    env.reset(seed=1)
    said, reward, *_, info = env.step("x")
    json.dumps([said, reward, info["score"]], allow_nan=False).encode()


# -- files of runs ---------------------------------------------------------------------------------------------


@target("trajectories", "from_json of one line", lambda rng: damaged(rng, good("trajectory")), weight=60)
def _trajectories(made: bytes) -> None:
    from steca_gym.trajectory import from_json, to_json

    read = from_json(made.decode("utf-8", "surrogatepass") if _is_text(made) else made.decode("latin-1"))
    if from_json(to_json(read)) != read:
        raise Broken("a line that is read is not written again")


def _is_text(data: bytes) -> bool:
    try:
        data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return False
    return True


def _lines(rng: random.Random) -> bytes:
    return b"\n".join(damaged(rng, good("trajectory")) for _ in range(rng.randint(1, 3)))


@target("JSON lines", "read_jsonl of a file", _lines, weight=10)
def _jsonl(made: bytes) -> None:
    from steca_gym.trajectory import read_jsonl

    file = Path("lines.jsonl")
    file.write_bytes(made)
    list(read_jsonl(file))


_TALK = {
    "conversations": [
        {"from": "human", "value": "You are in a room."},
        {"from": "gpt", "value": "Thought: x\nAction: open"},
    ],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "hello"}]},
        {"role": "assistant", "content": "> open"},
    ],
    "bare": {"task_id": "corridor-1", "actions": ["right", "open"], "seed": 3},
}


def _import(rng: random.Random) -> bytes:
    kind = rng.choice(("conversations", "messages", "bare", "trajectory"))
    value = good("trajectory") if kind == "trajectory" else _TALK["bare"] if kind == "bare" else {kind: _TALK[kind]}
    made = [damaged(rng, value) for _ in range(rng.randint(1, 2))]
    return b"[" + b",".join(made) + b"]" if rng.random() < 0.3 else b"\n".join(made)


@target(
    "imports",
    "steca import: conversations, messages, actions, trajectories; what is read is executed",
    _import,
    weight=6,
)
def _imports(made: bytes) -> None:
    from steca_gym.interop.demonstrations import import_recordings, read_recordings
    from tests.fakes import corridor

    file = Path("talk.json")
    file.write_bytes(made)
    recordings = list(read_recordings(file))
    import_recordings(recordings, corridor(), split="train", num_envs=2)


@target(
    "run.json",
    "a run's record: read, trusted, tabled, reported as text and HTML",
    lambda rng: damaged(rng, good("run.json")),
)
def _run_json(made: bytes) -> None:
    _open_run("run.json", made)


@target(
    "evaluation.json", "a run's evaluation: read, tabled, reported", lambda rng: damaged(rng, good("evaluation.json"))
)
def _evaluation_json(made: bytes) -> None:
    _open_run("evaluation.json", made)


def _open_run(name: str, content: bytes) -> None:
    from steca_gym.reports.data import report_data
    from steca_gym.reports.html import HtmlReport
    from steca_gym.reports.plain import TextReport
    from steca_gym.reports.tables import runs_table
    from steca_gym.runs.folder import RunFolder

    folder = Path("opened").absolute()
    if not folder.exists():
        folder.mkdir()
        shutil.copy(good_run() / "buffer.sqlite", folder)
    for file in ("run.json", "evaluation.json"):
        shutil.copy(good_run() / file, folder)
    (folder / name).write_bytes(content)
    run = RunFolder(folder)
    if name == "run.json":
        try:
            run.check_trusted()
        except Exception as error:
            if type(error).__name__ != "ConfigError":
                raise
    run.evaluation()
    run.model()
    run.cost()
    report_data([run])
    TextReport().render([run])
    HtmlReport().render([run])
    runs_table([folder])


@target(
    "steca.json",
    "what a model was trained on",
    lambda rng: damaged(rng, {"fingerprint": "w/1+a", "games": ["0123456789ab", "ab"]}),
    weight=30,
)
def _steca_json(made: bytes) -> None:
    from steca_gym import provenance

    folder = Path("model").absolute()
    folder.mkdir(exist_ok=True)
    (folder / "steca.json").write_bytes(made)
    provenance.check_environment(folder, "w/1+a")
    provenance.trained_on(folder, ["a", "b"])
    provenance.record(here("model2"), fingerprint="w/1+a", task_ids=["c"], base=folder)


@target("samples.json", "steca trace", lambda rng: damaged(rng, good("samples.json")), weight=2)
def _samples_json(made: bytes) -> None:
    from steca_gym.reports.trace import trace_model

    folder = Path("traced").absolute()
    if not folder.exists():
        shutil.copytree(good_run(), folder)
        (folder / "model").mkdir()
    (folder / "model" / "samples.json").write_bytes(made)
    trace_model(folder / "model").lines()


def _payload(rng: random.Random) -> tuple[str, bytes]:
    name = rng.choice(("result", "trajectory"))
    return name, damaged(rng, good(name))


@target("stored payloads", "trajectories and calibrations in a buffer: read, reported, exported", _payload)
def _results(made: tuple[str, bytes]) -> None:
    import sqlite3

    from steca_gym.buffer.lines import read_result
    from steca_gym.reports.data import report_data
    from steca_gym.reports.html import HtmlReport
    from steca_gym.reports.plain import TextReport
    from steca_gym.runs.folder import RunFolder

    name, content = made
    payload = content.decode("utf-8", "replace")
    folder = Path("stored").absolute()
    if not folder.exists():
        shutil.copytree(good_run(), folder)
    shutil.copy(good_run() / "buffer.sqlite", folder)
    with sqlite3.connect(folder / "buffer.sqlite") as db:
        if name == "result":
            db.execute("UPDATE results SET payload = ?", (payload,))
        else:
            db.execute("UPDATE trajectories SET payload = ?", (payload,))
    db.close()
    run = RunFolder(folder)
    readings: list[Callable[[], object]] = [
        lambda: report_data([run]), lambda: TextReport().render([run]), lambda: HtmlReport().render([run]), lambda: _exported(run),
    ]  # fmt: skip
    if name == "result":
        readings.append(lambda: read_result(payload))
    for reading in readings:
        with contextlib.suppress(StecaError):
            reading()


def _exported(run: Any) -> None:
    with run.buffer() as buffer:
        for path in buffer.export_jsonl(here("exported")):
            for line in filter(None, path.read_bytes().decode("utf-8", "surrogatepass").split("\n")):
                json.loads(line, parse_constant=lambda name: (_ for _ in ()).throw(Broken(f"{name} in an export")))


# -- settings --------------------------------------------------------------------------------------------------


@functools.cache
def _settings() -> Any:
    from omegaconf import OmegaConf

    from steca_gym.cli.composing import compose

    cfg = compose(["env=household", "agent=openai", "agent.engine.model=m", "method=steca"], [])
    return OmegaConf.to_container(cfg, resolve=True)


@target(
    "settings",
    "the composed configuration: read, its method made, its stages planned",
    lambda rng: mutated(rng, _settings()),
    weight=1,
)
def _config(made: Any) -> None:
    from omegaconf import OmegaConf

    from steca_gym.methods.base import make_method
    from steca_gym.runs.context import read_config
    from steca_gym.runs.runner import plan, run_folder

    if not isinstance(made, dict) or not _is_configuration(made):
        return
    config, _ = read_config(OmegaConf.create(made, flags={"allow_objects": True}))
    planned = plan(make_method(config.method), config)
    run_folder(config, planned, "x")


def _is_configuration(made: Any) -> bool:
    """OmegaConf itself refuses deep nesting and unreadable interpolations when a file is read."""
    from omegaconf import OmegaConf

    try:
        OmegaConf.create(json.loads(json.dumps(made)))
        return True
    except Exception:
        return False


@target("endpoint settings", "EndpointSettings", lambda rng: mutated(rng, {
    "base_url": "http://127.0.0.1:1/v1?a=b", "model": "m", "api_key_env": "K", "max_in_flight": 2, "max_retries": 1, "timeout_s": 1.0,
    "backoff_s": 0.1, "send_seed": True, "max_tokens_field": "max_tokens", "extra_body": {"top_k": 3}, "max_answer_bytes": 99}), weight=10)  # fmt: skip
def _endpoint_settings(made: Any) -> None:
    from steca_gym.agents.openai.endpoint import EndpointSettings

    from steca_gym.settings import read_settings

    read_settings(EndpointSettings, made, where="agent.engine")


@target(
    "overrides",
    "the command line's overrides",
    lambda rng: [text(rng, ("seed=3", "env=household", "agent.train={a: 1}", "+a.b=[1,2]"))[:300]],
)
def _overrides(made: list[str]) -> None:
    from steca_gym.cli.composing import explain_overrides

    explain_overrides([m.replace("\0", "") for m in made])


@target(
    "prices",
    "a price table",
    lambda rng: noisy(rng, b"currency: EUR\nsampled_tokens: 0.6\nprompt_tokens: 0.1\nhour: 2.5\n"),
    weight=6,
)
def _prices(made: bytes) -> None:
    from steca_gym.prices import read_prices

    file = Path("prices.yaml")
    file.write_bytes(made)
    read_prices(file)


# -- servers and clients ---------------------------------------------------------------------------------------

_ANSWER = {
    "choices": [{"message": {"role": "assistant", "content": "Action: look", "tool_calls": [{"function": {"name": "a", "arguments": "{}"}}]},
                 "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}},
}  # fmt: skip


@target("endpoint answers", "chat completions of a server", lambda rng: damaged(rng, _ANSWER), weight=60)
def _endpoint(made: bytes) -> None:
    from steca_gym.agents.openai.answers import MalformedAnswer, advice, one_line, read_completion

    one_line(made, "sk-secret-key")
    advice(made)
    try:
        answer = read_completion(made)
    except MalformedAnswer as error:  # what the endpoint retries and then reports
        one_line(str(error).encode(errors="replace"), "")
        return
    if not isinstance(answer.text, str) or answer.num_sampled_tokens < 0:
        raise Broken("a completion without a text")


_REPLY = {
    "type": "observation",
    "data": {
        "observation": {"text": "A room.", "goal": "Out.", "admissible_actions": ["look"], "metadata": {"won": False}},
        "reward": 0.5,
        "done": False,
    },
}


@target(
    "OpenEnv answers",
    "what an OpenEnv server sends to our client",
    lambda rng: [damaged(rng, _REPLY), damaged(rng, _REPLY)],
    weight=10,
)
def _openenv_client(made: list[bytes]) -> None:
    from steca_gym.envs.adapters.openenv import OpenEnvWorld

    from steca_gym.env import TextEnv

    class Session:
        def __init__(self) -> None:
            self.left = list(made)

        def __enter__(self) -> Session:
            return self

        def __exit__(self, *exc: object) -> None:
            return None

        def send(self, message: str) -> None:
            json.loads(message)

        def recv(self, timeout: float) -> str | bytes:
            raw = self.left.pop(0)
            return raw.decode() if _is_strict(raw) else raw

    world = OpenEnvWorld("http://127.0.0.1:1", action={"action": "{action}"})
    world._connect = lambda *args, **kwargs: Session()
    env = TextEnv(world, split="train", horizon=3)
    env.reset(seed=1)
    env.step("look")


def _is_strict(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


_MESSAGES = (
    {"type": "reset", "data": {"seed": 3, "task_id": "corridor-2", "episode_id": "e", "split": "train"}},
    {"type": "step", "data": {"action": "right", "metadata": {}}},
    {"type": "state"}, {"type": "snapshot"}, {"type": "restore", "data": {"snapshot": "x"}}, {"type": "drop", "data": {"snapshot": "x"}},
)  # fmt: skip


def _messages(rng: random.Random) -> list[bytes]:
    return [
        damaged(rng, rng.choice(_MESSAGES)) if rng.random() < 0.6 else dumped(rng.choice(_MESSAGES[:3]))
        for _ in range(3)
    ]


@target("OpenEnv messages", "what a client sends to our OpenEnv server", _messages, weight=30)
def _openenv_server(made: list[bytes]) -> None:
    from steca_gym.interop.openenv import OpenEnvServer, _Session
    from tests.fakes import corridor

    session = _Session(OpenEnvServer(corridor(), port=0))
    for raw in made:
        answer = session.answer(raw.decode() if _is_strict(raw) else raw)
        if answer is not None:
            if "EXECUTION_ERROR" in answer and re.search(r"(Type|Attribute|Key|Index|Value)Error", answer):
                raise Broken(f"a message that our own code fails on: {answer[:200]}")
            json.loads(answer, parse_constant=lambda name: (_ for _ in ()).throw(Broken(f"{name} in an answer")))
    session.close()


# -- games -----------------------------------------------------------------------------------------------------


@functools.cache
def _game() -> dict[str, Any]:
    from steca_gym.envs.alfworld import Household, HouseholdSettings

    made: dict[str, Any] = dict(Household(HouseholdSettings(num_receptacles=3, num_objects=3)).data("train/0"))
    return made


def _game_text(rng: random.Random) -> bytes:
    if rng.random() < 0.5:
        return damaged(rng, _game())
    game = dict(_game())
    key = rng.choice(sorted(k for k in game if isinstance(game[k], str)))
    game[key] = text(rng, (game[key],))
    return dumped(game)


@target("games", "game files of ALFWorld: read", _game_text, weight=2)
def _games(made: bytes) -> None:
    from steca_gym.envs.alfworld.game import read_game

    read_game(made.decode("utf-8", "replace"))


def _archive(rng: random.Random) -> tuple[str, bytes]:
    content = dumped(_game())
    kind = rng.choice((".zip", ".tar", ".tar.gz"))
    name = rng.choice(
        (
            "json_2.1.1/train/t/r/game.tw-pddl",
            "../../../x/game.tw-pddl",
            "/etc/game.tw-pddl",
            "a/" * 200 + "game.tw-pddl",
        )
    )
    held = io.BytesIO()
    if kind == ".zip":
        with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, content if rng.random() < 0.7 else b"\0" * (20 << 20))
            archive.writestr("json_2.1.1/train/t/r/traj_data.json", b"{}")
    else:
        with tarfile.open(fileobj=held, mode="w:gz" if kind == ".tar.gz" else "w") as tar:
            info = tarfile.TarInfo(name)
            if rng.random() < 0.3:
                info.type = rng.choice(
                    (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE)
                )
                info.linkname = "/etc/passwd"
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    raw = held.getvalue()
    return kind, noisy(rng, raw) if rng.random() < 0.6 else raw


@target("archives", "archives of games: links, `..`, sizes that lie", _archive)
def _archives(made: tuple[str, bytes]) -> None:
    from steca_gym.envs.alfworld.game import read_game
    from steca_gym.envs.alfworld.official import games_in

    folder = here("archive")
    (folder / f"games{made[0]}").write_bytes(made[1])
    for _, content in games_in(folder):
        read_game(content)
