# pyright: reportCallIssue=false, reportArgumentType=false
# (numba and transformers generate call signatures that pyright cannot see)
# ruff: noqa: TID251 - ruff takes relative imports in this folder for the banned top-level name
"""Keys and values in blocks, as an attention function that transformers' models call.

Knows tensors, and one forward pass over rows of different lengths without padding. Knows no episodes.

Registered through transformers' ``AttentionInterface``; what a pass works on comes as a keyword that models
hand through to their attention. On CPUs the numba kernel does the work; elsewhere, and as its oracle, plain
torch does.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch

ATTENTION_NAME = "steca_blocks"
BLOCK_SIZE = 16
"""tokens per block"""


@dataclass(slots=True, kw_only=True)
class Pass:
    """The rows of one forward pass, laid end to end."""

    pool: BlockPool
    tables: np.ndarray[Any, np.dtype[np.int32]]
    """shape (rows, most blocks of a row)"""
    first: np.ndarray[Any, np.dtype[np.int32]]
    """shape (rows,): each row's first token in the pass"""
    count: np.ndarray[Any, np.dtype[np.int32]]
    """shape (rows,): each row's tokens in the pass, >= 1"""
    past: np.ndarray[Any, np.dtype[np.int32]]
    """shape (rows,): each row's tokens stored before"""


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros; on a CPU memory that the system gives only where something is written.

    ``torch.zeros`` writes all of it at once. On Linux pages of 2 MiB are asked for: memory that comes into use bit by
    bit then faults 500 times less often.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    raw = np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)
    if sys.platform == "linux":
        start = -(-raw.ctypes.data // mmap.PAGESIZE) * mmap.PAGESIZE
        length = (raw.ctypes.data + raw.nbytes - start) // mmap.PAGESIZE * mmap.PAGESIZE
        if length > 0:
            libc = ctypes.CDLL(None)
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_HUGEPAGE)  # a wish: it may fail
    return torch.from_numpy(raw).view(dtype).view(shape)


