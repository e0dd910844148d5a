"""Names to things: agents, reflectors, encoders and methods, looked up with a helpful failure.

Knows names and lazily imported entry points. Knows no environment: these are registered with Gymnasium.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from steca_gym.errors import ConfigError, UnknownNameError


def explain_unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Return one line: what was asked, the nearest known name, and what exists."""
    names = sorted(known)
    nearest = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    return f"no {kind} {name!r}; {hint}known: {', '.join(names) or 'none'}"


class Registry:
    """A table from name to ``"module:attribute"`` (imported at first use) or to the object itself.

    >>> agents = Registry("agent")
    >>> agents.register("random", "steca_gym.agents.scripted:RandomAgent")
    >>> agents.get("random")
    """

    def __init__(self, kind: str) -> None:
        """Create an empty table of things called ``kind`` in messages."""
        self.kind = kind
        self._entries: dict[str, str | Callable[..., Any]] = {}

    def register(self, name: str, entry: str | Callable[..., Any]) -> None:
        """Add ``name``; raises ConfigError when the name is taken by something else."""
        taken = self._entries.get(name)
        if taken is not None and taken != entry:
            raise ConfigError(f"{self.kind} {name!r} is already registered to {taken!r}; choose another name")
        self._entries[name] = entry

    def get(self, name: str) -> Callable[..., Any]:
        """Return the object behind ``name``; raises UnknownNameError with the nearest name."""
        if name not in self._entries:
            raise UnknownNameError(explain_unknown(self.kind, name, self._entries))
        entry = self._entries[name]
        if isinstance(entry, str):
            module, _, attribute = entry.partition(":")
            loaded: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
            return loaded
        return entry

    def __iter__(self) -> Iterator[str]:
        """Iterate over the known names, sorted."""
        return iter(sorted(self._entries))

    def __contains__(self, name: object) -> bool:
        """Whether ``name`` is known."""
        return name in self._entries


agents = Registry("agent")
encoders = Registry("encoder")
reflectors = Registry("reflector")
methods = Registry("method")
fetchers = Registry("world to fetch")
