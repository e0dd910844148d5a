"""The searching expert: looks for things where they are usually kept, opens what is closed, continues elsewhere.

It acts only on the conversation's texts, as a trained agent has to, so its demonstrations show how to search. It can
continue from any conversation, also from one that begins with somebody else's wrong actions.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from steca_gym.agent import Need, Turn, TurnFormat, TurnRequest

from ..scripted import _AtOnce
from .memory import Memory, kind_of, number_of, read_conversation
from .places import Places, Table, read_places

DEVICES = {"clean": ("sinkbasin", "sink"), "heat": ("microwave",), "cool": ("fridge",)}
"""receptacle types that each treatment can be done at"""

LAMPS = ("desklamp", "floorlamp")

_DONE = {"clean": "clean", "heat": "hot", "cool": "cool"}


class Decision(NamedTuple):
    """An action and the reason for it."""

    thought: str
    action: str


class SearchingAgent(_AtOnce):
    """Plays ALFWorld and Household from the texts alone.

    Args:
        places: file of frequencies, as ``benchmarks/searching_frequencies.py`` writes it; None: those of the
            package, counted over ALFWorld's official train split and over generated Household games.
        turn_format: how turns are written: "react" (default), "tools", "json", "xml" or ``module:Object``.

    An episode whose task cannot be read fails with an AgentError.
    """

    name = "searching"
    needs: frozenset[Need] = frozenset()
    is_clairvoyant = False
    """whether it uses more than the conversation's texts"""

    def __init__(self, places: str | Path | None = None, *, turn_format: str | TurnFormat | None = None) -> None:
        """Read the frequencies."""
        super().__init__(turn_format)
        self._places: Places = read_places(places)

    def _turn(self, request: TurnRequest) -> Turn:
        memory = read_conversation(request.messages, self._format)
        table = self._places.for_room(map(kind_of, memory.places))
        return Turn(text=self._format.render(*decide(memory, table)))


def decide(memory: Memory, table: Table) -> Decision:
    """The next action: never one that was refused since something changed last, while there is another."""
    for decision in _Search(memory, table).options():
        if decision.action not in memory.refused:
            return decision
    return Decision("I do not know what else to do. I look around.", "look")


