# pyright: reportCallIssue=false, reportArgumentType=false
# (numba and transformers generate call signatures that pyright cannot see)
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
"""Attention of ragged rows over cached blocks: the private kernel, compiled by numba.

Knows blocks of keys and values, and which row owns which. Knows no model, no tokens and no torch;
``paged.py`` is the checked way in.

Keys lie transposed in their block (head_dim, 16), values upright (16, head_dim): both inner loops then add a
vector of a block, scaled, to a vector of sums. Numbers are float32, or bfloat16 held as their upper 16 bits;
sums are always float32. A row reads only the blocks that it has, however long the others are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, prange, types
from numba.extending import intrinsic, overload

BLOCK = 16
"""tokens per block"""

_QUERIES = 16
_LOG2E = 1.4426950408889634


@intrinsic
def _bits_to_float(typingctx: Any, bits: Any) -> Any:
    """The float32 of 32 bits."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.uint32), generate


@intrinsic
def _float_to_bits(typingctx: Any, number: Any) -> Any:
    """The 32 bits of a float32."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(32))

    return types.uint32(types.float32), generate


def _widen(number):
    raise NotImplementedError


def _narrow(number, like):
    raise NotImplementedError


# numba compares the annotations of an overload with those of what it returns, so these carry none.
@overload(_widen, inline="always")
def _widen_overload(number):
    """Read a stored number as float32."""
    if isinstance(number, types.Integer):
        return lambda number: _bits_to_float(np.uint32(np.uint32(number) << np.uint32(16)))
    return lambda number: number


@overload(_narrow, inline="always")
def _narrow_overload(number, like):
    """Write a float32 as it is stored; bfloat16 rounds to the nearest, ties to even."""
    if isinstance(like, types.Integer):

        def narrow(number, like):
            bits = _float_to_bits(np.float32(number))
            bits = np.uint32(bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
            return np.uint16(bits >> np.uint32(16))

        return narrow
    return lambda number, like: number


def _as_float(stored, room):
    raise NotImplementedError


@overload(_as_float, inline="always")
def _as_float_overload(stored, room):
    """A stored block as float32: itself where it is, else written to ``room``."""
    if isinstance(stored.dtype, types.Integer):

        def convert(stored, room):
            for i in range(room.shape[0]):
                for j in range(room.shape[1]):
                    room[i, j] = _widen(stored[i, j])
            return room

        return convert
    return lambda stored, room: stored


@njit(cache=True, fastmath={"contract", "reassoc", "nsz", "arcp"}, inline="never")
def _soften(scores: Any, count: int, width: int) -> Any:
    """Replace ``scores[:count]`` by exp(score - max), the rest up to ``width`` by 0; returns their sum."""
    highest = scores[0]
    for j in range(1, count):
        highest = max(highest, scores[j])
    total = np.float32(0.0)
    for j in range(count):
        # exp by 2^whole * 2^part; the polynomial is Taylor's around 0 for |part| <= 1/2, error below 1e-7.
        power = max((scores[j] - highest) * np.float32(_LOG2E), np.float32(-126.0))
        whole = np.float32(np.floor(power + np.float32(0.5)))
        part = (power - whole) * np.float32(0.6931471805599453)
        grown = np.float32(1.0 / 720.0)
        grown = grown * part + np.float32(1.0 / 120.0)
        grown = grown * part + np.float32(1.0 / 24.0)
        grown = grown * part + np.float32(1.0 / 6.0)
        grown = grown * part + np.float32(0.5)
        grown = grown * part + np.float32(1.0)
        grown = grown * part + np.float32(1.0)
        scale = _bits_to_float(np.uint32((np.int32(whole) + np.int32(127)) << np.int32(23)))
        scores[j] = grown * scale
        total += scores[j]
    for j in range(count, width):
        scores[j] = np.float32(0.0)
    return total


@njit(cache=True, fastmath={"contract", "reassoc", "nsz", "arcp"}, inline="never")
def _score_block(tile: Any, query: Any, out: Any) -> None:
    """``out[j] = sum_d query[d] * tile[d, j]`` for the 16 keys of a block."""
    for j in range(BLOCK):
        out[j] = np.float32(0.0)
    for d in range(0, query.shape[0], 4):
        a, b, c, e = query[d], query[d + 1], query[d + 2], query[d + 3]
        for j in range(BLOCK):
            out[j] += a * tile[d, j] + b * tile[d + 1, j] + c * tile[d + 2, j] + e * tile[d + 3, j]


@njit(cache=True, fastmath={"contract", "reassoc", "nsz", "arcp"}, inline="never")
def _mix_block(tile: Any, weights: Any, out: Any) -> None:
    """``out[d] += sum_j weights[j] * tile[j, d]`` for the 16 values of a block."""
    for j in range(0, BLOCK, 4):
        a, b, c, e = weights[j], weights[j + 1], weights[j + 2], weights[j + 3]
        for d in range(out.shape[0]):
            out[d] += a * tile[j, d] + b * tile[j + 1, d] + c * tile[j + 2, d] + e * tile[j + 3, d]


@njit(cache=True, parallel=True, fastmath={"contract", "reassoc", "nsz", "arcp"})
def attend(
    query: Any,
    key: Any,
    value: Any,
    key_blocks: Any,
    value_blocks: Any,
    tables: Any,
    first: Any,
    count: Any,
    past: Any,
    scale: float,
    out: Any,
) -> None:
    """Store each row's new keys and values, then attend causally over all that it has.

    query, out: float32 (tokens, heads, head_dim); key, value: float32 (tokens, kv_heads, head_dim);
    key_blocks: (blocks, kv_heads, head_dim, 16); value_blocks: (blocks, kv_heads, 16, head_dim), float32 or
    uint16; tables: int32 (rows, most blocks of a row); first, count, past: int32 (rows,): a row's first new
    token, how many, and how many tokens were stored before.
    """
    num_rows = first.shape[0]
    num_kv_heads = key.shape[1]
    head_dim = query.shape[2]
    group = query.shape[1] // num_kv_heads
    # Heads outside, rows inside: threads share out heads, so a long row costs each of them the same.
    for item in prange(num_rows * num_kv_heads):
        row = item % num_rows
        head = item // num_rows
        start = first[row]
        before = past[row]
        for i in range(count[row]):
            block = tables[row, (before + i) // BLOCK]
            place = (before + i) % BLOCK
            for d in range(head_dim):
                key_blocks[block, head, d, place] = _narrow(key[start + i, head, d], key_blocks[0, 0, 0, 0])
                value_blocks[block, head, place, d] = _narrow(value[start + i, head, d], value_blocks[0, 0, 0, 0])
        pairs = count[row] * group
        most_blocks = (before + count[row] + BLOCK - 1) // BLOCK
        scores = np.empty((min(_QUERIES, pairs), most_blocks * BLOCK), np.float32)
        sums = np.empty(_QUERIES, np.float32)
        queries = np.empty((_QUERIES, head_dim), np.float32)
        mixed = np.empty((_QUERIES, head_dim), np.float32)
        key_tile = np.empty((head_dim, BLOCK), np.float32)
        value_tile = np.empty((BLOCK, head_dim), np.float32)
        for low in range(0, pairs, _QUERIES):
            high = min(low + _QUERIES, pairs)
            num_blocks = (before + (high - 1) // group + 1 + BLOCK - 1) // BLOCK
            for pair in range(low, high):
                for d in range(head_dim):
                    queries[pair - low, d] = query[start + pair // group, head * group + pair % group, d] * scale
                    mixed[pair - low, d] = np.float32(0.0)
            for b in range(num_blocks):
                tile = _as_float(key_blocks[tables[row, b], head], key_tile)
                for pair in range(high - low):
                    _score_block(tile, queries[pair], scores[pair, b * BLOCK : (b + 1) * BLOCK])
            for pair in range(low, high):
                sums[pair - low] = _soften(scores[pair - low], before + pair // group + 1, num_blocks * BLOCK)
            for b in range(num_blocks):
                tile = _as_float(value_blocks[tables[row, b], head], value_tile)
                for pair in range(high - low):
                    _mix_block(tile, scores[pair, b * BLOCK : (b + 1) * BLOCK], mixed[pair])
            for pair in range(low, high):
                for d in range(head_dim):
                    out[start + pair // group, head * group + pair % group, d] = mixed[pair - low, d] / sums[pair - low]
