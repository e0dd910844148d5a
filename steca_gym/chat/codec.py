"""Encode conversations as token ids, in the same way for prompts and for training samples.

A chat template is analysed once: which text it writes between two messages, how it strips contents, and how it begins
a turn to be generated. After that, prompts are put together from these texts, and what a model sampled stands in them
as the very ids that it sampled. When the codec is made, the result is compared with the tokenizer's own
``apply_chat_template`` over a set of conversations; a template that cannot be reproduced is refused.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from steca_gym.agent import Message
from steca_gym.chat.control_tokens import ASSISTANT_MARKS, LiteralTokenizer, Part, control_tokens, encodable
from steca_gym.chat.template import ChatTemplate
from steca_gym.errors import CheckpointError, ConfigError
from steca_gym.turns import split_calls

_MAX_CACHED_CHARS = 8_000_000
_MAX_CACHED_TEXT = 20_000
_THINK_BEGIN, _THINK_END = "<think>", "</think>"
_EMPTY_THOUGHT_END = "\n</think>\n\n"

_MANY_TURNS = 12
"""turns of the longest conversation that is compared with the template's own ids"""
_ODD = " ".join(['"It\'s" <b>&amp;</b> {{ x }} {% y %} [z] a_b*c  two\tblanks\n\n\nÀ你 ¼ \\n $1 100 %'] * 40)
"""a long content with characters that templates may escape, replace or cut"""


class Shown(NamedTuple):
    """A message under a role that only templates know."""

    role: str
    content: str
    token_ids: tuple[int, ...] | None
    truncated: bool


def tools_as_text(tools: str) -> str:
    """What a system message says of functions (a JSON list) where the chat template shows none."""
    lines = "\n".join(json.dumps(tool) for tool in json.loads(tools))
    return (
        f"You can call these functions:\n{lines}\n"
        'Write a call as <tool_call>\n{"name": ..., "arguments": {...}}\n</tool_call>'
    )


def _is_call(message: Message, always: bool) -> bool:
    return message.role == "assistant" and (always or split_calls(message.content) is not None)


