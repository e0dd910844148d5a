"""Household games made from a seed, in ALFWorld's file format: unlimited, solvable by construction, no data needed.

Knows how rooms are furnished and tasks are drawn, and, with ``game_file``, how the real ALFWorld is given such a game.
Knows no play. Layouts decide the split: ``train`` and
``valid_seen`` share layouts (with other objects and tasks), ``valid_unseen`` has its own.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from steca_gym.errors import ConfigError, DataError

from .game import TASK_TYPES, Game, load_game

# receptacle type: (openable, weight)
FURNITURE: dict[str, tuple[bool, int]] = {
    "Cabinet": (True, 4),
    "Drawer": (True, 4),
    "Shelf": (False, 3),
    "CounterTop": (False, 2),
    "SideTable": (False, 2),
    "DiningTable": (False, 1),
    "Desk": (False, 1),
    "GarbageCan": (False, 1),
    "Bed": (False, 1),
    "Sofa": (False, 1),
}
DEVICES: dict[str, bool] = {"Fridge": True, "Microwave": True, "SinkBasin": False}

# object type: treatments it takes; where it may lie
_KITCHEN = ("Cabinet", "CounterTop", "DiningTable", "Shelf", "SideTable", "Fridge", "Microwave", "SinkBasin")
_ROOM = ("Drawer", "Shelf", "SideTable", "Desk", "DiningTable", "Bed", "Sofa", "Cabinet", "GarbageCan")
OBJECTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "Apple": ("clean heat cool", (*_KITCHEN, "GarbageCan")),
    "Potato": ("clean heat cool", (*_KITCHEN, "GarbageCan")),
    "Tomato": ("clean heat cool", (*_KITCHEN, "GarbageCan")),
    "Egg": ("clean heat cool", (*_KITCHEN, "GarbageCan")),
    "Mug": ("clean heat cool", (*_KITCHEN, "Desk")),
    "Cup": ("clean heat cool", _KITCHEN),
    "Plate": ("clean heat cool", _KITCHEN),
    "Bowl": ("clean cool", (*_KITCHEN, "Desk")),
    "Fork": ("clean", (*_KITCHEN, "Drawer")),
    "Spoon": ("clean", (*_KITCHEN, "Drawer")),
    "Cloth": ("clean", ("Cabinet", "CounterTop", "Drawer", "Shelf", "SinkBasin", "SideTable")),
    "SoapBar": ("clean", ("Cabinet", "CounterTop", "Drawer", "Shelf", "SinkBasin", "GarbageCan", "SideTable")),
    "Book": ("", _ROOM),
    "Pen": ("", _ROOM),
    "Pencil": ("", _ROOM),
    "CD": ("", _ROOM),
    "CellPhone": ("", _ROOM),
    "CreditCard": ("", _ROOM),
    "KeyChain": ("", _ROOM),
    "Watch": ("", _ROOM),
    "RemoteControl": ("", _ROOM),
    "Newspaper": ("", _ROOM),
    "Vase": ("", ("Shelf", "SideTable", "Desk", "DiningTable", "CounterTop", "Cabinet")),
    "TissueBox": ("", ("Shelf", "SideTable", "Desk", "DiningTable", "CounterTop", "Cabinet", "Drawer")),
}
LAMP = "DeskLamp"
_LAMP_PLACES = ("Desk", "SideTable", "Shelf", "DiningTable", "CounterTop", "Bed", "Sofa")

_TEMPLATES = {
    "pick_and_place_simple": "put a {o} in {r}.",
    "look_at_obj_in_light": "look at {o} under the {t}.",
    "pick_clean_then_place_in_recep": "put a clean {o} in {r}.",
    "pick_heat_then_place_in_recep": "put a hot {o} in {r}.",
    "pick_cool_then_place_in_recep": "put a cool {o} in {r}.",
    "pick_two_obj_and_place": "put two {o} in {r}.",
}
_TREATMENT = {TASK_TYPES[2]: "clean", TASK_TYPES[3]: "heat", TASK_TYPES[4]: "cool"}
_GOAL_FACT = {"clean": ("cleanable", "isClean"), "heat": ("heatable", "isHot"), "cool": ("coolable", "isCool")}


@dataclass(frozen=True, slots=True, kw_only=True)
class HouseholdSettings:
    """Difficulty and size of the world."""

    num_receptacles: int = 8
    """pieces of furniture, devices excluded"""
    num_objects: int = 8
    """objects that a task may ask for"""
    num_distractors: int = 2
    """of these, how many may be of the wanted type beyond what the task needs (none where two are wanted)"""
    task_types: tuple[str, ...] = TASK_TYPES
    num_layouts: int = 20
    """layouts of train and valid_seen; valid_unseen has as many others"""
    num_train_tasks: int = 10_000
    num_eval_tasks: int = 1_000
    """tasks in each of valid_seen and valid_unseen"""
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be furnished."""
        least = {"num_objects": 1, "num_distractors": 0, "num_layouts": 1, "num_train_tasks": 1, "num_eval_tasks": 1}
        for name, minimum in least.items():
            if getattr(self, name) < minimum:
                raise ConfigError(f"{name} must be >= {minimum}, got {getattr(self, name)}")
        if self.num_receptacles < 3:
            raise ConfigError(
                f"num_receptacles must be >= 3, got {self.num_receptacles}; a task needs places to search"
            )
        unknown = [t for t in self.task_types if t not in TASK_TYPES]
        if unknown or not self.task_types:
            raise ConfigError(f"task_types must be some of {', '.join(TASK_TYPES)}, got {self.task_types}")


