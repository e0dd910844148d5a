"""TextEnv over a small world: Gymnasium's own checker, rewards, horizons, snapshots both ways."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from steca_gym.env import INVALID_TURN_OBSERVATION, Outcome, TextEnv, World
from steca_gym.errors import ConfigError, DataError, ReplayMismatchError, WorldError
from steca_gym.registration import register_world


class Stairs(World):
    """Climb three steps; ``up`` scores a third each."""

    name, version = "stairs", "1"

    def __init__(self, drift: bool = False) -> None:
        self.drift, self.starts = drift, 0

    def task_ids(self, split: str) -> Sequence[str]:
        return ("a", "b")

    def start(self, task_id: str, seed: int) -> Outcome:
        self.height, self.starts = 0, self.starts + 1
        return Outcome(observation=f"stairs {task_id}")

    def act(self, action: str) -> Outcome:
        self.height += action == "up"
        text = f"height {self.height}" + (f" start {self.starts}" if self.drift else "")
        return Outcome(
            observation=text, score=self.height / 3, won=self.height == 3, over=self.height == 3, valid=action == "up"
        )

    @property
    def goal(self) -> str:
        return "climb"


class SavedStairs(Stairs):
    can_save = True

    def save(self) -> int:
        return self.height

    def load(self, token: int) -> None:
        self.height = token


def test_gymnasium_accepts_it() -> None:
    check_env(TextEnv(Stairs()), skip_render_check=True)


def test_rewards_add_up_to_the_score_and_won_is_told_apart() -> None:
    env = TextEnv(Stairs(), horizon=5)
    env.reset(seed=0, options={"task_id": "b"})
    total, terminated = 0.0, False
    while not terminated:
        _, reward, terminated, truncated, info = env.step("up")
        total += reward
    assert total == pytest.approx(1.0) and info["won"] and not truncated
    assert info["task_id"] == "b" and info["fingerprint"] == "stairs/1+none"
    with pytest.raises(WorldError, match="after the end"):
        env.step("up")


def test_the_horizon_truncates_and_an_unreadable_turn_costs_a_step() -> None:
    env = TextEnv(Stairs(), horizon=2)
    env.reset(seed=0)
    observation, reward, *_ = env.skip_turn()
    assert observation == INVALID_TURN_OBSERVATION and reward == 0.0
    *_, terminated, truncated, info = env.step("down")
    assert truncated and not terminated and not info["won"] and not info["valid"]


@pytest.mark.parametrize("world", [Stairs, SavedStairs])
def test_a_snapshot_is_entered_again_also_pickled(world: type[Stairs]) -> None:
    env = TextEnv(world(), horizon=9)
    env.reset(seed=1)
    env.step("up")
    env.skip_turn()
    snapshot = pickle.loads(pickle.dumps(env.snapshot()))
    first = env.step("up")
    other = TextEnv(world(), horizon=9)
    assert other.restore(snapshot)[1]["num_steps"] == 2
    assert other.step("up") == first


def test_a_replay_that_differs_fails_loudly() -> None:
    env = TextEnv(Stairs(drift=True))
    env.reset(seed=1)
    env.step("up")
    with pytest.raises(ReplayMismatchError, match="differs at step 0"):
        env.restore(env.snapshot())


def test_a_snapshot_of_another_world_is_refused() -> None:
    env = TextEnv(Stairs())
    env.reset(seed=1)

    class Ladder(Stairs):
        name = "ladder"

    with pytest.raises(WorldError, match="snapshot of 'stairs/1"):
        TextEnv(Ladder()).restore(env.snapshot())


def test_make_and_make_vec_and_bad_settings() -> None:
    gymnasium.register("test/Stairs-v0", entry_point=lambda **kwargs: TextEnv(Stairs(), **kwargs), order_enforce=False)
    try:
        env = gymnasium.make("test/Stairs-v0", horizon=4)
        assert env.reset(seed=3)[0] == env.reset(seed=3)[0]
        vector = gymnasium.make_vec("test/Stairs-v0", num_envs=3)
        vector.reset(seed=0)
        _, rewards, *_ = vector.step(("up", "down", "up"))
        assert rewards.tolist() == pytest.approx([1 / 3, 0.0, 1 / 3])
    finally:
        gymnasium.registry.pop("test/Stairs-v0")
    with pytest.raises(ConfigError, match="horizon must be >= 1"):
        TextEnv(Stairs(), horizon=0)
    with pytest.raises(ConfigError, match="no split 'trian'; did you mean 'train'"):
        TextEnv(Stairs(), split="trian")


# -- the boundary: what a world returns ---------------------------------------------------------------------------


class Careless(Stairs):
    """Returns what a test says, by the action ``bad``."""

    def __init__(self, **wrong: Any) -> None:
        super().__init__()
        self.wrong = wrong

    def act(self, action: str) -> Outcome:
        return Outcome(**{"observation": "fine", **self.wrong}) if action == "bad" else super().act(action)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(observation=b"bytes"), "observation of act.. must be text, got bytes"),
        (dict(observation=5), "must be text, got int 5"),
        (dict(observation=None), "must be text, got None"),
        (dict(observation=["a"]), "must be text, got list"),
        (dict(observation="x" * 100_000_000), "has 100000000 characters, expected at most 1048576"),
        (dict(score=7.0), r"the score of act.. must be a number in \[0, 1\], got 7.0"),
        (dict(score=10**400), "must be a number in .*, got 1000"),
        (dict(score=float("nan")), "must be a number in .*, got nan"),
        (dict(score=float("inf")), "must be a number in .*, got inf"),
        (dict(score=-0.1), "must be a number in .*, got -0.1"),
        (dict(score="1.0"), "must be a number in .*, got str '1.0'"),
        (dict(score=None), "must be a number in .*, got None"),
        (dict(won="no"), "won of act.. must be True or False, got str 'no'"),
        (dict(won=1), "won of act.. must be True or False, got int 1"),
        (dict(over=None), "over of act.. must be True or False, got None"),
        (dict(valid="yes"), "valid of act.. must be True or False"),
    ],
)
def test_what_a_world_must_not_return_is_refused_with_one_line(wrong: dict[str, Any], message: str) -> None:
    env = TextEnv(Careless(**wrong))
    env.reset(seed=0)
    env.step("up")
    with pytest.raises(WorldError, match=message) as caught:
        env.step("bad")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200
    assert "world 'stairs'" in str(caught.value)


def test_numpys_numbers_and_rounding_are_taken() -> None:
    env = TextEnv(Careless(score=np.float32(1.0), won=np.bool_(True), over=np.bool_(True), observation=np.str_("a")))
    env.reset(seed=0)
    observation, reward, terminated, _, info = env.step("bad")
    assert type(observation) is str and type(reward) is float and terminated is True and info["won"] is True
    env = TextEnv(Careless(score=1.0000000001))
    env.reset(seed=0)
    assert env.step("bad")[4]["score"] == 1.0


def test_surrogates_become_characters_or_are_replaced() -> None:
    env = TextEnv(Careless(observation="a \ud83d\ude00 b \ud800 c"))
    env.reset(seed=0)
    observation = env.step("bad")[0]
    assert observation == "a \U0001f600 b \ufffd c" and observation.encode()
    env.restore(env.snapshot())  # the replay compares what was shown


class Wrong(Stairs):
    """Each method gives what its name in ``wrong`` says."""

    def __init__(self, **wrong: Any) -> None:
        super().__init__()
        self.wrong = wrong

    def __getattribute__(self, name: str) -> Any:
        wrong = object.__getattribute__(self, "__dict__").get("wrong", {})
        if name not in wrong:
            return object.__getattribute__(self, name)
        value = wrong[name]
        return value if name in ("goal", "task_type") else lambda *args: value


@pytest.mark.parametrize(
    ("method", "value"),
    [
        ("start", "stairs"),
        ("start", None),
        ("act", None),
        ("goal", 5),
        ("task_type", None),
        ("task_ids", "abc"),
        ("task_ids", [1, 2]),
        ("task_ids", None),
        ("admissible_actions", "abc"),
        ("admissible_actions", [1]),
        ("expert_action", 3),
        ("expert_thought", None),
        ("winnable", "no"),
    ],
)
def test_every_method_of_a_world_is_checked(method: str, value: Any) -> None:
    env = TextEnv(Wrong(**{method: value}), with_admissible=True)
    with pytest.raises(WorldError, match=method):
        env.reset(seed=0)
        env.step("up")
        env.expert_action(), env.expert_thought(), env.winnable()


def test_a_split_without_tasks_and_unknown_options_are_explained() -> None:
    with pytest.raises(DataError, match="split 'train' has no tasks"):
        TextEnv(Wrong(task_ids=[])).reset(seed=0)
    with pytest.raises(ConfigError, match="no reset option 'taskid'; did you mean 'task_id'"):
        TextEnv(Stairs()).reset(options={"taskid": "a"})
    env = TextEnv(Stairs())
    env.reset(seed=0)
    with pytest.raises(WorldError, match="expects an action as text, got int 3"):
        env.step(3)  # type: ignore[arg-type]
    with pytest.raises(WorldError, match="expects a Snapshot"):
        env.restore({})  # type: ignore[arg-type]


def test_sys_exit_in_a_world_does_not_end_the_program() -> None:
    class Quitter(Stairs):
        def act(self, action: str) -> Outcome:
            sys.exit(3)

    env = TextEnv(Quitter())
    env.reset(seed=0)
    with pytest.raises(WorldError, match=r"world 'stairs' calls sys.exit\(3\) in act"):
        env.step("up")


@pytest.mark.parametrize("world", [Stairs, SavedStairs])
@pytest.mark.parametrize("make_kwargs", [{}, {"max_episode_steps": 9}, {"disable_env_checker": False}])
def test_a_snapshot_is_entered_in_a_fresh_environment_through_the_wrappers(
    world: type[Stairs], make_kwargs: dict[str, Any]
) -> None:
    register_world("test/Fresh-v0", world)
    try:
        env = gymnasium.make("test/Fresh-v0", **make_kwargs)
        env.reset(seed=0)
        env.step("up")
        snapshot = env.unwrapped.snapshot()
        expected = env.step("up")
        fresh = gymnasium.make("test/Fresh-v0", **make_kwargs)
        assert fresh.reset(options={"snapshot": snapshot})[1]["num_steps"] == 1
        assert fresh.step("up") == expected
        if not make_kwargs:  # Gymnasium's own wrappers want a reset
            fresh = gymnasium.make("test/Fresh-v0")
            fresh.unwrapped.restore(snapshot)
            assert fresh.step("up") == expected
    finally:
        gymnasium.registry.pop("test/Fresh-v0")


class Listing(SavedStairs):
    """Lists what can be done."""

    def admissible_actions(self) -> tuple[str, ...]:
        return ("up", "down")


def test_listed_actions_stand_under_every_observation_but_the_last() -> None:
    env = TextEnv(Listing(), list_actions=True)
    first, _ = env.reset(seed=0, options={"task_id": "a"})
    assert first == "stairs a\nPossible actions: up, down"
    state = env.snapshot()
    observation, *_ = env.step("up")
    assert observation == "height 1\nPossible actions: up, down"
    observation, *_ = env.skip_turn()
    assert observation == f"{INVALID_TURN_OBSERVATION}\nPossible actions: up, down"
    env.step("up")
    observation, _, terminated, *_ = env.step("up")
    assert observation == "height 3" and terminated
    assert env.restore(state)[0] == first
    plain = TextEnv(Listing())
    assert plain.fingerprint != env.fingerprint
    with pytest.raises(WorldError, match="cannot be entered"):
        plain.restore(state)


def test_actions_are_listed_when_a_state_is_replayed() -> None:
    class Replayed(Listing):
        can_save = False

    env = TextEnv(Replayed(), list_actions=True)
    env.reset(seed=0)
    env.step("up")
    state = env.snapshot()
    assert TextEnv(Replayed(), list_actions=True).restore(state)[0] == "height 1\nPossible actions: up, down"


def test_a_world_that_cannot_list_says_so() -> None:
    with pytest.raises(ConfigError, match="'stairs' cannot list its actions; set list_actions=false"):
        TextEnv(Stairs(), list_actions=True).reset(seed=0)
    with pytest.raises(ConfigError, match="list_actions must be true or false"):
        TextEnv(Stairs(), list_actions="yes")  # type: ignore[arg-type]
