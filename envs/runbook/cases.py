"""Incidents of a small computing centre: how they are generated, what commands do, and the expert.

Everything here is independent of language. A command is ``(verb, name)``; ``name`` is empty where the verb has no
object.

Some commands are irreversible: deleting a volume, shutting down a node, revoking a key, rolling back a release, failing
over a database. Used wrongly they lose the task for good: at once (an outage ends the episode) or unseen (data are
gone, the episode continues and can no longer be won).
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import NamedTuple

KINDS = ("hanging_service", "faulty_node", "unused_volumes", "leaked_key", "broken_release")

VERBS = (
    "status",
    "check",
    "restart",
    "sync",
    "fail_over",
    "drain",
    "shut_down",
    "back_up",
    "delete",
    "issue",
    "deploy",
    "revoke",
    "roll_back",
    "close",
)

_SERVICES = ("web", "api", "cart", "search", "mail", "billing", "auth", "chat", "media", "reports", "orders", "stock")
_DATABASES = ("users-db", "sales-db", "parts-db", "logs-db", "plans-db")

Command = tuple[str, str]


class Volume(NamedTuple):
    """A volume as it is at the start."""

    name: str
    service: str
    """the service that uses it; empty: unused"""
    on_hold: bool
    """its data may only be deleted after a backup"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One incident: the system at the start, and what is wrong."""

    kind: str
    services: tuple[str, ...]
    """the last one is the database"""
    nodes: tuple[str, ...]
    where: tuple[str, ...]
    """per service its node"""
    volumes: tuple[Volume, ...]
    key: str
    new_key: str
    key_users: tuple[str, ...]
    target: str
    """the service, node or key of the incident; empty for ``unused_volumes``"""
    faulty: str
    """the faulty node, or empty"""
    lagging: bool
    """the database's replica lags behind: failing over before a sync loses data"""
    migrated: str
    """the volume whose data the broken release changed: rolling back before a backup loses data; or empty"""

    @property
    def database(self) -> str:
        """The database's name."""
        return self.services[-1]

    def digest(self) -> str:
        """Digest of everything that an agent reads and does, whatever the language."""
        return hashlib.blake2b(repr(self).encode(), digest_size=8).hexdigest()


class State(NamedTuple):
    """Everything that changes; immutable. Names are in sorted tuples."""

    where: tuple[str, ...]
    hanging: tuple[str, ...] = ()
    checked: tuple[str, ...] = ()
    off: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    backed_up: tuple[str, ...] = ()
    synced: bool = False
    issued: bool = False
    deployed: tuple[str, ...] = ()
    revoked: bool = False
    rolled_back: tuple[str, ...] = ()
    lost: str = ""
    """why the task cannot be won any more"""
    over: bool = False


class Reply(NamedTuple):
    """The answer to a command: the key of a text and what fills it; ``valid``: it was possible."""

    text: str
    values: dict[str, str]
    valid: bool = True


def generate(rng: random.Random) -> Case:
    """Draw a case."""
    kind = rng.choice(KINDS)
    services = (*rng.sample(_SERVICES, rng.randint(3, 4)), rng.choice(_DATABASES))
    nodes = tuple(f"node-{n}" for n in rng.sample(range(1, 60), 3))
    where = tuple(rng.choice(nodes) for _ in services)
    names = [f"vol-{n}" for n in rng.sample(range(100, 1000), 5)]
    owner = rng.choice(services[:-1])
    volumes = [Volume(names[0], services[-1], False), Volume(names[1], owner, False)]
    volumes += [Volume(name, "", rng.random() < 0.5) for name in names[2 : 2 + rng.randint(2, 3)]]
    rng.shuffle(volumes)
    key, new_key = (f"key-{n}" for n in rng.sample(range(10, 100), 2))
    target = faulty = migrated = ""
    if kind == "hanging_service":
        target = rng.choice(services[:-1])
        faulty = where[services.index(target)] if rng.random() < 0.5 else ""
    elif kind == "faulty_node":
        target = faulty = rng.choice(sorted(set(where)))
    elif kind == "leaked_key":
        target = key
    elif kind == "broken_release":
        target = owner if rng.random() < 0.6 else rng.choice(services[:-1])
        migrated = names[1] if target == owner else ""
    key_users = rng.sample(services, rng.randint(1, 3))
    return Case(
        kind=kind,
        services=services,
        nodes=nodes,
        where=where,
        volumes=tuple(volumes),
        key=key,
        new_key=new_key,
        key_users=tuple(s for s in services if s in key_users),
        target=target,
        faulty=faulty,
        lagging=rng.random() < 0.5,
        migrated=migrated,
    )


