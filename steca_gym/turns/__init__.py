"""How a turn is written: the formats in which an agent states its thought and its action.

A format is an object with ``render``, ``parse`` and ``instructions`` (see ``TurnFormat``). Four come with the
package: ``react`` (the default), ``tools``, ``json`` and ``xml``. ``find_turn_format`` looks one up by name or by
``module:Object``; ``steca_gym.registry.turn_formats`` takes names of your own.

Every format ignores reasoning blocks such as ``<think>...</think>``, and ``parse(render(thought, action))`` gives back
``thought`` and ``action`` for all strings that fit into ``MAX_TURN_CHARS``.
"""

from __future__ import annotations

import importlib
from typing import Any

from steca_gym.errors import ConfigError, UnknownNameError
from steca_gym.registry import explain_unknown, turn_formats
from steca_gym.turns.base import (
    MAX_TURN_CHARS,
    ParsedTurn,
    TurnFormat,
    one_line,
    schema_of,
    strict_json,
    tools_of,
    without_reasoning,
)
from steca_gym.turns.formats import JsonFormat, XmlFormat
from steca_gym.turns.react import ReActFormat
from steca_gym.turns.tools import TOOL_NAME, ToolsFormat, join_calls, split_calls

__all__ = [
    "MAX_TURN_CHARS",
    "REACT",
    "TOOL_NAME",
    "JsonFormat",
    "ParsedTurn",
    "ReActFormat",
    "ToolsFormat",
    "TurnFormat",
    "XmlFormat",
    "explain_unread",
    "find_turn_format",
    "join_calls",
    "parse_turn",
    "render_turn",
    "schema_of",
    "split_calls",
    "strict_json",
    "tools_of",
    "without_reasoning",
]

REACT = ReActFormat()
"""the default format"""
for _format in (REACT, ToolsFormat(), JsonFormat(), XmlFormat()):
    turn_formats.register(_format.name, _format)


def find_turn_format(name: str | TurnFormat | None) -> TurnFormat:
    """Return the turn format of a registered name (``react``, ``tools``, ``json``, ``xml``) or of ``module:Object``.

    An object that is a format is returned as it is; None means ``react``. ``Object`` may be a format or a class (or
    function) that makes one without arguments.

    Raises:
        UnknownNameError: no format of that name.
        ConfigError: ``module:Object`` cannot be imported or is no format.
    """
    if name is None:
        return REACT
    found: Any = name
    if isinstance(name, str):
        if ":" not in name:
            if name not in turn_formats:
                raise UnknownNameError(explain_unknown("turn format", name, [*turn_formats, "module:Object"]))
            found = turn_formats.get(name)
        else:
            module, _, attribute = name.partition(":")
            try:
                found = getattr(importlib.import_module(module), attribute)
            except Exception as error:  # importing runs code of its own
                raise ConfigError(f"turn format {name!r} cannot be loaded: {one_line(error)}") from error
        try:
            if isinstance(found, type) or not isinstance(found, TurnFormat):
                found = found()
        except Exception as error:
            raise ConfigError(f"turn format {name!r} cannot be made: {one_line(error)}") from error
    if isinstance(found, type) or not isinstance(found, TurnFormat):
        raise ConfigError(
            f"turn format {name!r}: expected an object with name, instructions, render and parse, got {found!r}"
        )
    return found


def parse_turn(text: str) -> ParsedTurn:
    """Read a turn of the default format, ``react``; see ``ReActFormat``."""
    return REACT.parse(text)


def render_turn(thought: str, action: str) -> str:
    """Write a turn in the default format, ``react``, so that ``parse_turn`` reads both back."""
    return REACT.render(thought, action)


def explain_unread(turn_format: TurnFormat, parsed: ParsedTurn) -> str:
    """What an agent is shown in place of an observation after a turn that could not be read."""
    reason = f": {parsed.hint}" if parsed.hint else ""
    return f"The turn could not be read{reason}. {turn_format.instructions}"
