"""Texts for pretraining the tiny model: drills in reading and copying, and renamed household games.

Every row is a function of (seed, step, row), so that a resumed run reads what an uninterrupted one reads.

No game is one of an evaluation: rooms come from seeds of their own, and in every game each type of object, furniture
and lamp has another name, drawn anew from ``NOUNS`` or from the words that the caller gives. None of these names occurs
in ALFWorld or Household. The official games are not read.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from steca_gym.agents.searching import SearchingAgent, read_task
from steca_gym.envs.alfworld import AlfredWorld, Household, HouseholdSettings

from steca_gym.agent import Message, TurnRequest, parse_turn
from steca_gym.errors import DataError

FURNITURE_NOUNS = """alcove altar attic barrel basket bench bin bookcase bookshelf bucket bureau bush cage carton case
cave chest closet coffer console counter cove crate crib cupboard den display easel footlocker gate hatch hearth hedge
hive hutch kiosk ladder ledge locker loft manger mantel niche nook paddock pallet pantry pedestal pit platform plinth podium
porch rack rail ramp row sack sideboard sill slot stage stand stool tank tent terrace tray trolley trough trunk tub
urn vault wagon wall wardrobe workbench wheelbarrow windowsill""".split()

THING_NOUNS = """acorn almond anchor apron arrow axe badge ball balloon banana bandage banner battery bead bean bell
belt berry biscuit blanket bolt bone bow bracelet brick broom brush bulb button cable cake camera cane cap card carrot
chain charger cheese cherry chisel clamp clip clock coat coconut coin comb compass cookie cord cork crayon crown cube
dagger dart dice doll drill drum earring envelope eraser fan feather fig figurine file flag flask flower flute folder
fossil funnel gear gem glove grape guitar hammer harmonica harp hat helmet hinge hook horn hose jacket jar jewel jug
kite leaf leash lemon lens letter lever lime lock magnet mallet map marble marker mask match medal melon mitten mop
nail napkin necklace needle net notebook nut oar olive onion orange paddle pear pearl pebble peg photo pin pipe
pitcher pliers plug plum pouch puppet purse puzzle quill radio raisin razor ribbon ring robe rope ruler saddle sandal
saw scarf screw scroll seed shell shirt shovel skate slipper sock spade spool spring stamp stapler stick stone straw
string sweater sword tape teapot thimble ticket tie tile timer tongs toothbrush toy trophy trumpet tube turnip
umbrella veil violin walnut wallet wand wheel whistle wig wire wrench yarn zipper""".split()

LAMP_NOUNS = ("lantern", "torch", "flashlight", "candlestick", "spotlight", "nightlight")
DEVICE_NOUNS = {"sinkbasin": "washtub", "microwave": "oven", "fridge": "icebox"}

NOUNS = (*FURNITURE_NOUNS, *THING_NOUNS, *LAMP_NOUNS, *DEVICE_NOUNS.values())

GRAMMAR = frozenset(
    """action alfred and another anything are around arrive bring carrying clean closed cool examine find for from happens
    have heat here hot inventory loc look looking may middle move need not nothing open pick put quickly room see some take
    task textworld the them there this thought try turn two under use using welcome with you your""".split()
)
"""words of the games themselves, which name nothing"""

_TASKS = {
    ("place", ""): ("put a {o} in {r}.", "put some {o} on {r}."),
    ("place", "clean"): ("put a clean {o} in {r}.", "clean some {o} and put it in {r}."),
    ("place", "heat"): ("put a hot {o} in {r}.", "heat some {o} and put it in {r}."),
    ("place", "cool"): ("put a cool {o} in {r}.", "cool some {o} and put it in {r}."),
    ("two", ""): ("put two {o} in {r}.", "find two {o} and put them in {r}."),
    ("light", ""): ("look at {o} under the {r}.", "examine the {o} with the {r}."),
}


@dataclass(slots=True)
class Text:
    """A text as pieces with the weight that each has in the loss."""

    pieces: list[tuple[str, float]] = field(default_factory=list)

    def add(self, text: str, weight: float) -> Text:
        self.pieces.append((text, weight))
        return self


# -- drills ------------------------------------------------------------------------------------------------


def repetition(rng: random.Random, words: Sequence[str]) -> Text:
    """A run of words, then the same run again: what follows the second time was seen the first time."""
    num = rng.randint(6, 24)
    run = " ".join(rng.choice(words) + (f" {rng.randint(1, 30)}" if rng.random() < 0.4 else "") for _ in range(num))
    text = Text().add(f" {run}.", 0.0)
    for _ in range(rng.randint(1, 2)):
        text.add(f" {run}.", 1.0)
    return text.add("\n", 0.0)


def recall(rng: random.Random, words: Sequence[str]) -> Text:
    """Pairs of a key and a value, then questions about some of them."""
    keys = rng.sample(words, rng.randint(3, 10))
    values = [rng.choice([rng.choice(words), str(rng.randint(1, 99))]) for _ in keys]
    verb = rng.choice(("is", "has", "means", "goes with", "lies on"))
    text = Text().add(" ".join(f"The {k} {verb} {v}." for k, v in zip(keys, values, strict=True)) + "\n", 0.0)
    for _ in range(rng.randint(2, 5)):
        i = rng.randrange(len(keys))
        text.add(f"The {keys[i]}", 0.0).add(f" {verb} {values[i]}.\n", 1.0)
    return text


def _numbered(rng: random.Random, words: Sequence[str], num: int) -> list[str]:
    kinds = rng.sample(words, min(len(words), max(1, num * 2 // 3)))
    found: list[str] = []
    while len(found) < num:
        name = f"{rng.choice(kinds)} {rng.choice((rng.randint(1, 5), rng.randint(1, 30)))}"
        if name not in found:
            found.append(name)
    return found


def listed(names: Sequence[str]) -> str:
    named = [f"a {name}" for name in names]
    return named[0] if len(named) == 1 else f"{', '.join(named[:-1])}, and {named[-1]}"


def look_up(rng: random.Random, words: Sequence[str]) -> Text:
    """Places with things on them; each question is where a kind of thing is, and which number it has."""
    places = _numbered(rng, words, rng.randint(1, 5))
    things = _numbered(rng, words, rng.randint(len(places), 12))
    inside: dict[str, list[str]] = {place: [] for place in places}
    for thing in things:
        inside[rng.choice(places)].append(thing)
    text = Text()
    for place, here in inside.items():
        text.add(f"On the {place}, you see {listed(here) if here else 'nothing'}.\n", 0.0)
    for _ in range(rng.randint(2, 4)):
        thing = rng.choice(things)
        place = next(p for p, here in inside.items() if thing in here)
        kind = thing.rpartition(" ")[0]
        same = [t for t in things if t.rpartition(" ")[0] == kind]
        if len(same) == 1 and rng.random() < 0.8:
            text.add(f"Where is a {kind}?", 0.0).add(f" I see {thing} at {place}.", 1.0)
            text.add(f" take {thing} from {place}\n", 1.0)
        else:
            text.add(f"take {thing}", 0.0).add(f" from {place}\n", 1.0)
    absent = rng.choice(words)
    if all(t.rpartition(" ")[0] != absent for t in things):
        text.add(f"Where is a {absent}?", 0.0).add(f" There is no {absent} here.\n", 1.0)
    return text


def go_through(rng: random.Random, words: Sequence[str]) -> Text:
    """A room's places by number, and a walk through all places of one kind in order."""
    kinds = rng.sample(words, rng.randint(2, 6))
    counts = [rng.choice((1, 1, 2, 3, 4, rng.randint(1, 21))) for _ in kinds]
    names = [f"{k} {i}" for k, n in zip(kinds, counts, strict=True) for i in range(n, 0, -1)]
    text = Text().add(f"you see {listed(names)}.\n", 0.0)
    walk = [(k, n) for k, n in zip(kinds, counts, strict=True)]
    rng.shuffle(walk)
    for kind, count in walk:
        text.add(f"all {kind}:", 0.0)
        text.add("".join(f" go to {kind} {i}." for i in range(1, count + 1)) + " Done.\n", 1.0)
    return text


