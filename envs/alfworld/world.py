"""ALFWorld's text games as a World: tasks, episodes, snapshots, the planner. The games come from a ``Games`` source."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import ClassVar, Protocol

from steca_gym.env import ExpertReach, Outcome, World, content_digest
from steca_gym.errors import DataError

from . import engine
from .game import Game, State
from .oracle import Step, plan


class Games(Protocol):
    """A source of games by task id."""

    name: str
    version: str
    data_hash: str

    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        ...

    def task_ids(self, split: str) -> Sequence[str]:
        """Tasks of a split, in order."""
        ...

    def game(self, task_id: str) -> Game:
        """The compiled game; raises DataError for an unknown id."""
        ...


class AlfredWorld(World):
    """One live game. ``over`` when won; every command answers with text, valid or not."""

    expert_reach: ClassVar[ExpertReach] = "any"
    can_save = True

    def __init__(self, games: Games) -> None:
        """Play the games of a source."""
        self.games = games
        self.name = games.name
        self.version = games.version
        self._game: Game | None = None
        self._task_id = ""
        self._state: State | None = None
        self._planned: tuple[State, list[Step] | None] | None = None
        self._content_keys: dict[str, str] = {}

    @property
    def data_hash(self) -> str:
        """Of the games' source."""
        return self.games.data_hash

    def splits(self) -> tuple[str, ...]:
        """See Games."""
        return self.games.splits()

    def task_ids(self, split: str) -> Sequence[str]:
        """See Games."""
        return self.games.task_ids(split)

    def _live(self) -> tuple[Game, State]:
        if self._game is None or self._state is None:
            raise DataError("no live game; call start() first")
        return self._game, self._state

    def content_key(self, task_id: str) -> str:
        """A digest of the first observation and of the planner's commands; the live episode continues."""
        key = self._content_keys.get(task_id)
        if key is None:
            game = self.games.game(task_id)
            commands = [step.command for step in plan(game, game.start) or ()]
            key = self._content_keys[task_id] = content_digest([engine.intro(game), *commands])
        return key

    def start(self, task_id: str, seed: int) -> Outcome:
        """Begin a game; the seed changes nothing, games are deterministic."""
        self._game = self.games.game(task_id)
        self._task_id, self._state = task_id, self._game.start
        won = engine.is_won(self._game, self._state)
        return Outcome(observation=engine.intro(self._game), score=float(won), won=won, over=won)

    def act(self, action: str) -> Outcome:
        """Apply a command."""
        game, state = self._live()
        new, text, valid = engine.act(game, state, action)
        won = engine.is_won(game, new) if new is not state else False
        self._state = new
        return Outcome(observation=text, score=float(won), won=won, over=won, valid=valid)

    @property
    def goal(self) -> str:
        """The task's text."""
        return self._live()[0].task

    @property
    def task_type(self) -> str:
        """One of ALFWorld's six."""
        return self._live()[0].task_type

    def admissible_actions(self) -> tuple[str, ...]:
        """Sorted, as ALFWorld's ``admissible_commands``."""
        return engine.admissible(*self._live())

    def _plan(self) -> list[Step] | None:
        game, state = self._live()
        if self._planned is None or self._planned[0] is not state:
            self._planned = state, plan(game, state)
        return self._planned[1]

    def expert_action(self) -> str | None:
        """First command of the shortest plan from here."""
        steps = self._plan()
        return steps[0].command if steps else None

    def expert_thought(self) -> str:
        """The sub-goal that ``expert_action`` serves."""
        steps = self._plan()
        return steps[0].thought if steps else ""

    def winnable(self) -> bool:
        """Whether a plan exists."""
        return self._plan() is not None

    def state_key(self) -> Hashable:
        """The state itself: immutable and small."""
        return self._live()[1]

    def save(self) -> tuple[str, State]:
        """A reference to the immutable state, and the task."""
        return self._task_id, self._live()[1]

    def load(self, token: tuple[str, State]) -> None:
        """Enter a saved state."""
        task_id, self._state = token
        if task_id != self._task_id or self._game is None:
            self._game, self._task_id = self.games.game(task_id), task_id
