"""The searching expert: what it reads, what it does next, and how often it wins."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steca_gym.agents.scripted import ExpertAgent
from steca_gym.agents.searching import SearchingAgent, read_conversation, read_task
from steca_gym.agents.searching.places import read_places
from steca_gym.envs.alfworld import AlfredWorld, Household, HouseholdSettings, OfficialGames
from steca_gym.envs.alfworld.game import TASK_TYPES, Game, load_game

from steca_gym.agent import Agent, Message, TurnRequest, find_turn_format, parse_turn, render_turn
from steca_gym.env import World
from steca_gym.errors import AgentError, DataError
from steca_gym.registry import agents
from tests.official import official_data

ROOM = (
    "-= Welcome to TextWorld, ALFRED! =-\n\nYou are in the middle of a room. Looking quickly around you, you see a "
    "cabinet 2, a cabinet 1, a countertop 1, a desk 1, a drawer 1, a fridge 1, a microwave 1, a shelf 1, and a "
    "sinkbasin 1.\n\nYour task is to: {}"
)


def turns(task: str, *said: tuple[str, str]) -> list[Message]:
    messages = [Message("user", ROOM.format(task))]
    for action, observation in said:
        messages += [Message("assistant", render_turn("I act.", action)), Message("user", observation)]
    return messages


def answer(messages: Sequence[Message], agent: SearchingAgent | None = None) -> str:
    request = TurnRequest(episode_id="e", messages=tuple(messages), seed=0, turn=len(messages) // 2)
    parsed = parse_turn((agent or SearchingAgent()).act([request])[0].text)
    assert parsed.thought and parsed.action
    return parsed.action


def play(world: World, task_id: str, *, horizon: int = 40, first: Sequence[str] = ()) -> tuple[bool, list[str]]:
    """Play a game, after somebody else's first actions; whether it was won, and the expert's actions."""
    outcome = world.start(task_id, 0)
    messages = [Message("user", outcome.observation)]
    agent, did = SearchingAgent(), []
    for turn in range(horizon):
        action = first[turn] if turn < len(first) else answer(messages, agent)
        if turn >= len(first):
            did.append(action)
        outcome = world.act(action)
        if outcome.over:
            return outcome.won, did
        messages += [Message("assistant", f"Action: {action}"), Message("user", outcome.observation)]
    return False, did


# -- what it reads -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind", "wanted", "target", "treatment"),
    [
        ("put some soapbar on cabinet.", "place", "soapbar", "cabinet", ""),
        ("put a mug in desk.", "place", "mug", "desk", ""),
        ("put a clean mug in desk.", "place", "mug", "desk", "clean"),
        ("clean some mug and put it in desk.", "place", "mug", "desk", "clean"),
        ("put a hot mug in desk.", "place", "mug", "desk", "heat"),
        ("heat some egg and put it in desk.", "place", "egg", "desk", "heat"),
        ("put a cool pan in desk.", "place", "pan", "desk", "cool"),
        ("cool some pan and put it in desk.", "place", "pan", "desk", "cool"),
        ("put two cd in safe.", "two", "cd", "safe", ""),
        ("find two cd and put them in safe.", "two", "cd", "safe", ""),
        ("look at bowl under the desklamp.", "light", "bowl", "desklamp", ""),
        ("examine the bowl with the floorlamp.", "light", "bowl", "floorlamp", ""),
    ],
)
def test_every_wording_of_a_task_is_read(text: str, kind: str, wanted: str, target: str, treatment: str) -> None:
    task = read_task(ROOM.format(text))
    assert (task.kind, task.wanted, task.target, task.treatment) == (kind, wanted, target, treatment)


def test_what_is_no_task_of_alfworld_is_refused_in_one_line() -> None:
    with pytest.raises(AgentError, match="cannot read the task 'boil the water'.*expert=planner"):
        answer([Message("user", ROOM.format("boil the water."))])
    with pytest.raises(AgentError, match="no message says 'Your task is to"):
        answer([Message("user", "You see a door.")])
    broken = TurnRequest(episode_id="a", messages=(Message("user", "A room."),), seed=0, turn=0)
    sound = TurnRequest(episode_id="b", messages=tuple(turns("put a mug in desk.")), seed=0, turn=0)
    agent = SearchingAgent()
    agent.submit([broken, sound])
    answers = dict(agent.poll())
    assert isinstance(answers["a"], AgentError) and "Action: go to" in answers["b"].text  # type: ignore[union-attr]


def test_worked_examples_before_the_episode_are_passed_over() -> None:
    example = turns("put a hot egg in fridge.", ("go to fridge 1", "You arrive at fridge 1. The fridge 1 is closed."))
    messages = [Message("system", "Play."), *example, *turns("put a mug in desk.")]
    memory = read_conversation(messages)
    assert memory.task.wanted == "mug" and memory.at == "" and not memory.seen


@given(st.lists(st.tuples(st.text(max_size=30), st.text(max_size=60)), max_size=4))
def test_any_history_gets_an_answer(history: list[tuple[str, str]]) -> None:
    messages = turns("put a mug in desk.")
    for said, seen in history:
        if "task is to" in seen.lower():
            continue
        messages += [Message("assistant", said), Message("user", seen)]
    assert answer(messages)


# -- what it does next -------------------------------------------------------------------------------------


def test_it_opens_what_is_closed_takes_what_it_sees_and_goes_on_where_nothing_is() -> None:
    task = "put a clean mug in cabinet."
    at_drawer = ("go to drawer 1", "You arrive at drawer 1. The drawer 1 is closed.")
    assert answer(turns(task, at_drawer)) == "open drawer 1"
    opened = ("open drawer 1", "You open the drawer 1. The drawer 1 is open. In it, you see a mug 2, and a pen 1.")
    assert answer(turns(task, at_drawer, opened)) == "take mug 2 from drawer 1"
    taken = ("take mug 2 from drawer 1", "You pick up the mug 2 from the drawer 1.")
    assert answer(turns(task, at_drawer, opened, taken)) == "go to sinkbasin 1"
    nothing = ("open drawer 1", "You open the drawer 1. The drawer 1 is open. In it, you see nothing.")
    assert answer(turns(task, at_drawer, nothing)).startswith("go to ")


def test_it_goes_back_for_what_it_saw_before() -> None:
    said = [
        ("go to shelf 1", "You arrive at shelf 1. On the shelf 1, you see a mug 3."),
        ("go to desk 1", "You arrive at desk 1. On the desk 1, you see nothing."),
    ]
    assert answer(turns("put a mug in desk.", *said)) == "go to shelf 1"


def test_a_place_that_cannot_be_gone_to_is_where_one_stands() -> None:
    said = [
        ("go to cabinet 1", "You arrive at cabinet 1. The cabinet 1 is closed."),
        ("open cabinet 1", "You open the cabinet 1. The cabinet 1 is open. In it, you see nothing."),
        ("go to cabinet 2", "Nothing happens."),
    ]
    messages = turns("put a mug in cabinet.", *said)
    memory = read_conversation(messages)
    assert memory.here("cabinet 2") and memory.here("cabinet 1") and not memory.here("desk 1")
    holding = [
        ("go to shelf 1", "You arrive at shelf 1. On the shelf 1, you see a mug 1."),
        ("take mug 1 from shelf 1", "You pick up the mug 1 from the shelf 1."),
        ("go to cabinet 1", "You arrive at cabinet 1. The cabinet 1 is open. In it, you see nothing."),
    ]
    assert answer(turns("put a mug in cabinet.", *said, *holding)) == "move mug 1 to cabinet 1"


def test_a_command_with_a_slip_does_not_move_the_room() -> None:
    said = [
        ("go to shelf 1", "You arrive at shelf 1. On the shelf 1, you see a mug 1."),
        ("go to  desk 1", "Nothing happens."),
    ]
    assert not read_conversation(turns("put a mug in desk.", *said)).here("desk 1")
    unread = [*said, ("go to desk 1", "The turn could not be read.")]
    assert read_conversation(turns("put a mug in desk.", *unread)).at == "shelf 1"
    believed = [*said, ("go to desk 1", "Nothing happens."), ("examine desk 1", "Nothing happens.")]
    assert not read_conversation(turns("put a mug in desk.", *believed)).here("desk 1")


def test_a_wrong_thing_in_hand_is_put_down_first() -> None:
    said = [
        ("go to shelf 1", "You arrive at shelf 1. On the shelf 1, you see a pen 1, and a mug 1."),
        ("take pen 1 from shelf 1", "You pick up the pen 1 from the shelf 1."),
    ]
    assert answer(turns("put a mug in desk.", *said)) == "move pen 1 to shelf 1"


def test_a_thing_that_was_taken_out_of_the_fridge_is_cooled_again_after_somebody_heated_it() -> None:
    said = [
        ("go to shelf 1", "You arrive at shelf 1. On the shelf 1, you see a mug 1."),
        ("take mug 1 from shelf 1", "You pick up the mug 1 from the shelf 1."),
        ("go to fridge 1", "You arrive at fridge 1. The fridge 1 is closed."),
        ("cool mug 1 with fridge 1", "You cool the mug 1 using the fridge 1."),
    ]
    task = "put a cool mug in desk."
    assert answer(turns(task, *said)) == "go to desk 1"
    heated = ("heat mug 1 with microwave 1", "You heat the mug 1 using the microwave 1.")
    assert answer(turns(task, *said, heated)) in ("go to fridge 1", "cool mug 1 with fridge 1")


@pytest.mark.parametrize("refused", ["move", "put"])
def test_the_other_command_for_putting_down_is_tried_where_one_is_refused(refused: str) -> None:
    said = [
        ("go to shelf 1", "You arrive at shelf 1. On the shelf 1, you see a mug 1."),
        ("take mug 1 from shelf 1", "You pick up the mug 1 from the shelf 1."),
        ("go to desk 1", "You arrive at desk 1. On the desk 1, you see nothing."),
    ]
    commands = {"move": "move mug 1 to desk 1", "put": "put mug 1 in/on desk 1"}
    head = [] if refused == "move" else [Message("system", "The commands are:\nput {object} in/on {place}")]
    messages = [*head, *turns("put a mug in desk.", *said)]
    assert answer(messages) == commands[refused]
    messages += [Message("assistant", f"Action: {commands[refused]}"), Message("user", "Nothing happens.")]
    assert answer(messages) == next(c for verb, c in commands.items() if verb != refused)


def test_games_of_the_older_release_are_answered_in_their_words() -> None:
    said = [
        ("go to shelf 1", "You arrive at loc 24. On the shelf 1, you see a mug 1."),
        ("take mug 1 from shelf 1", "You pick up the mug 1 from the shelf 1."),
        ("go to desk 1", "You arrive at loc 3. On the desk 1, you see nothing."),
    ]
    assert answer(turns("put a mug in desk.", *said)) == "put mug 1 in/on desk 1"


def test_it_never_repeats_what_was_just_refused() -> None:
    messages = turns("put a mug in desk.")
    said = set()
    for _ in range(30):
        action = answer(messages)
        assert action not in said or action == "look"
        said.add(action)
        messages += [Message("assistant", f"Action: {action}"), Message("user", "Nothing happens.")]


# -- how often it wins -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(3, 4), (4, 4), (8, 8), (14, 20)])
def test_it_wins_generated_games_of_every_kind_and_size(size: tuple[int, int]) -> None:
    world = AlfredWorld(Household(HouseholdSettings(num_receptacles=size[0], num_objects=size[1], seed=5)))
    for split in world.splits():
        for task_id in world.task_ids(split)[:30]:
            won, actions = play(world, task_id)
            assert won, (task_id, actions)


class _Games:
    """Games that are given, under any id."""

    name, version, data_hash = "given", "1", "0"

    def __init__(self, game: Game) -> None:
        self._game = game

    def splits(self) -> tuple[str, ...]:
        return ("train",)

    def task_ids(self, split: str) -> Sequence[str]:
        return ("train/0",)

    def game(self, task_id: str) -> Game:
        return self._game


def changed(task_id: str, *, old_words: bool = False, rng: random.Random | None = None, floor: bool = False) -> _Games:
    """A generated game in the other grammar, with places that share locations, or with the other lamp."""
    data: dict[str, Any] = dict(Household(HouseholdSettings(num_receptacles=7, num_objects=8)).data(task_id))
    if old_words:
        data["grammar"] = (
            'action PutObject {\n template :: "put {o} in/on {r}"\n}\n"PutObject.feedback": [{"rhs": '
            '"You put the {o.name} in/on the {r.name}."}]\n' + str(data["grammar"])
        )
    if rng is not None:
        head, _, facts = str(data["pddl_problem"]).partition("(:init")
        for _ in range(3):
            one, other = rng.sample(range(10), 2)
            facts = facts.replace(f"loc_bar_{one:02d}", f"loc_bar_{other:02d}")
        data["pddl_problem"] = head + "(:init" + facts
    if floor:
        data = json.loads(json.dumps(data).replace("DeskLamp", "FloorLamp").replace("desklamp", "floorlamp"))
    return _Games(load_game(data))


@pytest.mark.parametrize("change", ["old words", "shared places", "floor lamp"])
def test_it_wins_in_the_other_grammar_where_places_share_a_location_and_with_both_lamps(change: str) -> None:
    rng, kinds = random.Random(1), set()
    for i in range(36):
        games = changed(
            f"train/{i}",
            old_words=change == "old words",
            rng=rng if change == "shared places" else None,
            floor=change == "floor lamp",
        )
        won, actions = play(AlfredWorld(games), "train/0")
        assert won, (i, games.game("").task, actions)
        kinds.add(games.game("").task_type)
        if change == "old words":
            assert sum(a.startswith("move ") for a in actions) <= 1, "the room does not say which"
    assert kinds == set(TASK_TYPES)


def test_it_wins_from_whatever_others_did_before() -> None:
    rng = random.Random(4)
    world = AlfredWorld(Household(HouseholdSettings(num_receptacles=6, num_objects=8)))
    for task_id in world.task_ids("train")[:60]:
        world.start(task_id, 0)
        first = []
        while len(first) < 12 and not (first and world.act(first[-1]).over):
            every = [*(world.admissible_actions() or ()), "go to desk 9", "take mug 1 from shelf 1", "dance"]
            first.append(rng.choice(every))
        won, actions = play(world, task_id, horizon=60, first=first[:-1])
        assert won, (task_id, first, actions)


@pytest.mark.slow
def test_it_wins_the_official_games() -> None:
    world = AlfredWorld(OfficialGames(official_data("valid_seen")))
    ids = world.task_ids("valid_seen")
    lost = [task_id for task_id in ids if not play(world, task_id)[0]]
    assert len(lost) <= 0.03 * len(ids), lost


# -- what it is --------------------------------------------------------------------------------------------


def test_it_is_an_agent_that_is_registered_and_says_that_it_is_not_clairvoyant() -> None:
    assert isinstance(SearchingAgent(), Agent) and agents.get("searching") is SearchingAgent
    assert SearchingAgent.needs == frozenset()
    assert SearchingAgent.is_clairvoyant is False and ExpertAgent.is_clairvoyant is True


def test_the_frequencies_tell_the_rooms_apart_and_come_from_a_file_of_ones_own(tmp_path: Path) -> None:
    places = read_places()
    kitchen = ["cabinet", "coffeemachine", "countertop", "fridge", "microwave", "sinkbasin", "stoveburner", "toaster"]
    generated = ["bed", "cabinet", "desk", "fridge", "microwave", "shelf", "sinkbasin"]
    assert places.for_room(kitchen).name == "alfworld" and places.for_room(generated).name == "household"
    for table in places.tables:
        shares = [s for by_place in table.holds.values() for s in by_place.values()]
        assert all(0 < s <= 1 for s in shares)
    own = tmp_path / "own.json"
    own.write_text(json.dumps({"tables": {"mine": {"rooms": {}, "doors": {}, "holds": {"mug": {"sinkbasin": 0.9}}}}}))
    assert answer(turns("put a mug in desk."), SearchingAgent(own)) == "go to sinkbasin 1"
    with pytest.raises(DataError, match="searching_frequencies.py"):
        SearchingAgent(tmp_path / "none.json")
    own.write_text("[]")
    with pytest.raises(DataError, match="cannot read the frequencies"):
        SearchingAgent(own)


@pytest.mark.parametrize("name", ["json", "xml", "tools"])
def test_it_reads_and_writes_other_turn_formats(name: str) -> None:
    agent, turn_format = SearchingAgent(turn_format=name), find_turn_format(name)
    said = turn_format.render("I look.", "go to shelf 1")
    seen = "You arrive at shelf 1. On the shelf 1, you see a mug 3."
    messages = (*turns("put a mug in desk."), Message("assistant", said), Message("user", seen))
    (turn,) = agent.act([TurnRequest(episode_id="e", messages=messages, seed=0, turn=1)])
    assert turn_format.parse(turn.text).action == "take mug 3 from shelf 1"


def test_equal_conversations_get_equal_answers_whatever_else_is_asked() -> None:
    world = AlfredWorld(Household(HouseholdSettings()))
    first = [play(world, task_id)[1] for task_id in world.task_ids("train")[:6]]
    again = [play(world, task_id)[1] for task_id in world.task_ids("train")[:6]]
    assert first == again and all(re.match(r"[a-z]", a) for actions in first for a in actions)
