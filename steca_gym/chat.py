"""Conversations to token ids, the same way for prompts and for training samples.

Knows chat templates, and that an episode's prompt only grows. Knows no model, no environment and no training.

A chat template is taken apart once into the texts that it puts before and behind each message; what a model
sampled is then put between them as ids, never as text that is tokenised again. Only templates whose rendering
grows at its end (append-only) can be used so; others are refused with one line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from steca_gym.agent import Message
from steca_gym.errors import CheckpointError, ConfigError

_SENTINEL = "steca0message0"
_MAX_CACHED_TEXTS = 100_000


@dataclass(frozen=True, slots=True)
class _Piece:
    """What a template writes around one message."""

    before: str
    after: str
    trims: bool
    """the template strips the content"""

    def body(self, content: str) -> str:
        return content.strip() if self.trims else content


class ChatCodec:
    """A tokenizer's chat template as an append-only code.

    The assistant's part of a turn is its content's ids and the end-of-turn mark; everything else belongs to
    the prompt. ``encode(messages[:k], for_generation=True)`` is a prefix of ``encode(messages)`` for every
    ``k`` before an assistant's turn.

    Args:
        tokenizer: a transformers tokenizer with a chat template.
        name: what the tokenizer is called in messages, e.g. its folder.

    Raises:
        CheckpointError: no chat template, one that is not append-only, or one without an end-of-turn token.
    """

    def __init__(self, tokenizer: Any, *, name: str = "") -> None:
        """See the class."""
        self.tokenizer = tokenizer
        self.name = name or str(getattr(tokenizer, "name_or_path", "") or "the tokenizer")
        if not getattr(tokenizer, "chat_template", None):
            raise CheckpointError(
                f"{self.name}: no chat template; expected chat_template.jinja or the key in "
                "tokenizer_config.json: set tokenizer.chat_template and save the tokenizer beside the model"
            )
        self._openings: dict[tuple[str, ...], tuple[_Piece, ...]] = {}
        self._pieces: dict[tuple[str, str], _Piece] = {}
        self._texts: dict[str, tuple[int, ...]] = {}
        self._special = frozenset(tokenizer.all_special_ids) | frozenset(
            i for i, t in getattr(tokenizer, "added_tokens_decoder", {}).items() if t.special
        )
        self.end_ids, self._rest = self._split_end()
        stops = {self.end_ids[-1]}
        if tokenizer.eos_token_id is not None:
            stops.add(int(tokenizer.eos_token_id))
        self.stop_ids = frozenset(stops)
        """ids at which a turn ends"""
        self._check_append_only()

    # -- public --------------------------------------------------------------------------------------------

    def encode(
        self, messages: Sequence[Message], *, start: int = 0, for_generation: bool = False
    ) -> tuple[list[int], list[int]]:
        """Encode ``messages[start:]`` as they stand in the whole conversation.

        Args:
            messages: the conversation from its first message on.
            start: 0, or an index directly behind an assistant's message: only what follows its end-of-turn
                mark is encoded.
            for_generation: end with the opening of the assistant's next turn.

        Returns:
            ids and mask, two lists of one length; the mask is 1 on an assistant's ids and end-of-turn mark.
        """
        if start and messages[start - 1].role != "assistant":
            raise ConfigError(
                f"start must stand behind an assistant's message, got {start} behind {messages[start - 1].role!r}"
            )
        ids: list[int] = []
        mask: list[int] = []
        pending = self._rest if start else ""
        opening: tuple[_Piece, ...] = ()
        if start == 0:
            opening = self._opening(messages)
        for index in range(start, len(messages)):
            message = messages[index]
            piece = opening[index] if index < len(opening) else self._piece(messages[index - 1].role, message.role)
            pending += piece.before
            if message.role != "assistant":
                pending += piece.body(message.content) + piece.after
                continue
            read = self.tokenize(pending)
            said = message.token_ids
            if said is None:
                said = self.tokenize(piece.body(message.content))
            ids += read
            ids += said
            ids += self.end_ids
            mask += [0] * len(read)
            mask += [1] * (len(said) + len(self.end_ids))
            pending = self._rest
        if for_generation:
            pending += self._piece(messages[-1].role, "assistant").before
        read = self.tokenize(pending)
        ids += read
        mask += [0] * len(read)
        return ids, mask

    def tokenize(self, text: str) -> tuple[int, ...]:
        """Ids of a text without special tokens added; repeated texts are looked up."""
        if not text:
            return ()
        known = self._texts.get(text)
        if known is None:
            if len(self._texts) >= _MAX_CACHED_TEXTS:
                self._texts.clear()
            known = tuple(self.tokenizer.encode(text, add_special_tokens=False))
            self._texts[text] = known
        return known

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of sampled ids, special tokens left out."""
        text: str = self.tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    # -- taking the template apart -------------------------------------------------------------------------

    def _render(self, roles: Sequence[str], contents: Sequence[str]) -> str:
        conversation = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]
        try:
            text: str = self.tokenizer.apply_chat_template(conversation, tokenize=False)
        except Exception as error:  # a template may raise anything of its own
            raise CheckpointError(
                f"{self.name}: the chat template refuses a conversation of roles {', '.join(roles)}: "
                f"{error}; change the template or the prompt (without a system role: an empty instruction)"
            ) from error
        return text

    @staticmethod
    def _names(roles: Sequence[str]) -> list[str]:
        return [f"{_SENTINEL}{i}x" for i in range(len(roles))]

    def _not_append_only(self, detail: str) -> CheckpointError:
        return CheckpointError(
            f"{self.name}: the chat template is not append-only ({detail}); expected that each message adds "
            "text at the end only: give the tokenizer a ChatML-like template"
        )

    def _opening(self, messages: Sequence[Message]) -> tuple[_Piece, ...]:
        """Pieces of the first messages, up to the first user's; templates treat these in their own ways."""
        roles: list[str] = []
        for message in messages:
            roles.append(message.role)
            if message.role != "system":
                break
        key = tuple(roles)
        if key not in self._openings:
            self._openings[key] = self._split("", key, 0)
        return self._openings[key]

    def _piece(self, previous: str, role: str) -> _Piece:
        """The piece of a message of ``role`` behind one of ``previous``, away from the start."""
        key = (previous, role)
        if key not in self._pieces:
            roles = ["user", "assistant"] if previous == "assistant" else ["user", "assistant", previous]
            if previous == "user" and role == "assistant":
                roles = ["user"]
            head = self._render(roles, self._names(roles))
            self._pieces[key] = self._split(head, (*roles, role), len(roles))[-1]
        return self._pieces[key]

    def _split(self, head: str, roles: tuple[str, ...], first: int) -> tuple[_Piece, ...]:
        names = self._names(roles)
        whole = self._render(roles, names)
        if not whole.startswith(head):
            raise self._not_append_only(f"a message of role {roles[-1]!r} changes what stands before it")
        rest = whole[len(head) :]
        padded = [f" {name} " if i >= first else name for i, name in enumerate(names)]
        trims = self._render(roles, padded) == whole
        pieces = []
        for position, name in enumerate(names[first:]):
            before, found, rest = rest.partition(name)
            if not found:
                raise self._not_append_only(f"the content of role {roles[first + position]!r} is not shown")
            last = first + position == len(names) - 1
            pieces.append(_Piece(before, rest if last else "", trims))
        return tuple(pieces)

    def _split_end(self) -> tuple[tuple[int, ...], str]:
        """Ids of the end-of-turn mark, and the text that the template writes behind it."""
        after = self._piece("user", "assistant").after
        ids = self.tokenize(after)
        for position, token in enumerate(ids):
            if token in self._special:
                end = ids[: position + 1]
                mark: str = self.tokenizer.decode(
                    [token], skip_special_tokens=False, clean_up_tokenization_spaces=False
                )
                return end, after[after.index(mark) + len(mark) :] if mark in after else ""
        raise CheckpointError(
            f"{self.name}: the chat template ends the assistant's turn with {after!r}, no special token; "
            "expected one such as <|im_end|>, so that the model can learn where to stop"
        )

    def _check_append_only(self) -> None:
        roles = ["user", "assistant", "user", "assistant", "user"]
        names = self._names(roles)
        text = ""
        for index, role in enumerate(roles):
            one = Message("user", names[0])
            piece = self._opening([one])[0] if index == 0 else self._piece(roles[index - 1], role)
            text += piece.before + names[index] + piece.after
        if text != self._render(roles, names):
            raise self._not_append_only("five messages do not render as their parts")


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
    ``token_ids`` is repeated to the id. Prompts of rollouts and training samples are both made here.
    """
    return codec_of(tokenizer).encode(messages, for_generation=for_generation)
