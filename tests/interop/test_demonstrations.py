"""Demonstrations from elsewhere: read leniently, executed, and what parts is said."""

import functools
import json

import pytest
from steca_gym.agents.searching import SearchingAgent

from steca_gym.cli import main
from steca_gym.collectors import Collector, EpisodeRequest
from steca_gym.errors import DataError
from steca_gym.interop.demonstrations import import_recordings, read_recordings, read_turn
from steca_gym.registration import make_text_env
from steca_gym.runs import RunFolder
from steca_gym.trajectory import read_jsonl, write_jsonl
from tests.cli.test_cli import SMALL

from steca_gym.envs.alfworld import household  # isort: skip

make = functools.partial(make_text_env, household, num_receptacles=4, num_objects=4, horizon=30)


@pytest.fixture(scope="module")
def demos():
    env = make()
    ids = list(env.task_ids("train"))[:6]
    requests = [EpisodeRequest(task_id=t, seed=0) for t in ids]
    played = [e.trajectory for e in Collector(make, SearchingAgent()).run(requests)]
    assert all(t.won for t in played)
    return played


def talk(t, first="", turn="Thought: {thought}\nAction: {action}"):
    yield "user", f"{first}{t.first_observation}"
    for s in t.steps:
        yield "assistant", turn.format(thought=s.thought, action=s.action)
        yield "user", s.observation


def as_conversations(t, **kwargs):
    roles = {"user": "human", "assistant": "gpt"}
    head = [{"from": "human", "value": "Interact with a household."}, {"from": "gpt", "value": "OK"}]
    return {"conversations": head + [{"from": roles[r], "value": c} for r, c in talk(t, **kwargs)]}


def as_messages(t, **kwargs):
    head = [{"role": "system", "content": "Play."}]
    return {"messages": head + [{"role": r, "content": [{"type": "text", "text": c}]} for r, c in talk(t, **kwargs)]}


def imported(tmp_path, documents, lines=True):
    path = tmp_path / "demos.json"
    path.write_text("\n".join(map(json.dumps, documents)) if lines else json.dumps(documents, indent=1))
    return import_recordings(list(read_recordings(path)), make, split="train")


@pytest.mark.parametrize("lines", [True, False])
@pytest.mark.parametrize(
    "form",
    [
        as_conversations,
        as_messages,
        lambda t: {"task_id": t.task_id, "actions": list(t.actions)},
        lambda t: as_conversations(t, turn="THOUGHT: {thought}\nACTION: {action}"),
        lambda t: as_messages(t, turn="**Thought:** {thought}\n**Action:** {action}"),
        lambda t: as_messages(t, turn="> {action}"),
        lambda t: as_conversations(t, first="Here is an example:\n> look\n\nNow your task:\n"),
    ],
)
def test_every_form_becomes_the_same_trajectories(tmp_path, demos, form, lines):
    found = imported(tmp_path, [form(t) for t in demos], lines)
    assert [f.reason for f in found] == [""] * len(demos)
    for f, t in zip(found, demos, strict=True):
        assert f.trajectory.actions == t.actions and f.trajectory.task_id == t.task_id and f.trajectory.won
        assert [s.observation for s in f.trajectory.steps] == [s.observation for s in t.steps]
        assert all(s.source == "expert" and s.trainable for s in f.trajectory.steps)


def test_our_own_lines_keep_their_thoughts(tmp_path, demos):
    write_jsonl(tmp_path / "own.jsonl", demos)
    found = import_recordings(list(read_recordings(tmp_path / "own.jsonl")), make, split="train")
    assert [[s.thought for s in f.trajectory.steps] for f in found] == [[s.thought for s in t.steps] for t in demos]


def test_thoughts_that_stand_alone_are_joined_to_the_next_action(tmp_path, demos):
    t = demos[0]
    messages = [{"role": "user", "content": t.first_observation}]
    for s in t.steps:
        messages += [{"role": "assistant", "content": f"> think: {s.thought}"}, {"role": "user", "content": "OK."}]
        messages += [{"role": "assistant", "content": f"> {s.action}"}, {"role": "user", "content": s.observation}]
    (found,) = imported(tmp_path, [{"messages": messages}])
    assert [s.thought for s in found.trajectory.steps] == [s.thought for s in t.steps]


