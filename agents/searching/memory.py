"""What a conversation in ALFWorld's language has shown: the task, places, objects, doors, and what is in hand.

Everything here is read from the texts that the agent has seen. Texts of ALFWorld's releases differ a little ("You
arrive at loc 24", "put mug 1 in/on shelf 2"); both forms are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from steca_gym.agent import Message, TurnFormat, find_turn_format
from steca_gym.errors import AgentError

Door = Literal["open", "closed", "none"]

REFUSED = "Nothing happens"
"""how the observation of a refused action begins"""


@dataclass(frozen=True, slots=True)
class Task:
    """What the agent has to bring about."""

    kind: Literal["place", "two", "light"]
    wanted: str
    """object type, e.g. "mug" """
    target: str
    """receptacle type, or for "light" the lamp's object type"""
    treatment: str = ""
    """"", "clean", "heat" or "cool" """


_THING = r"(?:(?:a|an|some|the) )?(?P<wanted>\S+(?: \S+)*?)"
_INTO = r"(?:in/on|into|onto|in|on|to) (?:(?:a|an|some|the) )?(?P<target>\S+(?: \S+)*?)"
_TASKS: tuple[tuple[Literal["place", "two", "light"], re.Pattern[str]], ...] = (
    ("two", re.compile(rf"(?:find|put) two (?P<wanted>\S+(?: \S+)*?)(?: and put them)? {_INTO}")),
    ("light", re.compile(rf"(?:look at|examine) {_THING} (?:under|with|by|using) (?:the |a )?(?P<target>\S+)")),
    ("place", re.compile(rf"(?P<verb>clean|heat|cool) {_THING} and put it {_INTO}")),
    ("place", re.compile(rf"put (?:(?:a|an|some|the) )?(?P<verb>clean|hot|cool) (?P<wanted>\S+(?: \S+)*?) {_INTO}")),
    ("place", re.compile(rf"put {_THING} {_INTO}")),
)
_TASK_LINE = re.compile(r"your task is to: (?P<task>[^\n]*?)\.?[ \t]*(?:\n|$)", re.IGNORECASE)


def read_task(observation: str) -> Task:
    """The task that a first observation states; raises AgentError for what is none of ALFWorld's six kinds."""
    line = _TASK_LINE.search(observation)
    text = line["task"].strip().lower() if line else ""
    for kind, pattern in _TASKS:
        found = pattern.fullmatch(text)
        if found:
            verb = found.groupdict().get("verb") or ""
            return Task(kind, found["wanted"], found["target"], "heat" if verb == "hot" else verb)
    raise AgentError(
        f"cannot read the task {text or observation[:60]!r}; the searching expert knows ALFWorld's six kinds "
        "(put, clean, heat, cool, put two, look under a lamp); use expert=planner for other worlds"
    )


def kind_of(name: str) -> str:
    """The type in a numbered name: ``mug`` of ``mug 2``."""
    return name.rpartition(" ")[0]


def number_of(name: str) -> int:
    """The number in a numbered name: 2 of ``mug 2``."""
    return int(name.rpartition(" ")[2])


_NAMED = re.compile(r"\ban? ([^\s,.][^,.]*? \d+)\b")
_NAME = r"([^\s,.:][^,.:]*? \d+)"
_ROOM = re.compile(r"you see ([^.]*)\.", re.IGNORECASE)
_ON = re.compile(rf"\bOn the {_NAME}, you see ([^.]*)\.")
_IN = re.compile(rf"\bThe {_NAME} is open\. In it, you see ([^.]*)\.")
_CLOSED = re.compile(rf"\bThe {_NAME} is closed\.")
_FACING = re.compile(r"\bYou are facing the ([^.]*)\.")
_TAKEN = re.compile(rf"\bYou (?:pick up|take) the {_NAME} from the {_NAME}\.")
_PUT = re.compile(rf"\bYou (?:put|move) the {_NAME} (?:in/on|into|onto|in|on|to) the {_NAME}\.")
_OPENED = re.compile(rf"\bYou open the {_NAME}\.")
_SHUT = re.compile(rf"\bYou close the {_NAME}\.")
_TREATED = re.compile(rf"\bYou (clean|heat|cool) the {_NAME} using the {_NAME}\.")
_LIT = re.compile(rf"\bYou turn on the {_NAME}\.")
_CARRIED = re.compile(rf"\bYou are carrying: an? {_NAME}\.")
_HELP = re.compile(r"\b(move|put) [({<\[][^\n]{1,40}? (in/on|to) [({<\[]")
"""a listing of commands, in an instruction or in the answer to ``help``"""


