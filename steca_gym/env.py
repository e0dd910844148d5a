"""The contract of a text world, and the Gymnasium environment around it.

A world is a part that the environment plays, not a subclass of the environment. It gets the bare action, never the
``Thought: ... Action: ...`` around it::

    class Lamp(World):
        name, version = "lamp", "1"
        def task_ids(self, split): return ("lamp-1",)
        def start(self, task_id, seed): ...
        def act(self, action): ...

    register_world("me/Lamp-v0", Lamp)              # see steca_gym.registration
    env = gymnasium.make("me/Lamp-v0", horizon=10)

The file is over 500 lines because the contract and the environment that enforces it are one thing to read.
"""

from __future__ import annotations

import hashlib
import numbers
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, TypeVar, final

import gymnasium
import numpy as np

from steca_gym.errors import ConfigError, DataError, ReplayMismatchError, WorldError
from steca_gym.registry import explain_unknown
from steca_gym.spaces import MAX_TEXT_LENGTH, FreeText

__all__ = [
    "INVALID_TURN_OBSERVATION",
    "MAX_TEXT_LENGTH",
    "ExpertReach",
    "FreeText",
    "Outcome",
    "Snapshot",
    "TextEnv",
    "World",
    "content_digest",
]

ExpertReach = Literal["none", "start", "any"]
"""From where a world's expert can act: nowhere, only along its own path from the start, or from any state."""

INVALID_TURN_OBSERVATION = "The turn could not be read. Answer with one line 'Thought: ...' and one line 'Action: ...'."
"""the observation after a turn that cannot be parsed; the world does not change, the step counts"""

_T = TypeVar("_T")
_SCORE_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a world returns after its start or after an action."""

    observation: str
    """text for the agent; at the start it includes the task"""
    score: float = 0.0
    """outcome reached so far, in [0, 1]; at the end of the episode it is the outcome reward r_o"""
    won: bool = False
    """the task is solved"""
    over: bool = False
    """the world accepts no more actions (won, or lost for good)"""
    valid: bool = True
    """the action was understood and possible"""


class World(ABC):
    """A text world. It plays one episode at a time, entered at a task's start or at a saved state.

    The environment calls it like this::

        outcome = world.start(task_id, seed)
        while not outcome.over:
            outcome = world.act(choose(outcome.observation, world.admissible_actions()))

    ``act`` never raises, whatever the string: an action that is not understood gives an ``Outcome`` with
    ``valid=False``. The same task, seed and actions give the same texts, also in another process.
    """

    name: str
    version: str
    """change it when the texts change; part of the fingerprint"""
    expert_reach: ClassVar[ExpertReach] = "none"
    multiline_actions: ClassVar[bool] = False
    """whether an action may have several lines, such as a query or a patch; otherwise a turn with one is unreadable"""
    can_save: ClassVar[bool] = False
    """whether ``save`` and ``load`` are implemented; without them, states are re-entered by replay"""
    score_may_fall: ClassVar[bool] = False
    """whether the score can fall during an episode, e.g. because rewards can be negative or progress can be undone"""

    @property
    def data_hash(self) -> str:
        """Digest of the data that determines the texts (games, versions); part of the fingerprint."""
        return "none"

    def splits(self) -> tuple[str, ...]:
        """Names of the splits, e.g. ``("train", "valid_seen")``."""
        return ("train",)

    @abstractmethod
    def task_ids(self, split: str) -> Sequence[str]:
        """The tasks of a split in a fixed order; raises DataError instead of returning an empty sequence."""

    @abstractmethod
    def start(self, task_id: str, seed: int) -> Outcome:
        """Begin an episode; raises DataError for an unknown task."""

    @abstractmethod
    def act(self, action: str) -> Outcome:
        """Apply one action to the live episode."""

    @property
    @abstractmethod
    def goal(self) -> str:
        """The task of the live episode, in words."""

    @property
    def task_type(self) -> str:
        """The type of the live task, for tables by type; empty if the world has no types."""
        return ""

    def admissible_actions(self) -> tuple[str, ...] | None:
        """Actions that are possible now, or None if the world cannot list them. May take time."""
        return None

    def expert_action(self) -> str | None:
        """The expert's next action, or None if it has none (see ``expert_reach``)."""
        return None

    def expert_thought(self) -> str:
        """The expert's reason for its next action, one short sentence; empty if it gives none."""
        return ""

    def winnable(self) -> bool | None:
        """Whether the task can still be solved from here; None if the world cannot tell."""
        return None

    def state_key(self) -> Hashable | None:
        """A key that is equal for states that behave alike from now on (step count excluded); None: unknown."""
        return None

    def save(self) -> Any:
        """Return a picklable token of the live state; only with ``can_save``."""
        raise NotImplementedError

    def load(self, token: Any) -> None:
        """Enter the state of a token, which may come from another process; only with ``can_save``."""
        raise NotImplementedError

    def content_key(self, task_id: str) -> str:
        """A digest of what an agent reads and does in a task: equal for twins under other ids.

        Two tasks with one key read alike at the start and are solved by the same actions, so that an agent that was
        trained on one of them has been shown the other. Guards against leaks between splits compare these keys.

        The default plays the task with seed 0 and digests its first observation and, in worlds with an expert, the
        expert's actions (at most 200). That ends the live episode and costs an episode; a world that can tell without
        playing overrides it.

        Raises:
            DataError: an unknown task.
        """
        outcome = self.start(task_id, 0)
        content = [outcome.observation]
        while self.expert_reach != "none" and not outcome.over and len(content) <= 200:
            action = self.expert_action()
            if action is None:
                break
            content.append(action)
            outcome = self.act(action)
        return content_digest(content)

    def close(self) -> None:  # noqa: B027 - most worlds have nothing to release
        """Release processes and files."""


