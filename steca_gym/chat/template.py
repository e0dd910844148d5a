"""What a chat template writes around the contents of a conversation."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from steca_gym.chat.control_tokens import ControlTokens
from steca_gym.errors import CheckpointError

TEMPLATE_DATE = datetime.date(2024, 7, 26)
"""what templates that print today's date are told, so that prompts are equal on every day (Llama 3's own default)"""

_SENTINEL = "steca0message0"


# Functions with names, so that a tokenizer can be pickled together with its codec.
def _as_it_is(text: str) -> str:
    return text


def _strip_lines(text: str) -> str:
    return text.strip("\n")


def _lstrip_lines(text: str) -> str:
    return text.lstrip("\n")


def _rstrip_lines(text: str) -> str:
    return text.rstrip("\n")


_STRIPS: tuple[Callable[[str], str], ...] = (
    _as_it_is,
    str.strip,
    str.lstrip,
    str.rstrip,
    _strip_lines,
    _lstrip_lines,
    _rstrip_lines,
)
"""what templates do to a content, tried in this order"""


@dataclass(slots=True)
class _Frames:
    """The texts that a template writes around contents."""

    opening: dict[tuple[str, ...], tuple[tuple[str, Callable[[str], str]], ...]] = field(default_factory=dict)
    """by the roles up to the first one that is not "system": text before each content, and how it is stripped"""
    between: dict[tuple[str, str], tuple[str, Callable[[str], str]]] = field(default_factory=dict)
    """by (previous role, role): text between the two contents, and how the second one is stripped"""
    closing: dict[str, str] = field(default_factory=dict)
    """by role: text after the last content"""
    generation: dict[str, str] = field(default_factory=dict)
    """by role: text after the last content with ``add_generation_prompt``"""


class ChatTemplate:
    """A tokenizer's chat template, read once from conversations of marked contents.

    Args:
        tokenizer: a transformers tokenizer with a chat template.
        name: what the tokenizer is called in error messages.
        tools: functions that the template is given, as OpenAI's API lists them.

    Raises:
        CheckpointError: no chat template, several, or one that is not append-only.
    """

    def __init__(self, tokenizer: Any, *, name: str, tools: Sequence[Any] = ()) -> None:
        """See the class."""
        self.tokenizer, self.name = tokenizer, name
        self._tools = list(tools) or None
        template = getattr(tokenizer, "chat_template", None)
        if not template:
            raise CheckpointError(
                f"{self.name}: no chat template; expected chat_template.jinja or the key in "
                "tokenizer_config.json: set tokenizer.chat_template and save the tokenizer beside the model"
            )
        if not isinstance(template, str):
            raise CheckpointError(
                f"{self.name}: expected one chat template, got {len(template)} named ones; set tokenizer.chat_template "
                "to the one to use"
            )
        self._template = _undated(template)
        self._frames = _Frames()
        self._system_problem = ""
        self._shown_thought: Callable[[str], str] | None = None
        self.drops_thoughts = False
        """the template removes reasoning (``<think>`` blocks) from all turns but the last"""

    def render(self, roles: Sequence[str], contents: Sequence[str], *, generation: bool = False) -> str:
        """The template's text; raises CheckpointError where the template refuses the conversation."""
        conversation = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]
        try:
            text: str = self.tokenizer.apply_chat_template(
                conversation,
                chat_template=self._template,
                tools=self._tools,
                tokenize=False,
                add_generation_prompt=generation,
            )
        except Exception as error:  # a template may raise anything of its own
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"{self.name}: the chat template refuses a conversation of roles {', '.join(roles)}: "
                f"{reason}; change the template or the prompt (without a system role: an empty instruction)"
            ) from error
        return text

    @staticmethod
    def _names(roles: Sequence[str]) -> list[str]:
        return [f"{_SENTINEL}{i}x" for i in range(len(roles))]

    def refused(self, detail: str) -> CheckpointError:
        """The error for a template whose texts cannot be put together message by message."""
        return CheckpointError(
            f"{self.name}: the chat template is not append-only ({detail}); expected that each message adds "
            "text at the end only: give the tokenizer a ChatML-like template"
        )

    def texts(self, roles: Sequence[str], *, generation: bool = False) -> list[str]:
        """The template's texts before, between and after the contents of a conversation."""
        rest = self.render(roles, self._names(roles), generation=generation)
        texts = []
        for role, name in zip(roles, self._names(roles), strict=True):
            before, found, rest = rest.partition(name)
            if not found:
                raise self.refused(f"the content of role {role!r} is not shown")
            texts.append(before)
        return [*texts, rest]

    def _strips(self, roles: Sequence[str], texts: Sequence[str]) -> list[Callable[[str], str]]:
        """How each content of a conversation is stripped."""
        padded = [f"\n {name} \n" for name in self._names(roles)]
        whole = self.render(roles, padded)
        position, strips = len(texts[0]), []
        if not whole.startswith(texts[0]):
            raise self.refused("blanks in a content change the text before it")
        for content, after, role in zip(padded, texts[1:], roles, strict=True):
            for strip in _STRIPS:
                shown = strip(content) + after
                if whole.startswith(shown, position):
                    position += len(shown)
                    strips.append(strip)
                    break
            else:
                raise self.refused(f"it changes the content of role {role!r}")
        return strips

    def check_growth(self, controls: ControlTokens) -> None:
        """Check that a conversation grows at its end only; raises CheckpointError where it does not.

        A text that stands at the very end of every conversation, such as Phi-3's, may move along.
        """
        shapes = [["user", *["assistant", "user"] * n] for n in range(3)]
        texts = [self.render(roles, self._names(roles)) for roles in shapes]
        shortest = texts[0].rpartition(self._names(["user"])[0])[2]
        for length in range(len(shortest) + 1):
            tail = shortest[len(shortest) - length :]
            if tail and not controls.starts(tail):
                continue
            bodies = [t.removesuffix(tail) for t in texts]
            grows = all(longer.startswith(body) for body, longer in zip(bodies[:-1], texts[1:], strict=True))
            if grows and all(t.endswith(tail) for t in texts):
                return
        for roles in shapes:
            self.texts(roles)
        raise self.refused("a message of role 'user' changes what stands before it")

    def find_thoughts(self) -> None:
        """Find out whether past turns lose their reasoning, and how the rest of such a turn is shown."""
        roles = ["user", "assistant", "user"]
        names = self._names(roles)
        texts = self.texts(roles)
        thought = f"<think>\n{_SENTINEL}thought\n</think>"
        content = f"{thought}\n\n {names[1]} \n"
        whole = self.render(roles, [names[0], content, names[2]])
        head, rest = texts[0] + names[0] + texts[1], texts[2] + names[2] + texts[3]
        if not (whole.startswith(head) and whole.endswith(rest)):
            # Shown in a form of its own: refused when it is needed.
            self.drops_thoughts = f"{_SENTINEL}thought" not in whole
            return
        shown = whole[len(head) : len(whole) - len(rest)]
        self.drops_thoughts = drops = f"{_SENTINEL}thought" not in shown
        visible = content.rpartition("</think>")[2] if drops else content
        self._shown_thought = next((strip for strip in _STRIPS if strip(visible) == shown), None)

    @property
    def shows_thoughtless_turns(self) -> bool:
        """Past turns are shown without their reasoning, in a form that is understood."""
        return self.drops_thoughts and self._shown_thought is not None

    def shown(self, content: str, strip: Callable[[str], str]) -> str:
        """A past turn's content as the template shows it."""
        if "</think>" not in content:
            return strip(content)
        if self._shown_thought is None:
            raise self.refused("it shows reasoning in a past turn in a form of its own")
        return self._shown_thought(content.rpartition("</think>")[2] if self.drops_thoughts else content)

    def opening(self, messages: Sequence[Any]) -> tuple[tuple[str, Callable[[str], str]], ...]:
        """Texts before the first contents, up to the first user's; templates treat these in their own ways."""
        roles: list[str] = []
        for message in messages:
            roles.append(message.role)
            if message.role != "system":
                break
        key = tuple(roles)
        if key not in self._frames.opening:
            if "system" in key and self._system_problem:
                raise CheckpointError(self._system_problem)
            follow = [*key, "user"] if key and key[-1] == "assistant" else key
            texts = self.texts(follow)
            self._frames.opening[key] = tuple(zip(texts[: len(key)], self._strips(follow, texts), strict=False))
        return self._frames.opening[key]

    def refuse_system(self, reason: str) -> None:
        """From now on refuse conversations with a system message, for this reason."""
        self._system_problem = reason
        self._frames.opening.clear()

    @staticmethod
    def _history(previous: str, role: str) -> list[str]:
        """Roles of a conversation that ends with ``previous`` and may continue with ``role``."""
        if previous == "assistant":
            return ["user", "assistant"]
        if previous == "user" and role == "assistant":
            return ["user"]
        return ["user", "assistant", previous]

    def between(self, previous: str, role: str) -> tuple[str, Callable[[str], str]]:
        """The text between a content of ``previous`` and one of ``role``, and how the latter is stripped."""
        key = (previous, role)
        if key not in self._frames.between:
            history = self._history(previous, role)
            # A last turn of the assistant may be shown in another way than the same turn in the past.
            roles = [*history, role, *(["user"] if role == "assistant" else [])]
            texts = self.texts(roles)
            self._frames.between[key] = texts[len(history)], self._strips(roles, texts)[len(history)]
        return self._frames.between[key]

    def closing(self, role: str) -> str:
        """The text after the last content, of ``role``."""
        if role not in self._frames.closing:
            self._frames.closing[role] = self.texts(self._history(role, role)[-3:] if role != "user" else ["user"])[-1]
        return self._frames.closing[role]

    def generation(self, role: str) -> str:
        """The text after the last content, of ``role``, with ``add_generation_prompt``."""
        if role not in self._frames.generation:
            roles = ["user"] if role == "user" else self._history(role, "assistant")
            self._frames.generation[role] = self.texts(roles, generation=True)[-1]
        return self._frames.generation[role]


_FORMATS = re.compile(r"(['\"])((?:(?!\1).)*%[a-zA-Z-](?:(?!\1).)*)\1")


def _undated(template: str) -> str:
    """The template with ``strftime_now`` standing still at TEMPLATE_DATE, for the formats that stand in it as texts."""
    if "strftime_now" not in template:
        return template
    formats = sorted({match[2] for match in _FORMATS.finditer(template)})
    dates = json.dumps({f: TEMPLATE_DATE.strftime(f) for f in formats})
    return (
        f"{{%- macro strftime_now(format) -%}}{{%- if format not in {dates} -%}}"
        "{{ raise_exception('it prints a date in a format that it computes') }}{%- endif -%}"
        f"{{{{ {dates}[format] }}}}{{%- endmacro -%}}{template}"
    )
