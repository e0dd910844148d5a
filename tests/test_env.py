"""TextEnv over a small world: Gymnasium's own checker, rewards, horizons, snapshots both ways."""

from __future__ import annotations

import pickle
from collections.abc import Sequence

import gymnasium
import pytest
from gymnasium.utils.env_checker import check_env

from steca_gym.env import INVALID_TURN_OBSERVATION, Outcome, TextEnv, World
from steca_gym.errors import ConfigError, ReplayMismatchError, WorldError


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
