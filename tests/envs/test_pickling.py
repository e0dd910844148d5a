"""Environments are sent to other processes: pickled in mid-episode, they go on as the original."""

from __future__ import annotations

import pickle
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import steca_gym.envs  # noqa: F401 - registers

WORLDS: dict[str, tuple[str, dict[str, Any]]] = {
    "steca/SupportDesk-v0": ("gymnasium", {}),
    "steca/Runbook-v0": ("gymnasium", {}),
    "steca/BabyAI-v0": ("minigrid", {"levels": ["GoToLocal"]}),
    "steca/TextWorld-v0": ("textworld", {"games": ["cooking-1"]}),
    "steca/Gymnasium-v0": (
        "gymnasium",
        {"env": "FrozenLake-v1", "describe": f"{__name__}:describe", "won": f"{__name__}:won"},
    ),
}


def describe(observation: Any, info: Any) -> str:
    return f"cell {observation}"


def won(observation: Any, info: Any) -> bool:
    return bool(observation == 15)


@pytest.mark.parametrize(
    "env_id",
    [pytest.param(e, marks=[pytest.mark.slow] if "TextWorld" in e else []) for e in WORLDS],
)
def test_a_pickled_environment_goes_on_as_the_original(
    env_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STECA_CACHE", str(tmp_path))
    package, settings = WORLDS[env_id]
    if find_spec(package) is None:
        pytest.skip(f"needs {package}")
    env: Any = gymnasium.make(env_id, **settings).unwrapped
    pickle.dumps(env)  # before the first reset as well
    env.reset(seed=0)
    env.step((env.admissible_actions() or ("look",))[0])
    other = pickle.loads(pickle.dumps(env))
    for _ in range(3):
        action = (env.admissible_actions() or ("look",))[-1]
        assert other.admissible_actions() == env.admissible_actions() and other.expert_action() == env.expert_action()
        *answer, over, _, info = env.step(action)
        assert [*answer, over, _, info] == list(other.step(action))
        if over:
            break
    env.close(), other.close()
