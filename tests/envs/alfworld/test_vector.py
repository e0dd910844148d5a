"""Thousands of environments in one process through Gymnasium's own vector path."""

from __future__ import annotations

import random

import gymnasium

ID = "steca_gym.envs:steca/Household-v0"


def test_two_thousand_environments_step_together_as_single_ones_do() -> None:
    num_envs, settings = 2000, {"num_train_tasks": 40, "horizon": 3}
    envs = gymnasium.make_vec(ID, num_envs=num_envs, **settings)
    observations, _ = envs.reset(seed=5)
    watched = [0, 1, 777, num_envs - 1]
    alone = [gymnasium.make(ID, **settings).unwrapped for _ in watched]
    for i, env in zip(watched, alone, strict=True):
        assert env.reset(seed=5 + i)[0] == observations[i]
    rng = random.Random(0)
    for step in range(3):
        actions = [rng.choice(("look", "inventory", "go to fridge 1", "open fridge 1", "?")) for _ in range(num_envs)]
        observations, rewards, terminated, truncated, infos = envs.step(actions)
        for i, env in zip(watched, alone, strict=True):
            observation, reward, over, cut, info = env.step(actions[i])
            assert (observation, reward, over, cut) == (observations[i], rewards[i], terminated[i], truncated[i])
            assert infos["valid"][i] == info["valid"] and infos["task_id"][i] == info["task_id"]
        assert truncated.all() == (step == 2)
    # Every environment counts its own horizon, and is started again by the step after it.
    *_, truncated, infos = envs.step(["look"] * num_envs)
    assert not truncated.any() and set(infos["num_steps"]) == {0}
    envs.close()
