"""The block engine: rows join and leave between tokens, and no history is read twice.

Each pass reads one token of every row that is being decoded and part of the prompts of new rows, end to end without
padding. A row that waits for its next turn keeps its blocks, and rows with a common prefix share them.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from steca_gym.errors import AgentError, CheckpointError, ConfigError

from ..base import NOT_FINITE, Completion, Row, why_refused
from ..models import MAX_CHECK_TOKENS, evaluation_mode, max_positions, num_check_tokens, num_embeddings, text_config
from ..sampling import draw, log_probs_of, uniforms
from .paged import BLOCK_SIZE, BlockPool, RaggedModel
from .support import why_unsupported
from .table import BlockTable

_LOG = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Job:
    key: str
    row: Row
    tokens: list[int]
    """the prompt and the ids sampled so far"""
    uniform: Any
    log_probs: list[float] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    num_stored: int = 0
    num_noted: int = 0
    """full blocks that were offered for sharing"""
    num_read: int = 0
    num_reused: int = -1
    reading: tuple[int, tuple[int, ...]] | None = None
    """key of the first block that this row reads and others wait for"""
    is_running: bool = False


def _blocks_of(chosen: tuple[_Job, int]) -> list[int]:
    return chosen[0].blocks


class BlockEngine:
    """Decodes rows by continuous batching over a block cache.

    Args:
        model: a transformers causal model of one of the types in ``support.py``, adapted by PEFT or not.
        stop_ids: ids that end a turn.
        max_batch_size: rows that are decoded at once, >= 1.
        kv_cache_gib: largest memory for keys and values, in GiB; it is used only as far as it is needed.
        max_pass_tokens: tokens per forward pass, >= max_batch_size.

    Raises:
        ConfigError: a cache that cannot hold two blocks.
        CheckpointError: a model that this engine is not known to compute exactly; see also ``check``.
    """

    name = "blocks"

    def __init__(
        self,
        model: Any,
        *,
        stop_ids: frozenset[int],
        max_batch_size: int = 64,
        kv_cache_gib: float = 4.0,
        max_pass_tokens: int = 2048,
    ) -> None:
        """See the class."""
        self.model = model
        self.stop_ids = stop_ids
        self.max_batch_size = max_batch_size
        self.max_pass_tokens = max(max_pass_tokens, max_batch_size)
        self.kv_cache_gib = kv_cache_gib
        self.model_seconds = 0.0
        self._waiting: deque[_Job] = deque()
        self._running: list[_Job] = []
        self._kept: dict[str, _Job] = {}
        self._reading: set[tuple[int, tuple[int, ...]]] = set()
        self._failed: list[tuple[str, Completion | Exception]] = []
        self._allocate()

    def _allocate(self) -> None:
        """Make the cache and the model's passes over it."""
        model, kv_cache_gib = self.model, self.kv_cache_gib
        if why := why_unsupported(model, 0):
            raise CheckpointError(why)
        config = text_config(model)
        heads = config.num_attention_heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        layers = config.num_hidden_layers
        token_bytes = 2 * layers * kv_heads * head_dim * model.dtype.itemsize
        num_blocks = int(kv_cache_gib * 2**30 / (token_bytes * BLOCK_SIZE))
        if num_blocks < 2:
            raise ConfigError(
                f"kv_cache_gib={kv_cache_gib} holds {num_blocks} blocks of {BLOCK_SIZE} tokens "
                f"({token_bytes * BLOCK_SIZE} bytes each), expected at least 2; increase it"
            )
        self.vocabulary = num_embeddings(model)
        self.max_tokens = max_positions(model)
        if why := why_unsupported(model, min(self.max_tokens, num_blocks * BLOCK_SIZE)):
            raise CheckpointError(why)
        self.table = BlockTable(num_blocks, BLOCK_SIZE)
        self.pool = BlockPool(
            num_layers=layers,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            num_blocks=num_blocks,
            dtype=model.dtype,
            device=model.device,
        )
        self.ragged = RaggedModel(model, self.pool)
        self._why_plain = ""

    # -- public --------------------------------------------------------------------------------------------

    def check(self, *, tolerance: float) -> None:
        """Compare the logits with those of the model's own forward pass.

        Two rows are read in three uneven passes. They are longer than any window that the configuration names.

        Args:
            tolerance: how much logits may differ, as a fraction of the largest.

        Raises:
            CheckpointError: they differ by more, or the model cannot be read in blocks.
        """
        with evaluation_mode(self.model):
            self._check(tolerance)

    def _check(self, tolerance: float) -> None:
        if not self.ragged.why_not_lean:
            try:
                off = self._off()
                why = "" if off <= tolerance else f"the lean pass is off by {off:.2g} of the logits"
            except CheckpointError as error:  # e.g. weights of several number types
                why = str(error)
            if not why:
                return
            self._why_plain = why
            self.ragged.be_plain(why)
        off = self._off()
        if not off <= tolerance:
            raise CheckpointError(
                f"{type(self.model).__name__} read in blocks is off by {off:.2g} of its logits, expected at most "
                f"{tolerance:.2g}: its attention is not plain causal attention"
            )

    def _off(self) -> float:
        """Largest difference between the logits read in blocks and the model's own, as a fraction of the largest."""
        limit = min(self.max_tokens, (self.table.num_blocks - 2) * BLOCK_SIZE, MAX_CHECK_TOKENS + 24)
        long = min(max(num_check_tokens(self.model), 37), max(limit, 37))
        generator = torch.Generator().manual_seed(0)
        rows = [torch.randint(self.vocabulary, (n,), generator=generator).tolist() for n in (long, 21)]
        blocks = [[self._take() for _ in range(self.table.blocks_for(len(row)))] for row in rows]
        try:
            with torch.inference_mode():
                own = torch.stack([self.model(torch.tensor([r]).to(self.model.device)).logits[0, -1] for r in rows])
                with self.ragged:
                    self.ragged.read([rows[0][:20]], [0], [blocks[0]])
                    self.ragged.read([rows[0][20 : long - 1], rows[1][:18]], [20, 0], blocks)
                    ours = self.ragged.read([rows[0][long - 1 :], rows[1][18:]], [long - 1, 18], blocks)
        except Exception as error:  # models raise anything if their attention is of another kind
            raise CheckpointError(f"{type(self.model).__name__} cannot be read in blocks: {error}") from error
        finally:
            for held in blocks:
                self.table.give_back(held)
        return float((own.float() - ours.float()).abs().max() / own.float().abs().max().clamp_min(1e-6))

    def submit(self, key: str, row: Row) -> None:
        """Queue a row. The blocks of the key's last turn are kept until the row begins."""
        capacity = self.table.num_blocks * BLOCK_SIZE
        limit, holder = min((self.max_tokens, "the model"), (capacity, f"a cache of {self.kv_cache_gib:g} GiB"))
        error = why_refused(row, vocabulary=self.vocabulary, max_tokens=limit, holder=holder)
        if error is not None:
            self._failed.append((key, error))
            return
        self._waiting.append(
            _Job(
                key=key,
                row=row,
                tokens=list(row.prompt),
                uniform=uniforms(row.seed, row.turn, row.max_new_tokens),
            )
        )

    def poll(self) -> list[tuple[str, Completion | Exception]]:
        """Work until at least one row is done; empty only if there is no row."""
        done, self._failed = self._failed, []
        if done or not (self._waiting or self._running):
            return done
        with torch.inference_mode(), evaluation_mode(self.model), self.ragged:
            while not done and (self._waiting or self._running):
                done += self._step()
        return done

    def release(self, keys: Iterable[str]) -> None:
        """Forget rows; other rows may share their blocks until the place is needed."""
        gone = set(keys)
        for key in gone:
            self._drop_kept(key)
        for job in [job for job in self._running if job.key in gone]:
            self._leave(job)
        if any(job.key in gone for job in self._waiting):
            self._waiting = deque(job for job in self._waiting if job.key not in gone)
        self._failed = [item for item in self._failed if item[0] not in gone]

    def clear(self) -> None:
        """Drop every row and every block."""
        self._failed.clear()
        self.release([*self._kept, *(job.key for job in (*self._waiting, *self._running))])
        self.table.clear()

    def weights_changed(self) -> None:
        """Drop what was computed with the old weights. Rows in progress read their tokens again and continue.

        A model that was moved, cast or adapted in the meantime gets a new cache.

        Raises:
            CheckpointError: the model can no longer be read in blocks.
        """
        for key in list(self._kept):
            self._drop_kept(key)
        for job in reversed(self._running.copy()):
            self._leave(job)
            self._waiting.appendleft(job)
        self.table.clear()
        same_place = (self.pool.keys.dtype, self.pool.keys.device) == (self.model.dtype, self.model.device)
        if not same_place or why_unsupported(self.model, self.max_tokens):
            self._allocate()
            return
        self.vocabulary = num_embeddings(self.model)
        self.ragged = RaggedModel(self.model, self.pool)
        if self._why_plain:
            self.ragged.be_plain(self._why_plain)

    # -- one pass ------------------------------------------------------------------------------------------

    def _step(self) -> list[tuple[str, Completion | Exception]]:
        self._admit()
        chosen: list[tuple[_Job, int]] = []
        budget = self.max_pass_tokens - len(self._running)
        for job in list(self._running):
            if not job.is_running:
                continue  # an earlier row needed its blocks, so it waits again
            missing = len(job.tokens) - job.num_stored
            count = min(missing, budget + 1)
            if not self._reserve(job, job.num_stored + count):
                continue
            budget -= count - 1
            chosen.append((job, count))
        chosen = [(job, count) for job, count in chosen if job.is_running]
        # Rows that share blocks are neighbours: the next finds in the processor's cache what one has just read.
        chosen.sort(key=_blocks_of)
        if not chosen:
            raise AgentError("no row can continue: the cache is too small; increase kv_cache_gib")
        before = time.perf_counter()
        ended: list[tuple[str, Completion | Exception]] = []
        try:
            logits = self._read(chosen)
        except Exception as error:  # models raise anything
            if len(chosen) > 1:
                kind = type(error).__name__
                _LOG.warning("a pass of %d rows failed (%s); they are read one by one", len(chosen), kind)
            chosen, logits, ended = self._read_one_by_one(chosen)
            if not chosen:
                return ended
        sampling = []
        for index, (job, count) in enumerate(chosen):
            job.num_stored += count
            job.num_read += max(min(job.num_stored, len(job.row.prompt)) - job.num_stored + count, 0)
            if job.num_stored == len(job.tokens):
                sampling.append(index)
        drawn = self._draw(logits, [(i, chosen[i][0]) for i in sampling])
        self.model_seconds += time.perf_counter() - before
        failed = {chosen[index][0].key for index, token in zip(sampling, drawn, strict=True) if token < 0}
        for job, _ in chosen:
            if job.key not in failed:  # keys and values that are not finite are not shared
                self._note(job)
        for index, token in zip(sampling, drawn, strict=True):
            job = chosen[index][0]
            if token < 0:
                self._discard(job)
                ended.append((job.key, AgentError(NOT_FINITE)))
                continue
            num_new = len(job.tokens) - len(job.row.prompt)
            stopped = token in self.stop_ids
            if not stopped:
                job.tokens.append(token)
                num_new += 1
            if stopped or num_new >= job.row.max_new_tokens:
                self._running.remove(job)
                job.is_running = False
                self._kept[job.key] = job
                ended.append((job.key, self._completion(job, num_new, token if stopped else None)))
        return ended

    @staticmethod
    def _completion(job: _Job, num_new: int, stop_token: int | None) -> Completion:
        asked = job.row.logprobs
        return Completion(
            tokens=tuple(job.tokens[len(job.row.prompt) :]),
            stop_token=stop_token,
            num_read=job.num_read,
            num_reused=job.num_reused,
            log_probs=tuple(job.log_probs[:num_new]) if asked else None,
            stop_log_prob=job.log_probs[-1] if asked and stop_token is not None else None,
        )

    def _read(self, chosen: Sequence[tuple[_Job, int]]) -> torch.Tensor:
        return self.ragged.read(
            [job.tokens[job.num_stored : job.num_stored + count] for job, count in chosen],
            [job.num_stored for job, _ in chosen],
            [job.blocks for job, _ in chosen],
        )

    def _read_one_by_one(
        self, chosen: Sequence[tuple[_Job, int]]
    ) -> tuple[list[tuple[_Job, int]], torch.Tensor, list[tuple[str, Completion | Exception]]]:
        """After a pass failed: the rows that can be read, their logits, and the errors of the others."""
        good: list[tuple[_Job, int]] = []
        logits: list[torch.Tensor] = []
        errors: list[tuple[str, Completion | Exception]] = []
        for job, count in chosen:
            try:
                logits.append(self._read([(job, count)]))
                good.append((job, count))
            except Exception as error:
                reason = " ".join(str(error).split())[:200]
                failed = AgentError(f"the model cannot read a row of {len(job.tokens)} tokens: {reason}")
                failed.__cause__ = error
                self._leave(job)
                errors.append((job.key, failed))
        return good, torch.cat(logits) if logits else torch.empty(0), errors

    def _draw(self, logits: torch.Tensor, jobs: Sequence[tuple[int, _Job]]) -> list[int]:
        if not jobs:
            return []
        rows = [job.row for _, job in jobs]
        places = [len(job.tokens) - len(job.row.prompt) for _, job in jobs]
        device = logits.device
        if len(jobs) < logits.shape[0]:
            logits = logits[torch.tensor([index for index, _ in jobs], device=device)]
        temperature = torch.tensor([row.temperature for row in rows], device=device)
        top_p = torch.tensor([row.top_p for row in rows], device=device)
        uniform = torch.tensor(
            [float(job.uniform[place]) for (_, job), place in zip(jobs, places, strict=True)],
            dtype=torch.float32,
            device=device,
        )
        nucleus = top_p if any(row.top_p < 1 for row in rows) else None
        tokens: list[int] = draw(logits, temperature, nucleus, uniform).tolist()
        stop = min(self.stop_ids)
        for index, (row, place) in enumerate(zip(rows, places, strict=True)):
            if row.forced is not None:
                tokens[index] = row.forced[place] if place < len(row.forced) else stop
        asked = [i for i, row in enumerate(rows) if row.logprobs and 0 <= tokens[i] < logits.shape[1]]
        if asked:
            found = log_probs_of(logits[asked], torch.tensor([tokens[i] for i in asked], device=device))
            for i, value in zip(asked, found.tolist(), strict=True):
                jobs[i][1].log_probs.append(value)
        return tokens

    # -- coming and going ----------------------------------------------------------------------------------

    def _admit(self) -> None:
        put_off: list[_Job] = []
        while self._waiting and len(self._running) < self.max_batch_size:
            job = self._waiting.popleft()
            last = self._kept.get(job.key)
            if last is not None and job.tokens[: last.num_stored] == last.tokens[: last.num_stored]:
                del self._kept[job.key]
                self._begin(job, last.blocks, last.num_stored)
                continue
            blocks, missing = self.table.find(job.tokens)
            if missing is not None and missing in self._reading:
                put_off.append(job)  # another row is reading the same tokens: wait a pass and share them
                continue
            self.table.refer(blocks)
            self._drop_kept(job.key)
            needed = self.table.blocks_for(len(job.tokens) + 1) - len(blocks)
            if needed > self.table.num_available and (self._running or self._free_kept(needed)):
                self.table.give_back(blocks)
                self._waiting.appendleft(job)
                break
            if missing is not None:
                job.reading = missing
                self._reading.add(missing)
            self._begin(job, blocks, len(blocks) * BLOCK_SIZE)
        self._waiting.extendleft(reversed(put_off))

    def _begin(self, job: _Job, blocks: list[int], num_stored: int) -> None:
        job.blocks = blocks
        job.num_stored = num_stored
        job.num_noted = num_stored // BLOCK_SIZE
        if job.num_reused < 0:
            job.num_reused = min(num_stored, len(job.row.prompt))
        self._running.append(job)
        job.is_running = True

    def _drop_kept(self, key: str) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self.table.give_back(kept.blocks)

    def _free_kept(self, needed: int) -> bool:
        """Free the blocks of waiting episodes until there are enough; returns whether there are still too few."""
        while needed > self.table.num_available and self._kept:
            self._drop_kept(next(iter(self._kept)))
        return needed > self.table.num_available

    def _reserve(self, job: _Job, num_tokens: int) -> bool:
        """Give a row blocks for so many tokens; if need be, rows that came later wait again."""
        while len(job.blocks) * BLOCK_SIZE < num_tokens:
            block = self.table.take()
            if block is not None:
                job.blocks.append(block)
                continue
            if self._kept:
                self._drop_kept(next(iter(self._kept)))
                continue
            latest = self._running[-1]
            self._leave(latest)
            self._waiting.appendleft(latest)
            if latest is job:
                return False
        return True

    def _leave(self, job: _Job) -> None:
        self._running.remove(job)
        job.is_running = False
        self.table.give_back(job.blocks)
        job.blocks, job.num_stored, job.num_noted = [], 0, 0
        self._done_reading(job)

    def _discard(self, job: _Job) -> None:
        """Take a row out whose keys and values may be NaN, which must reach no other row."""
        blocks = job.blocks
        self._leave(job)
        for block in self.table.forget(blocks):
            self.pool.values[:, block] = 0  # a new owner multiplies what it has not written yet by 0

    def _done_reading(self, job: _Job) -> None:
        if job.reading is not None:
            self._reading.discard(job.reading)
            job.reading = None

    def _note(self, job: _Job) -> None:
        """Offer blocks that became full for sharing."""
        full = job.num_stored // BLOCK_SIZE
        if full > job.num_noted:
            for index in range(job.num_noted, full):
                self.table.fill(job.blocks, job.tokens, index)
            job.num_noted = full
        if job.reading is not None and job.num_stored >= min(len(job.row.prompt), len(job.tokens)):
            self._done_reading(job)

    def _take(self) -> int:
        block = self.table.take()
        if block is None:
            raise ConfigError("the cache holds too few blocks for the engine's check; increase kv_cache_gib")
        return block