@pytest.mark.slow  # looks through all tasks for one that is not there
def test_what_parts_is_said_with_its_step(tmp_path, demos):
    t = demos[0]
    wrong = as_messages(t)
    wrong["messages"][-2]["content"] = [{"type": "text", "text": "Thought: x\nAction: fly to the moon"}]
    other = as_messages(t)
    slip = as_messages(t)
    slip["messages"].insert(2, {"role": "assistant", "content": "Action: fly"})
    slip["messages"].insert(3, {"role": "user", "content": "Nothing happens."})
    (kept,) = imported(tmp_path, [slip])
    assert [s.trainable for s in kept.trajectory.steps] == [False] + [True] * len(t)  # refused: played, not taught
    other["messages"][3]["content"] = [{"type": "text", "text": "You arrive in Paris."}]
    other["messages"] = other["messages"][:-4]
    unknown = as_messages(t)
    unknown["messages"][1]["content"] = "You are at sea."
    found = imported(
        tmp_path,
        [
            wrong,
            other,
            unknown,
            {"task_id": "train/999999999", "actions": ["look"]},
            {"task_id": t.task_id, "actions": []},
        ],
    )
    reasons = [f.reason for f in found]
    assert all(f.trajectory is None for f in found)
    assert f"it parts at step {len(t)}" in reasons[0] and "fly to the moon" in reasons[0]
    assert "it parts at step 1" in reasons[1] and "recorded 'You arrive in Paris.'" in reasons[1]
    assert "no task of split 'train' begins like it" in reasons[2]
    assert "is none of split 'train'" in reasons[3] and "no turn with an action" in reasons[4]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", r":1: no JSON"),
        ("[1", "no JSON array"),
        ("5", ":1: a int, expected an object"),
        ('{"text": "x"}', "an object with text, expected one with conversations"),
        ('{"messages": [5]}', "a message is a int"),
        ('{"messages": [{"role": "ghost", "content": "x"}]}', "role='ghost'"),
        ('{"conversations": [{"from": "gpt", "value": 5}]}', "value of type int"),
        ('{"task_id": 5, "actions": []}', "task_id must be a text"),
        ('{"task_id": "a", "actions": [5]}', "actions must be texts"),
        ('{"steps": [5]}', "."),
        ("[" * 100_000, "no JSON array"),
        ('{"a":' * 100_000, ":1: no JSON"),
    ],
)
def test_a_file_of_another_form_is_one_line(tmp_path, text, told):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError, match=told) as caught:
        list(read_recordings(tmp_path / "x.json"))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


@pytest.mark.parametrize(
    ("text", "turn"),
    [
        ("Thought: a\nAction: go", ("a", "go")),
        ("thought: a b\naction: go to desk 1", ("a b", "go to desk 1")),
        ("Act: go", ("", "go")),
        ("> go", ("", "go")),
        ("> think: I see.", ("I see.", "")),
        ("One.\nTwo.", ("", "")),
    ],
)
def test_turns_are_read_leniently(text, turn):
    assert read_turn(text) == turn


def test_a_run_starts_from_an_import(tmp_path, demos, capsys):
    world = ["env=household", "env.kwargs.num_receptacles=4", "env.kwargs.num_objects=4"]
    (tmp_path / "demos.json").write_text("\n".join(json.dumps(as_conversations(t)) for t in demos))
    to = tmp_path / "demos.jsonl"
    assert main(["import", str(tmp_path / "demos.json"), *world, f"to={to}"]) == 0
    assert "6 of 6 demonstrations" in capsys.readouterr().out and len(list(read_jsonl(to))) == 6
    folder = tmp_path / "run"
    small = [s for s in SMALL if not s.startswith(("env.kwargs", "env=", "expert"))]
    args = ["collect", f"run_dir={folder}", "expert=imported", f"expert.path={to}", "method=sft", *world, *small]
    args = [a for a in args if not a.startswith("env.num_train_tasks")]
    assert main(args) == 0
    with RunFolder(folder).buffer() as buffer:
        assert {t.actions for t in buffer.iter_trajectories(kind="expert")} == {t.actions for t in demos}


@pytest.mark.parametrize(
    ("args", "line"),
    [
        ([], "import takes files, a world and where to write"),
        (["/nowhere.json", "env=household", "to=x"], "cannot read '/nowhere.json'"),
        (["--fast"], "got '--fast'"),
        (["x.json", "env=househld", "to=x"], "household"),
    ],
)
def test_bad_input_is_one_line(args, line, capsys):
    assert main(["import", *args]) in (2, 3)
    (said,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("steca: ")]
    assert line in said
