"""Kernels of the hash encoder and of row deduplication. Knows bytes and arrays, no texts and no files."""

from __future__ import annotations

import numpy as np
from numba import njit

_FNV_OFFSET = np.uint32(2166136261)
_FNV_PRIME = np.uint32(16777619)
_BLANK = 32


@njit(cache=True, nogil=True)
def _mix(h):  # type: ignore[no-untyped-def]
    # FNV-1a leaves neighbouring n-grams in neighbouring buckets; two rounds of xor-shift-multiply spread them.
    h ^= h >> np.uint32(16)
    h = np.uint32(h * np.uint32(0x7FEB352D))
    h ^= h >> np.uint32(15)
    h = np.uint32(h * np.uint32(0x846CA68B))
    h ^= h >> np.uint32(16)
    return h


@njit(cache=True, nogil=True)
def _features(text, hashes, weights, min_n, max_n, word_weight):  # type: ignore[no-untyped-def]
    """Write (hash, weight) of each n-gram of one text; returns how many.

    ``text`` is bytes with a blank before, after and between words. Character n-grams of ``min_n`` to ``max_n``
    bytes weigh 1 and do not cross words; single words and pairs of words weigh ``word_weight``.
    """
    count = 0
    size = text.size
    start = 0
    previous = -1
    while start < size - 1:
        end = start + 1  # text[start] is a blank; the word is text[start + 1 : end]
        while text[end] != _BLANK:
            end += 1
        for n in range(min_n, max_n + 1):
            for i in range(start, end + 2 - n):
                h = _FNV_OFFSET ^ np.uint32(n)
                for k in range(i, i + n):
                    h = np.uint32((h ^ np.uint32(text[k])) * _FNV_PRIME)
                hashes[count] = _mix(h)
                weights[count] = 1.0
                count += 1
        first = start
        for pair in range(2):
            if pair == 1:
                if previous < 0:
                    break
                first = previous
            h = _FNV_OFFSET ^ np.uint32(101 + pair)
            for k in range(first, end + 1):
                h = np.uint32((h ^ np.uint32(text[k])) * _FNV_PRIME)
            hashes[count] = _mix(h)
            weights[count] = word_weight
            count += 1
        previous = start
        start = end
    return count


@njit(cache=True, nogil=True)
def embed_texts(data, offsets, dim, min_n, max_n, word_weight, idf, out):  # type: ignore[no-untyped-def]
    """Fill ``out`` (n_texts, dim) with unit vectors of signed, hashed n-grams.

    ``data``: the texts' bytes, each as `` word word ``; ``idf``: weight per bucket, or size 0 for none. A bucket's
    value ``v`` is damped to ``sign(v) * log1p(|v|)`` (sublinear term frequency) before its weight.
    """
    longest = 0
    for t in range(offsets.size - 1):
        longest = max(longest, offsets[t + 1] - offsets[t])
    room = longest * (max_n - min_n + 1) + 2 * longest + 2
    hashes = np.empty(room, np.uint32)
    weights = np.empty(room, np.float32)
    for t in range(offsets.size - 1):
        row = out[t]
        row[:] = 0
        count = _features(data[offsets[t] : offsets[t + 1]], hashes, weights, min_n, max_n, word_weight)
        for f in range(count):
            h = hashes[f]
            sign = 1.0 if h & np.uint32(0x80000000) else -1.0
            row[h % np.uint32(dim)] += sign * weights[f]
        total = 0.0
        for k in range(dim):
            v = row[k]
            if v != 0:
                damped = np.log1p(abs(v)) * (idf[k] if idf.size else np.float32(1.0))
                row[k] = damped if v > 0 else -damped
                total += damped * damped
        if (
            total == 0
        ):  # no word at all, or every n-gram cancelled: one fixed direction, so that cosine is defined
            row[0] = 1
        else:
            scale = 1.0 / np.sqrt(total)
            for k in range(dim):
                row[k] *= scale


@njit(cache=True, nogil=True)
def hash_rows(words, out):  # type: ignore[no-untyped-def]
    """64-bit digest of each row of ``words`` (n, k), uint64; four chains, so that the multiplications overlap."""
    k1 = np.uint64(0x9E3779B97F4A7C15)
    k2 = np.uint64(0xC2B2AE3D27D4EB4F)
    n, width = words.shape
    quads = width // 4 * 4
    for i in range(n):
        h0 = k1
        h1 = k2
        h2 = k1 ^ np.uint64(1)
        h3 = k2 ^ np.uint64(1)
        for j in range(0, quads, 4):
            h0 = (h0 ^ words[i, j]) * k1
            h1 = (h1 ^ words[i, j + 1]) * k1
            h2 = (h2 ^ words[i, j + 2]) * k1
            h3 = (h3 ^ words[i, j + 3]) * k1
            h0 ^= h0 >> np.uint64(29)
            h1 ^= h1 >> np.uint64(29)
            h2 ^= h2 >> np.uint64(29)
            h3 ^= h3 >> np.uint64(29)
        for j in range(quads, width):
            h0 = (h0 ^ words[i, j]) * k1
            h0 ^= h0 >> np.uint64(29)
        h = ((h0 * k2 ^ h1) * k2 ^ h2) * k2 ^ h3
        h ^= h >> np.uint64(32)
        out[i] = h * k1


@njit(cache=True, nogil=True)
def group_rows(words, digests, order_table, ids, firsts):  # type: ignore[no-untyped-def]
    """Number equal rows alike, in order of first appearance; returns the number of distinct rows.

    ``order_table``: int32, a power of two > 2 n slots, filled with -1 (open addressing). ``firsts[u]`` is the first
    row of group ``u``. Equality is of the bytes; equal digests of different rows cost a probe, never an error.
    """
    mask = np.uint64(order_table.size - 1)
    count = 0
    width = words.shape[1]
    for i in range(words.shape[0]):
        slot = digests[i] & mask
        while True:
            group = order_table[np.int64(slot)]
            if group < 0:
                order_table[np.int64(slot)] = count
                firsts[count] = i
                ids[i] = count
                count += 1
                break
            first = firsts[group]
            if digests[first] == digests[i]:
                same = True
                for k in range(width):
                    if words[first, k] != words[i, k]:
                        same = False
                        break
                if same:
                    ids[i] = group
                    break
            slot = (slot + np.uint64(1)) & mask
    return count
