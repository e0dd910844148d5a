"""OpenEnv: whatever a server answers and whatever is configured is an outcome or one clear line."""

from __future__ import annotations

import contextlib
import json
from importlib.util import find_spec
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steca_gym.envs.adapters.openenv import OpenEnvWorld
from steca_gym.envs.adapters.reading import Reading, admissible_in, seed_of

from steca_gym.env import Outcome
from steca_gym.errors import ConfigError, DataError, WorldError

pytestmark = pytest.mark.skipif(find_spec("websockets") is None, reason="OpenEnv needs websockets")


class Session:
    """Answers with given messages, and then with the last one."""

    def __init__(self, *answers: str | bytes) -> None:
        self.answers = list(answers)

    def send(self, message: str) -> None:
        json.loads(message)

    def recv(self, timeout: float) -> str | bytes:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def world(*answers: str | bytes, **kwargs: Any) -> OpenEnvWorld:
    made = OpenEnvWorld("http://localhost:1", action={"message": "{action}"}, **kwargs)
    made._connect = lambda *args, **more: contextlib.nullcontext(Session(*answers))
    return made


def data(**fields: Any) -> str:
    return json.dumps(
        {"type": "observation", "data": {"observation": "A room.", "reward": 0.0, "done": False, **fields}}
    )


WRONG = [
    ("5", "message=5, expected an object with type and data"),
    ('"text"', "expected an object with type and data"),
    ("[]", "expected an object with type and data"),
    ("null", "expected an object with type and data"),
    ("{", "no answer from the OpenEnv server"),
    ("[" * 100_000, "no answer from the OpenEnv server"),
    (b"\xff\xfe", "no answer from the OpenEnv server"),
    ('{"data": "text"}', "data=text, expected an object"),
    ('{"data": [1]}', "data=[1], expected an object"),
    ('{"type": "error", "data": [1]}', "data=[1], expected an object"),
    ('{"type": "error", "data": {"code": {"a": 1}, "message": ["\\ud800"]}}', "UNKNOWN: ['\\ud800']"),
    (data(reward="0.5"), "reward=0.5, expected a finite number"),
    (data(reward=[1]), "reward=[1], expected a finite number"),
    (data(reward={}), "reward={}, expected a finite number"),
    (data(reward=float("nan")), "reward=nan, expected a finite number"),
    (data(reward=10**400), "expected a finite number"),
    (data(done="false"), "done=false, expected true or false"),
    (data(done=[]), "done=[], expected true or false"),
    (data(metadata="text"), "metadata=text, expected an object"),
    (data(metadata=[["a", 1]]), "metadata=[['a', 1]], expected an object"),
    (data(observation=["a"]), "an observation is a list, expected text"),
    (data(observation=None), "an observation is a NoneType, expected text"),
    (data(observation={"won": "no"}), "won is no, expected true or false"),
    (data(observation={"valid": [1]}), "valid is [1], expected true or false"),
    (data(observation={"admissible_actions": "go"}), "admissible_actions is go, expected a list of texts"),
    (data(observation={"admissible_actions": {"go": 1}}), "expected a list of texts"),
    (data(observation={"admissible_actions": ["go", None]}), "expected a list of texts"),
    (data(observation={"admissible_actions": 5}), "admissible_actions is 5, expected a list of texts"),
]


@pytest.mark.parametrize(("answer", "told"), WRONG)
def test_an_answer_of_another_shape_is_one_line(answer: str | bytes, told: str) -> None:
    for play in (
        lambda: world(answer).start("seed/1", 0),
        lambda: (made := world(data(), answer)).start("seed/1", 0) and made.act("go"),
    ):
        with pytest.raises(WorldError) as caught:
            play()
        line = str(caught.value)
        assert told in line and "\n" not in line and len(line) < 700
        line.encode("utf-8")


def test_an_error_without_a_code_or_text_is_one_line() -> None:
    with pytest.raises(WorldError, match="UNKNOWN: None"):
        world('{"type": "error"}').start("seed/1", 0)