class ChatCodec:
    """A tokenizer's chat template as a code for conversations.

    * ``encode(messages, for_generation=True)`` equals ``apply_chat_template(..., add_generation_prompt=True)``, and
      ``encode(messages)`` equals ``apply_chat_template(...)``, for messages without ``token_ids``. One exception: a
      last turn in which a template writes an empty reasoning block (Qwen3) is encoded as the same turn looks once
      the conversation has gone on.
    * ``encode(messages[:k], for_generation=True)`` is a prefix of ``encode(messages)`` for every ``k`` before an
      assistant's turn, as long as ``keeps`` holds for the turns of the conversation.
    * Control tokens in contents are text: they are encoded as the letters that they consist of.
    * Functions that turns may call (``Message.tools`` of the first message) are shown by the template where it can, and
      observations after a call are then results of tools where it shows these. Otherwise the functions stand as JSON in
      the text of the system message, if there is one.

    Args:
        tokenizer: a transformers tokenizer with a chat template.
        name: what the tokenizer is called in error messages, e.g. its folder.
        tools: functions that the template is given for every conversation.
        observations: the role under which the template gets observations that follow a call: "user" or "tool".

    Raises:
        CheckpointError: no chat template, one that cannot be reproduced, or one without an end-of-turn token.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        name: str = "",
        tools: Sequence[Any] = (),
        observations: Literal["user", "tool"] = "user",
    ) -> None:
        """See the class."""
        self.tokenizer = tokenizer
        self._observations = observations
        self._has_tools = bool(tools)
        self._by_tools: dict[str, ChatCodec | None] = {}
        self.name = name or str(getattr(tokenizer, "name_or_path", "") or "the tokenizer")
        self._template = template = ChatTemplate(tokenizer, name=self.name, tools=tools)
        self._cache: dict[Any, tuple[int, ...]] = {}
        self._cached_chars = 0
        self._literal: LiteralTokenizer | None = None
        self._controls = control_tokens(tokenizer)
        template.check_growth(self._controls)
        self.end_text, self.end_ids = self._find_end()
        self._end_id = self.end_ids[-1]
        stops = {self._end_id}
        if isinstance(tokenizer.eos_token_id, int):
            stops.add(tokenizer.eos_token_id)
        self.stop_ids = frozenset(stops)
        """ids that end a turn; ``stop_ids_with`` adds the model's own"""
        between, generation = template.between("user", "assistant")[0], template.generation("user")
        if not (between.startswith(generation) or generation.startswith(between)):
            raise template.refused(
                f"it begins a turn to generate with {generation!r}, but shows turns after {between!r}"
            )
        self._opened = generation[len(between) :]
        # Tokens that only the framing uses are control tokens even if they are not declared as special (DeepSeek).
        framing = "".join(
            (between, generation, template.closing("assistant"), template.between("assistant", "user")[0])
        )
        self._controls = self._controls.with_framing(framing, tokenizer)
        template.find_thoughts()
        self._empty_problem = ""
        """why conversations with an empty message are refused; empty: they are not"""
        self._check()

    @property
    def drops_thoughts(self) -> bool:
        """The template removes reasoning (``<think>`` blocks) from all turns but the last."""
        return self._template.drops_thoughts

    # -- public --------------------------------------------------------------------------------------------

    def encode(
        self, messages: Sequence[Message], *, start: int = 0, for_generation: bool = False
    ) -> tuple[list[int], list[int]]:
        """Encode ``messages[start:]`` as they stand in the whole conversation.

        Args:
            messages: the conversation from its first message on.
            start: 0, or an index directly after an assistant's message: then only what follows its end-of-turn mark
                is encoded.
            for_generation: end with the beginning of the assistant's next turn.

        Returns:
            ids and mask, two lists of one length. The mask is 1 on what an assistant wrote: the ids of its turns, and
            the end-of-turn mark unless the turn was truncated.

        Raises:
            ConfigError: ``start`` is elsewhere.
            CheckpointError: the template cannot show this conversation (such as a system message that it moves).
        """
        ids, turns = self._encode_turns(messages, start, for_generation)
        mask = [0] * len(ids)
        for begin, end in turns:
            mask[begin:end] = [1] * (end - begin)
        return ids, mask

    def encode_turns(self, messages: Sequence[Message]) -> tuple[list[int], list[tuple[int, int]]]:
        """Encode a conversation: its ids, and the (start, stop) of what each assistant's message wrote, in order.

        A stretch holds the turn and its end-of-turn mark, without the mark if the turn was truncated.
        """
        return self._encode_turns(messages, 0, for_generation=False)

    def _encode_turns(
        self, messages: Sequence[Message], start: int, for_generation: bool
    ) -> tuple[list[int], list[tuple[int, int]]]:
        codec, shown = self._with_tools(messages)
        return codec._encode_shown(shown, start, for_generation)

    def _encode_shown(
        self, messages: Sequence[Message | Shown], start: int, for_generation: bool
    ) -> tuple[list[int], list[tuple[int, int]]]:
        if self._empty_problem and not all(m.content.strip() for m in messages):
            raise CheckpointError(self._empty_problem)
        if start and messages[start - 1].role != "assistant":
            raise ConfigError(
                f"start must stand after an assistant's message, got {start} after {messages[start - 1].role!r}"
            )
        last_user = max((i for i, m in enumerate(messages) if m.role in ("user", "tool")), default=-1)
        ids: list[int] = []
        turns: list[tuple[int, int]] = []
        parts: list[Part] = []
        at_start = start == 0
        opening = self._template.opening(messages) if at_start else ()
        for index in range(start, len(messages)):
            message = messages[index]
            if index < len(opening):
                frame, strip = opening[index]
            else:
                frame, strip = self._template.between(messages[index - 1].role, message.role)
                if messages[index - 1].role == "assistant":
                    frame = frame[len(self.end_text) :]
            if message.role != "assistant":
                parts += (Part(frame), Part(strip(message.content), literal=True))
                continue
            lead = ""
            if index:
                previous = messages[index - 1].role
                generation = self._template.generation(previous)[len(self.end_text) if previous == "assistant" else 0 :]
                if frame.startswith(generation):  # what the template writes beyond the prompt, the model has to write
                    frame, lead = generation, frame[len(generation) :]
            parts.append(Part(frame))
            read = self._encode(parts, at_start)
            said = message.token_ids
            if index < last_user and (said is None or not self.keeps(message)):
                content = self._template.shown(message.content, strip)
                same = content == message.content
                said = said if said is not None and same else self._said(parts, at_start, lead, content)
            elif said is None:
                said = self._said(parts, at_start, lead, strip(message.content))
            ids += read
            begin = len(ids)
            ids += said
            ids += self.end_ids
            turns.append((begin, len(ids) - (len(self.end_ids) if message.truncated else 0)))
            parts, at_start = [], False
        if messages:
            last = messages[-1].role
            frame = self._template.generation(last) if for_generation else self._template.closing(last)
            parts.append(Part(frame[len(self.end_text) :] if last == "assistant" else frame))
        ids += self._encode(parts, at_start)
        return ids, turns

    def encode_turn(self, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
        """Encode a conversation that ends with an assistant's turn as the prompt of this turn and what it wrote.

        In contrast to ``encode``, the ids before the turn are exactly the prompt of a rollout, also for templates that
        drop reasoning from the history. A turn without ids or reasoning whose prompt has opened a reasoning block gets
        an empty one. Returns ids and mask; the mask is 1 on the turn (with its end-of-turn mark unless truncated).
        """
        codec, shown = self._with_tools(messages)
        return codec._encode_shown_turn(shown)

    def _encode_shown_turn(self, messages: Sequence[Message | Shown]) -> tuple[list[int], list[int]]:
        turn = messages[-1]
        prompt, _ = self._encode_shown(messages[:-1], 0, for_generation=True)
        said: Sequence[int] | None = turn.token_ids
        if said is None:
            lead, content = "", turn.content.strip()
            if len(messages) > 1:
                between, strip = self._template.between(messages[-2].role, "assistant")
                lead = between[len(self._template.generation(messages[-2].role)) :]
                content = strip(turn.content)
            if _THINK_BEGIN in self._opened and _THINK_END not in content:
                content = _EMPTY_THOUGHT_END + content
            said = self._tokenize((Part(lead), Part(content, literal=True, marks=True)), at_start=False)
        end = [0 if turn.truncated else 1] * len(self.end_ids)
        return [*prompt, *said, *self.end_ids], [*[0] * len(prompt), *[1] * len(said), *end]

    def keeps(self, message: Message | Shown) -> bool:
        """Whether the next prompt repeats this turn after the same ids that it was sampled from.

        False where the template drops the turn's reasoning, or shows past turns differently from the one to generate.
        """
        if self._opened:
            return False
        return not (self.drops_thoughts and _THINK_END in message.content)

    def stop_ids_with(self, generation_config: Any) -> frozenset[int]:
        """``stop_ids`` and the ``eos_token_id`` (one id or a list) of a model's generation config, which may be None.

        Raises CheckpointError where it is neither a whole number nor a list of them.
        """
        eos = getattr(generation_config, "eos_token_id", None)
        given = eos if isinstance(eos, list | tuple) else [] if eos is None else [eos]
        if not all(type(i) is int and i >= 0 for i in given):
            raise CheckpointError(
                f"{self.name}: generation_config.eos_token_id must be a token id or a list of them, got {eos!r}"
            )
        return self.stop_ids | frozenset(given)

    def tokenize(self, text: str) -> tuple[int, ...]:
        """Ids of a text as it stands inside a conversation, without special tokens; control tokens in it are text."""
        return self._encode((Part(text, literal=True, marks=True),), at_start=False)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of sampled ids, special tokens left out."""
        text: str = self.tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    @property
    def control_ids(self) -> frozenset[int]:
        """Ids that no content can produce: special tokens, and tokens that only the template writes."""
        unknown = getattr(self.tokenizer, "unk_token_id", None)
        return frozenset(i for text, i in self._controls.ids.items() if text not in ASSISTANT_MARKS and i != unknown)

    # -- functions that turns may call -----------------------------------------------------------------------

    def _with_tools(self, messages: Sequence[Message]) -> tuple[ChatCodec, Sequence[Message | Shown]]:
        """The codec that shows the conversation's functions, and the messages as it takes them."""
        tools = messages[0].tools if messages and not self._has_tools else ""
        if not tools:
            return self, self._shown(messages)
        if tools not in self._by_tools:
            self._by_tools[tools] = self._find_with_tools(tools)
        codec = self._by_tools[tools]
        if codec is not None:
            return codec, codec._shown(messages)
        first = messages[0]
        if first.role != "system":
            return self, messages
        return self, (dataclasses.replace(first, content=f"{first.content}\n\n{tools_as_text(tools)}"), *messages[1:])

    def _find_with_tools(self, tools: str) -> ChatCodec | None:
        """A codec whose template shows these functions; None where the template shows none, or not append-only."""
        listed = json.loads(tools)
        names = [tool["function"]["name"] for tool in listed]
        for observations in ("tool", "user"):
            try:
                shown = ChatTemplate(self.tokenizer, name=self.name, tools=listed).render(["user"], ["word"])
                if not all(json.dumps(name) in shown or name in shown for name in names):
                    return None
                if shown == self._template.render(["user"], ["word"]):
                    return None
                made = ChatCodec(self.tokenizer, name=self.name, tools=listed, observations=observations)
            except CheckpointError:
                continue
            same = (made.end_ids, made._opened, made.drops_thoughts) == (
                self.end_ids,
                self._opened,
                self.drops_thoughts,
            )
            if same:
                return made
        return None

    def _shown(self, messages: Sequence[Message], *, check: bool = False) -> Sequence[Message | Shown]:
        """The messages with observations that follow a call (in the check: a turn) as results of tools."""
        if self._observations == "user":
            return messages
        return [
            Shown("tool", m.content, m.token_ids, m.truncated)
            if m.role == "user" and i and _is_call(messages[i - 1], check)
            else m
            for i, m in enumerate(messages)
        ]

    # -- text to ids ---------------------------------------------------------------------------------------

    def _said(self, parts: Sequence[Part], at_start: bool, lead: str, content: str) -> tuple[int, ...]:
        """Ids of an assistant's content after ``parts``, as they are in the whole text where the prompt allows it."""
        turn = (Part(lead), Part(content, literal=True, marks=True))
        key = (tuple(parts), at_start, turn)
        known = self._cache.get(key)
        if known is None:
            prompt = self._tokenize(parts, at_start)
            whole = self._tokenize((*parts, *turn, Part(self.end_text)), at_start)
            if whole[: len(prompt)] == prompt and whole[-len(self.end_ids) :] == self.end_ids:
                known = whole[len(prompt) : len(whole) - len(self.end_ids)]
            else:  # the content's beginning merges with the prompt's end; in a rollout it could not
                known = self._tokenize(turn, at_start=False)
            self._remember(key, known, sum(len(p.text) for p in parts) + len(content))
        return known

    def _encode(self, parts: Sequence[Part], at_start: bool) -> tuple[int, ...]:
        key = (tuple(parts), at_start)
        known = self._cache.get(key)
        if known is None:
            known = self._tokenize(parts, at_start)
            self._remember(key, known, sum(len(part.text) for part in parts))
        return known

    def _remember(self, key: Any, ids: tuple[int, ...], num_chars: int) -> None:
        if num_chars > _MAX_CACHED_TEXT:
            return
        if self._cached_chars + num_chars > _MAX_CACHED_CHARS:
            self._cache.clear()
            self._cached_chars = 0
        self._cache[key] = ids
        self._cached_chars += num_chars

    def _tokenize(self, parts: Sequence[Part], at_start: bool) -> tuple[int, ...]:
        """Encode parts that stand at the start of a text, or directly after an end-of-turn mark."""
        if not any(part.text for part in parts):
            return ()
        parts = [dataclasses.replace(part, text=encodable(part.text)) for part in parts]
        if any(part.literal and self._controls.found_in(part.text, part.marks) for part in parts):
            if self._literal is None:
                self._literal = LiteralTokenizer(self.tokenizer, self._controls)
            return self._literal.encode(parts, self._controls, None if at_start else self._end_id)
        text = "".join(part.text for part in parts)
        if at_start:
            return tuple(self.tokenizer.encode(text, add_special_tokens=False))
        mark = self._controls.text_of[self._end_id]
        ids = self.tokenizer.encode(mark + text, add_special_tokens=False)
        return (
            tuple(ids[1:])
            if ids[:1] == [self._end_id]
            else tuple(self.tokenizer.encode(text, add_special_tokens=False))
        )

    def _find_end(self) -> tuple[str, tuple[int, ...]]:
        """The text that ends an assistant's turn, and its ids."""
        after = self._template.between("assistant", "user")[0]
        closing = self._template.closing("assistant")
        mark = self._controls.search(after)
        end = after[: mark.end()] if mark is not None else ""
        if not end or not closing.startswith(end):
            raise CheckpointError(
                f"{self.name}: the chat template ends the assistant's turn with {closing!r}, no special token; "
                "expected one such as <|im_end|>, so that the model can learn where to stop"
            )
        assert mark is not None
        end_id = self._controls.ids[mark[0]]
        frame = self._template.texts(["user"], generation=True)
        text = "".join((frame[0], "word", frame[1], "word"))
        before = self.tokenizer.encode(text, add_special_tokens=False)
        whole = self.tokenizer.encode(text + end, add_special_tokens=False)
        if whole[: len(before)] == before and whole[-1:] == [end_id]:
            return end, tuple(whole[len(before) :])
        return end, (end_id,)

    # -- the check at load ---------------------------------------------------------------------------------

    def _check(self) -> None:
        """Compare with the template's own ids over conversations of several shapes."""
        user = "You are in room 1. On the desk 2, you see a mug.\n\nWhat now? "
        turn = "Thought: I go on, to the café.\nAction: go to desk 2"
        self._compare([Message("user", _ODD), Message("assistant", _ODD), Message("user", _ODD)])
        for num_turns in (_MANY_TURNS, 0, 1, 2):
            talk = [Message("user", f"{user}{num_turns}.")]
            for index in range(num_turns):
                talk += [Message("assistant", f"{turn}{index}"), Message("user", f" {user}\n")]
            self._compare(talk)
            if num_turns:
                self._compare(talk[:-1])
        try:
            self._compare([talk[0], Message("assistant", ""), Message("user", ""), talk[1], talk[2]])
            self._compare([Message("user", " "), talk[1]])
        except CheckpointError as error:
            self._empty_problem = (
                f"{error}; this happens where a message is empty only: let the world say something in each "
                "observation, and fill the prompt's messages"
            )
        if self._template.shows_thoughtless_turns:
            thinking = Message("assistant", f"<think>\nWhich way?\n</think>\n\n{turn}")
            self._compare([talk[0], thinking, talk[2]])
        instruction = Message("system", "Play the game.\nBe brief.")
        try:
            self._compare([instruction, *talk])
            self._compare([instruction, *talk[:1]])
        except CheckpointError as error:
            self._template.refuse_system(
                f"{error}; this happens with a system message only: leave the prompt's instruction empty and put its "
                "text into the first message of the examples"
            )

    def _compare(self, messages: Sequence[Message]) -> None:
        talk = self._shown(messages, check=True)
        roles, contents = [m.role for m in talk], [m.content for m in talk]
        for generation in (True, False) if roles[-1] == "user" else (False,):
            text = self._template.render(roles, contents, generation=generation)
            expected = self.tokenizer.encode(text, add_special_tokens=False)
            ids, _ = self._encode_shown(talk, 0, generation)
            if ids == expected:
                continue
            if roles[-1] == "assistant":
                # Qwen3 shows the last turn with an empty reasoning block, and without it once the talk has gone on.
                going_on = self._template.render([*roles, "user"], [*contents, "word"])
                past = self.tokenizer.encode(going_on, add_special_tokens=False)
                end = len(ids) - ids[::-1].index(self._end_id)
                if past[:end] == ids[:end]:
                    continue
            place = next((i for i, (a, b) in enumerate(zip(ids, expected, strict=False)) if a != b), len(ids))
            raise CheckpointError(
                f"{self.name}: the chat template's ids cannot be reproduced message by message for the roles "
                f"{', '.join(roles)}: they differ from token {place} on (expected "
                f"{self._shown_ids(expected, place)}, got {self._shown_ids(ids, place)})"
            )

    def _shown_ids(self, ids: Sequence[int], place: int) -> str:
        text = self.tokenizer.decode(ids[place : place + 6], clean_up_tokenization_spaces=False)
        return repr(text)[:60]


def codec_of(tokenizer: Any, *, name: str = "") -> ChatCodec:
    """The tokenizer's codec, made once; raises CheckpointError as ``ChatCodec`` does."""
    template = getattr(tokenizer, "chat_template", None)
    held: tuple[Any, ChatCodec] | None = tokenizer.__dict__.get("_steca_codec")
    if held is None or held[0] != template:
        held = (template, ChatCodec(tokenizer, name=name))
        tokenizer.__dict__["_steca_codec"] = held  # save_pretrained ignores it
    return held[1]


def encode_conversation(
    tokenizer: Any, messages: Sequence[Message], *, for_generation: bool = False
) -> tuple[list[int], list[int]]:
    """Encode a whole conversation: ``(input_ids, assistant_mask)``, two lists of one length.

    The mask is 1 on every assistant's ids and its end-of-turn mark, 0 elsewhere. An assistant's message with
    ``token_ids`` is repeated id by id. Prompts of rollouts and training samples are both made here.
    """
    return codec_of(tokenizer).encode(messages, for_generation=for_generation)
