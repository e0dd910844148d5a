"""An expert for ALFWorld's six tasks: the shortest way from any state, by trying what could be fetched.

Knows where everything is, as the real planner does. Knows no texts beyond commands. A task asks for one object (or
two) to be brought, treated and placed, so every plan is a chain of errands; the cheapest chain is found by trying all
candidate objects and targets. Costs count commands.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

from .engine import is_won, visible
from .game import Game, State

_COMMAND = {"clean": "clean", "hot": "heat", "cool": "cool"}


class Step(NamedTuple):
    """A command and why."""

    command: str
    thought: str


def plan(game: Game, state: State) -> list[Step] | None:
    """The remaining commands to win, in order; empty if won, None if it cannot be won any more."""
    if is_won(game, state):
        return []
    plans = [p for p in _candidates(game, state) if p is not None]
    return min(plans, key=len) if plans else None


def _candidates(game: Game, state: State) -> list[list[Step] | None]:
    goal = game.goal
    objects = [o for o, kind in enumerate(game.object_type) if kind == goal.object_type and _reachable(game, state, o)]
    if goal.kind == "light":
        lamps = [(o, r) for r, inside in enumerate(state.contents) for o in inside if game.goal_lamps >> o & 1]
        return [_Errand(game, state).light(o, lamp, r) for o in objects for lamp, r in lamps]
    if goal.flag:
        objects = [o for o in objects if game.goal_objects >> o & 1]
    if goal.kind == "place":
        return [_Errand(game, state).place(o, r, goal.flag) for o in objects for r in game.goal_receptacles]
    found: list[list[Step] | None] = []
    for r in game.goal_receptacles:
        num_there = sum(game.goal_objects >> o & 1 for o in state.contents[r])
        missing = [o for o in objects if o not in state.contents[r]]
        for chosen in itertools.permutations(missing, max(0, 2 - num_there)):
            errand = _Errand(game, state)
            steps: list[Step] | None = []
            for o in chosen:
                steps = errand.place(o, r, "")
                if steps is None:
                    break
            found.append(steps)
    return found


def _reachable(game: Game, state: State, o: int) -> bool:
    return o == state.held or bool(game.pickupable >> o & 1 and any(o in c for c in state.contents))


class _Errand:
    """Walks through a plan, keeping only what later steps depend on."""

    def __init__(self, game: Game, state: State) -> None:
        self.game, self.state, self.steps = game, state, list[Step]()

    def _do(self, command: str, thought: str, **changes: object) -> None:
        self.steps.append(Step(command, thought))
        self.state = self.state._replace(**changes)  # type: ignore[arg-type]

    def _far(self, r: int) -> bool:
        return self.game.receptacle_location[r] != self.state.location

    def _go(self, r: int, thought: str) -> None:
        where = self.game.receptacle_location[r]
        if where != self.state.location:
            self._do(f"go to {self.game.receptacles[r]}", thought, location=where)

    def _open(self, r: int, thought: str) -> None:
        if not visible(self.game, self.state, r):
            self._do(f"open {self.game.receptacles[r]}", thought, opened=self.state.opened | 1 << r)

    def _drop(self, next_stop: int) -> bool:
        """Put down what is in hand, where it costs least on the way to a receptacle that is opened next."""
        game, state, held = self.game, self.state, self.state.held
        free = (state.location, game.receptacle_location[next_stop])
        options = [
            ((game.receptacle_location[r] not in free) + (r != next_stop and not visible(game, state, r)), r)
            for r, kind in enumerate(game.receptacle_type)
            if (kind, game.object_type[held]) in game.can_contain
        ]
        if not options:
            return False
        self._put(min(options)[1], f"I do not need the {game.objects[held]}.")
        return True

    def _put(self, r: int, thought: str) -> None:
        game, held = self.game, self.state.held
        self._go(r, thought)
        self._open(r, thought)
        contents = list(self.state.contents)
        contents[r] = tuple(sorted({*contents[r], held}))
        command = game.put_template.replace("{o}", game.objects[held]).replace("{r}", game.receptacles[r])
        self._do(command, thought, held=-1, contents=tuple(contents))

    def _fetch(self, o: int) -> bool:
        if self.state.held == o:
            return True
        game = self.game
        homes = [r for r, inside in enumerate(self.state.contents) if o in inside]
        if not homes:
            return False
        r = min(homes, key=lambda r: self._far(r) + (not visible(game, self.state, r)))
        if self.state.held >= 0 and not self._drop(r):
            return False
        thought = f"I need to find {_kind(game.objects[o])}."
        self._go(r, thought)
        self._open(r, thought)
        contents = list(self.state.contents)
        contents[r] = tuple(i for i in contents[r] if i != o)
        self._do(
            f"take {game.objects[o]} from {game.receptacles[r]}",
            f"I see {game.objects[o]}.",
            held=o,
            contents=tuple(contents),
        )
        return True

    def place(self, o: int, target: int, flag: str) -> list[Step] | None:
        """Fetch, treat and place one object; the steps so far, or None."""
        game = self.game
        if (game.receptacle_type[target], game.object_type[o]) not in game.can_contain or not self._fetch(o):
            return None
        if flag and not {"clean": self.state.clean, "hot": self.state.hot, "cool": self.state.cool}[flag] >> o & 1:
            command, at = _COMMAND[flag], game.receptacle_location
            devices = [r for r, kind in enumerate(game.receptacle_type) if kind in game.devices[command]]
            if not devices:
                return None
            device = min(devices, key=lambda r: self._far(r) + (at[r] != at[target]))
            thought = f"I need to {command} the {game.objects[o]}."
            self._go(device, thought)
            bit = 1 << o
            changes = {flag: getattr(self.state, flag) | bit}
            if flag != "clean":
                other = "cool" if flag == "hot" else "hot"
                changes[other] = getattr(self.state, other) & ~bit
            self._do(f"{command} {game.objects[o]} with {game.receptacles[device]}", thought, **changes)
        self._put(target, f"I need to put the {game.objects[o]} in {game.receptacles[target]}.")
        return self.steps

    def light(self, o: int, lamp: int, r: int) -> list[Step] | None:
        """Fetch an object and switch the lamp on beside it."""
        game = self.game
        if not self._fetch(o):
            return None
        thought = f"I need the {game.objects[lamp]} to look at the {game.objects[o]}."
        self._go(r, thought)
        if not self.state.toggled >> lamp & 1:
            self._do(f"use {game.objects[lamp]}", thought, toggled=self.state.toggled | 1 << lamp)
        return self.steps


def _kind(name: str) -> str:
    return f"a {name.rpartition(' ')[0]}"