def start(case: Case) -> State:
    """The state in which an incident begins."""
    return State(where=case.where, hanging=(case.target,) if case.kind == "hanging_service" else ())


def is_solved(case: Case, state: State) -> bool:
    """Whether the incident may be closed."""
    if state.lost:
        return False
    return {
        "hanging_service": not state.hanging,
        "faulty_node": case.target in state.off,
        "unused_volumes": all(v.service or v.name in state.gone for v in case.volumes),
        "leaked_key": state.revoked,
        "broken_release": case.target in state.rolled_back,
    }[case.kind]


def commands(case: Case, state: State) -> list[Command]:
    """Every command that is possible now, wrong ones included."""
    if state.over:
        return []
    volumes = [v.name for v in case.volumes if v.name not in state.gone]
    nodes = [n for n in case.nodes if n not in state.off]
    found: list[Command] = [("status", "")]
    found += [("check", name) for name in (*case.services, *nodes, *volumes, case.key)]
    found += [("restart", s) for s in case.services]
    found += [] if state.synced else [("sync", case.database)]
    if _other_node(case, state, _node(case, state, case.database)):
        found.append(("fail_over", case.database))
    for node in nodes:
        on_it = services_on(case, state, node)
        if on_it and case.database not in on_it and _other_node(case, state, node):
            found.append(("drain", node))
    found += [("shut_down", n) for n in nodes]
    found += [("back_up", v) for v in volumes if v not in state.backed_up]
    found += [("delete", v) for v in volumes]
    if not state.issued:
        found.append(("issue", ""))
    elif not state.revoked:
        found += [("deploy", s) for s in case.key_users if s not in state.deployed]
    found += [] if state.revoked else [("revoke", case.key)]
    found += [("roll_back", s) for s in case.services[:-1] if s not in state.rolled_back]
    return [*found, ("close", "")]


def services_on(case: Case, state: State, node: str) -> list[str]:
    """The services that run on a node."""
    return [s for s, n in zip(case.services, state.where, strict=True) if n == node]


def _node(case: Case, state: State, service: str) -> str:
    return state.where[case.services.index(service)]


def _other_node(case: Case, state: State, node: str) -> str:
    """Where services go that have to leave a node: a sound one if there is any."""
    running = [n for n in case.nodes if n != node and n not in state.off]
    return next((n for n in running if n != case.faulty), running[0] if running else "")


def _with(names: tuple[str, ...], name: str) -> tuple[str, ...]:
    return tuple(sorted({*names, name}))


def _moved(case: Case, state: State, services: list[str], node: str) -> tuple[str, ...]:
    return tuple(node if s in services else n for s, n in zip(case.services, state.where, strict=True))


def _lost(state: State, why: str, *, over: bool = False) -> State:
    return state._replace(lost=state.lost or why, over=over or state.over)