class Household:
    """Games by task id ``SPLIT/NUMBER``."""

    name = "household"
    version = "2"

    def __init__(self, settings: HouseholdSettings) -> None:
        """Make games of these settings."""
        self.settings = settings
        self.data_hash = hashlib.blake2b(repr(asdict(settings)).encode(), digest_size=4).hexdigest()
        self.game = lru_cache(maxsize=8192)(self._game)
        self._ids: dict[str, tuple[str, ...]] = {}

    def splits(self) -> tuple[str, ...]:
        """Train, and evaluation on known and on new layouts."""
        return ("train", "valid_seen", "valid_unseen")

    def task_ids(self, split: str) -> Sequence[str]:
        """``SPLIT/NUMBER``."""
        if split not in self._ids:  # every reset that draws a task asks
            count = self.settings.num_train_tasks if split == "train" else self.settings.num_eval_tasks
            self._ids[split] = tuple(f"{split}/{i}" for i in range(count))
        return self._ids[split]

    def _game(self, task_id: str) -> Game:
        split, _, number = task_id.partition("/")
        if split not in self.splits() or not number.isdigit():
            raise DataError(f"no household task {task_id!r}; expected SPLIT/NUMBER with a split of {self.splits()}")
        return load_game(self.data(task_id))

    def data(self, task_id: str) -> dict[str, object]:
        """The game's ``game.tw-pddl`` without the domain and the grammar's fixed part, see ``game_file``."""
        split, _, number = task_id.partition("/")
        settings = self.settings
        seed = int.from_bytes(
            hashlib.blake2b(f"{settings.seed}/{split}/{number}".encode(), digest_size=8).digest(), "big"
        )
        rng = random.Random(seed)
        layout = rng.randrange(settings.num_layouts) + (settings.num_layouts if split == "valid_unseen" else 0)
        return _Draft(settings, layout, rng).write(settings.task_types[int(number) % len(settings.task_types)])


