"""Worlds that exist elsewhere: Gymnasium environments of many habits, and an OpenEnv server over its own protocol."""

from __future__ import annotations

import importlib
import json
import pickle
import random
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing
from functools import partial
from importlib.util import find_spec
from typing import Any

import gymnasium
import numpy as np
import pytest
import steca_gym.envs  # noqa: F401 - registers
from gymnasium.spaces import Box, Discrete, Text
from steca_gym.envs.adapters import GymnasiumWorld, OpenEnvWorld, Reading, gymnasium_world, openenv_world

from steca_gym.env import TextEnv
from steca_gym.errors import ConfigError, DataError, WorldError
from steca_gym.registration import make_text_env
from steca_gym.testing import CheckSettings, check_text_env

QUICK = CheckSettings(num_resets=60, num_steps=8)


# -- Gymnasium ----------------------------------------------------------------------------------------------------


class Lock(gymnasium.Env[str, str]):
    """Type the letters that the first text names, in their order. Prints, and draws from the global generators."""

    action_space = Text(max_length=20, charset="abcdefgh ")
    observation_space = Text(max_length=200)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        print("a lock is made")
        self.code = [random.choice("abcdefgh") for _ in range(3)]
        self.place = 0
        return f"The code is {' '.join(self.code)}.", self.info()

    def info(self) -> dict[str, Any]:
        return {"goal": "open the lock", "admissible_actions": list("abcdefgh"), "task_type": "lock"}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        right = self.code[self.place] == action
        self.place += right
        noise = int(np.random.integers(10)) if hasattr(np.random, "integers") else int(np.random.randint(10))
        opened = self.place == 3
        return f"{'Click' if right else 'Nothing'} {noise}.", right / 3, opened, False, self.info()


class Guarded(Lock):
    """Holds what no pickle takes."""

    def __init__(self) -> None:
        self.guard = threading.Lock()


class Elsewhere(Lock):
    """Keeps its state where a copy shares it, as a client of a server does."""

    shared: dict[str, int] = {}

    def reset(self, **kwargs: Any) -> tuple[str, dict[str, Any]]:
        self.shared["place"] = 0
        return super().reset(**kwargs)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.shared["place"] += 1
        text, *rest = super().step(action)
        return f"{text} {self.shared['place']} tries.", *rest


class Fragile(Lock):
    def step(self, action: str) -> Any:
        raise RuntimeError("the lock breaks")


def turn_key(env: Any, observation: str, info: Mapping[str, Any]) -> str:
    return env.unwrapped.code[env.unwrapped.place]


def describe_lake(observation: Any, info: Mapping[str, Any]) -> str:
    return f"You stand in row {observation // 4}, column {observation % 4} of a frozen lake."


def cross_lake(env: Any, observation: Any, info: Mapping[str, Any]) -> int | None:
    return {0: 1, 4: 1, 8: 2, 9: 1, 13: 2, 14: 2, 1: 0, 2: 1, 6: 1, 10: 1, 3: 0}.get(int(observation))


def lock(env: type[Lock] = Lock, **kwargs: Any) -> TextEnv:
    return TextEnv(GymnasiumWorld(env, expert=turn_key, **kwargs), horizon=20)


def lake(**kwargs: Any) -> TextEnv:
    return make_text_env(
        gymnasium_world,
        env="FrozenLake-v1",
        env_kwargs={"is_slippery": False},
        action_names=["left", "down", "right", "up"],
        describe=f"{__name__}:describe_lake",
        expert=f"{__name__}:cross_lake",
        goal="reach the gift",
        **kwargs,
    )


@pytest.mark.slow
@pytest.mark.parametrize("snapshots", ["pickle", "replay"])
def test_a_careless_text_environment_conforms(snapshots: str) -> None:
    report = check_text_env(partial(lock, snapshots=snapshots), settings=QUICK)
    report.raise_if_failed()
    assert ("saved states" if snapshots == "pickle" else "replay") in report["restore"].detail


@pytest.mark.slow
def test_named_discrete_actions_conform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or importlib.import_module(__name__))
    quick = CheckSettings(num_resets=60, num_steps=8, new_process=False)  # this module has no name over there
    check_text_env(lake, settings=quick).raise_if_failed()


def test_slippery_ice_is_the_same_again() -> None:
    world = GymnasiumWorld("FrozenLake-v1", reading=Reading(describe=describe_lake), env_kwargs={"is_slippery": True})
    assert world.can_save
    lines = []
    for _ in range(2):
        lines.append([world.start("seed/3", 0).observation])
        while len(lines[-1]) < 6 and (world.admissible_actions() or ()):
            lines[-1].append(world.act("2").observation)
    assert lines[0] == lines[1] and world.admissible_actions() in ((), ("0", "1", "2", "3"))


