"""Trajectories: their identity, their conversation, and their lines of JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steca_gym.agent import Message, Prompt
from steca_gym.errors import DataError, StorageError
from steca_gym.trajectory import PreferencePair, Step, Trajectory, from_json, read_jsonl, to_json, write_jsonl

ONE = Trajectory(
    task_id="t",
    first_observation="A room.",
    steps=(
        Step(thought="I look.", action="look", observation="A lamp.", token_ids=(1, 2)),
        Step(action="gibberish", observation="?", valid=False, parsed=False, text="gibberish, as written"),
    ),
    seed=3,
)


def test_the_identity_is_the_content() -> None:
    assert ONE.with_id().trajectory_id == ONE.with_id().with_id().trajectory_id
    assert ONE.with_id().trajectory_id != dataclasses.replace(ONE, seed=4).with_id().trajectory_id


def test_the_conversation_holds_turns_as_they_were_written() -> None:
    prompt = Prompt(instruction="Tidy.", examples=(Message("user", "u"), Message("assistant", "a")))
    messages = ONE.messages(prompt)
    assert [m.role for m in messages] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
        "user",
        "assistant",
        "user",
    ]
    assert messages[4].content == "Thought: I look.\nAction: look" and messages[4].token_ids == (1, 2)
    assert messages[6].content == "gibberish, as written"


def test_lines_come_back_and_bad_ones_are_named(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    strange = dataclasses.replace(ONE, goal="ü \udc80 部屋")
    assert write_jsonl(path, [ONE, strange]) == 2
    assert list(read_jsonl(path)) == [ONE, strange]
    assert from_json(to_json(ONE)) == ONE
    path.write_text(to_json(ONE) + '\n{"steps": []}\n')
    with pytest.raises(DataError, match="t.jsonl:2: not a trajectory"):
        list(read_jsonl(path))


def _pair_parts() -> tuple[Trajectory, Trajectory, Trajectory]:
    def played(*actions: str) -> Trajectory:
        steps = tuple(Step(action=a, observation=f"After {a}.") for a in actions)
        return Trajectory(task_id="t", first_observation="A room.", steps=steps)

    return played("look", "go"), played("look", "go", "open", "win"), played("look", "go", "jump")


def test_a_preference_pair_masks_its_prefix() -> None:
    prefix, chosen, rejected = _pair_parts()
    pair = PreferencePair(prefix=prefix, chosen=chosen, rejected=rejected, kind="step")
    assert [s.trainable for s in pair.chosen.steps] == [False, False, True, True]
    assert [s.trainable for s in pair.rejected.steps] == [False, False, True]
    assert [s.action for s in pair.chosen_steps] == ["open", "win"]
    assert [s.action for s in pair.rejected_steps] == ["jump"]
    whole = PreferencePair(prefix=dataclasses.replace(prefix, steps=()), chosen=chosen, rejected=rejected)
    assert whole.chosen == chosen and whole.rejected == rejected


def test_marks_and_token_ids_of_the_prefix_may_differ() -> None:
    prefix, chosen, rejected = _pair_parts()
    marked = dataclasses.replace(rejected.steps[0], source="expert", token_ids=(1, 2), trainable=False)
    rejected = dataclasses.replace(rejected, steps=(marked, *rejected.steps[1:]))
    assert PreferencePair(prefix=prefix, chosen=chosen, rejected=rejected).rejected.steps[0] == marked


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task_id": "u"}, "rejected and prefix differ in task_id: expected 't', got 'u'"),
        ({"first_observation": "A hall."}, "rejected and prefix differ in first_observation"),
        ({"steps": ()}, "rejected has 0 steps, expected more than the prefix's 2"),
        ({"steps": _pair_parts()[0].steps}, "rejected has no trainable step after the prefix's 2 steps"),
        ({"steps": _pair_parts()[1].steps[1:]}, "rejected leaves the prefix at step 0: expected turn 'Action: look'"),
        ({"steps": _pair_parts()[1].steps}, "hold the same turns after step 2"),
    ],
)
def test_a_pair_that_shares_no_prefix_is_refused(change: dict[str, Any], message: str) -> None:
    prefix, chosen, rejected = _pair_parts()
    with pytest.raises(DataError, match=re.escape(message)):
        PreferencePair(prefix=prefix, chosen=chosen, rejected=dataclasses.replace(rejected, **change))


def test_the_content_key_is_stored_and_is_not_part_of_the_identity() -> None:
    keyed = dataclasses.replace(ONE, content_key="abc")
    assert from_json(to_json(keyed)) == keyed
    assert keyed.with_id().trajectory_id == ONE.with_id().trajectory_id
    assert keyed.with_id().content_key == "abc"


# -- lines that are not trajectories ---------------------------------------------------------------------------


def _line(**changes: Any) -> str:
    return json.dumps({**json.loads(to_json(ONE)), **changes})


def _step_line(**changes: Any) -> str:
    raw = json.loads(to_json(ONE))
    raw["steps"][1].update(changes)
    return json.dumps(raw)


MALFORMED = [
    ("", "not JSON"),
    ("[]", "the line must be an object, got []"),
    ("null", "the line must be an object, got None"),
    ('"text"', "the line must be an object"),
    ('{"task_id": "t"', "not JSON"),
    ("[" * 100_000, "nested too deeply"),
    (f'{{"seed": {"9" * 5000}}}', "not JSON (Exceeds the limit"),
    (_line(seed=2**70), "seed must be a whole number of at most 64 bits"),
    (_line(seed=True), "seed must be a whole number of at most 64 bits, got True"),
    (_line(steps={}), "steps must be a list, got {}"),
    (_line(steps=[5]), "steps[0] must be an object, got 5"),
    (_line(steps=None), "steps must be a list, got None"),
    (_line(score="1"), "score must be a number in [0, 1], got '1'"),
    (_line(score=7.0), "score must be a number in [0, 1], got 7.0"),
    (_line(score=math.nan), "NaN is no JSON number"),
    (_line(score=-math.inf), "-Infinity is no JSON number"),
    (_line().replace('"score": 0.0', '"score": 1e999'), "score must be a number in [0, 1], got inf"),
    (_line(won="no"), "won must be true or false, got 'no'"),
    (_line(status="won"), "status must be one of 'terminated', 'truncated', 'error', 'running', got 'won'"),
    (_line(goal=["x"]), "goal must be text"),
    (_line(invented=1), "unknown field invented"),
    (_step_line(invented=1), "unknown field steps[1].invented"),
    (_step_line(token_ids=7), "steps[1].token_ids must be a list of token ids >= 0, or null, got 7"),
    (_step_line(token_ids=[1, "2"]), "steps[1].token_ids must be a list of token ids"),
    (_step_line(token_ids=[1, 2.0]), "steps[1].token_ids must be a list of token ids"),
    (_step_line(token_ids=[-1]), "steps[1].token_ids must be a list of token ids"),
    (_step_line(token_ids=[True]), "steps[1].token_ids must be a list of token ids"),
    (_step_line(action=None), "steps[1].action must be text, got None"),
    (_step_line(source="nobody"), "steps[1].source must be one of 'agent', 'expert'"),
    ('{"steps": [], "task_id": "t"}', "first_observation is missing"),
    ('{"steps": [{"action": "a"}], "task_id": "t", "first_observation": ""}', "steps[0].observation is missing"),
    ('{"steps": [], "first_observation": ""}', "task_id is missing"),
]


@pytest.mark.parametrize(("line", "told"), MALFORMED)
def test_a_malformed_line_says_what_was_expected(line: str, told: str) -> None:
    with pytest.raises(DataError, match=re.escape(told)) as caught:
        from_json(line)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_each_malformed_line_of_a_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    for bad in [*(line.encode() for line, _ in MALFORMED if line), b'{"goal": "\xff"}', "{}".encode("utf-16")]:
        path.write_bytes(to_json(ONE).encode() + b"\r\n\n" + bad)
        lines = read_jsonl(path)
        assert next(lines) == ONE
        with pytest.raises(DataError, match=r"t.jsonl:3: not a trajectory: [^\n]+$"):
            next(lines)


def test_a_file_that_cannot_be_read_or_written_is_one_line(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(DataError, match="cannot read"):
            list(read_jsonl(path))
    with pytest.raises(StorageError, match="cannot write"):
        write_jsonl(tmp_path, [ONE])


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    write_jsonl(path, [ONE])

    def killed() -> Iterator[Trajectory]:
        yield ONE
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_jsonl(path, killed())
    assert list(read_jsonl(path)) == [ONE] and os.listdir(tmp_path) == ["t.jsonl"]


def test_lines_go_into_a_pipe_and_through_a_link(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_jsonl(tmp_path / "pipe", [ONE])
    assert os.read(reader, 1 << 16).decode() == to_json(ONE) + "\n"
    os.close(reader)
    (tmp_path / "link").symlink_to(tmp_path / "t.jsonl")
    write_jsonl(tmp_path / "link", [ONE])
    assert (tmp_path / "link").is_symlink() and list(read_jsonl(tmp_path / "t.jsonl")) == [ONE]


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(to_json(ONE), encoding="utf-8-sig")
    assert list(read_jsonl(path)) == [ONE]


def test_lines_of_earlier_versions_are_read() -> None:
    raw = json.loads(to_json(dataclasses.replace(ONE, status="truncated")))
    del raw["content_key"]
    raw["ended"] = {"truncated": "horizon"}[raw.pop("status")]
    for step in raw["steps"]:
        step["readable"] = step.pop("parsed")
    assert from_json(json.dumps(raw)) == dataclasses.replace(ONE, status="truncated")
    for old, new in {"over": "terminated", "failed": "error", "open": "running"}.items():
        assert from_json(json.dumps({**raw, "ended": old})).status == new
    with pytest.raises(DataError, match="status must be one of"):
        from_json(json.dumps({**raw, "ended": "soon"}))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"score": math.nan}, "score must be a number in [0, 1], got nan"),
        ({"score": math.inf}, "score must be a number in [0, 1], got inf"),
        ({"score": 7.0}, "score must be a number in [0, 1], got 7.0"),
        ({"won": "no"}, "won must be true or false, got 'no'"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"goal": None}, "goal must be text, got None"),
        ({"steps": (dataclasses.replace(ONE.steps[0], score=math.nan),)}, "steps[0].score must be a number in [0, 1]"),
        ({"steps": (dataclasses.replace(ONE.steps[0], observation=b"x"),)}, "steps[0].observation must be text"),
    ],
)
def test_what_could_not_be_read_back_is_not_written(change: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError, match=re.escape(told)):
        to_json(dataclasses.replace(ONE, **change))
    with pytest.raises(DataError, match=re.escape(told)):
        dataclasses.replace(ONE, **change).with_id()


def test_a_score_that_is_a_whole_number_is_written_as_a_float() -> None:
    one = dataclasses.replace(ONE, score=1)
    assert (
        '"score": 1.0' in to_json(one)
        and one.with_id().trajectory_id == dataclasses.replace(ONE, score=1.0).with_id().trajectory_id
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)
FIELDS = sorted(json.loads(to_json(ONE)))
STEP_FIELDS = sorted(json.loads(to_json(ONE))["steps"][0])


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(
    st.dictionaries(st.sampled_from([*FIELDS, "ended"]), JSON, max_size=3),
    st.dictionaries(st.sampled_from([*STEP_FIELDS, "readable"]), JSON, max_size=3),
)
def test_any_value_in_any_field_is_read_or_refused_in_one_line(
    fields: dict[str, Any], step_fields: dict[str, Any]
) -> None:
    raw = json.loads(to_json(ONE))
    raw["steps"][0].update(step_fields)
    raw.update(fields)
    try:
        found = from_json(json.dumps(raw))
    except DataError as error:
        assert "\n" not in str(error)
    else:
        assert from_json(to_json(found)) == found


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60), st.integers(0, 400))
def test_any_bytes_in_a_file_are_read_or_refused_with_the_line(tmp_path: Path, inserted: bytes, at: int) -> None:
    path = tmp_path / "fuzzed.jsonl"
    sound = to_json(ONE).encode()
    path.write_bytes(sound[:at] + inserted + sound[at:] + b"\n" + sound)
    try:
        read = list(read_jsonl(path))
    except DataError as error:
        assert re.match(r"[^\n]*fuzzed.jsonl:\d+: not a trajectory: [^\n]+\Z", str(error))
    else:
        assert read[-1] == ONE


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    with pytest.raises(DataError):
        from_json(text)
