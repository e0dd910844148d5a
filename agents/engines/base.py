"""What an engine is: rows of token ids go in, sampled ids come out.

An agent turns conversations into rows and completions into turns. An engine decodes rows and knows nothing else, so
another one (vLLM, for example) is one new file that implements ``Engine``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from steca_gym.errors import AgentError


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One turn to decode."""

    prompt: Sequence[int]
    """ids of the whole conversation, at least one"""
    seed: int
    """with ``turn`` it decides the sample, whatever else is decoded at the same time"""
    turn: int
    temperature: float
    """>= 0; 0 is greedy"""
    top_p: float
    """in (0, 1]"""
    max_new_tokens: int
    """>= 1"""
    logprobs: bool = False
    """return the log-probabilities of the sampled ids"""
    forced: Sequence[int] | None = None
    """for measurements: return these ids instead of sampled ones; the model still runs"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What an engine decoded for one row."""

    tokens: tuple[int, ...]
    """sampled ids, without the stop id"""
    stop_token: int | None
    """the id that ended the row; None: the row was cut at ``max_new_tokens``"""
    num_read: int
    """prompt tokens that the model read for this row"""
    num_reused: int = 0
    """prompt tokens that were in the cache already"""
    log_probs: tuple[float, ...] | None = None
    """one for each of ``tokens``, if the row asked for them: natural logarithms under the model's own distribution, at
    temperature 1 and without top_p"""
    stop_log_prob: float | None = None
    """the same for ``stop_token``"""

    @property
    def num_sampled(self) -> int:
        """Sampled ids, the stop id included."""
        return len(self.tokens) + (self.stop_token is not None)

    @property
    def truncated(self) -> bool:
        """Whether the row was cut at ``max_new_tokens``."""
        return self.stop_token is None


NOT_FINITE = (
    "the model's logits are NaN or infinite, so nothing can be sampled; expected finite numbers: the weights are "
    "damaged or training diverged (try a lower learning rate, or float32 instead of float16)"
)
"""message of a row whose logits cannot be sampled from"""


class Engine(Protocol):
    """Decodes rows.

    The loop that it serves::

        engine.submit("episode 7", row)        # any time, also while other rows are being decoded
        for key, done in engine.poll():        # at least one, if any row is waiting or being decoded
            ...                                # an exception instead of a completion: that row failed alone
        engine.release(["episode 7"])          # the episode is over

    A row's sample depends on the model, the row's ids, its seed and its turn, never on other rows.
    """

    name: str
    """as in ``engine=blocks``"""
    model_seconds: float
    """seconds spent in the model so far, sampling included"""

    def submit(self, key: str, row: Row) -> None:
        """Queue a row. A key has at most one row at a time; what was read for its last row may be reused."""
        ...

    def poll(self) -> list[tuple[str, Completion | Exception]]:
        """Work until at least one row is done; empty only if there is no row."""
        ...

    def release(self, keys: Iterable[str]) -> None:
        """Forget these keys and drop their rows. Unknown keys are ignored."""
        ...

    def clear(self) -> None:
        """Forget every key, drop every row and empty all caches."""
        ...

    def weights_changed(self) -> None:
        """Drop everything that was computed with the old weights. Rows in progress continue with the new ones."""
        ...


def why_refused(row: Row, *, vocabulary: int, max_tokens: int, holder: str = "the model") -> AgentError | None:
    """The error of a row that cannot be decoded; None if it can.

    Args:
        row: the row.
        vocabulary: rows of the model's input embeddings; ids must be below it.
        max_tokens: tokens that a row may have, prompt and new ones together.
        holder: what sets ``max_tokens``, for the message.
    """
    if not row.prompt:
        return AgentError("the prompt has no tokens; expected at least one")
    low, high = min(row.prompt), max(row.prompt)
    if low < 0 or high >= vocabulary:
        return AgentError(
            f"token id {low if low < 0 else high} is not one of the model's {vocabulary} embeddings: tokenizer and "
            "model do not match; use the tokenizer that was saved with the model, or call "
            "model.resize_token_embeddings(len(tokenizer)) before training"
        )
    if len(row.prompt) + row.max_new_tokens > max_tokens:
        return AgentError(
            f"a prompt of {len(row.prompt)} tokens and {row.max_new_tokens} new ones exceed the {max_tokens} that "
            f"{holder} can hold; use shorter episodes or observations, or a smaller max_new_tokens"
        )
    return None
