"""The survey: many states of a few tasks, searched breadth-first and by random walks, and what is wrong with them.

Small worlds are searched completely, so that ``winnable`` and the expert are judged by what can be reached. Of large
worlds the survey sees the states near the start and those along random walks.
"""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np

from steca_gym.env import Snapshot, TextEnv
from steca_gym.testing.context import CheckContext
from steca_gym.testing.play import CheckFailure, Seen, begin, choose, enter, take
from steca_gym.testing.scores import check_step

GIBBERISH = ("xyzzy qwvk 7", "zzz", "!?")
"""texts that are no action of any world"""

_MAX_PROBES = 3
"""actions tried again in a state that was reached on a second path"""
_MAX_LATER = 200
"""pairs of states that are compared after the search"""


@dataclass(slots=True)
class Edge:
    """What one action did."""

    seen: Seen
    target: int
    """number of the state that it led to"""


@dataclass(slots=True)
class State:
    """A state that the survey entered."""

    task_id: str
    snapshot: Snapshot
    key: Hashable | None
    admissible: tuple[str, ...] | None
    winnable: bool | None
    depth: int
    over: bool = False
    won: bool = False
    edges: dict[str, Edge] = field(default_factory=dict)
    complete: bool = False
    """whether all admissible actions were tried"""

    def __str__(self) -> str:
        """Where it is, for a message."""
        return f"task {self.task_id!r}, {self.depth} steps from the start"


@dataclass(slots=True)
class Survey:
    """States, and the first fault of each kind that was met."""

    states: list[State] = field(default_factory=list)
    faults: dict[str, str] = field(default_factory=dict)
    """fault by the name of the check that reports it"""
    complete: set[str] = field(default_factory=set)
    """tasks of which every state was found"""
    num_steps: int = 0
    """environment steps taken, replayed ones included"""
    num_walks: int = 0

    def fault(self, check: str, text: str) -> None:
        """Keep the first fault for a check."""
        self.faults.setdefault(check, text)

    def raise_fault(self, check: str) -> None:
        """Raise the fault that was kept for a check."""
        if check in self.faults:
            raise CheckFailure(self.faults[check])


