"""Any ``gymnasium.Env`` whose actions are texts or a few named choices, as a text world.

Careless environments are kept away from the rest of the program: their prints, and the global random generators.

A task is a seed, ``seed/17``: what ``reset(seed=17)`` gives; the episode's own seed changes nothing. States are
re-entered by replay, unless the environment can be pickled and a trial shows that the copy continues as the original.

Left out: Box, MultiDiscrete and other action spaces without names; image observations without a ``describe``.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import io
import json
import math
import pickle
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import cloudpickle  # type: ignore[import-untyped]
import gymnasium
import numpy as np
from gymnasium.spaces import Discrete, Text

from steca_gym.env import ExpertReach, Outcome, World
from steca_gym.errors import ConfigError, StecaError, WorldError
from steca_gym.registry import explain_unknown

from .._optional import global_random_untouched
from .reading import ADMISSIBLE_KEYS, FIRST_SEED, WON_KEYS, Reading, checked_counts, resolve, seed_of, seed_tasks

Snapshots = Literal["auto", "replay", "pickle"]

_TRIED: dict[str, str] = {}
"""what was made, and why it cannot be pickled (empty: it can)"""

_NUM_SHOWN = 24
"""names of actions that a refusal lists"""


class GymnasiumWorld(World):
    """A foreign environment behind the contract of ``World``.

    Python's and numpy's global random generators are the world's own while foreign code runs, seeded with the task, and
    what it prints is swallowed: many environments draw from the one and write to the other.

    Args:
        env: a Gymnasium id, ``module:Id-v0`` included, or a function that makes the environment.
        env_kwargs: keywords for ``gymnasium.make`` (with an id only).
        name: the world's name in fingerprints; empty: the id's last part, or the class's.
        reading: how observations, rewards and ends are read.
        expert: ``expert(env, observation, info)`` returns the next action (a text, or a Discrete number), or None where
            it has none; it must not change ``env``. A function or ``module:function``.
        expert_reach: from where the expert can act: ``any`` state, or from the ``start`` only.
        won: ``won(observation, info)`` or ``won(env, observation, info)`` returns whether the task is solved; called
            after the step with which the environment terminates. A function or ``module:function``. A solved task
            scores 1. None: ``info`` decides (``won``, ``success`` or ``is_success``), or else the return.
        warn_about_return: warn once when an episode is solved or failed by its return, because nothing else says it.
        action_names: for Discrete actions, one text a number; empty: the numbers themselves.
        check_space: refuse texts that the action space does not hold (length and characters). False: refuse by length
            only, for environments that declare less than they take.
        snapshots: ``replay``; ``pickle``: the environment is pickled, and a trial that fails is a ConfigError;
            ``auto``: pickle where the trial succeeds, else replay.
        num_train_tasks: seeds in ``train``.
        num_eval_tasks: seeds in each of ``valid`` and ``test``.

    Raises:
        ConfigError: spaces that are not covered, names that do not fit, or functions that cannot be imported.
    """

    version = "1"
    score_may_fall = True

    def __init__(
        self,
        env: str | Callable[[], gymnasium.Env[Any, Any]],
        *,
        env_kwargs: Mapping[str, Any] | None = None,
        name: str = "",
        reading: Reading | None = None,
        expert: Callable[[Any, Any, Mapping[str, Any]], Any] | str | None = None,
        expert_reach: str = "any",
        won: Callable[..., Any] | str | None = None,
        warn_about_return: bool = True,
        action_names: Sequence[str] = (),
        check_space: bool = True,
        snapshots: str = "auto",
        num_train_tasks: int = 1000,
        num_eval_tasks: int = 100,
    ) -> None:
        """See the class."""
        for what, value, known in (
            ("snapshots", snapshots, ("auto", "replay", "pickle")),
            ("expert_reach", expert_reach, ("any", "start")),
        ):
            if value not in known:
                raise ConfigError(explain_unknown(what, value, known))
        self._reading = reading or Reading()
        self._check_space = check_space
        self._expert = resolve(expert, "expert")
        self._won = _won_function(won)
        self._warn_about_return = warn_about_return
        self._num_tasks = checked_counts(num_train_tasks, num_eval_tasks)
        make, self._made_of = _maker(env, dict(env_kwargs or {}))
        self._generators: Any = None
        self._task_id = self._goal = ""
        self._observation: Any = None
        self._info: Mapping[str, Any] = {}
        self._total = 0.0
        self._over = True
        with self._calm():
            self._env = make()
        of_id = env.rpartition(":")[2].rpartition("/")[2].rpartition("-v")[0] if isinstance(env, str) else ""
        self.name = name or of_id or type(self._env.unwrapped).__name__
        self._numbers = _action_numbers(self._env.action_space, action_names)
        reach: ExpertReach = "none" if self._expert is None else "start" if expert_reach == "start" else "any"
        # These depend on the wrapped environment, so each instance has its own.
        self.expert_reach = reach  # type: ignore[misc]
        self.can_save = False  # type: ignore[misc]
        if snapshots != "replay":
            # Once per process and id: a collector makes dozens of the same environment.
            if not isinstance(env, str):
                why_not = self._pickling_fails()
            elif (why_not := _TRIED.get(self._made_of, "?")) == "?":
                why_not = _TRIED[self._made_of] = self._pickling_fails()
            if why_not and snapshots == "pickle":
                raise ConfigError(f"snapshots='pickle', but {why_not}; use snapshots='replay'")
            self.can_save = not why_not  # type: ignore[misc]

    @property
    def data_hash(self) -> str:
        """Digest of the id and its keywords, or of what makes the environment."""
        return hashlib.blake2b(self._made_of.encode(), digest_size=4).hexdigest()

    def splits(self) -> tuple[str, ...]:
        """``train``, ``valid`` and ``test``: disjoint seeds."""
        return tuple(FIRST_SEED)

    def task_ids(self, split: str) -> Sequence[str]:
        """The seeds of a split."""
        return seed_tasks(split, self._num_tasks[split])

    def start(self, task_id: str, seed: int) -> Outcome:
        """Reset on the task's seed."""
        number = seed_of(task_id)
        self._generators = (number, None)
        with self._calm():
            self._observation, self._info = self._env.reset(seed=number)
            text = self._reading.text(_plain(self._observation, self._reading), self._info)
        self._task_id, self._total, self._over = task_id, 0.0, False
        self._goal = self._reading.task_text(self._observation, self._info)
        return self._reading.first(text, self._goal, self._info)

    def act(self, action: str) -> Outcome:
        """Step; a text outside of the action space is refused. Raises WorldError where the environment itself fails."""
        if self._over:
            raise WorldError("act() after the end of the episode; call start() or load() first")
        given, refusal = self._translate(action)
        if refusal:
            return self._outcome(refusal, False, False, valid=False)
        try:
            with self._calm():
                self._observation, reward, terminated, truncated, self._info = self._env.step(given)
                text = self._reading.text(_plain(self._observation, self._reading), self._info)
                if bool(terminated) and self._won is not None:
                    self._info = {**self._info, "won": self._solved(self._won)}
        except StecaError:
            raise
        except Exception as error:
            self._over = True
            raise WorldError(f"{self.name} fails on {action[:60]!r}: {type(error).__name__}: {error}") from error
        self._total += _reward(reward, self.name)
        self._over = bool(terminated) or bool(truncated)
        if terminated and self._warn_about_return and not any(key in self._info for key in WON_KEYS):
            _warn_about_return(self.name, self._total, self._reading.max_return)
        return self._outcome(text, bool(terminated), bool(truncated))

    @property
    def goal(self) -> str:
        """The task's text, if the environment or the reading has one."""
        return self._goal

    @property
    def task_type(self) -> str:
        """The value of ``info["task_type"]``."""
        return str(self._info.get("task_type", ""))

    def admissible_actions(self) -> tuple[str, ...] | None:
        """The names of Discrete actions (under ``info["action_mask"]`` if there is one), or what ``info`` lists."""
        if self._numbers is not None and not self._over:
            mask = self._info.get("action_mask")
            return tuple(n for i, n in enumerate(self._numbers) if mask is None or mask[i])
        listed = () if self._numbers else next((self._info[key] for key in ADMISSIBLE_KEYS if key in self._info), None)
        return None if listed is None else () if self._over else tuple(dict.fromkeys(map(str, listed)))

    def expert_action(self) -> str | None:
        """The next action of the given expert."""
        if self._expert is None or self._over:
            return None
        with self._calm(keep=False):
            action = self._expert(self._env, self._observation, self._info)
        if action is None or isinstance(action, str):
            return action
        if self._numbers is None:
            raise WorldError(f"the expert gave a {type(action).__name__}, expected a text or None")
        return next(name for name, number in self._numbers.items() if number == int(action))

    def save(self) -> Any:
        """Pickle the environment and the generators; bytes."""
        state = (
            self._env,
            self._generators,
            self._task_id,
            self._goal,
            self._observation,
            self._info,
            self._total,
            self._over,
        )
        saved: bytes = cloudpickle.dumps(state, pickle.HIGHEST_PROTOCOL)
        return saved

    def load(self, token: Any) -> None:
        """Enter a state of ``save``."""
        with self._calm(keep=False):
            state = pickle.loads(token)
            # A copy may share a window or file with its original, so the original stays open.
        (self._env, self._generators, self._task_id, self._goal, *rest) = state
        self._observation, self._info, self._total, self._over = rest

    def close(self) -> None:
        """Close the environment."""
        self._over = True
        with self._calm():
            self._env.close()

    # -- inside --------------------------------------------------------------------------------------------

    def _outcome(self, text: str, terminated: bool, truncated: bool, valid: bool = True) -> Outcome:
        # The environment never sees a refused action: the info of the step before must not count again.
        info = self._info if valid else {}
        return self._reading.outcome(
            text, info, total=self._total, terminated=terminated, truncated=truncated, valid=valid
        )

    def _solved(self, won: Callable[[Any, Any, Mapping[str, Any]], Any]) -> bool:
        said = won(self._env, self._observation, self._info)
        if not isinstance(said, bool | np.bool_):
            raise WorldError(f"won of {self.name} must return True or False, got {type(said).__name__}")
        return bool(said)

    def _translate(self, action: str) -> tuple[Any, str]:
        """The argument for the environment's step, and the reason for a refusal."""
        if self._numbers is not None:
            number = self._numbers.get(" ".join(action[:200].lower().split())) if len(action) <= 200 else None
            if number is not None:
                return number, ""
            shown = ", ".join(list(self._numbers)[:_NUM_SHOWN]) + (", ..." if len(self._numbers) > _NUM_SHOWN else "")
            return None, f"There is no such action. You can: {shown}."
        space = self._env.action_space
        assert isinstance(space, Text)
        if len(action) > space.max_length:
            return None, f"That is too long; an action has at most {space.max_length} characters."
        if self._check_space and not space.contains(action):
            return None, "That is not an action here: it is too short, or has characters that are not allowed."
        return action, ""

    @contextlib.contextmanager
    def _calm(self, *, keep: bool = True) -> Iterator[None]:
        """Swallow output and lend the world's own global random generators; ``keep``: store their states."""
        with global_random_untouched(), contextlib.redirect_stdout(io.StringIO()):
            seed, states = self._generators or (0, None)
            if states is None:
                random.seed(seed)
                np.random.seed(seed)
            else:
                random.setstate(states[0])
                np.random.set_state(states[1])
            yield
            if keep:
                self._generators = (seed, (random.getstate(), np.random.get_state()))

    def _pickling_fails(self) -> str:
        """Why states cannot be saved by pickling, after a trial on two tasks; empty: they can."""
        rng = np.random.default_rng(0)
        for task_id in self.task_ids("train")[:2]:
            try:
                self.start(task_id, 0)
                for _ in range(3):
                    self._trial_step(rng)
                token, choices = self.save(), rng.bit_generator.state
                lines = []
                for reentered in (False, True, True):
                    rng.bit_generator.state = choices
                    if reentered:
                        self.load(token)
                    lines.append([self._trial_step(rng) for _ in range(6)])
            except Exception as error:  # noqa: BLE001 - pickling fails in as many ways as there are environments
                return f"a copy cannot be made ({type(error).__name__}: {str(error)[:120]})"
            finally:
                self._over = True
            if not lines[0] == lines[1] == lines[2]:
                return "a copy continues differently than the original"
        return ""

    def _trial_step(self, rng: np.random.Generator) -> Outcome | None:
        if self._over:
            return None
        action = self.expert_action() if rng.random() < 0.5 else None
        choices = self.admissible_actions()
        if action is None and choices:
            action = choices[int(rng.integers(len(choices)))]
        # Without any hint the trial is weak: random letters may change nothing in the environment.
        return self.act(action if action is not None else "".join(rng.choice(list("abcdefgh"), 6)))