DRILLS: tuple[Callable[[random.Random, Sequence[str]], Text], ...] = (repetition, recall, look_up, go_through)


# -- games -------------------------------------------------------------------------------------------------


def _settings(rng: random.Random) -> HouseholdSettings:
    receptacles = rng.choice((5, 6, 8, 10, 12, 15, 20, 28))
    return HouseholdSettings(
        num_receptacles=receptacles,
        num_objects=rng.randint(receptacles // 2 + 2, 4 * receptacles),
        num_layouts=1,
        seed=1_000_000_007 + rng.randrange(1 << 40),
    )


def _renaming(rng: random.Random, things: set[str], furniture: set[str], words: Sequence[str] | None) -> dict[str, str]:
    if words is not None:
        olds = sorted(things | furniture | {"desklamp", *DEVICE_NOUNS})
        return dict(zip(olds, rng.sample(words, len(olds)), strict=True))
    names = dict(DEVICE_NOUNS)
    names["desklamp"] = rng.choice(LAMP_NOUNS)
    pool = rng.sample([n for n in FURNITURE_NOUNS if rng.random() < 0.97], len(furniture))
    names |= dict(zip(sorted(furniture - names.keys()), pool, strict=False))
    pool = rng.sample(THING_NOUNS, len(things))
    names |= dict(zip(sorted(things - names.keys()), pool, strict=False))
    return names


def game(rng: random.Random, agent: SearchingAgent, words: Sequence[str] | None = None) -> list[tuple[str, str, bool]]:
    """A game as (role, text, taught); wrong turns that are mixed in are not taught.

    Args:
        rng: makes the game, its wrong turns and its names.
        agent: plays it.
        words: names for everything are drawn from these; None: from ``NOUNS``, furniture, things and lamps apart.
    """
    settings = _settings(rng)
    world = AlfredWorld(Household(settings))
    outcome = world.start(f"train/{rng.randrange(1_000_000)}", 0)
    messages = [Message("user", outcome.observation)]
    taught = [False]
    wrong = rng.choice((0.0, 0.0, 0.0, 0.15) if words is None else (0.0, 0.0, 0.15, 0.3))
    for turn in range(45):
        if wrong and rng.random() < wrong:
            if words is None or rng.random() < 0.3:
                action = rng.choice(world.admissible_actions())
                if rng.random() < 0.5:
                    action = re.sub(r"\d+$", lambda m: str(int(m[0]) + rng.randint(1, 3)), action)
                text, teach = f"Thought: I try this.\nAction: {action}", False
            else:
                text, teach = _slip(rng, messages), False
                action = parse_turn(text).action or ""
        else:
            text = agent.act([TurnRequest(episode_id="", messages=tuple(messages), seed=0, turn=turn)])[0].text
            action, teach = parse_turn(text).action or "", True
        outcome = world.act(action)
        messages += [Message("assistant", text), Message("user", outcome.observation)]
        taught += [teach, False]
        if outcome.over:
            break
    return _other_words(rng, [(m.role, m.content, t) for m, t in zip(messages, taught, strict=True)], words)


def _slip(rng: random.Random, messages: Sequence[Message]) -> str:
    """A turn that a weak model takes: again what was refused, a piece of furniture too many, a thing that is not here."""
    last = messages[-1].content
    if last.startswith("Nothing happens") and rng.random() < 0.5:
        return messages[-2].content
    wanted = read_task(messages[0].content).wanted
    room = re.findall(r"a (\w+) (\d+)", messages[0].content.partition("you see ")[2].partition(".\n")[0])
    kind, _ = rng.choice(room)
    here = re.findall(r"(?:arrive at|open the|On the|In the) (\w+ \d+)", last)
    if here and rng.random() < 0.3:
        thing = f"{wanted} {rng.randint(1, 3)}"
        return f"Thought: I see {thing} here. I take it.\nAction: take {thing} from {here[0]}"
    place = f"{kind} {max(int(n) for k, n in room if k == kind) + rng.randint(1, 2)}"
    before = f"There is no {wanted} here. " if here else ""
    return f"Thought: {before}I need to find a {wanted}. It may be in {place}.\nAction: go to {place}"


def _other_words(
    rng: random.Random, said: list[tuple[str, str, bool]], words: Sequence[str] | None
) -> list[tuple[str, str, bool]]:
    """The same game with other names, numbers and task text, in one of the two grammars."""
    first = said[0][1]
    task = read_task(first)
    every = "\n".join(text for _, text, _ in said)
    room = first.partition("you see ")[2].partition(".\n")[0]
    furniture = {n for n in re.findall(r"a (\w+) \d+", room)}
    things = {n for n in re.findall(r"\b([a-z]+) \d+", every)} - furniture - {"loc"} | {task.wanted}
    if task.kind != "light":
        furniture.add(task.target)
    names = _renaming(rng, things - furniture, furniture, words)
    numbers: dict[str, dict[str, str]] = {}
    for kind in things:
        found = sorted(set(re.findall(rf"\b{kind} (\d+)", every)))
        spare = [str(i) for i in range(1, len(found) + rng.choice((0, 1, 3, 9)) + 1)]
        numbers[kind] = dict(zip(found, rng.sample(spare, len(found)), strict=True))
    line = rng.choice(_TASKS[task.kind, task.treatment]).format(o=names[task.wanted], r=names[task.target])
    old = rng.random() < 0.3
    numbered = re.compile(rf"\b({'|'.join(map(re.escape, names))}) (\d+)")
    bare = re.compile(rf"\b({'|'.join(map(re.escape, names))})\b")

    def rename(role: str, text: str) -> str:
        # Both at once, so that a new name is never taken for an old one.
        if old:
            text = re.sub(r"move (\w+ \d+) to ", r"put \1 in/on ", text)
            text = re.sub(r"You move the (\w+ \d+) to the ", r"You put the \1 in/on the ", text)
            if role == "user":
                text = re.sub(r"You arrive at \w+ \d+\.", lambda m: f"You arrive at loc {_location(m[0])}.", text)
        text = numbered.sub(lambda m: f"\0{m[1]}\0{numbers.get(m[1], {}).get(m[2], m[2])}", text)
        text = re.sub(r"\0(\w+)\0", lambda m: f"{names[m[1]].upper()} ", text)
        text = bare.sub(lambda m: names[m[1]].upper(), text)
        return re.sub(r"\b[A-Z]{3,}\b", lambda m: m[0].lower() if m[0] != "ALFRED" else m[0], text)

    def _location(text: str) -> int:
        return sum(map(ord, text)) % 40 + 1

    renamed = [(role, rename(role, text), teach) for role, text, teach in said]
    head = renamed[0][1].partition("Your task is to:")[0]
    return [("user", f"{head}Your task is to: {line}", False), *renamed[1:]]


def game_text(rng: random.Random, agent: SearchingAgent, words: Sequence[str] | None = None) -> Text:
    """A renamed game in the form of the chat template."""
    while True:
        try:
            said = game(rng, agent, words)
            break
        except DataError:  # a room that no task fits
            continue
    text = Text()
    for i, (role, content, teach) in enumerate(said):
        if role == "user":
            text.add("<|user|>", 0.3 if i else 0.0)
            text.add(content, 0.15 if i else 0.0)
        else:
            text.add("<|assistant|>", 0.0)
            text.add(f"{content}<|im_end|>", 1.0 if teach else 0.0)
    return text
