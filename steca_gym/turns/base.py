"""What turn formats are made of: the protocol, reasoning blocks, escapes, strict JSON, and hints."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

MAX_TURN_CHARS = 20_000
"""a longer turn is cut there and counts as unreadable"""


@dataclass(frozen=True, slots=True)
class ParsedTurn:
    """A turn taken apart."""

    thought: str
    """without the reasoning block; empty where the turn has none"""
    action: str | None
    """None: the turn could not be read"""
    hint: str = ""
    """why it could not be read, as a clause without a full stop; empty where there is nothing specific to say"""


@runtime_checkable
class TurnFormat(Protocol):
    """A way to write a thought and an action into one message.

    Contract: ``parse(render(thought, action))`` returns the same thought and action, and ``parse`` never raises.

    A format may say more of itself, for servers and chat templates:

    * ``tools``: the functions that its turns call, as OpenAI's API lists them (``{"type": "function", "function":
      {...}}``). Its turns then hold calls that ``split_calls`` reads. A server is sent these functions, past turns as
      tool calls, and observations as their results; a chat template that shows functions is given them.
    * ``schema``: the JSON schema of a turn, which a server may enforce.
    """

    name: str
    instructions: str
    """one or two sentences that tell a model how to answer; also shown to it after a turn that could not be read"""

    def render(self, thought: str, action: str) -> str:
        """Write a turn; an empty thought is left out where the format allows it."""
        ...

    def parse(self, text: str) -> ParsedTurn:
        """Read a turn; one that does not follow the format has ``action=None`` and a hint."""
        ...


def tools_of(turn_format: TurnFormat) -> tuple[Mapping[str, Any], ...]:
    """The functions that a format's turns call; empty for one without."""
    return tuple(getattr(turn_format, "tools", ()))


def schema_of(turn_format: TurnFormat) -> Mapping[str, Any] | None:
    """The JSON schema of a format's turns; None for one without."""
    return getattr(turn_format, "schema", None)


# -- reasoning blocks -------------------------------------------------------------------------------------------

# Tags as models write them: <think>, [THINK] (Mistral), a triangle's (Kimi), <|begin_of_thought|>, and Harmony's
# channels. "{slash}" is the place of a closing tag's slash, "{escape}" that of the backslashes of an escaped tag.
_ANGLE = r"think(?:ing)?|reasoning|analysis|scratchpad|seed:think"
_TAG_FORMS = (
    r"<{escape}{slash}(?:%s)(?:[ \t][^<>\n]{{0,100}})?>",
    r"\[{escape}{slash}think(?:ing)?\]",
    r"\u25c1{escape}{slash}think(?:ing)?\u25b7",
    r"<\|{escape}{slash}think(?:ing)?\|>",
)
_OPEN_FORMS = (r"<\|{escape}begin_of_thought\|>", r"<\|{escape}channel\|>(?:analysis|commentary)<\|message\|>")
_CLOSE_FORMS = (r"<\|{escape}end_of_thought\|>", r"<\|{escape}channel\|>final<\|message\|>")
_FLAGS = re.IGNORECASE | re.DOTALL | re.ASCII


def _tag_pattern(names: str, *, opening: bool = False, closing: bool = False, escape: str = "") -> str:
    """A regular expression of the reasoning tags whose names in angle brackets are ``names``."""
    slash = "/?" if opening and closing else "/" if closing else ""
    forms = [form.format(escape=escape, slash=slash) for form in _TAG_FORMS]
    forms[0] %= names
    forms += [form.format(escape=escape) for form in _OPEN_FORMS if opening]
    forms += [form.format(escape=escape) for form in _CLOSE_FORMS if closing]
    return "|".join(forms)


class _Reasoning:
    r"""Reasoning blocks: removed on reading; tags in a thought or an action are escaped (``<\think>``) on writing."""

    def __init__(self, names: str) -> None:
        both = _tag_pattern(names, opening=True, closing=True)
        self._open = re.compile(_tag_pattern(names, opening=True), _FLAGS)
        self._close = re.compile(_tag_pattern(names, closing=True), _FLAGS)
        self._block = re.compile(rf"(?:{self._open.pattern}).*?(?:{self._close.pattern})", _FLAGS)
        self._tag = re.compile(both, _FLAGS)
        self._escaped = re.compile(_tag_pattern(names, opening=True, closing=True, escape=r"\\+"), _FLAGS)
        self._any = re.compile(_tag_pattern(names, opening=True, closing=True, escape=r"\\*"), _FLAGS)

    def remove(self, text: str) -> str:
        if self._tag.search(text) is None:
            return text
        text = self._block.sub("", text)
        closings = list(self._close.finditer(text))
        if closings:
            text = text[closings[-1].end() :]
        opening = self._open.search(text)
        return text if opening is None else text[: opening.start()]

    def escape(self, text: str) -> str:
        return self._any.sub(lambda tag: self._begin(tag[0]) + "\\" + tag[0][len(self._begin(tag[0])) :], text)

    def unescape(self, text: str) -> str:
        return self._escaped.sub(lambda tag: tag[0].replace("\\", "", 1), text) if "\\" in text else text

    @staticmethod
    def _begin(tag: str) -> str:
        return "<|" if tag.startswith("<|") else tag[0]


