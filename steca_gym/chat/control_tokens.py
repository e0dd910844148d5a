"""Control tokens, and how texts that contain their names are encoded as the letters that they consist of."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

ASSISTANT_MARKS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
"""marks that belong to an assistant's text; in other messages they are text, as every control token"""


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of a rendered conversation."""

    text: str
    literal: bool = False
    """a message's content: control tokens in it are text"""
    marks: bool = False
    """an assistant's content, in which thinking and tool-call marks are tokens"""


def encodable(text: str) -> str:
    """The text with lone surrogates replaced, which tokenizers refuse."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


@dataclass(frozen=True)
class ControlTokens:
    """The control tokens of a tokenizer: what must not be written by contents."""

    ids: Mapping[str, int]
    left: frozenset[int] = frozenset()
    """ids that swallow blanks before them"""
    right: frozenset[int] = frozenset()
    """ids that swallow blanks after them"""
    text_of: Mapping[int, str] = field(default_factory=dict)
    pattern: re.Pattern[str] | None = None
    in_assistant: re.Pattern[str] | None = None
    """as ``pattern``, without the marks that belong to an assistant's text"""

    @staticmethod
    def of(ids: Mapping[str, int], left: frozenset[int], right: frozenset[int]) -> ControlTokens:
        """From the ids by text, and the ids that swallow blanks."""
        own = [t for t in ids if t not in ASSISTANT_MARKS]
        return ControlTokens(
            ids=ids,
            left=left,
            right=right,
            text_of={i: t for t, i in ids.items()},
            pattern=_alternation(ids),
            in_assistant=_alternation(own),
        )

    def with_framing(self, framing: str, tokenizer: Any) -> ControlTokens:
        """With the added tokens that stand in the template's own texts."""
        added = _added_tokens(tokenizer)
        more = {t: i for t, (i, _) in added.items() if t in framing and t.strip()}
        return ControlTokens.of({**self.ids, **more}, self.left, self.right)

    def found_in(self, text: str, marks: bool) -> bool:
        """Whether a content holds the name of a control token; ``marks``: an assistant's marks are none."""
        pattern = self.in_assistant if marks else self.pattern
        return pattern is not None and pattern.search(text) is not None

    def search(self, text: str) -> re.Match[str] | None:
        """The first control token in a template's text."""
        return None if self.in_assistant is None else self.in_assistant.search(text)

    def starts(self, text: str) -> bool:
        """Whether a template's text begins with a control token."""
        return self.in_assistant is not None and self.in_assistant.match(text) is not None


_MARK = re.compile(r"[<\[{｜].*[>\]}｜]\Z", re.DOTALL)


def _alternation(texts: Any) -> re.Pattern[str] | None:
    longest_first = sorted(texts, key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _added_tokens(tokenizer: Any) -> dict[str, tuple[int, Any]]:
    decoder = getattr(tokenizer, "added_tokens_decoder", None) or {}
    return {str(token): (int(i), token) for i, token in decoder.items()}


def control_tokens(tokenizer: Any) -> ControlTokens:
    """The special tokens of a tokenizer, and its added tokens that look like marks (``<tool_response>``, ``</think>``).

    Tokenizers do not declare all of their marks special: Qwen's tool marks and R1's role marks are not.
    """
    added = _added_tokens(tokenizer)
    special = set(tokenizer.all_special_ids)
    ids = {
        t: i for t, (i, token) in added.items() if i in special or getattr(token, "special", False) or _MARK.match(t)
    }
    for i in special - set(ids.values()):
        text = tokenizer.convert_ids_to_tokens(i)
        if isinstance(text, str) and text:
            ids[text] = i
    left = frozenset(i for i, token in added.values() if getattr(token, "lstrip", False))
    right = frozenset(i for i, token in added.values() if getattr(token, "rstrip", False))
    return ControlTokens.of({t: i for t, i in ids.items() if t.strip()}, left, right)


class LiteralTokenizer:
    """The tokenizer without its control tokens: their texts become the pieces of ordinary text.

    Of a fast tokenizer it is a copy in which the control tokens have been taken out of the table of added tokens and
    of the vocabulary, plus an anchor token that stands where a control token stood before a text, because many
    tokenizers treat the beginning of a text in their own way.
    """

    def __init__(self, tokenizer: Any, controls: ControlTokens) -> None:
        """See the class."""
        self._tokenizer = tokenizer
        self._copy: Any = None
        self._renumbered: dict[int, int] = {}
        self._anchor = f"\ue000{uuid.uuid4().hex}\ue001"
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            return
        from tokenizers import AddedToken, Tokenizer

        raw = json.loads(backend.to_str())
        hidden = {text: f"\ue000{index}\ue001" for index, text in enumerate(controls.ids)}
        raw["added_tokens"] = [t for t in raw.get("added_tokens", []) if t["content"] not in hidden]
        raw["post_processor"] = raw["truncation"] = raw["padding"] = None
        model = raw["model"]
        vocab = model.get("vocab")
        if isinstance(vocab, dict):
            model["vocab"] = {hidden.get(text, text): index for text, index in vocab.items()}
        elif isinstance(vocab, list):  # Unigram: [piece, score]
            model["vocab"] = [[hidden.get(piece, piece), score] for piece, score in vocab]
        if isinstance(model.get("merges"), list):
            model["merges"] = [
                m for m in model["merges"] if "".join(m if isinstance(m, list) else m.split()) not in hidden
            ]
        if model.get("unk_token") in hidden:
            model["unk_token"] = hidden[model["unk_token"]]
        self._copy = Tokenizer.from_str(json.dumps(raw))
        self._copy.add_special_tokens([AddedToken(self._anchor, normalized=False, special=True)])
        # Tokens that are left take the places of those that are gone: the copy numbers them anew.
        for token in raw["added_tokens"]:
            self._renumbered[self._copy.token_to_id(token["content"])] = int(token["id"])

    def encode(self, parts: Sequence[Part], controls: ControlTokens, before: int | None) -> tuple[int, ...]:
        """Encode parts after the control token ``before`` (None: at the start of a text)."""
        ids: list[int] = []
        run = ""
        previous = before

        def flush(following: int | None) -> None:
            text = run.lstrip() if previous in controls.right else run
            text = text.rstrip() if following in controls.left else text
            ids.extend(self._run(text, at_start=previous is None))

        for part in parts:
            pattern = controls.pattern
            if part.literal:
                pattern = _MARKS if part.marks else None
            position = 0
            for match in pattern.finditer(part.text) if pattern is not None else ():
                token = controls.ids.get(match[0])
                if token is None:
                    continue
                run += part.text[position : match.start()]
                flush(token)
                ids.append(token)
                run, previous, position = "", token, match.end()
            run += part.text[position:]
        flush(None)
        return tuple(ids)

    def _run(self, text: str, at_start: bool) -> list[int]:
        if not text:
            return []
        if self._copy is None:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
            return ids
        found: list[int] = self._copy.encode(text if at_start else self._anchor + text, add_special_tokens=False).ids
        found = found if at_start else found[1:]
        return [self._renumbered.get(i, i) for i in found] if self._renumbered else found


_MARKS = _alternation(ASSISTANT_MARKS)
