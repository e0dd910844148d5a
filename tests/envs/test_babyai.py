"""BabyAI in text: what is seen, what is possible, and the bot from any state."""

import pickle
import random
from functools import partial
from importlib.util import find_spec

import gymnasium
import numpy as np
import pytest
import steca_gym.envs  # noqa: F401 - registers

from steca_gym.errors import ConfigError, DataError
from steca_gym.registration import make_text_env
from steca_gym.testing import CheckSettings, check_text_env

if find_spec("minigrid") is None:
    pytest.skip("BabyAI needs minigrid: pip install 'steca-gym[babyai]'", allow_module_level=True)

from steca_gym.envs.babyai import DEFAULT_LEVELS, BabyAIWorld


@pytest.mark.slow
def test_conforms():
    check_text_env(
        partial(make_text_env, BabyAIWorld, horizon=64), settings=CheckSettings(num_resets=100)
    ).raise_if_failed()


def play_expert(world, outcome, limit=300):
    for _ in range(limit):
        if outcome.over:
            break
        action = world.expert_action()
        assert action in (world.admissible_actions() or ())
        outcome = world.act(action)
    return outcome


@pytest.mark.parametrize("level", DEFAULT_LEVELS)
def test_bot_wins_from_the_start_and_from_a_random_state(level):
    world = BabyAIWorld(levels=(level,))
    rng = random.Random(level)
    for number in range(3):
        assert play_expert(world, world.start(f"{level}/{number}", 0)).won
        outcome = world.start(f"{level}/{number}", 0)
        for _ in range(12):
            # A toggled box is gone for good, and perhaps the task with it.
            harmless = [a for a in world.admissible_actions() if a != "toggle"]
            if not outcome.over:
                outcome = world.act(rng.choice(harmless))
        assert play_expert(world, outcome).won


def test_view_names_objects_walls_and_hands():
    world = BabyAIWorld()
    outcome = world.start("GoToLocal/0", 0)
    task, view, hands = outcome.observation.split("\n")
    assert task == f"Your task: {world.goal}."
    assert view.startswith("You see: ") and "step" in view and "wall" in view
    assert hands == "You carry nothing."
    assert world.expert_thought() == f"I still have to {world.goal}."


def test_action_without_effect_is_invalid_and_changes_nothing():
    world = BabyAIWorld()
    outcome = world.start("GoToLocal/0", 0)
    key = world.state_key()
    possible = set(world.admissible_actions())
    for action in ("turn left", "turn right", "go forward", "pick up", "drop", "toggle"):
        token = world.save()
        outcome = world.act(action)
        assert outcome.valid == (action in possible)
        assert (world.state_key() == key) == (not outcome.valid)
        world.load(token)
    assert not world.act("drop").valid
    assert not world.act("fly").valid


def test_state_goes_to_another_world_by_pickle():
    first, second = BabyAIWorld(), BabyAIWorld()
    first.start("UnlockPickup/1", 0)
    for _ in range(5):
        first.act(first.expert_action())
    second.load(pickle.loads(pickle.dumps(first.save())))
    assert first.state_key() == second.state_key()
    while True:
        action = first.expert_action()
        assert action == second.expert_action()
        one, two = first.act(action), second.act(action)
        assert one == two
        assert first.state_key() == second.state_key()
        if one.over:
            assert one.won
            break


def test_generation_is_silent_and_leaves_global_random_alone(capfd):
    states = random.getstate(), np.random.get_state()[1].tolist()
    world = BabyAIWorld(levels=("GoTo", "PutNextLocal", "BossLevel"))
    for task_id in world.task_ids("test")[:9]:
        world.start(task_id, 0)
        world.expert_action()
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err == ""
    assert states == (random.getstate(), np.random.get_state()[1].tolist())


def test_expert_says_so_where_the_bot_knows_no_way():
    world = BabyAIWorld(levels=("KeyInBox",))
    world.start("KeyInBox/0", 0)
    assert world.expert_action() is None
    assert world.winnable() is None


def test_wrong_names_and_counts_are_explained():
    with pytest.raises(ConfigError, match="did you mean 'GoToLocal'"):
        BabyAIWorld(levels=("GoToLokal",))
    with pytest.raises(ConfigError, match="num_train_tasks"):
        BabyAIWorld(num_train_tasks=0)
    for task_id in ("", "GoToLocal", "GoToLocal/x", "Nowhere/1", "GoToLocal/-1", "GoToLocal/²"):
        with pytest.raises(DataError):
            BabyAIWorld().start(task_id, 0)


def test_splits_are_disjoint():
    world = BabyAIWorld(num_train_tasks=50, num_eval_tasks=50)
    splits = [set(world.task_ids(split)) for split in world.splits()]
    assert len(set.union(*splits)) == sum(map(len, splits)) == 150 * len(DEFAULT_LEVELS)


def test_made_by_gymnasium_with_its_settings():
    env = gymnasium.make("steca/BabyAI-v0", levels=["OpenDoor"], horizon=3)
    _, info = env.reset(seed=3)
    assert info["task_type"] == "OpenDoor" and info["fingerprint"].startswith("babyai/1+minigrid-")
    for _ in range(3):
        *_, truncated, info = env.step("turn left")
    assert truncated