def test_what_a_trial_shows_decides_how_states_are_saved() -> None:
    assert GymnasiumWorld(Lock).can_save
    for env, reason in ((Guarded, "copy cannot be made"), (Elsewhere, "differently")):
        world = GymnasiumWorld(env)
        assert not world.can_save
        world.close()
        with pytest.raises(ConfigError, match=reason):
            GymnasiumWorld(env, snapshots="pickle")


def test_state_is_entered_in_another_instance() -> None:
    first, second = lock(), lock()
    first.reset(seed=0, options={"task_id": "seed/5"})
    first.step(first.expert_action() or "")
    snapshot = pickle.loads(pickle.dumps(first.snapshot()))
    second.restore(snapshot)
    while True:
        action = first.expert_action()
        assert action == second.expert_action()
        one, two = first.step(action or ""), second.step(action or "")
        assert one == two
        if one[2]:
            break
    assert one[4]["won"] and one[4]["score"] == 1.0 and one[4]["task_type"] == "lock"


def test_the_task_stands_in_the_first_text_and_texts_outside_of_the_space_are_refused() -> None:
    world = GymnasiumWorld(Lock)
    assert world.start("seed/0", 0).observation.startswith("Your task: open the lock\nThe code is")
    for action in ("", "A", "x" * 30, "\x00"):
        assert not world.act(action).valid
    lenient = GymnasiumWorld(Lock, check_space=False)
    lenient.start("seed/0", 0)
    assert lenient.act("A").valid and not lenient.act("x" * 30).valid


def test_returns_become_scores() -> None:
    reading = Reading(min_return=-10.0, max_return=10.0)
    outcome = partial(reading.outcome, "", {}, terminated=True, truncated=False)
    assert [outcome(total=t).score for t in (-20.0, -10.0, 0.0, 10.0)] == [0.0, 0.0, 0.5, 1.0]
    assert [outcome(total=t).won for t in (9.0, 10.0)] == [False, True]
    cut = reading.outcome("", {}, total=10.0, terminated=False, truncated=True)
    assert cut.over and not cut.won
    said = reading.outcome("", {"success": True}, total=-10.0, terminated=True, truncated=False)
    assert said.won and said.score == 1.0
    assert not reading.outcome("", {"won": True}, total=0.0, terminated=False, truncated=False).won


def test_an_environment_that_fails_is_a_world_error() -> None:
    world = GymnasiumWorld(Fragile)
    world.start("seed/0", 0)
    with pytest.raises(WorldError, match="RuntimeError: the lock breaks"):
        world.act("a")


def test_what_does_not_fit_is_explained() -> None:
    for wrong, message in (
        (dict(env="CartPole-v1"), "is a ndarray"),
        (dict(env="Pendulum-v1"), "Box is not covered"),
        (dict(env="FrozenLake-v1", action_names=["left"]), "4 different texts"),
        (dict(env="FrozenLak-v1"), "cannot make"),
        (dict(env="FrozenLake-v1", describe="nowhere:f"), "module:function"),
        (dict(env="FrozenLake-v1", snapshots="deepcopy"), "known: auto, pickle, replay"),
        (dict(env="FrozenLake-v1", min_return=1.0), "min_return"),
        (dict(env="FrozenLake-v1", num_eval_tasks=0), "num_eval_tasks"),
    ):
        with pytest.raises((ConfigError, WorldError), match=message):
            make_text_env(gymnasium_world, **{"snapshots": "replay", **wrong}).reset(seed=0)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="seed/NUMBER"):
        GymnasiumWorld(Lock).start("lock/1", 0)
    assert isinstance(Lock.action_space, Text) and not isinstance(Lock.action_space, Discrete | Box)


def delivered(observation: Any, info: Mapping[str, Any]) -> bool:
    return True  # Taxi terminates with the delivery only


def describe_taxi(observation: Any, info: Mapping[str, Any]) -> str:
    return f"The taxi's state is {observation}."


def taxi(**kwargs: Any) -> TextEnv:
    names = ["south", "north", "east", "west", "pick up", "drop off"]
    module = sys.modules.setdefault(__name__, importlib.import_module(__name__)).__name__
    return make_text_env(
        gymnasium_world, env="Taxi-v4", action_names=names, describe=f"{module}:describe_taxi", horizon=60, **kwargs
    )


