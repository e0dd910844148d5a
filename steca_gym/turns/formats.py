"""The turn formats ``json`` and ``xml``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from steca_gym.turns.base import (
    MAX_TURN_CHARS,
    REASONING,
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

_FENCE = re.compile(r"\A```[a-zA-Z]*[ \t]*\n(.*)\n[ \t]*```\Z", re.DOTALL)


class JsonFormat:
    """One JSON object: ``{"thought": "...", "action": "..."}``; a code fence around it is ignored."""

    name = "json"
    instructions = 'Answer with one JSON object and nothing else: {"thought": "...", "action": "..."}.'
    schema: Mapping[str, Any] = {
        "type": "object",
        "properties": {"thought": {"type": "string"}, "action": {"type": "string"}},
        "required": ["thought", "action"],
        "additionalProperties": False,
    }

    def render(self, thought: str, action: str) -> str:
        """Write the turn; an empty thought is left out."""
        return json_text({"thought": thought, "action": action} if thought else {"action": action})

    def parse(self, text: str) -> ParsedTurn:
        """Read the turn; keys other than the two are ignored."""
        if len(text) > MAX_TURN_CHARS:
            return overlong(text)
        answer = without_reasoning(text).strip()
        fenced = _FENCE.match(answer)
        try:
            turn = strict_json(fenced[1] if fenced else answer)
        except ValueError as error:
            hint = f"it is not one JSON object ({one_line(error)})" if "{" in answer else ""
            return unread("" if hint else answer, text, self.name, hint)
        if not isinstance(turn, dict) or type(turn.get("action")) is not str:
            return unread("", text, self.name, "'action' must be a string")
        thought = turn.get("thought", "")
        if type(thought) is not str:
            return unread("", text, self.name, "'thought' must be a string")
        return ParsedTurn(thought, turn["action"])


class XmlFormat:
    r"""``<thought>...</thought>\n<action>...</action>``; text before the action counts as the thought as well."""

    name = "xml"
    instructions = "Answer with <thought>...</thought> and then <action>...</action>."
    _tags = Tags("thought|action")
    _action = re.compile(r"<action>(.*?)</action>", re.IGNORECASE | re.DOTALL | re.ASCII)
    _thought = re.compile(r"<thought>(.*?)</thought>", re.IGNORECASE | re.DOTALL | re.ASCII)

    def render(self, thought: str, action: str) -> str:
        """Write the turn; without a thought it is the action alone."""
        written = f"<action>{self._escape(action)}</action>"
        return f"<thought>{self._escape(thought)}</thought>\n{written}" if thought else written

    def parse(self, text: str) -> ParsedTurn:
        """Read the turn."""
        if len(text) > MAX_TURN_CHARS:
            return overlong(text)
        answer = without_reasoning(text)
        actions = list(self._action.finditer(answer))
        before = answer[: actions[0].start()] if actions else answer
        tagged = self._thought.search(before)
        thought = self._content(tagged[1]) if tagged else before.strip()
        if not actions:
            unclosed = "<action>" in answer.lower()
            return unread(thought, text, self.name, "'</action>' is missing" if unclosed else "")
        if len(actions) > 1:
            return unread(thought, text, self.name, f"it has {len(actions)} actions, expected one")
        written = actions[0][1]
        if not written.strip():
            return ParsedTurn(thought, None, "the action is empty")
        return ParsedTurn(thought, self._content(written))

    def _escape(self, text: str) -> str:
        return guard_edges(self._tags.escape(REASONING.escape(text)))

    def _content(self, text: str) -> str:
        return REASONING.unescape(self._tags.unescape(unguard_edges(text)))