def content_digest(content: Sequence[str]) -> str:
    """The digest that ``World.content_key`` returns: 16 hexadecimal digits of a list of texts."""
    raw = "\0".join(content).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(raw, digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A state of an episode that can be entered again, also in another process (picklable)."""

    fingerprint: str
    task_id: str
    world_seed: int
    num_steps: int
    last: Outcome
    token: Any
    """the world's own token, or None: re-enter by replay"""
    trail: tuple[tuple[str | None, bytes], ...] | None
    """for replay: for each step the action (None for an unreadable turn) and a digest of the observation"""


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


@final
class TextEnv(gymnasium.Env[str, str]):
    """A Gymnasium environment with text observations and text actions around a ``World``.

    * ``reset(seed=, options={"task_id": ..., "split": ...})`` begins an episode; without a task id one is drawn with
      ``np_random``. ``options={"snapshot": ...}`` enters a snapshot instead, also through Gymnasium's wrappers.
    * The reward is the change of the score, so the return of an episode is its final score ``r_o`` in [0, 1].
    * ``terminated``: the world is over. ``truncated``: ``horizon`` steps were taken. Success is ``info["won"]``.
    * ``step`` after the end raises ``WorldError`` until ``reset`` or ``restore``.
    * ``info``: ``task_id``, ``task_type``, ``goal``, ``score``, ``won``, ``valid``, ``num_steps``,
      ``fingerprint`` and, if asked for, ``admissible_actions``.

    What a world returns is checked here, once: texts are strings of at most ``MAX_TEXT_LENGTH`` characters, scores are
    numbers in [0, 1], flags are booleans. Anything else raises ``WorldError``. Lone surrogates, which no file and no
    tokenizer accepts, become U+FFFD.

    Args:
        world: the world to play; owned and closed by the environment.
        split: the split that ``reset`` draws from.
        horizon: maximum number of environment steps per episode, >= 1.
        with_admissible: put ``admissible_actions`` into every ``info`` (may take time in the world).
        list_actions: write the admissible actions under every observation, for the agent to read. A rule of the game:
            it is part of the fingerprint, and figures with and without it are not comparable.
        render_mode: ``"ansi"`` or None.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 4}

    def __init__(
        self,
        world: World,
        *,
        split: str = "train",
        horizon: int = 30,
        with_admissible: bool = False,
        list_actions: bool = False,
        render_mode: str | None = None,
    ) -> None:
        """See the class."""
        if not isinstance(world, World):
            raise ConfigError(f"world must be a steca_gym.World, got {kind_of(world)}")
        if isinstance(horizon, bool) or not isinstance(horizon, int | np.integer) or horizon < 1:
            raise ConfigError(f"horizon must be >= 1 environment step, got {horizon!r}")
        for name, flag in (("with_admissible", with_admissible), ("list_actions", list_actions)):
            if not isinstance(flag, bool):
                raise ConfigError(f"{name} must be true or false, got {flag!r}")
        if render_mode not in (None, "ansi"):
            raise ConfigError(f"render_mode must be 'ansi' or None, got {render_mode!r}")
        if split not in world.splits():
            raise ConfigError(explain_unknown("split", str(split), world.splits()))
        self.world = world
        self.split = split
        self.horizon = int(horizon)
        self.with_admissible = with_admissible
        self.list_actions = list_actions
        self.render_mode = render_mode
        self.action_space = FreeText()
        self.observation_space = FreeText()
        self._task_id: str | None = None
        self._world_seed = 0
        self._num_steps = 0
        self._last = Outcome(observation="", over=True)
        self._trail: list[tuple[str | None, bytes]] = []
        self._checked_ids: Sequence[str] | None = None

    # -- what is being played ------------------------------------------------------------------------------

    @property
    def fingerprint(self) -> str:
        """``name/version+data_hash``: equal if the same actions give the same texts."""
        listed = "+listed" if self.list_actions else ""
        return f"{self.world.name}/{self.world.version}+{self.world.data_hash}{listed}"

    @property
    def expert_reach(self) -> ExpertReach:
        """From where ``expert_action`` answers."""
        return self.world.expert_reach

    @property
    def num_steps(self) -> int:
        """Environment steps taken in the live episode."""
        return self._num_steps

    def task_ids(self, split: str | None = None) -> Sequence[str]:
        """The tasks of a split (by default the environment's own)."""
        name = split if split is not None else self.split
        if name not in self.world.splits():
            raise ConfigError(explain_unknown("split", str(name), self.world.splits()))
        ids = self._call("task_ids", self.world.task_ids, name)
        if ids is None or ids is not self._checked_ids:  # most worlds return the same tuple again
            if isinstance(ids, str) or not isinstance(ids, Sequence):
                raise WorldError(f"{self._name}: task_ids({name!r}) must return texts, got {kind_of(ids)}")
            wrong = next((i for i in ids if not isinstance(i, str)), None)
            if wrong is not None:
                raise WorldError(f"{self._name}: task_ids({name!r}) must contain texts only, got {kind_of(wrong)}")
            self._checked_ids = ids
        return ids

    def content_key(self, task_id: str) -> str:
        """A digest of what an agent reads and does in a task, see ``World.content_key``; ends the live episode."""
        self._task_id, self._last = None, Outcome(observation="", over=True)
        return self.world.content_key(task_id)

    # -- gymnasium.Env -------------------------------------------------------------------------------------

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Begin an episode; see the class for ``options``."""
        super().reset(seed=seed)
        options = options or {}
        for key in options:
            if key not in _RESET_OPTIONS:
                raise ConfigError(explain_unknown("reset option", str(key), _RESET_OPTIONS))
        if options.get("snapshot") is not None:
            return self.restore(options["snapshot"])
        task_id = options.get("task_id")
        if task_id is None:
            ids = self.task_ids(options.get("split"))
            if not len(ids):
                raise DataError(f"{self._name}: split {options.get('split') or self.split!r} has no tasks")
            task_id = ids[int(self.np_random.integers(len(ids)))]
        self._enter(str(task_id), int(self.np_random.integers(1 << 31)))
        return self._last.observation, self._info()

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Apply an action (any string; surrounding blanks are passed on to the world)."""
        self._check_live()
        if not isinstance(action, str):
            raise WorldError(f"step() expects an action as text, got {kind_of(action)}")
        return self._advance(action, self._call("act", self.world.act, action))

    def skip_turn(self) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Count one step for a turn that could not be parsed; the world does not change."""
        self._check_live()
        return self._advance(None, replace(self._last, observation=INVALID_TURN_OBSERVATION, valid=False))

    def render(self) -> str | None:
        """The last observation, in render mode ``ansi``."""
        return self._last.observation if self.render_mode == "ansi" else None

    def close(self) -> None:
        """Close the world."""
        self._call("close", self.world.close)

    # -- beyond Gymnasium ----------------------------------------------------------------------------------

    def admissible_actions(self) -> tuple[str, ...] | None:
        """Actions possible now, or None if the world cannot list them; computed when asked."""
        actions: Any = self._call("admissible_actions", self.world.admissible_actions)
        if actions is None:
            return None
        if isinstance(actions, str) or not isinstance(actions, Sequence):
            raise WorldError(f"{self._name}: admissible_actions() must return texts or None, got {kind_of(actions)}")
        return tuple(self._text(action, "admissible_actions()") for action in actions)

    def expert_action(self) -> str | None:
        """The expert's next action from here, or None (see ``expert_reach``)."""
        action = self._call("expert_action", self.world.expert_action)
        return None if action is None else self._text(action, "expert_action()")

    def expert_thought(self) -> str:
        """The reason for ``expert_action``, one short sentence or empty."""
        return self._text(self._call("expert_thought", self.world.expert_thought), "expert_thought()")

    def winnable(self) -> bool | None:
        """Whether the task can still be solved from here; None if the world cannot tell."""
        winnable = self._call("winnable", self.world.winnable)
        return None if winnable is None else self._flag(winnable, "winnable()")

    def state_key(self) -> Hashable | None:
        """Key of the live state, task included, remaining steps excluded; None if the world has no key."""
        key = self._call("state_key", self.world.state_key)
        return None if key is None else (self._task_id, key)

    def snapshot(self) -> Snapshot:
        """Return a token of the live state; see ``restore``."""
        if self._task_id is None:
            raise WorldError("snapshot() before reset(): there is no live episode; call reset() first")
        can_save = self.world.can_save
        return Snapshot(
            fingerprint=self.fingerprint,
            task_id=self._task_id,
            world_seed=self._world_seed,
            num_steps=self._num_steps,
            last=self._last,
            token=self._call("save", self.world.save) if can_save else None,
            trail=None if can_save else tuple(self._trail),
        )

    def restore(self, snapshot: Snapshot) -> tuple[str, dict[str, Any]]:
        """Enter a snapshot's state; returns its last observation and info.

        Worlds that cannot save are replayed from the start, and every observation is compared with the recorded
        one; a difference raises ReplayMismatchError. A snapshot of another world or of other data raises WorldError.
        """
        if not isinstance(snapshot, Snapshot):
            raise WorldError(f"restore() expects a Snapshot of snapshot(), got {kind_of(snapshot)}")
        if snapshot.fingerprint != self.fingerprint:
            raise WorldError(
                f"snapshot of {snapshot.fingerprint!r} cannot be entered in {self.fingerprint!r}; "
                "use the environment and data that it was taken from"
            )
        if snapshot.trail is None:
            self._call("load", self.world.load, snapshot.token)
            self._task_id, self._world_seed = snapshot.task_id, snapshot.world_seed
            self._trail = []
        else:
            self._enter(snapshot.task_id, snapshot.world_seed)
            for index, (action, expected) in enumerate(snapshot.trail):
                observation, *_ = self.skip_turn() if action is None else self.step(action)
                if _digest(observation) != expected:
                    raise ReplayMismatchError(
                        f"replay of task {snapshot.task_id!r} differs at step {index} (action {action!r}): got "
                        f"{observation[:80]!r}; the world is not deterministic under its seed, or its data changed"
                    )
        self._num_steps, self._last = snapshot.num_steps, snapshot.last
        return self._last.observation, self._info()

    # -- inside --------------------------------------------------------------------------------------------

    @property
    def _name(self) -> str:
        return f"world {getattr(self.world, 'name', type(self.world).__name__)!r}"

    def _call(self, what: str, function: Callable[..., _T], *args: Any) -> _T:
        try:
            return function(*args)
        except SystemExit as error:  # it would end the whole run, silently
            raise WorldError(f"{self._name} calls sys.exit({error.code!r}) in {what}()") from error

    def _enter(self, task_id: str, world_seed: int) -> None:
        self._last = self._listed(self._checked(self._call("start", self.world.start, task_id, world_seed), "start()"))
        self._task_id, self._world_seed = task_id, world_seed
        self._num_steps = 0
        self._trail = []

    def _check_live(self) -> None:
        if self._last.over or self._num_steps >= self.horizon:
            raise WorldError("step() after the end of the episode; call reset() or restore() first")

    def _advance(self, action: str | None, outcome: Outcome) -> tuple[str, float, bool, bool, dict[str, Any]]:
        outcome = self._listed(self._checked(outcome, "act()"))
        reward = outcome.score - self._last.score
        self._last = outcome
        self._num_steps += 1
        if not self.world.can_save:
            self._trail.append((action, _digest(outcome.observation)))
        truncated = not outcome.over and self._num_steps >= self.horizon
        return outcome.observation, reward, outcome.over, truncated, self._info()

    def _info(self) -> dict[str, Any]:
        last = self._last
        info: dict[str, Any] = {
            "task_id": self._task_id,
            "task_type": self._text(self.world.task_type, "task_type"),
            "goal": self._text(self.world.goal, "goal"),
            "score": last.score,
            "won": last.won,
            "valid": last.valid,
            "num_steps": self._num_steps,
            "fingerprint": self.fingerprint,
        }
        if self.with_admissible:
            info["admissible_actions"] = self.admissible_actions()
        return info

    def _listed(self, outcome: Outcome) -> Outcome:
        """With the possible actions in its text, where they are asked for."""
        if not self.list_actions or outcome.over:
            return outcome
        actions = self.admissible_actions()
        if actions is None:
            raise ConfigError(f"{self._name} cannot list its actions; set list_actions=false")
        return replace(outcome, observation=f"{outcome.observation}\nPossible actions: {', '.join(actions)}")

    # -- what a world returns ------------------------------------------------------------------------------

    def _checked(self, outcome: Outcome, where: str) -> Outcome:
        if not isinstance(outcome, Outcome):
            raise WorldError(f"{self._name}: {where} must return an Outcome, got {kind_of(outcome)}")
        checked = Outcome(
            observation=self._text(outcome.observation, f"the observation of {where}"),
            score=self._score(outcome.score, where),
            won=self._flag(outcome.won, f"won of {where}"),
            over=self._flag(outcome.over, f"over of {where}"),
            valid=self._flag(outcome.valid, f"valid of {where}"),
        )
        return outcome if checked == outcome and type(outcome.observation) is str else checked

    def _text(self, value: Any, what: str) -> str:
        if not isinstance(value, str):
            raise WorldError(f"{self._name}: {what} must be text, got {kind_of(value)}")
        if len(value) > MAX_TEXT_LENGTH:
            raise WorldError(
                f"{self._name}: {what} has {len(value)} characters, expected at most {MAX_TEXT_LENGTH}; shorten it"
            )
        if value.isascii():
            return str(value)
        # Halves of a pair become their character, single halves the replacement character.
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")

    def _score(self, value: Any, where: str) -> float:
        if isinstance(value, numbers.Real):
            try:
                score = float(value)
            except OverflowError:  # a whole number that no float holds
                score = float("inf")
            if -_SCORE_TOLERANCE <= score <= 1 + _SCORE_TOLERANCE:
                return min(1.0, max(0.0, score))
        shown = repr(value)[:40] if isinstance(value, numbers.Real) else kind_of(value)
        raise WorldError(f"{self._name}: the score of {where} must be a number in [0, 1], got {shown}")

    def _flag(self, value: Any, what: str) -> bool:
        if not isinstance(value, bool | np.bool_):
            raise WorldError(f"{self._name}: {what} must be True or False, got {kind_of(value)}")
        return bool(value)


_RESET_OPTIONS = ("snapshot", "split", "task_id")


def kind_of(value: Any) -> str:
    """A short name of what was given instead: its type, with the value where that is short."""
    if value is None:
        return "None"
    shown = repr(value) if isinstance(value, str | int | float | bool) else ""
    return f"{type(value).__name__} {shown}".strip() if len(shown) <= 40 else type(value).__name__