def delivery(env: TextEnv) -> dict[str, Any]:
    """Two needless "drop off", then the shortest way to the delivery, by breadth-first search over Taxi's table."""
    env.reset(seed=0, options={"task_id": "seed/0"})
    for _ in range(2):
        env.step("drop off")
    inner: Any = env.world._env.unwrapped  # type: ignore[attr-defined]
    paths, seen = [(int(inner.s), ())], {int(inner.s)}
    while True:
        state, path = paths.pop(0)
        for action in range(6):
            _, new, _, done = inner.P[state][action][0]
            if done:
                for number in (*path, action):
                    *_, info = env.step(("south", "north", "east", "west", "pick up", "drop off")[number])
                return info
            if new not in seen:
                seen.add(new)
                paths.append((new, (*path, action)))


def test_a_won_function_decides_and_the_score_says_so() -> None:
    info = delivery(taxi(won=f"{__name__}:delivered"))
    assert info["won"] and info["score"] == 1.0


def test_where_the_return_decides_there_is_a_warning_once() -> None:
    importlib.import_module("steca_gym.envs.adapters.foreign")._WARNED.clear()
    with pytest.warns(UserWarning, match=r"Taxi: info says nothing about success, so the return decides.*won='module"):
        assert not delivery(taxi())["won"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        delivery(taxi())
        delivery(taxi(min_return=-200.0, max_return=-5.0))


class Ending(Lock):
    """Terminates with the first step; ``reward`` is what a test says."""

    reward: Any = 0.0

    def step(self, action: str) -> Any:
        return "Done.", self.reward, True, False, {}


@pytest.mark.parametrize("won", [lambda o, i: False, lambda env, o, i: env.unwrapped.reward > 1])
def test_won_is_asked_with_or_without_the_environment(won: Any) -> None:
    world = GymnasiumWorld(Ending, won=won, snapshots="replay")
    world._env.unwrapped.reward = 2.0
    world.start("seed/0", 0)
    assert world.act("a").won == (won.__code__.co_argcount == 3)


def test_a_won_function_and_rewards_of_the_wrong_kind_are_explained() -> None:
    with pytest.raises(ConfigError, match="won must take"):
        GymnasiumWorld(Ending, won=lambda: True)
    for reward in ("much", "1", None, float("nan"), 10**400, [1, 2]):
        world = GymnasiumWorld(Ending, snapshots="replay")
        world._env.unwrapped.reward = reward
        world.start("seed/0", 0)
        with pytest.raises(WorldError, match="gives the reward"):
            world.act("a")
    world = GymnasiumWorld(Ending, won=lambda o, i: "yes", snapshots="replay")
    world.start("seed/0", 0)
    with pytest.raises(WorldError, match="won of Ending must return True or False, got str"):
        world.act("a")


class Seeing(Lock):
    """A mapping with whatever a test puts beside the text."""

    beside: Any = None

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        text, info = super().reset(**kwargs)
        return {"text": text, "beside": self.beside}, info


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((7, 7, 3), np.uint8),
        np.zeros((84, 84)),
        np.zeros(1000),
        {"deep": np.zeros((2, 2))},
        [np.zeros((3, 3))],
        np.array([object()]),
    ],
)
def test_images_without_a_describe_are_refused_with_one_line(image: Any) -> None:
    world = GymnasiumWorld(Seeing, snapshots="replay")
    world._env.unwrapped.beside = image
    with pytest.raises(WorldError, match=r"field 'beside.*give describe='module:function'") as caught:
        world.start("seed/0", 0)
    assert "\n" not in str(caught.value)
    read = GymnasiumWorld(Seeing, snapshots="replay", reading=Reading(observation_field="text"))
    read._env.unwrapped.beside = image
    assert "The code is" in read.start("seed/0", 0).observation


def test_small_arrays_and_numbers_of_numpy_are_text() -> None:
    world = GymnasiumWorld(Seeing, snapshots="replay")
    world._env.unwrapped.beside = {"place": np.array([1, 2]), "speed": np.float32(0.5), "open": np.bool_(True)}
    assert '"beside": {"open": true, "place": [1, 2], "speed": 0.5}' in world.start("seed/0", 0).observation


# -- OpenEnv ------------------------------------------------------------------------------------------------------


class Server:
    """The three messages of OpenEnv's sessions, around a counter that starts at the seed."""

    def __init__(self) -> None:
        from websockets.sync.server import serve

        self.server = serve(self.session, "127.0.0.1", 0, max_size=10 << 20)
        self.url = f"http://127.0.0.1:{self.server.socket.getsockname()[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def session(self, connection: Any) -> None:
        count = 0
        for raw in connection:
            message = json.loads(raw)
            if message["type"] == "close":
                break
            data = message["data"]
            reward, done = None, False
            if message["type"] == "reset":
                count = data["seed"] % 100
            elif set(data) != {"message"} or data["message"].strip() not in ("up", "down", "crash"):
                error = {"message": "Invalid message", "code": "VALIDATION_ERROR", "errors": [{"loc": ["message"]}]}
                connection.send(json.dumps({"type": "error", "data": error}))
                continue
            elif data["message"] == "crash":
                error = {"message": "division by zero", "code": "EXECUTION_ERROR"}
                connection.send(json.dumps({"type": "error", "data": error}))
                continue
            else:
                count += 1 if data["message"].strip() == "up" else -1
                done = count % 5 == 0
                reward = float(done)
            observation = {
                "text": f"The counter stands at {count}.",
                "goal": "reach a multiple of five",
                "metadata": {},
            }
            observation["admissible_actions"] = ["up", "down"]
            answer = {"observation": observation, "reward": reward, "done": done}
            connection.send(json.dumps({"type": "observation", "data": answer}))

    def stop(self) -> None:
        self.server.shutdown()
        self.thread.join()