def act(case: Case, state: State, command: Command) -> tuple[State, Reply]:
    """Apply a command that ``commands`` lists; anything else is refused without effect."""
    verb, name = command
    if command not in commands(case, state):
        return state, Reply("refused", {"x": name}, False)
    if verb == "status":
        return state, Reply("status", {})
    if verb == "check":
        return state._replace(checked=_with(state.checked, name)), Reply("check", {"x": name})
    if verb == "restart":
        if name in state.hanging and _node(case, state, name) == case.faulty:
            return state, Reply("hangs_again", {"x": name})
        return state._replace(hanging=tuple(s for s in state.hanging if s != name)), Reply("restarted", {"x": name})
    if verb == "sync":
        return state._replace(synced=True), Reply("synced", {"x": name})
    if verb == "fail_over":
        node = _other_node(case, state, _node(case, state, name))
        state = state._replace(where=_moved(case, state, [name], node))
        state = _lost(state, "data") if case.lagging and not state.synced else state
        return state, Reply("failed_over", {"x": name, "node": node})
    if verb == "drain":
        services, node = services_on(case, state, name), _other_node(case, state, name)
        state = state._replace(where=_moved(case, state, services, node))
        return state, Reply("drained", {"x": name, "names": ", ".join(services), "node": node})
    if verb == "shut_down":
        on_it = services_on(case, state, name)
        state = state._replace(off=_with(state.off, name))
        if on_it:
            return _lost(state, "outage", over=True), Reply("outage", {"x": name, "names": ", ".join(on_it)})
        return _lost(state, "node") if name != case.faulty else state, Reply("shut_down", {"x": name})
    if verb == "back_up":
        return state._replace(backed_up=_with(state.backed_up, name)), Reply("backed_up", {"x": name})
    if verb == "delete":
        volume = next(v for v in case.volumes if v.name == name)
        state = state._replace(gone=_with(state.gone, name))
        if volume.service:
            return _lost(state, "data", over=True), Reply("data_lost", {"x": name, "names": volume.service})
        kept = name in state.backed_up or not volume.on_hold
        return state if kept and case.kind == "unused_volumes" else _lost(state, "data"), Reply("deleted", {"x": name})
    if verb == "issue":
        return state._replace(issued=True), Reply("issued", {"x": case.new_key})
    if verb == "deploy":
        return state._replace(deployed=_with(state.deployed, name)), Reply("deployed", {"x": name, "key": case.new_key})
    if verb == "revoke":
        locked_out = [s for s in case.key_users if s not in state.deployed]
        state = state._replace(revoked=True)
        if locked_out:
            return _lost(state, "outage", over=True), Reply("locked_out", {"x": name, "names": ", ".join(locked_out)})
        return state, Reply("revoked", {"x": name})
    if verb == "roll_back":
        state = state._replace(rolled_back=_with(state.rolled_back, name))
        wrong = case.kind != "broken_release" or name != case.target
        unsaved = case.migrated and case.migrated not in state.backed_up
        return _lost(state, "data") if wrong or unsaved else state, Reply("rolled_back", {"x": name})
    solved = is_solved(case, state)
    return state._replace(over=True, lost="" if solved else state.lost or "closed"), Reply(
        "solved" if solved else "unsolved", {}
    )


def expert(case: Case, state: State) -> tuple[Command, str] | None:
    """The next command and the key of its reason; None where the task is lost.

    The expert looks before it acts: what it needs to know it has read in the overview or with ``check``.
    """
    if state.over or state.lost:
        return None
    if is_solved(case, state):
        return ("close", ""), "why_close"

    def look(name: str) -> tuple[Command, str] | None:
        return None if name in state.checked else (("check", name), "why_check")

    def clear(node: str) -> tuple[Command, str]:
        if case.database in services_on(case, state, node):
            first = look(case.database)
            if first:
                return first
            if case.lagging and not state.synced:
                return ("sync", case.database), "why_sync"
            return ("fail_over", case.database), "why_fail_over"
        return ("drain", node), "why_drain"

    if case.kind == "hanging_service":
        node = _node(case, state, case.target)
        step = look(case.target) or look(node)
        return step or (clear(node) if node == case.faulty else (("restart", case.target), "why_restart"))
    if case.kind == "faulty_node":
        step = look(case.target)
        if step or services_on(case, state, case.target):
            return step or clear(case.target)
        return ("shut_down", case.target), "why_shut_down"
    if case.kind == "unused_volumes":
        volume = next(v for v in case.volumes if not v.service and v.name not in state.gone)
        step = look(volume.name)
        if step is None and volume.on_hold and volume.name not in state.backed_up:
            return ("back_up", volume.name), "why_back_up"
        return step or (("delete", volume.name), "why_delete")
    if case.kind == "leaked_key":
        waiting = [s for s in case.key_users if s not in state.deployed]
        step = look(case.key)
        if step is None and waiting:
            return (("deploy", waiting[0]), "why_deploy") if state.issued else (("issue", ""), "why_issue")
        return step or (("revoke", case.key), "why_revoke")
    step = look(case.target)
    if step is None and case.migrated and case.migrated not in state.backed_up:
        return ("back_up", case.migrated), "why_back_up_release"
    return step or (("roll_back", case.target), "why_roll_back")
