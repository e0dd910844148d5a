"""Household games and, where the data is, ALFWorld's official ones: text, rules, expert, states."""

from __future__ import annotations

import pickle
import random
from functools import partial
from pathlib import Path

import gymnasium
import pytest
from gymnasium.utils.env_checker import check_env
from steca_gym.envs.alfworld import alfworld, engine, household
from steca_gym.envs.alfworld.game import TASK_TYPES
from steca_gym.envs.alfworld.household import Household, HouseholdSettings

from steca_gym.agent import parse_turn
from steca_gym.cli.composing import compose
from steca_gym.env import TextEnv
from steca_gym.errors import ConfigError, DataError
from steca_gym.registration import make_text_env
from steca_gym.testing import check_text_env
from tests.official import official_data


@pytest.fixture
def env() -> TextEnv:
    return make_text_env(household, num_receptacles=5, num_objects=5)


@pytest.mark.slow
def test_it_conforms() -> None:
    check_text_env(partial(make_text_env, household)).raise_if_failed()


@pytest.mark.slow
def test_official_games_conform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STECA_CACHE", str(tmp_path))
    make = partial(make_text_env, alfworld, data=str(official_data()), split="valid_seen")
    check_text_env(make).raise_if_failed()


def test_a_teddy_bear_cannot_be_put_down_and_so_loses_the_game(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STECA_CACHE", str(tmp_path))
    env = make_text_env(alfworld, data=str(official_data()), split="valid_seen")
    trial = "valid_seen/look_at_obj_in_light-Laptop-None-DeskLamp-328/trial_T20190908_201550_622420"
    env.reset(options={"task_id": trial})
    env.step("go to bed 1")
    assert env.winnable()
    *_, info = env.step("take teddybear 1 from bed 1")
    assert info["valid"] and env.winnable() is False and env.expert_action() is None
    assert not any(c.startswith("move") for c in env.admissible_actions() or ())


def test_the_prompts_example_is_a_game_as_it_is_played() -> None:
    messages = compose(["env=household", "env/prompt=react"]).env.prompt.examples
    env = make_text_env(household, num_receptacles=6, num_objects=6, seed=1189)
    observation, _ = env.reset(options={"task_id": "train/8"})
    assert messages[0].content == observation
    for i in range(1, len(messages), 2):
        turn = parse_turn(messages[i].content)
        assert turn.action is not None and turn.thought
        observation, _, over, _, info = env.step(turn.action)
        assert info["valid"] and over == (i == len(messages) - 1)
        assert over or messages[i + 1].content == observation
    assert info["won"]
    # Models that are warmed up read no instructions; both environments take either.
    assert not compose(["env=household"]).env.prompt.examples
    assert compose(["env=alfworld", "env/prompt=react"]).env.prompt.examples == messages


def test_settings_make_a_game_harder_and_layouts_make_the_splits() -> None:
    easy, hard = (
        Household(HouseholdSettings(num_receptacles=n, num_objects=m, num_distractors=d))
        for n, m, d in ((3, 2, 0), (15, 20, 6))
    )

    def same(games: Household) -> int:
        found = [games.game(f"train/{i}") for i in range(0, 60, 6)]
        return sum(g.goal_objects.bit_count() - 1 for g in found)

    assert same(easy) == 0 < same(hard)
    assert len(hard.game("train/0").receptacles) == 18 and len(hard.game("train/0").objects) == 21
    games = Household(HouseholdSettings(num_layouts=4))
    layouts = {
        split: {games.game(f"{split}/{i}").receptacles for i in range(40)}
        for split in ("train", "valid_seen", "valid_unseen")
    }
    assert layouts["valid_seen"] <= layouts["train"] and not layouts["valid_unseen"] <= layouts["train"]
    assert all(len(found) <= 4 for found in layouts.values())


def test_gymnasium_accepts_it_and_makes_it_by_id() -> None:
    check_env(gymnasium.make("steca_gym.envs:steca/Household-v0").unwrapped, skip_render_check=True)


@pytest.mark.parametrize("split", ["train", "valid_seen", "valid_unseen"])
def test_the_expert_wins_every_kind_of_game(env: TextEnv, split: str) -> None:
    kinds = set()
    for task_id in env.task_ids(split)[:60]:
        _, info = env.reset(seed=0, options={"task_id": task_id})
        kinds.add(info["task_type"])
        terminated = truncated = False
        while not (terminated or truncated):
            action = env.expert_action()
            assert action in (env.admissible_actions() or ())
            _, _, terminated, truncated, info = env.step(action or "")
        assert info["won"], task_id
    assert kinds == set(TASK_TYPES)


def test_the_expert_wins_from_wherever_random_actions_led(env: TextEnv) -> None:
    rng = random.Random(0)
    for task_id in env.task_ids()[:60]:
        env.reset(seed=0, options={"task_id": task_id})
        over = False
        for _ in range(10):
            if not over:
                *_, over, _, info = env.step(rng.choice(env.admissible_actions() or ("look",)))
        while not over:
            *_, over, truncated, info = env.step(env.expert_action() or "")
            assert not truncated
        assert info["won"]


def test_exactly_the_admissible_commands_do_something(env: TextEnv) -> None:
    rng = random.Random(1)
    env.reset(seed=0, options={"task_id": "train/3"})
    every = {c for t in env.task_ids()[:12] for c in _commands(env, t)}
    env.reset(seed=0, options={"task_id": "train/3"})
    for _ in range(12):
        snapshot, admissible = env.snapshot(), set(env.admissible_actions() or ())
        for command in sorted(every | admissible):
            env.restore(snapshot)
            observation, *_, info = env.step(command)
            assert info["valid"] == (command in admissible), command
            assert info["valid"] or observation == engine.NOTHING
        env.restore(snapshot)
        *_, over, _, _ = env.step(rng.choice(sorted(admissible)))
        if over:
            break


def _commands(env: TextEnv, task_id: str) -> set[str]:
    env.reset(seed=0, options={"task_id": task_id})
    found = set(env.admissible_actions() or ())
    for _ in range(4):
        *_, over, _, _ = env.step(env.expert_action() or "")
        if over:
            break
        found |= set(env.admissible_actions() or ())
    return found


def test_states_are_small_equal_and_entered_in_another_environment(env: TextEnv) -> None:
    env.reset(seed=0, options={"task_id": "train/0"})
    env.step(env.expert_action() or "")
    token = pickle.dumps(env.snapshot())
    assert len(token) < 4000
    other = make_text_env(household, num_receptacles=5, num_objects=5)
    other.restore(pickle.loads(token))
    assert other.state_key() == env.state_key()
    assert other.step("look") == env.step("look")


@pytest.mark.parametrize(
    "action", ["", " ", "go to", "take  from ", "x" * 1_000_000, "\x00", "打开 drawer 1", "move {o} to {r}"]
)
def test_hostile_actions_are_answered(env: TextEnv, action: str) -> None:
    env.reset(seed=0)
    observation, *_, info = env.step(action)
    assert observation == engine.NOTHING and not info["valid"]


def test_bad_settings_and_tasks_say_what_is_wrong(env: TextEnv) -> None:
    with pytest.raises(ConfigError, match="num_receptacles must be >= 3, got 1"):
        make_text_env(household, num_receptacles=1)
    with pytest.raises(ConfigError, match="num_distractors must be >= 0, got -1"):
        make_text_env(household, num_distractors=-1)
    with pytest.raises(DataError, match="expected SPLIT/NUMBER"):
        env.reset(options={"task_id": "kitchen"})
    with pytest.raises(DataError, match="alfworld-download"):
        make_text_env(alfworld, data="/nowhere")


def test_official_walkthroughs_win_and_the_expert_is_no_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = str(official_data())
    monkeypatch.setenv("STECA_CACHE", str(tmp_path))
    env = make_text_env(alfworld, data=data, split="valid_seen", horizon=60)
    longer = 0
    for task_id in env.task_ids()[:40]:
        game = env.world.games.game(task_id)  # type: ignore[attr-defined]
        env.reset(options={"task_id": task_id})
        for command in game.walkthrough:
            assert command in (env.admissible_actions() or ())
            *_, over, _, info = env.step(command)
        assert info["won"] and over
        env.reset(options={"task_id": task_id})
        over, count = False, 0
        while not over:
            *_, over, truncated, info = env.step(env.expert_action() or "")
            count += 1
            assert not truncated
        longer += count > len(game.walkthrough)
    assert longer <= 2