_WARNED: set[str] = set()


def _warn_about_return(name: str, total: float, max_return: float) -> None:
    if name not in _WARNED:
        _WARNED.add(name)
        warnings.warn(
            f"{name}: info says nothing about success, so the return decides: {total:g} is "
            f"{'solved' if total >= max_return - 1e-9 else 'not solved'} (max_return={max_return:g}); give "
            "won='module:function', or max_return if a return is what success means",
            stacklevel=2,
        )


def _won_function(won: Callable[..., Any] | str | None) -> Callable[[Any, Any, Mapping[str, Any]], Any] | None:
    function = resolve(won, "won")
    if function is None:
        return None
    try:
        count = len(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        count = 3
    if count == 2:
        return functools.partial(_without_env, function)
    if count != 3:
        raise ConfigError(f"won must take (observation, info) or (env, observation, info), got {count} parameters")
    return function


def _without_env(won: Callable[[Any, Any], Any], env: Any, observation: Any, info: Mapping[str, Any]) -> Any:
    return won(observation, info)


def _reward(reward: Any, name: str) -> float:
    try:
        if isinstance(reward, str | bytes):
            raise TypeError("a text is no reward")
        value = float(reward)
    except (TypeError, ValueError, OverflowError) as error:
        raise WorldError(f"{name} gives the reward {reward!r:.60}, expected a number") from error
    if not math.isfinite(value):
        raise WorldError(f"{name} gives the reward {value}, expected a finite number")
    return value


_MAX_NUMBERS = 64


def _plain(observation: Any, reading: Reading) -> Any:
    """A mapping with its small arrays as lists; raises WorldError for images and the like, which are no text."""
    if reading.describe is not None or not isinstance(observation, Mapping):
        return observation
    fields = {reading.observation_field} if reading.observation_field else observation.keys()
    return {
        key: _plain_value(str(key), value) if key in fields else value if isinstance(value, str) else None
        for key, value in observation.items()
    }


def _plain_value(key: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(inner): _plain_value(f"{key}.{inner}", part) for inner, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_value(key, part) for part in value]
    if isinstance(value, np.generic):
        return value.item()
    if not isinstance(value, np.ndarray):
        return value
    if value.ndim > 1 or value.size > _MAX_NUMBERS or value.dtype == object:
        raise WorldError(
            f"the observation's field {key!r} is an array of shape {value.shape} ({value.dtype}), not text; "
            "give describe='module:function' that puts the observation into words"
        )
    return value.tolist()


def _maker(
    env: str | Callable[[], gymnasium.Env[Any, Any]], kwargs: dict[str, Any]
) -> tuple[Callable[[], gymnasium.Env[Any, Any]], str]:
    if callable(env):
        if kwargs:
            raise ConfigError("env_kwargs go with a Gymnasium id; a function makes the environment by itself")
        return env, f"{getattr(env, '__module__', '')}.{getattr(env, '__qualname__', type(env).__name__)}"

    def make() -> gymnasium.Env[Any, Any]:
        try:
            made: gymnasium.Env[Any, Any] = gymnasium.make(env, disable_env_checker=True, **kwargs)
        except (gymnasium.error.Error, ModuleNotFoundError, TypeError) as error:
            raise ConfigError(f"cannot make the Gymnasium environment {env!r}: {error}") from error
        return made

    return make, f"{env} {json.dumps(kwargs, sort_keys=True, default=str)}"


def _action_numbers(space: Any, names: Sequence[str]) -> dict[str, int] | None:
    """Lower-case name to number for Discrete actions, None for texts; raises ConfigError."""
    if isinstance(space, Text):
        if names:
            raise ConfigError("action_names go with Discrete actions; this environment takes texts")
        return None
    if not isinstance(space, Discrete):
        raise ConfigError(
            f"action space {type(space).__name__} is not covered; expected Text, or Discrete with action_names"
        )
    chosen = [" ".join(n.lower().split()) for n in names] or [str(i) for i in range(int(space.n))]
    if len(chosen) != int(space.n) or len(set(chosen)) < len(chosen) or not all(chosen):
        raise ConfigError(f"action_names must be {int(space.n)} different texts, got {list(names)!r:.200}")
    return {name: int(space.start) + index for index, name in enumerate(chosen)}