needs_websockets = pytest.mark.skipif(
    find_spec("websockets") is None, reason="OpenEnv needs websockets: pip install 'steca-gym[openenv]'"
)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


def counter(url: str, **kwargs: Any) -> TextEnv:
    return make_text_env(
        openenv_world, url=url, action={"message": "{action}"}, observation_field="text", timeout_s=20.0, **kwargs
    )


@pytest.mark.slow
@needs_websockets
def test_a_server_conforms(server: Server) -> None:
    report = check_text_env(partial(counter, server.url), settings=QUICK)
    report.raise_if_failed()
    assert "replay" in report["restore"].detail


@needs_websockets
def test_a_session_is_played_to_its_end(server: Server) -> None:
    with closing(counter(server.url)) as env:
        text, info = env.reset(seed=0, options={"task_id": "seed/3"})
        assert text == "Your task: reach a multiple of five\nThe counter stands at 3."
        env.step("up")
        text, reward, terminated, _, info = env.step("up")
        assert (text, reward, terminated, info["won"]) == ("The counter stands at 5.", 1.0, True, True)


@needs_websockets
def test_refusals_are_answers_and_failures_are_errors(server: Server) -> None:
    world = OpenEnvWorld(server.url, action={"message": "{action}"})
    world.start("seed/1", 0)
    for action in ("", "sideways", "\ud800", "x" * 100_000):
        outcome = world.act(action)
        assert not outcome.valid and outcome.observation
    with pytest.raises(WorldError, match="division by zero"):
        world.act("crash")
    assert "The counter stands at 1." in world.start("seed/1", 0).observation  # the whole observation, as JSON
    world.close()


@needs_websockets
def test_a_server_that_is_gone_is_explained(server: Server) -> None:
    world = OpenEnvWorld(server.url, action={"message": "{action}"}, timeout_s=5.0)
    world.start("seed/1", 0)
    server.stop()
    with pytest.raises(WorldError, match="no answer from the OpenEnv server"):
        world.act("up")
        world.start("seed/1", 0)
    world.close()


@needs_websockets
def test_wrong_settings_are_explained() -> None:
    with pytest.raises(ConfigError, match="url must be"):
        OpenEnvWorld("localhost:8000", action={"message": "{action}"})
    with pytest.raises(ConfigError, match="where the agent's text goes"):
        OpenEnvWorld("http://localhost:8000", action={"message": "up"})


REAL = """
import uvicorn
from openenv.core.env_server import Action, Environment, Observation, State, create_fastapi_app

class Say(Action):
    message: str

class Heard(Observation):
    text: str

class Counter(Environment):
    SUPPORTS_CONCURRENT_SESSIONS = True
    count = 0
    def reset(self, seed=None, episode_id=None, **kwargs):
        self.count = 5 * ((seed or 0) % 100) + 2
        return Heard(text=f"The counter stands at {self.count}.")
    def step(self, action, timeout_s=None, **kwargs):
        change = {"up": 1, "down": -1}.get(action.message.strip(), 0)
        self.count += change
        done = change != 0 and self.count % 5 == 0
        return Heard(text=f"The counter stands at {self.count}.", reward=float(done), done=done)
    @property
    def state(self):
        return State()

uvicorn.run(create_fastapi_app(Counter, Say, Heard, max_concurrent_envs=8), fd=FD, log_level="error")
"""


@needs_websockets
@pytest.mark.skipif(find_spec("openenv") is None, reason="needs the real server: pip install openenv")
def test_the_real_servers_sessions_conform() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:  # whoever connects early waits in its queue
        port, fd = listening.getsockname()[1], listening.fileno()
        process = subprocess.Popen([sys.executable, "-c", REAL.replace("FD", str(fd))], pass_fds=[fd])
    try:
        check_text_env(partial(counter, f"http://127.0.0.1:{port}"), settings=QUICK).raise_if_failed()
    finally:
        process.terminate()
        process.wait()