class BlockPool:
    """Storage for the keys and values of every layer, in blocks of ``BLOCK_SIZE`` tokens.

    Args:
        num_layers, num_kv_heads, head_dim: the model's.
        num_blocks: blocks per layer; memory is touched as they come into use.
        dtype: float32, bfloat16, or another float type (torch path only).
        device: where the model runs.
        use_kernel: take the numba kernel (CPU, float32 or bfloat16).
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        num_blocks: int,
        dtype: torch.dtype,
        device: torch.device,
        use_kernel: bool | None = None,
    ) -> None:
        """See the class."""
        suits = device.type == "cpu" and dtype in (torch.float32, torch.bfloat16) and head_dim % 4 == 0
        self.use_kernel = suits if use_kernel is None else use_kernel and suits
        shape = (num_layers, num_blocks, num_kv_heads)
        self.keys = _zeros((*shape, head_dim, BLOCK_SIZE), dtype, device)
        self.values = _zeros((*shape, BLOCK_SIZE, head_dim), dtype, device)
        self._arrays: list[tuple[Any, Any]] = []
        if self.use_kernel:
            bits = dtype == torch.bfloat16
            keys = (self.keys.view(torch.uint16) if bits else self.keys).numpy()
            values = (self.values.view(torch.uint16) if bits else self.values).numpy()
            self._arrays = [(keys[i], values[i]) for i in range(num_layers)]

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float,
        rows: Pass,
    ) -> torch.Tensor:
        """Store the new keys and values, attend over all; tensors are (tokens, heads, head_dim)."""
        if self.use_kernel:
            out = torch.empty(query.shape, dtype=torch.float32)
            q, k, v = (tensor.float().contiguous().numpy() for tensor in (query, key, value))
            self.attend_into(layer, q, k, v, scale, rows, out.numpy())
            return out.to(query.dtype)
        return self._attend_torch(layer, query, key, value, scale, rows)

    def attend_into(self, layer: int, query: Any, key: Any, value: Any, scale: float, rows: Pass, out: Any) -> None:
        """The kernel alone: contiguous float32 arrays (tokens, heads, head_dim); ``out`` may be flat."""
        from ._attention import attend

        keys, values = self._arrays[layer]
        attend(
            query,
            key,
            value,
            keys,
            values,
            rows.tables,
            rows.first,
            rows.count,
            rows.past,
            np.float32(scale),
            out.reshape(query.shape),
        )

    def _attend_torch(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float,
        rows: Pass,
    ) -> torch.Tensor:
        out = torch.empty_like(query)
        device = query.device
        for row in range(len(rows.first)):
            first, count, past = int(rows.first[row]), int(rows.count[row]), int(rows.past[row])
            total = past + count
            table = torch.from_numpy(rows.tables[row, : -(-total // BLOCK_SIZE)]).long().to(device)
            place = torch.arange(past, total, device=device)
            block, inner = table[place // BLOCK_SIZE], place % BLOCK_SIZE
            self.keys[layer, block, :, :, inner] = key[first : first + count].to(self.keys.dtype)
            self.values[layer, block, :, inner, :] = value[first : first + count].to(self.values.dtype)
            # (blocks, heads, head_dim, 16) and (blocks, heads, 16, head_dim) -> (heads, tokens, head_dim)
            keys = self.keys[layer, table].permute(1, 0, 3, 2).flatten(1, 2)[:, :total]
            values = self.values[layer, table].permute(1, 0, 2, 3).flatten(1, 2)[:, :total]
            reach = torch.arange(total, device=device)[None, :] <= place[:, None]
            attended = torch.nn.functional.scaled_dot_product_attention(
                query[first : first + count].transpose(0, 1)[None],
                keys[None].to(query.dtype),
                values[None].to(query.dtype),
                attn_mask=reach[None, None],
                scale=scale,
                enable_gqa=True,
            )
            out[first : first + count] = attended[0].transpose(0, 1)
        return out


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    block_pass: Pass | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """What a model calls in each layer: tensors are (1, heads, tokens, head_dim)."""
    if block_pass is None:
        raise TypeError("this attention needs block_pass; call the model through RaggedModel")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = block_pass.pool.attend(
        module.layer_idx,
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        scale,
        block_pass,
    )
    return out.unsqueeze(0), None


class RaggedModel:
    """A transformers causal model that reads rows of different lengths in one pass, over a block pool."""

    def __init__(self, model: Any, pool: BlockPool) -> None:
        """Wrap a model; its attention is switched only inside a ``with`` block."""
        from transformers import AttentionInterface

        from .llama import PlainLlama, why_not_plain

        AttentionInterface.register(ATTENTION_NAME, _attention)
        self.model = model
        self.pool = pool
        self.why_not_lean = why_not_plain(model, pool)
        """why the model's own forward pass is used; empty where the lean one is"""
        self._lean = None if self.why_not_lean else PlainLlama(model)
        self._own = model.config._attn_implementation

    def __enter__(self) -> RaggedModel:
        """Switch the model's attention to blocks."""
        if self._lean is not None:
            return self
        self._own = self.model.config._attn_implementation
        self.model.set_attn_implementation(ATTENTION_NAME)
        return self

    def __exit__(self, *_: object) -> None:
        """Give the model its own attention back."""
        if self._lean is not None:
            return
        self.model.set_attn_implementation(self._own)

    def be_plain(self, why: str) -> None:
        """Use the model's own forward pass from now on."""
        self._lean, self.why_not_lean = None, why

    def read(
        self, tokens: Sequence[Sequence[int]], past: Sequence[int], tables: Sequence[Sequence[int]]
    ) -> torch.Tensor:
        """Read each row's new tokens; returns the logits behind each row's last, shape (rows, vocabulary).

        Args:
            tokens: the rows' new tokens, at least one each.
            past: how many tokens of each row are stored.
            tables: each row's blocks, enough for stored and new tokens.
        """
        count = np.fromiter(map(len, tokens), np.int32, len(tokens))
        behind = np.cumsum(count, dtype=np.int32)
        stored = np.asarray(past, np.int32)
        widths = np.fromiter(map(len, tables), np.int32, len(tables))
        padded = np.zeros((len(tables), int(widths.max())), np.int32)
        padded[np.arange(padded.shape[1]) < widths[:, None]] = np.fromiter(
            chain.from_iterable(tables), np.int32, int(widths.sum())
        )
        flat = np.fromiter(chain.from_iterable(tokens), np.int64, int(behind[-1]))
        first = behind - count
        positions = np.arange(len(flat), dtype=np.int64) + np.repeat(stored - first, count)
        rows = Pass(pool=self.pool, tables=padded, first=first, count=count, past=stored)
        last = torch.from_numpy(behind.astype(np.int64) - 1)
        if self._lean is not None:
            return self._lean.read(torch.from_numpy(flat), positions, last, rows)
        device = self.model.device
        out = self.model(
            input_ids=torch.from_numpy(flat).unsqueeze(0).to(device),
            position_ids=torch.from_numpy(positions).unsqueeze(0).to(device),
            use_cache=False,
            logits_to_keep=last.to(device),
            block_pass=rows,
        )
        logits: torch.Tensor = out.logits[0]
        return logits