@dataclass(slots=True)
class Memory:
    """The world as the texts have shown it; ``read_conversation`` makes one."""

    task: Task
    places: tuple[str, ...]
    """the room's receptacles, in the order of the text"""
    at: str = ""
    """the place where the agent stands; empty: in the middle of the room"""
    held: str = ""
    """the object in hand; empty: none"""
    found_at: str = ""
    """the place that the object in hand was taken from"""
    seen: dict[str, list[str]] = field(default_factory=dict)
    """the objects in each place that was looked into"""
    doors: dict[str, Door] = field(default_factory=dict)
    neighbours: dict[str, set[str]] = field(default_factory=dict)
    """places that share a location, so that one cannot "go to" the one from the other"""
    treated: dict[str, set[str]] = field(default_factory=dict)
    """what was done to each object: "clean", "heat", "cool" """
    lit: set[str] = field(default_factory=set)
    """lamps that were turned on"""
    refused: set[str] = field(default_factory=set)
    """actions refused since something changed last"""
    hopeless: set[tuple[str, str]] = field(default_factory=set)
    """(thing, place): taking it there or putting it there was refused although nothing seemed in the way"""
    puts: tuple[str, str] = ("move", "to")
    """the game's verb for putting down, and the word between thing and place"""
    puts_known: bool = False
    """whether such a command has been accepted"""
    last: str = ""
    """the last observation"""

    def here(self, place: str) -> bool:
        """Whether the agent stands at a place, as far as the texts tell."""
        return bool(self.at) and (place == self.at or place in self.neighbours.get(self.at, ()))

    def put(self, thing: str, place: str) -> str:
        """The command that puts a thing down, in the game's own words."""
        return f"{self.puts[0]} {thing} {self.puts[1]} {place}"

    def can_see_into(self, place: str) -> bool:
        """Whether the texts have shown that a place's inside is within reach."""
        return self.doors.get(place, "closed") != "closed"

    def note(self, action: str, observation: str) -> None:
        """Take in one action and its answer."""
        self.last = observation
        action = action.strip()  # as the game reads it
        if REFUSED in observation:
            self._note_refusal(action)
            return
        changed = False
        if action.startswith("go to ") and "You arrive at " in observation:
            self.at, changed = action[len("go to ") :], True
            if not self.puts_known and re.search(r"You arrive at loc \d+", observation):
                self.puts = ("put", "in/on")  # the older release
        elif self.held and action.startswith((f"move {self.held} to ", f"put {self.held} in/on ")):
            self.puts = ("move", "to") if action.startswith("move") else ("put", "in/on")
        changed |= self._note_changes(observation)
        self._note_views(observation)
        self.note_commands(observation)
        if changed:
            self.refused.clear()

    def note_commands(self, text: str) -> None:
        """Learn the game's command for putting down from a listing of commands, where the text has one."""
        listed = _HELP.search(text)
        if listed and not self.puts_known:
            self.puts = (listed[1], listed[2])

    def _note_views(self, text: str) -> None:
        for place, inside in _ON.findall(text):
            self._look_into(place, inside, "none")
        for place, inside in _IN.findall(text):
            self._look_into(place, inside, "open")
        for place in _CLOSED.findall(text):
            self.doors[place] = "closed"
        for facing in _FACING.findall(text):
            here = re.findall(r"[^\s,][^,]*? \d+", facing.replace(" and ", " "))
            if here:
                self.at = here[0]
                self._join(here)
        for thing in _CARRIED.findall(text):
            self.held = thing

    def _look_into(self, place: str, inside: str, door: Door) -> None:
        self.seen[place] = [thing for thing in _NAMED.findall(inside) if thing != self.held]
        self.doors[place] = door

    def _note_changes(self, text: str) -> bool:
        changed = False
        for place in _OPENED.findall(text):
            self.doors[place], changed = "open", True
        for place in _SHUT.findall(text):
            self.doors[place], changed = "closed", True
        for thing, place in _TAKEN.findall(text):
            self.held, self.found_at, changed = thing, place, True
            for things in self.seen.values():
                while thing in things:
                    things.remove(thing)
        for thing, place in _PUT.findall(text):
            self.held, changed, self.puts_known = "", True, True
            self.seen.setdefault(place, []).append(thing)
        for verb, thing, _ in _TREATED.findall(text):
            done = self.treated.setdefault(thing, set())
            done.discard({"heat": "cool", "cool": "heat"}.get(verb, ""))
            done.add(verb)
            changed = True
        for lamp in _LIT.findall(text):
            self.lit.add(lamp)
            changed = True
        return changed

    def _note_refusal(self, action: str) -> None:
        verb, _, rest = action.partition(" ")
        place = rest.removeprefix("to ")
        if verb == "go" and place in self.places:
            # The place is in the room, so the agent must be standing there already.
            if self.at:
                self._join([self.at, place])
            else:
                self.at = place
        elif verb == "examine" and self.here(place) and place != self.at:
            self._part(place)
        thing, _, place = re.sub(r" (from|in/on|to) ", "\0", rest, count=1).partition("\0")
        if self.here(place) and self.can_see_into(place):
            if verb == "take" and not self.held and thing in self.seen.get(place, ()):
                self.hopeless.add((thing, place))
            elif verb == self.puts[0] and thing == self.held:
                self._note_refused_put(thing, place)
        self.refused.add(action)

    def _note_refused_put(self, thing: str, place: str) -> None:
        # Games have one of two commands, and the text of a room does not say which: the other one is tried first.
        other = ("put", "in/on") if self.puts[0] == "move" else ("move", "to")
        if self.puts_known or f"{other[0]} {thing} {other[1]} {place}" in self.refused:
            self.hopeless.add((thing, place))
        if not self.puts_known:
            self.puts = other

    def _join(self, places: Iterable[str]) -> None:
        group = set(places)
        for place in tuple(group):
            group |= self.neighbours.get(place, set())
        for place in group:
            self.neighbours[place] = group

    def _part(self, place: str) -> None:
        # What is here can be examined: this place is elsewhere, and the command to go there had another fault.
        for others in self.neighbours.values():
            others.discard(place)
        self.neighbours[place] = {place}