def game_file(data: Mapping[str, object]) -> dict[str, object]:
    """A game of ``Household.data`` with the domain and grammar of the installed alfworld, for ``game.tw-pddl``.

    Raises DataError where the alfworld package is missing; playing here does not need it.
    """
    try:
        from alfworld.info import ALFRED_PDDL_PATH, ALFRED_TWL2_PATH
    except ImportError as error:
        raise DataError(
            "no alfworld package; pip install 'steca-gym[alfworld-reference]' (needs g++ and make)"
        ) from error
    task = re.search(r'"(Your task is to: [^"]*)\."', str(data["grammar"]))
    assert task is not None
    grammar = Path(ALFRED_TWL2_PATH).read_text().replace("Your task is to: UNKNOWN GOAL", task[1])
    return {**data, "pddl_domain": Path(ALFRED_PDDL_PATH).read_text(), "grammar": grammar}


class _Draft:
    """One game while it is drawn."""

    def __init__(self, settings: HouseholdSettings, layout: int, rng: random.Random) -> None:
        self.settings, self.rng = settings, rng
        rooms = random.Random(settings.seed * 1_000_003 + layout)
        kinds = list(FURNITURE)
        chosen = rooms.choices(kinds, weights=[FURNITURE[k][1] for k in kinds], k=settings.num_receptacles)
        if not any(k in _LAMP_PLACES for k in chosen):
            chosen[0] = "SideTable"
        chosen += list(DEVICES)
        # A sink's basin is named after its sink, as in the official games; the demangler appends "basin".
        self.receptacles = [
            (k, f"Sink_bar__plus_{i:02d}_bar_SinkBasin" if k == "SinkBasin" else f"{k}_bar__plus_{i:02d}")
            for i, k in enumerate(chosen)
        ]
        lamp = rooms.choice([i for i, (k, _) in enumerate(self.receptacles) if k in _LAMP_PLACES])
        self.objects: list[tuple[str, str, int]] = [(LAMP, f"{LAMP}_bar__plus_99", lamp)]

    def _places(self, kind: str) -> list[int]:
        return [i for i, (r, _) in enumerate(self.receptacles) if r in OBJECTS[kind][1]]

    def _add(self, kind: str, place: int) -> None:
        self.objects.append((kind, f"{kind}_bar__plus_{len(self.objects):02d}", place))

    def write(self, task_type: str) -> dict[str, object]:
        rng = self.rng
        treatment = _TREATMENT.get(task_type, "")
        wanted = [k for k, (t, _) in OBJECTS.items() if treatment in t.split() or not treatment]
        wanted = [k for k in wanted if len(self._places(k)) >= 2]
        rng.shuffle(wanted)
        for kind in wanted:
            targets = sorted({self.receptacles[p][0] for p in self._places(kind)} - {"SinkBasin", "Microwave"})
            if treatment == "cool":
                targets = [t for t in targets if t != "Fridge"]
            rng.shuffle(targets)
            for target in targets:
                homes = [p for p in self._places(kind) if self.receptacles[p][0] != target]
                if homes:
                    return self._finish(task_type, treatment, kind, target, homes)
        raise DataError(
            f"no {task_type} task fits a layout of {self.settings.num_receptacles} receptacles; raise num_receptacles"
        )

    def _finish(self, task_type: str, treatment: str, kind: str, target: str, homes: list[int]) -> dict[str, object]:
        rng = self.rng
        for _ in range(2 if task_type == TASK_TYPES[5] else 1):
            self._add(kind, rng.choice(homes))
        distractors = 0
        others = [k for k in OBJECTS if k != kind and self._places(k)]
        while len(self.objects) < self.settings.num_objects + 1:
            same = distractors < self.settings.num_distractors and rng.random() < 0.3 and task_type != TASK_TYPES[5]
            distractors += same
            # A second one of the wanted kind may only lie where it does not win the game by itself.
            self._add(kind, rng.choice(homes)) if same else self._add(
                (k := rng.choice(others)), rng.choice(self._places(k))
            )
        return {
            "pddl_problem": self._problem(task_type, treatment, kind, target),
            "grammar": self._grammar(task_type, kind, target),
            "walkthrough": [],
            "solvable": True,
        }

    def _problem(self, task_type: str, treatment: str, kind: str, target: str) -> str:
        facts = ["(atLocation agent1 loc_bar_start)"]
        for i, (r, rid) in enumerate(self.receptacles):
            facts += [f"(receptacleType {rid} {r}Type)", f"(receptacleAtLocation {rid} loc_bar_{i:02d})"]
            if FURNITURE.get(r, (DEVICES.get(r, False), 0))[0]:
                facts.append(f"(openable {rid})")
        for k, oid, place in self.objects:
            facts += [f"(objectType {oid} {k}Type)", f"(objectAtLocation {oid} loc_bar_{place:02d})"]
            facts.append(f"(inReceptacle {oid} {self.receptacles[place][1]})")
            if k == LAMP:
                facts.append(f"(toggleable {oid})")
                continue
            facts.append(f"(pickupable {oid})")
            facts += [f"({_GOAL_FACT[t][0]} {oid})" for t in OBJECTS[k][0].split()]
        kinds = {r for r, _ in self.receptacles}
        facts += [f"(canContain {r}Type {o}Type)" for o, (_, places) in OBJECTS.items() for r in places if r in kinds]
        entities = [f"{rid} - receptacle" for _, rid in self.receptacles]
        entities += [f"{oid} - object" for _, oid, _ in self.objects]
        entities += [f"loc_bar_{i:02d} - location" for i in range(len(self.receptacles))]
        rtypes = sorted(kinds | {"SinkBasin", "Microwave", "Fridge", "Sink"})
        entities += [f"{r}Type - rtype" for r in rtypes]
        entities += [f"{o}Type - otype" for o in sorted({*OBJECTS, LAMP, "Knife", "ButterKnife"})]
        return (
            "(define (problem household)\n(:domain alfred)\n(:objects\nagent1 - agent\nloc_bar_start - location\n"
            + "\n".join(entities)
            + "\n)\n(:init\n"
            + "\n".join(facts)
            + f"\n)\n(:goal\n(and\n{_goal(task_type, treatment, kind, target)}\n)\n)\n)\n"
        )

    def _grammar(self, task_type: str, kind: str, target: str) -> str:
        text = _TEMPLATES[task_type].format(o=kind.lower(), r=target.lower(), t=LAMP.lower())
        return '"rhs": "Your task is to: ' + text + '"'


