"""The turn format ``tools``: calls of functions, as text and as the tool calls of servers."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from steca_gym.turns.base import (
    MAX_TURN_CHARS,
    REASONING,
    Malformed,
    ParsedTurn,
    Tags,
    guard_edges,
    json_text,
    one_line,
    overlong,
    strict_json,
    unguard_edges,
    unread,
    without_reasoning,
)

TOOL_NAME = "act"
"""the one function that the ``tools`` format calls"""


_TAGS = Tags("tool_call")
_CALL_MARKS = ("[TOOL_CALLS]", "<|python_tag|>")


def _bare_call(text: str) -> tuple[str, str] | None:
    """What stands before a call without tags, and the call; None where the text does not end with one."""
    place = 0
    for line in text.splitlines(keepends=True):
        begun = line.lstrip()
        for mark in _CALL_MARKS:
            begun = begun.removeprefix(mark).lstrip()
        if begun.startswith(("{", "[")):
            break
        place += len(line)
    else:
        return None
    try:
        call = strict_json(begun + text[place + len(line) :])
    except ValueError:
        return None
    if isinstance(call, list) and len(call) == 1:
        call = call[0]
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None
    return text[:place], json_text(call)


def split_calls(text: str) -> tuple[str, list[tuple[str, str]]] | None:
    """A turn's text and its calls: what stands before them, and of each call the name and its arguments as JSON.

    None where the text has no call, or one that is no JSON object with a name.
    """
    content, *written = text.split("<tool_call>")
    calls = []
    for call in written:
        try:
            read = strict_json(call.split("</tool_call>")[0])
        except ValueError:
            return None
        if not isinstance(read, dict) or not isinstance(read.get("name"), str):
            return None
        arguments = read.get("arguments", read.get("parameters"))
        calls.append((read["name"], arguments if isinstance(arguments, str) else json.dumps(arguments)))
    return (content.rstrip("\n"), calls) if calls else None


def join_calls(content: str, calls: Sequence[tuple[Any, Any]]) -> str:
    """The text of a turn that a server has taken apart into its content and its calls; ``split_calls`` reads it.

    Args:
        content: what stands before the calls.
        calls: the name of each function, and its arguments, as JSON or as an object.
    """
    parts = [_TAGS.escape(content)] if content else []
    for name, arguments in calls:
        if isinstance(arguments, str):
            with contextlib.suppress(ValueError):  # what is no JSON stays as it is, and is explained when it is read
                arguments = strict_json(arguments)
        parts.append(f"<tool_call>\n{json_text({'name': name, 'arguments': arguments})}\n</tool_call>")
    return "\n".join(parts)


class ToolsFormat:
    """A tool call as Hermes and Qwen models write it: ``<tool_call>{"name": "act", ...}</tool_call>``.

    The thought is the text before the call. Exactly one call per turn. A call without the tags is read as well, as
    Llama (``{"name": ..., "parameters": ...}``) and Mistral (``[{"name": ..., "arguments": ...}]``) write it.
    """

    name = "tools"
    instructions = (
        "Think first, then call the function once: <tool_call>\n"
        '{"name": "act", "arguments": {"action": "..."}}\n</tool_call>'
    )
    tools: tuple[Mapping[str, Any], ...] = (
        {
            "type": "function",
            "function": {
                "name": TOOL_NAME,
                "description": "Take one action in the world and read what happens.",
                "parameters": {
                    "type": "object",
                    "properties": {
                        "action": {"type": "string", "description": "the action, in the world's own words"},
                    },
                    "required": ["action"],
                },
            },
        },
    )
    _tags = _TAGS

    def render(self, thought: str, action: str) -> str:
        """Write the turn; without a thought it is the call alone."""
        call = f"<tool_call>\n{json_text({'name': TOOL_NAME, 'arguments': {'action': action}})}\n</tool_call>"
        return f"{guard_edges(self._tags.escape(REASONING.escape(thought)))}\n{call}" if thought else call

    def parse(self, text: str) -> ParsedTurn:
        """Read the turn."""
        if len(text) > MAX_TURN_CHARS:
            return overlong(text)
        before, *calls = without_reasoning(text).split("<tool_call>")
        thought = REASONING.unescape(self._tags.unescape(unguard_edges(before)))
        if not calls and (bare := _bare_call(before)) is not None:
            thought, calls = REASONING.unescape(self._tags.unescape(unguard_edges(bare[0]))), [bare[1]]
        if not calls:
            return unread(thought, text, self.name, "" if "</tool_call>" not in before else "'<tool_call>' is missing")
        if len(calls) > 1:
            return unread(thought, text, self.name, f"it has {len(calls)} tool calls, expected one")
        try:
            return ParsedTurn(thought, self._action(strict_json(calls[0].split("</tool_call>")[0])))
        except ValueError as error:
            return unread(thought, text, self.name, f"the tool call is not valid ({one_line(error)})")

    @staticmethod
    def _action(call: Any) -> str:
        if not isinstance(call, dict) or call.get("name") != TOOL_NAME:
            raise Malformed(f'expected {{"name": "{TOOL_NAME}", "arguments": {{"action": "..."}}}}')
        arguments = call.get("arguments", call.get("parameters"))
        if isinstance(arguments, str):  # as OpenAI's API writes it
            arguments = strict_json(arguments)
        if not isinstance(arguments, dict) or set(arguments) != {"action"} or type(arguments["action"]) is not str:
            raise Malformed('expected the arguments {"action": "..."} with a string')
        return str(arguments["action"])