def make_survey(context: CheckContext) -> Survey:
    """Search each task within its share of the steps, then walk."""
    settings, survey = context.settings, Survey()
    with context.fresh() as env:
        budget = settings.num_search_steps if env.world.can_save else max(10, settings.num_search_steps // 10)
        env.horizon = max(env.horizon, 10_000)  # the horizon is not part of a state
        for number, task_id in enumerate(context.tasks, start=1):
            surveyor = _Surveyor(env, survey, task_id, settings.seed)
            share = budget * number // len(context.tasks)
            walks = survey.num_steps + (share - survey.num_steps) // 2
            surveyor.search(max_steps=walks)
            if task_id not in survey.complete:
                surveyor.walk(max_steps=share, num_steps=4 * settings.num_steps)
            surveyor.compare_later()
    _judge_winnable(survey)
    return survey


class _Surveyor:
    """Explores one task."""

    def __init__(self, env: TextEnv, survey: Survey, task_id: str, seed: int) -> None:
        self.env, self.survey, self.task_id, self.seed = env, survey, task_id, seed
        self.rng = np.random.default_rng(seed)
        self.numbers: dict[Hashable, int] = {}
        self._later: list[tuple[State, State, str]] = []
        self.first = self._begin()

    def _begin(self) -> int:
        seen = begin(self.env, self.task_id, self.seed)
        self.goal, self.task_type = seen.goal, seen.task_type
        return self._note(seen, depth=0)[0]

    # -- search and walks ----------------------------------------------------------------------------------------

    def search(self, max_steps: int) -> None:
        """Breadth-first from the start, until nothing is new or the steps are spent."""
        queue = deque([self.first])
        while queue:
            state = self.survey.states[queue.popleft()]
            if state.over:
                continue
            if state.admissible is None or state.key is None:
                return  # neither known nor recognised states can be searched
            for action in state.admissible:
                if self.survey.num_steps >= max_steps:
                    return
                number, new = self._try(state, action)
                if new:
                    queue.append(number)
            state.complete = True
        self.survey.complete.add(self.task_id)

    def walk(self, max_steps: int, num_steps: int) -> None:
        """Random walks from the start, some of them along the expert's path for a while."""
        for number in range(1000):
            self.survey.num_walks += 1
            begin(self.env, self.task_id, self.seed)
            state = self.survey.states[self.first]
            for _ in range(num_steps):
                if self.survey.num_steps >= max_steps:
                    return
                if state.over:
                    break
                action = choose(self.env, self.rng, follow_expert=(0.0, 0.5, 0.9)[number % 3])
                self._try_some(state)
                self._enter(state)
                at, _ = self._take(state, action)
                state = self.survey.states[at]

    def _try_some(self, state: State) -> None:
        """Try two of the actions that the world lists here."""
        untried = [a for a in state.admissible or () if a not in state.edges]
        for index in self.rng.permutation(len(untried))[:2]:
            self._try(state, untried[index])

    def _try(self, state: State, action: str) -> tuple[int, bool]:
        self._enter(state)
        return self._take(state, action)

    def _enter(self, state: State) -> None:
        if not self.env.world.can_save:
            self.survey.num_steps += state.depth
        enter(self.env, state.snapshot)

    def _take(self, state: State, action: str) -> tuple[int, bool]:
        """Take an action in the live state; (number of the state that follows, whether it is new)."""
        self.survey.num_steps += 1
        seen = take(self.env, action)
        listed = state.admissible is not None and action in state.admissible
        if listed and not seen.valid:
            self.survey.fault("admissible", f"{state}: admissible action {action!r:.80} is not valid")
        try:
            check_step(seen, before=state.snapshot.last.score, may_fall=self._may_fall)
            self._check_constant(seen)
        except CheckFailure as error:
            self.survey.fault("outcome", f"{state}: {error}")
        number, new = self._note(seen, depth=state.depth + 1)
        state.edges[action] = Edge(seen, number)
        return number, new

    @property
    def _may_fall(self) -> bool:
        return bool(getattr(self.env.world, "score_may_fall", False))

    def _check_constant(self, seen: Seen) -> None:
        for name, first in (("goal", self.goal), ("task_type", self.task_type)):
            if getattr(seen, name) != first:
                raise CheckFailure(
                    f"action {seen.action!r:.60}: {name} changes within the episode, from {first!r:.60} to "
                    f"{getattr(seen, name)!r:.60}"
                )

    # -- states --------------------------------------------------------------------------------------------------

    def _note(self, seen: Seen, depth: int) -> tuple[int, bool]:
        """The number of the live state and whether it is new; checks what the world says of it."""
        env, survey = self.env, self.survey
        snapshot = env.snapshot()
        state = State(
            task_id=self.task_id,
            snapshot=snapshot,
            key=env.state_key(),
            admissible=None if seen.terminated else self._admissible(depth),
            winnable=env.winnable(),
            depth=depth,
            over=seen.terminated,
            won=seen.won,
        )
        try:
            hash(state.key)
        except TypeError as error:
            survey.fault("state key", f"{state}: state_key() cannot be hashed: {error}")
            state.key = None
        # Ends need no key of their own: nothing happens from there on.
        mark: Hashable = None
        if state.key is not None:
            mark = ("end", state.won, state.winnable) if state.over else ("open", state.key)
        if state.over and self.numbers.get(("open", state.key)) is not None:
            survey.fault("state key", f"{state}: state_key() is equal for the end of the episode and an open state")
        known = None if mark is None else self.numbers.get(mark)
        if known is not None and not state.over:
            self._compare(survey.states[known], state)
        if known is not None:
            return known, False
        try:
            pickle.dumps(snapshot)
        except Exception as error:
            survey.fault("restore", f"{state}: a snapshot cannot be pickled: {type(error).__name__}: {error}"[:300])
        number = len(survey.states)
        survey.states.append(state)
        if mark is not None:
            self.numbers[mark] = number
        return number, True

    def _admissible(self, depth: int) -> tuple[str, ...] | None:
        actions = self.env.admissible_actions()
        if actions is not None:
            where = f"task {self.task_id!r}, {depth} steps from the start"
            if not actions:
                self.survey.fault("admissible", f"{where}: no action is possible, but the episode continues")
            if len(set(actions)) < len(actions):
                self.survey.fault("admissible", f"{where}: an admissible action is listed twice")
        return actions

    def _compare(self, first: State, second: State) -> None:
        """Two paths led to one key: the states must behave alike."""
        depths = f"{first.depth} and {second.depth} steps from the start"
        where = f"task {self.task_id!r}: state_key() is equal for states {depths}"
        if first.winnable != second.winnable:
            return self.survey.fault("state key", f"{where}, but winnable() is {first.winnable} and {second.winnable}")
        if set(first.admissible or ()) != set(second.admissible or ()):
            differs = sorted(set(first.admissible or ()) ^ set(second.admissible or ()))[0]
            return self.survey.fault("state key", f"{where}, but only one of them lists {differs!r:.60}")
        if first.edges:
            self._probe(first, second, where)
        elif len(self._later) < _MAX_LATER:
            self._later.append((first, second, where))  # nothing was tried there yet

    def compare_later(self) -> None:
        """Compare the states whose first path had not gone on when the second was found."""
        for first, second, where in self._later:
            self._probe(first, second, where)
        self._later.clear()

    def _probe(self, first: State, second: State, where: str) -> None:
        """Try in the second state what was tried in the first."""
        tried = list(first.edges)
        for index in self.rng.permutation(len(tried))[:_MAX_PROBES]:
            edge = first.edges[tried[index]]
            self._enter(second)
            self.survey.num_steps += 1
            again = take(self.env, tried[index])
            target = self.survey.states[edge.target]
            for name, was, now in (
                ("the observation", edge.seen.observation, again.observation),
                ("score", edge.seen.score, again.score),
                ("won", edge.seen.won, again.won),
                ("valid", edge.seen.valid, again.valid),
                ("the end", edge.seen.terminated, again.terminated),
                ("state_key", *((None, None) if target.over else (target.key, self.env.state_key()))),
            ):
                if was != now:
                    return self.survey.fault(
                        "state key",
                        f"{where}, but {name} after {tried[index]!r:.60} is {was!r:.60} and {now!r:.60}",
                    )
        return None


def can_win(survey: Survey) -> set[int]:
    """Numbers of the states from which the survey found a way to win."""
    sources: dict[int, set[int]] = {}
    for number, state in enumerate(survey.states):
        for edge in state.edges.values():
            sources.setdefault(edge.target, set()).add(number)
    found = {number for number, state in enumerate(survey.states) if state.won}
    queue = deque(found)
    while queue:
        for source in sources.get(queue.popleft(), ()):
            if source not in found:
                found.add(source)
                queue.append(source)
    return found


def _judge_winnable(survey: Survey) -> None:
    winning = can_win(survey)
    for number, state in enumerate(survey.states):
        if state.winnable not in (None, True, False):
            survey.fault("winnable", f"{state}: winnable() is {state.winnable!r:.60}, expected True, False or None")
        elif state.over and not state.won:
            if state.winnable:
                survey.fault("winnable", f"{state}: winnable() is True, but the episode is over and lost")
        elif number in winning and state.winnable is False and not state.over:
            survey.fault("winnable", f"{state}: winnable() is False, but the search found a way to win")
        elif number not in winning and state.winnable and state.task_id in survey.complete:
            survey.fault("winnable", f"{state}: winnable() is True, but no sequence of admissible actions wins")