REASONING = _Reasoning(_ANGLE)
# A ReAct turn has none of these tags, so they are reasoning there.
REACT_REASONING = _Reasoning(rf"{_ANGLE}|thoughts?|reflections?")


def without_reasoning(text: str) -> str:
    """Return the answer without its reasoning: ``<think>`` blocks, and the tags that other models use for them.

    A block may lack its opening tag, because chat templates put it into the prompt: everything up to the last closing
    tag is reasoning. A block without a closing tag was cut off: everything after its opening tag is reasoning.
    """
    return REASONING.remove(text)


# -- escapes ----------------------------------------------------------------------------------------------------
# A backslash marks what would be read as part of the format: one is added on writing and removed on reading.

_EDGE_START = re.compile(r"\\+(?:\s|\Z)")
_EDGE_END = re.compile(r"\s\\+\Z")


def guard_edges(text: str) -> str:
    """Protect an empty text and blanks at either end, which parsers strip."""
    if not text or text[0].isspace() or _EDGE_START.match(text):
        text = "\\" + text
        if len(text) == 1:
            return text
    if text[-1].isspace() or _EDGE_END.search(text):
        text += "\\"
    return text


def unguard_edges(text: str) -> str:
    """Undo ``guard_edges``."""
    text = text.strip()
    if _EDGE_START.match(text):
        text = text[1:]
    return text[:-1] if _EDGE_END.search(text) else text


class Tags:
    r"""Escapes tags: ``<action>`` becomes ``<\action>``."""

    def __init__(self, names: str) -> None:
        """For tags of these names, alternatives of a regular expression."""
        self._pattern = re.compile(rf"<(\\*)(/?(?:{names})>)", re.IGNORECASE | re.ASCII)
        self._escaped = re.compile(rf"<\\(\\*)(/?(?:{names})>)", re.IGNORECASE | re.ASCII)

    def escape(self, text: str) -> str:
        """Write tags so that they are not read as such."""
        return self._pattern.sub(r"<\\\1\2", text) if "<" in text else text

    def unescape(self, text: str) -> str:
        """Undo ``escape``."""
        return self._escaped.sub(r"<\1\2", text) if "<\\" in text else text


def json_text(value: Any) -> str:
    r"""JSON (without lists) in which no tag can be read: ``<`` is written as ``\u003c`` where it could begin one."""
    text = json.dumps(value, ensure_ascii=False)
    return re.sub(r"<(?=[/a-zA-Z|])|\[|\u25c1", lambda found: f"\\u{ord(found[0]):04x}", text)


class Malformed(ValueError):
    """JSON that is not what was asked for; its text becomes a hint."""


def strict_json(text: str) -> Any:
    """Parse JSON; raises ValueError for NaN, infinities, duplicate keys, too deep nesting and trailing text."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) != len(items):
            raise Malformed("a key occurs twice")
        return found

    def constant(name: str) -> Any:
        raise Malformed(f"{name} is not a JSON number")

    try:
        return json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except RecursionError as error:
        raise Malformed("it is nested too deeply") from error


# -- what a turn of another format looks like -------------------------------------------------------------------

_SIGNS = (
    ("tools", re.compile(r"<tool_call>|\"tool_calls\"|\"arguments\"\s*:", re.IGNORECASE)),
    ("xml", re.compile(r"<action>", re.IGNORECASE)),
    ("json", re.compile(r"\{\s*\"(?:thought|action)\"\s*:", re.IGNORECASE)),
    ("react", re.compile(r"^[ \t#>*_`-]*action[*_` \t]*[:：]", re.IGNORECASE | re.MULTILINE)),
)


def unread(thought: str, text: str, name: str, hint: str = "") -> ParsedTurn:
    """An unreadable turn, with a hint where the text is in another format."""
    if not hint:
        for other, sign in _SIGNS:
            if other != name and sign.search(text):
                hint = f"it looks like the turn format {other!r}, but this episode uses {name!r}"
                break
    return ParsedTurn(thought=thought, action=None, hint=hint)


def overlong(text: str) -> ParsedTurn:
    """A turn that is too long to be read."""
    return ParsedTurn(thought=text[:MAX_TURN_CHARS], action=None)


def one_line(error: Exception) -> str:
    """An error as a clause."""
    return " ".join(str(error).split())[:200] or type(error).__name__