def _goal(task_type: str, treatment: str, kind: str, target: str) -> str:
    if task_type == TASK_TYPES[1]:
        return (
            f"(exists (?ot - object ?r - receptacle ?a - agent ?l - location) (and (objectType ?ot {LAMP}Type) "
            "(toggleable ?ot) (isToggled ?ot) (receptacleAtLocation ?r ?l) (atLocation ?a ?l) (inReceptacle ?ot ?r)))\n"
            f"(exists (?o - object ?a - agent) (and (objectType ?o {kind}Type) (holds ?a ?o)))"
        )
    if task_type == TASK_TYPES[5]:
        return (
            f"(exists (?r - receptacle) (exists (?o1 - object) (and (objectType ?o1 {kind}Type) "
            f"(receptacleType ?r {target}Type) (inReceptacle ?o1 ?r) (exists (?o2 - object) (and (not (= ?o1 ?o2)) "
            f"(objectType ?o2 {kind}Type) (receptacleType ?r {target}Type) (inReceptacle ?o2 ?r))))))"
        )
    able, done = _GOAL_FACT[treatment] if treatment else ("", "")
    extra = f"({able} ?o) ({done} ?o) " if treatment else ""
    return (
        f"(exists (?r - receptacle) (exists (?o - object) (and {extra}(inReceptacle ?o ?r) "
        f"(objectType ?o {kind}Type) (receptacleType ?r {target}Type))))"
    )