def test_what_is_null_or_missing_has_its_default() -> None:
    made = world('{"data": {"observation": "A room.", "reward": null, "done": null, "metadata": null}}')
    assert made.start("seed/1", 0) == Outcome(observation="A room.")
    assert made.admissible_actions() is None and made.task_type == "" and made.goal == ""


def test_halves_of_characters_are_replaced() -> None:
    fields = {
        "text": "a \ud800 b \ud83d\ude00",
        "goal": "go \udc00",
        "admissible_actions": ["\ud800", 5],
        "task_type": "\ud800",
    }
    made = world(data(observation=fields), reading=Reading(observation_field="text"))
    outcome = made.start("seed/1", 0)
    assert outcome.observation == "Your task: go \ufffd\na \ufffd b 😀"
    assert made.admissible_actions() == ("\ufffd", "5") and made.task_type == "\ufffd" and made.goal == "go \ufffd"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    ["observation", "reward", "done", "metadata", "won", "valid", "goal", "admissible_actions", "task_type", "success"]
)
MESSAGES = st.one_of(
    JSON,
    st.fixed_dictionaries({}, optional={"type": st.sampled_from(["error", "observation"]) | JSON, "data": JSON}),
    st.fixed_dictionaries({"data": st.dictionaries(FIELDS, JSON, max_size=5)}),
    st.fixed_dictionaries({"data": st.fixed_dictionaries({"observation": st.dictionaries(FIELDS, JSON, max_size=5)})}),
)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(MESSAGES, MESSAGES, st.text(st.characters(codec=None), max_size=5))
def test_any_message_is_an_outcome_or_one_line(first: Any, second: Any, action: str) -> None:
    made = world(json.dumps(first), json.dumps(second))
    try:
        for outcome in (made.start("seed/1", 0), made.act(action)):
            assert type(outcome.observation) is str and 0.0 <= outcome.score <= 1.0
            outcome.observation.encode("utf-8")
            assert type(outcome.won) is type(outcome.over) is type(outcome.valid) is bool
            made.admissible_actions(), made.goal, made.task_type
    except WorldError as error:
        assert "\n" not in str(error)
        str(error).encode("utf-8")
    finally:
        made.close()


@pytest.mark.parametrize(
    "task_id", ["seed/" + "9" * 10_000, "9" * 10_000, "seed/" + "٣" * 3, "seed/-1", "seed/", "", "seed/1\n", 5, None]
)
def test_an_unknown_task_is_one_short_line(task_id: Any) -> None:
    with pytest.raises(DataError, match="expected seed/NUMBER") as caught:
        seed_of(task_id)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "change",
    [
        {"url": 7},
        {"url": None},
        {"url": "http://[::1"},
        {"url": "http://host:port"},
        {"url": "ftp://host"},
        {"action": "{action}"},
        {"action": ["{action}"]},
        {"action": None},
        {"action": {1: "{action}"}},
        {"action": {"message": "{action}", "x": {1, 2}}},
        {"action": {"message": "{action}", "x": float("nan")}},
        {"reset": "text"},
        {"reset": [1]},
        {"timeout_s": "60"},
        {"timeout_s": float("nan")},
        {"timeout_s": 0},
        {"name": 5},
        {"version": None},
        {"num_train_tasks": "9"},
        {"num_train_tasks": -9990},
        {"num_eval_tasks": 1.5},
        {"num_eval_tasks": True},
    ],
)
def test_a_setting_of_another_type_is_one_line(change: dict[str, Any]) -> None:
    sound: dict[str, Any] = {"url": "http://localhost:1", "action": {"message": "{action}"}}
    with pytest.raises(ConfigError, match="got ") as caught:
        OpenEnvWorld(**{**sound, **change})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"min_return": "0"},
        {"max_return": float("inf")},
        {"min_return": 2.0},
        {"goal": 5},
        {"observation_field": ["a"]},
        {"describe": 5},
    ],
)
def test_a_reading_of_another_type_is_one_line(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="got "):
        Reading(**change)


def test_listed_actions_are_given_once() -> None:
    assert admissible_in({"valid_actions": ["a", "b", "a"]}) == ("a", "b")
    assert admissible_in({"admissible_actions": None, "valid_actions": ["a"]}) == ("a",)
    assert admissible_in({}) is None
