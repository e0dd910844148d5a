"""The turn format ``react``."""

from __future__ import annotations

import re

from steca_gym.turns.base import (
    MAX_TURN_CHARS,
    REACT_REASONING,
    ParsedTurn,
    guard_edges,
    overlong,
    unguard_edges,
    unread,
)

# Models decorate labels: "**Action:** x", "### Action: x", "- Action: x", "`Action`: x", and use full-width colons.
_LABEL = (
    r"[ \t]*(?:(?:#{1,6}|[-*>])[ \t]+)?(?P<mark>\*{1,3}|_{1,3}|`)?(?P<label>thought|action|observation)[ \t]*"
    r"(?P<closed>(?P=mark))?[ \t]*[:：]"
)
_LABEL_LINE = re.compile(_LABEL, re.IGNORECASE | re.ASCII)
_WRAPPED = re.compile(
    r"<answer>(?P<answer>.*)</answer>\Z|```\w*[ \t]*\n(?P<fenced>.*)\n[ \t]*```\Z", re.IGNORECASE | re.DOTALL | re.ASCII
)
_PROTECTED_LINE = re.compile(r"\\*" + _LABEL, re.IGNORECASE | re.ASCII)


class ReActFormat:
    r"""``Thought: ...\nAction: ...``; the thought may be missing, and both may span lines.

    The first ``Action:`` line counts. The action ends at the end of the text or before the next line that begins with
    ``Thought:``, ``Action:`` or ``Observation:``, so that a model that plays on by itself does no harm. Labels may be
    decorated (``**Action:**``, ``### Action:``) and may have a full-width colon. Lines of a thought or an action that
    look like labels are written with a backslash in front.
    """

    name = "react"
    instructions = "Answer with one line 'Thought: ...' and one line 'Action: ...'."

    def render(self, thought: str, action: str) -> str:
        """Write the turn; without a thought it is the action alone."""
        written = f"Action: {self._escape(action)}"
        return f"Thought: {self._escape(thought)}\n{written}" if thought else written

    def parse(self, text: str) -> ParsedTurn:
        """Read the turn."""
        if len(text) > MAX_TURN_CHARS:
            return overlong(text)
        answer = REACT_REASONING.remove(text).strip()
        if (wrapped := _WRAPPED.match(answer)) is not None:  # "<answer>...</answer>", or a code fence
            answer = (wrapped["answer"] or wrapped["fenced"] or "").strip()
        lines = answer.split("\n")
        labels = [_LABEL_LINE.match(line) for line in lines]
        actions = [i for i, m in enumerate(labels) if m is not None and m["label"].lower() == "action"]
        start = actions[0] if actions else len(lines)
        thought = "\n".join(lines[:start]).strip()
        if start and (label := labels[0]) is not None and label["label"].lower() == "thought":
            thought = self._content(label, thought)
        if not actions:
            return unread(thought, text, self.name)
        stop = next((i for i in range(start + 1, len(lines)) if labels[i] is not None), len(lines))
        label = labels[start]
        assert label is not None
        written = "\n".join(lines[start:stop])
        if not self._undecorated(label, written):
            return ParsedTurn(thought, None, "the action is empty")
        return ParsedTurn(thought, self._content(label, written))

    @staticmethod
    def _escape(text: str) -> str:
        lines = REACT_REASONING.escape(text).split("\n")
        return guard_edges("\n".join("\\" + line if _PROTECTED_LINE.match(line) else line for line in lines))

    @classmethod
    def _content(cls, label: re.Match[str], text: str) -> str:
        lines = unguard_edges(cls._undecorated(label, text)).split("\n")
        plain = (line[1:] if line.startswith("\\") and _PROTECTED_LINE.match(line) else line for line in lines)
        return REACT_REASONING.unescape("\n".join(plain))

    @staticmethod
    def _undecorated(label: re.Match[str], text: str) -> str:
        content = text[label.end() :].strip()
        mark = label["mark"]
        if mark and not label["closed"]:  # "**Action:** x" or "**Action: x**"
            if content.startswith(mark):
                return content[len(mark) :].strip()
            return content.removesuffix(mark).strip()
        return content