def read_conversation(messages: Sequence[Message], turn_format: TurnFormat | None = None) -> Memory:
    """Read a conversation up to its last observation.

    The episode begins at the last user message that states a task: worked examples before it are passed over.

    Args:
        messages: the conversation, which may begin with somebody else's turns.
        turn_format: how its turns are written; None: the default format.

    Raises:
        AgentError: no message states a task, or the task is none of ALFWorld's six kinds.
    """
    starts = [i for i, m in enumerate(messages) if m.role == "user" and _TASK_LINE.search(m.content)]
    if not starts:
        raise AgentError(
            "no message says 'Your task is to: ...'; the searching expert plays ALFWorld and Household; "
            "use expert=planner for other worlds"
        )
    first = messages[starts[-1]].content
    room = _ROOM.search(first)
    memory = Memory(task=read_task(first), places=tuple(_NAMED.findall(room[1])) if room else (), last=first)
    memory._note_views(first)
    for message in messages[: starts[-1]]:
        if message.role == "system":
            memory.note_commands(message.content)
    parse = (turn_format or find_turn_format(None)).parse
    action = ""
    for message in messages[starts[-1] + 1 :]:
        if message.role == "assistant":
            action = parse(message.content).action or ""
        elif message.role == "user":
            memory.note(action, message.content)
    return memory