class _Search:
    """One decision: options in the order of preference."""

    def __init__(self, memory: Memory, table: Table) -> None:
        self.memory, self.table, self.task = memory, table, memory.task
        self.counts: dict[str, int] = {}
        for place in memory.places:
            self.counts[kind_of(place)] = self.counts.get(kind_of(place), 0) + 1

    def options(self) -> Iterable[Decision]:
        memory, task = self.memory, self.task
        if memory.held and kind_of(memory.held) != task.wanted:
            yield from self._put_away()
        elif not memory.held:
            yield from self._fetch()
        elif task.kind == "light":
            yield from self._light()
        else:
            yield from self._deliver()

    # -- with empty hands ----------------------------------------------------------------------------------

    def _fetch(self) -> Iterable[Decision]:
        memory, wanted = self.memory, self.task.wanted
        known = [
            (thing, place)
            for place, things in memory.seen.items()
            for thing in things
            if kind_of(thing) == wanted and (thing, place) not in memory.hopeless and not self._is_in_place(place)
        ]
        # The nearest first; of equals the one seen first.
        for thing, place in sorted(known, key=lambda found: not memory.here(found[1])):
            if memory.here(place):
                yield from self._open(place, f"The {place} is closed. I open it to take {thing}.")
                yield Decision(f"I see {thing} here. I take it.", f"take {thing} from {place}")
            else:
                yield Decision(f"I saw {thing} at {place}. I go there to take it.", f"go to {place}")
        yield from self._search(wanted, f"another {wanted}" if self._num_in_place() else f"a {wanted}")

    def _is_in_place(self, place: str) -> bool:
        """Whether things of the wanted kind in this place may stay there."""
        task = self.task
        if task.kind == "light" or kind_of(place) != task.target or task.treatment:
            # A thing that was treated and lies in its place would have ended the game.
            return False
        return task.kind == "place" or place == self._gathering_place()

    def _gathering_place(self) -> str:
        """Where the two things are brought together: the target that holds most of them."""
        targets = self._targets()
        return targets[0] if targets else ""

    def _num_wanted_in(self, place: str) -> int:
        return sum(kind_of(thing) == self.task.wanted for thing in self.memory.seen.get(place, ()))

    def _num_in_place(self) -> int:
        return self._num_wanted_in(self._gathering_place()) if self.task.kind == "two" else 0

    # -- searching -----------------------------------------------------------------------------------------

    def _search(self, kind: str, what: str) -> Iterable[Decision]:
        memory = self.memory
        nothing = self._nothing_here(kind, what)
        if memory.at and memory.at not in memory.seen and memory.doors.get(memory.at) == "closed":
            yield Decision(f"The {memory.at} is closed. I open it to look for {what}.", f"open {memory.at}")
        for place in self._unsearched(kind):
            yield from self._look_into(place, f"{nothing}I need to find {what}. It may be in {place}.")
        # All was searched: things may have been moved, or a text was misread. Look everywhere again, nearest last.
        for place in sorted(memory.places, key=lambda p: (memory.here(p), self._rank(kind, p))):
            yield from self._look_into(place, f"I looked everywhere for {what}. I look again in {place}.")

    def _nothing_here(self, kind: str, what: str) -> str:
        memory = self.memory
        looked = memory.at in memory.seen and f"the {memory.at}" in memory.last.lower() and "you see" in memory.last
        if looked and not any(kind_of(t) == kind for t in memory.seen[memory.at]):
            return f"There is no {kind} here. "
        return ""

    def _unsearched(self, kind: str) -> list[str]:
        memory = self.memory
        return sorted((p for p in memory.places if p not in memory.seen), key=lambda p: self._rank(kind, p))

    def _rank(self, kind: str, place: str) -> tuple[object, ...]:
        """Best first: the share of such places that hold such a thing, for each action that a look takes."""
        of = kind_of(place)
        share = self.table.share(kind, of)
        if of == self.task.target and not self.task.treatment and kind == self.task.wanted:
            share = 0.0 if self.task.kind == "place" else share / 2  # there it would count already
        cost = 1 + self.table.doors.get(of, 0.0) - (1 if self.memory.here(place) else 0)
        return -share / max(cost, 0.5), of, number_of(place)

    def _look_into(self, place: str, thought: str) -> Iterable[Decision]:
        memory = self.memory
        if not memory.here(place):
            yield Decision(thought, f"go to {place}")
            return
        door = memory.doors.get(place)
        if door == "closed" or (door is None and self.table.doors.get(kind_of(place), 0.0) > 0.5):
            yield Decision(f"I stand at {place} already. I open it.", f"open {place}")
        yield Decision(f"I stand at {place} already. I look at it.", f"examine {place}")

    def _open(self, place: str, thought: str) -> Iterable[Decision]:
        if self.memory.doors.get(place) == "closed":
            yield Decision(thought, f"open {place}")
        elif not self.memory.can_see_into(place):
            yield from self._look_into(place, "")

    # -- with something in hand ----------------------------------------------------------------------------

    def _put_away(self) -> Iterable[Decision]:
        """Get rid of a thing that the task does not ask for."""
        memory, held = self.memory, self.memory.held

        def cost(place: str) -> tuple[object, ...]:
            steps = (not memory.here(place)) + (not memory.can_see_into(place))
            return steps, place != memory.found_at, -self.table.share(kind_of(held), kind_of(place)), place

        for place in sorted(memory.places, key=cost):
            if (held, place) not in memory.hopeless:
                yield from self._put(
                    place, f"I do not need {held}. I bring it to {place}.", f"I do not need {held}. I put it down."
                )

    def _put(self, place: str, on_the_way: str, there: str) -> Iterable[Decision]:
        memory = self.memory
        if not memory.here(place):
            yield Decision(on_the_way, f"go to {place}")
            return
        yield from self._open(place, f"The {place} is closed. I open it to put {memory.held} in it.")
        yield Decision(there, memory.put(memory.held, place))

    def _light(self) -> Iterable[Decision]:
        memory, held, lamp_kind = self.memory, self.memory.held, self.task.target
        kinds = (lamp_kind,) if lamp_kind in LAMPS else LAMPS
        lamps = [(lamp, place) for place, things in memory.seen.items() for lamp in things if kind_of(lamp) in kinds]
        for lamp, place in sorted(lamps, key=lambda found: not memory.here(found[1])):
            if memory.here(place):
                yield Decision(f"I have {held}. I see {lamp} here. I turn it on.", f"use {lamp}")
            else:
                yield Decision(f"I have {held}. I saw {lamp} at {place}. I go there.", f"go to {place}")
        yield from self._search(kinds[0], f"a {lamp_kind}")

    def _deliver(self) -> Iterable[Decision]:
        memory, held, treatment = self.memory, self.memory.held, self.task.treatment
        if treatment and treatment not in memory.treated.get(held, ()):
            devices = [p for kind in DEVICES[treatment] for p in memory.places if kind_of(p) == kind]
            for device in sorted(devices, key=lambda p: not memory.here(p)):
                action = f"{treatment} {held} with {device}"
                if memory.here(device):
                    yield Decision(f"I am at {device}. I {treatment} {held}.", action)
                else:
                    yield Decision(f"I have {held}. I need to {treatment} it at {device}.", f"go to {device}")
        ready = f"The {held} is {_DONE[treatment]}." if treatment else f"I have {held}."
        for place in self._targets():
            if (held, place) not in memory.hopeless:
                yield from self._put(
                    place, f"{ready} I need to bring it to {place}.", f"I am at {place}. I put {held} there."
                )
        # No target takes it: perhaps another one of the kind will do.
        yield from self._put_away()

    def _targets(self) -> list[str]:
        memory = self.memory
        targets = [p for p in memory.places if kind_of(p) == self.task.target]

        def cost(place: str) -> tuple[object, ...]:
            gathered = -min(self._num_wanted_in(place), 2) if self.task.kind == "two" else 0
            steps = (not memory.here(place)) + (memory.doors.get(place) == "closed")
            return gathered, steps if not gathered else 0, number_of(place)

        return sorted(targets, key=cost)
