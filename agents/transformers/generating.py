# ruff: noqa: TID251 - ruff takes relative imports in this folder for the banned top-level name
"""The plain engine: one padded ``generate()`` per turn, the history read anew each time.

Works for every causal model that transformers can generate with; also the peer that the other engine is
measured against. Knows rows of ids. Knows no messages and no episodes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .sampling import draw, uniforms


@dataclass(slots=True, kw_only=True)
class Row:
    """One turn to be decoded."""

    prompt: Sequence[int]
    seed: int
    turn: int
    temperature: float
    top_p: float
    max_new_tokens: int
    forced: Sequence[int] | None = None
    """take these ids instead of drawing (for measurements): the model is asked all the same"""


class _Draw:
    """A logits processor that draws per row and leaves ``generate`` only the drawn token to take."""

    def __init__(self, rows: Sequence[Row], stop: int, device: torch.device) -> None:
        self.position = 0
        self.stop = stop
        count = max(row.max_new_tokens for row in rows)
        self.uniform = torch.stack([torch.from_numpy(uniforms(row.seed, row.turn, count)).float() for row in rows]).to(
            device
        )
        self.temperature = torch.tensor([row.temperature for row in rows], device=device)
        self.top_p = torch.tensor([row.top_p for row in rows], device=device)
        self.limit = torch.tensor([row.max_new_tokens for row in rows], device=device)
        self.forced = [row.forced for row in rows]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        top_p = self.top_p if bool((self.top_p < 1).any()) else None
        uniform = self.uniform[:, min(self.position, self.uniform.shape[1] - 1)]
        token = draw(scores, self.temperature, top_p, uniform)
        for index, forced in enumerate(self.forced):
            if forced is not None:
                token[index] = forced[self.position] if self.position < len(forced) else self.stop
        token = torch.where(self.position >= self.limit, torch.full_like(token, self.stop), token)
        self.position += 1
        return torch.full_like(scores, float("-inf")).scatter_(1, token.unsqueeze(1), 0.0)


class GeneratingEngine:
    """Decodes rows with ``generate()``, left-padded, ``max_batch_size`` at a time.

    Args:
        model: a transformers causal model.
        stop_ids: ids that end a turn.
        pad_id: any id; padding is masked.
        max_batch_size: rows per call.
    """

    def __init__(self, model: Any, *, stop_ids: frozenset[int], pad_id: int, max_batch_size: int) -> None:
        """See the class."""
        self.model = model
        self.stop_ids = stop_ids
        self.pad_id = pad_id
        self.max_batch_size = max_batch_size
        self.model_seconds = 0.0

    def decode(self, rows: Sequence[Row]) -> list[tuple[list[int], bool]]:
        """Ids that each row said, the stop id left out, and whether there was one; in order."""
        said: list[tuple[list[int], bool]] = []
        for start in range(0, len(rows), self.max_batch_size):
            with torch.inference_mode():
                said += self._batch(rows[start : start + self.max_batch_size])
        return said

    def _batch(self, rows: Sequence[Row]) -> list[tuple[list[int], bool]]:
        device = self.model.device
        longest = max(len(row.prompt) for row in rows)
        ids = torch.full((len(rows), longest), self.pad_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, longest - len(row.prompt) :] = torch.tensor(row.prompt)
            mask[index, longest - len(row.prompt) :] = 1
        stop = min(self.stop_ids)
        before = time.perf_counter()
        out = self.model.generate(
            ids.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=max(row.max_new_tokens for row in rows),
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            eos_token_id=sorted(self.stop_ids),
            pad_token_id=self.pad_id,
            logits_processor=[_Draw(rows, stop, device)],
        )
        self.model_seconds += time.perf_counter() - before
        answers = []
        for index, row in enumerate(rows):
            tokens = out[index, longest:].tolist()[: row.max_new_tokens]
            end = next((i for i, token in enumerate(tokens) if token in self.stop_ids), len(tokens))
            answers.append((tokens[:end], end < len(tokens)))
        return answers
