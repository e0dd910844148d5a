"""Kernels of the hash encoder and of numbering rows and ids."""

# pyright: reportCallIssue=false, reportPrivateImportUsage=false
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from __future__ import annotations

import numpy as np
from numba import carray

from steca_gym.distances._kernels.vectors import pointer_at, prefetch
from steca_gym.jit import compiled

_FNV_OFFSET = np.uint32(2166136261)
_FNV_PRIME = np.uint32(16777619)
_BLANK = 32

_AHEAD = 4
"""rows that are asked for before they are read: a row's work is too long for the processor to look past it"""


@compiled(nogil=True)
def _mix(h):
    # FNV-1a leaves neighbouring n-grams in neighbouring buckets; two rounds of xor-shift-multiply spread
    # them.
    h ^= h >> np.uint32(16)
    h = np.uint32(h * np.uint32(0x7FEB352D))
    h ^= h >> np.uint32(15)
    h = np.uint32(h * np.uint32(0x846CA68B))
    h ^= h >> np.uint32(16)
    return h


@compiled(nogil=True)
def _features(text, hashes, weights, min_n, max_n, word_weight):
    """Write (hash, weight) of each n-gram of one text; returns how many.

    ``text`` is bytes with a blank before, after and between words. Character n-grams of ``min_n`` to
    ``max_n`` bytes weigh 1 and do not cross words; single words and pairs of words weigh ``word_weight``.
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


@compiled(nogil=True)
def embed_texts(data, offsets, dim, min_n, max_n, word_weight, idf, out):
    """Fill ``out`` (n_texts, dim) with unit vectors of signed, hashed n-grams.

    ``data``: the texts' bytes, each as `` word word ``; ``idf``: weight per bucket, or size 0 for none. A
    bucket's value ``v`` is damped to ``sign(v) * log1p(|v|)`` (sublinear term frequency) before its weight.
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
        if total == 0:  # no word at all, or every n-gram cancelled: one fixed direction, so that cosine is defined
            row[0] = 1
        else:
            scale = 1.0 / np.sqrt(total)
            for k in range(dim):
                row[k] *= scale


@compiled(nogil=True, forceinline=True)
def _digest(row, coefficients):
    # The halves of each word, mixed with a key, are multiplied and summed: one product for eight bytes.
    total = np.uint64(0x9E3779B97F4A7C15)
    for k in range(row.size):
        word = np.uint64(row[k]) ^ coefficients[k]
        total += (word & np.uint64(0xFFFFFFFF)) * (word >> np.uint64(32))
    total ^= total >> np.uint64(32)
    return total * np.uint64(0xC2B2AE3D27D4EB4F)


@compiled(nogil=True, forceinline=True)
def _equal(a, b):
    # Blocks of a fixed size without an exit inside, so that they vectorise.
    blocks = a.size // 64
    for block in range(blocks):
        different = a[0] ^ a[0]
        for k in range(64):
            different |= a[block * 64 + k] ^ b[block * 64 + k]
        if different:
            return False
    for k in range(blocks * 64, a.size):
        if a[k] != b[k]:
            return False
    return True


@compiled(nogil=True)
def number_rows(words, coefficients, slots, digests, known, count, start, ids):
    """Number equal rows alike, in order of first appearance, each row being read from memory once.

    Args:
        words: uint64, or uint32 where rows are an odd number of them; (n, width), the rows' bytes.
        coefficients: uint64 (width,), numbers without a pattern.
        slots: int32, a power of two > 2 * capacity of them; -1 where free (open addressing).
        digests: uint64 (capacity,).
        known: as ``words``, (capacity, width), a copy of each distinct row.
        count: distinct rows known before.
        start: first row to look at.
        ids: int32 (n,), filled from ``start``.

    Returns:
        The number of distinct rows, and of rows done; fewer than n when ``known`` is full. Equal means equal
        bytes: a digest shared by different rows costs a probe, never an error.
    """
    mask = np.int64(slots.size - 1)
    width = words.shape[1]
    flat = words.reshape(words.size)
    per_line = 64 // words.itemsize
    for i in range(start, words.shape[0]):
        row = words[i]
        if i + _AHEAD < words.shape[0]:
            for k in range((i + _AHEAD) * width, (i + _AHEAD + 1) * width, per_line):
                prefetch(flat, k)
        digest = _digest(row, coefficients)
        slot = np.int64(digest >> np.uint64(20)) & mask
        while True:
            group = slots[slot]
            if group < 0:
                if count == known.shape[0]:
                    return count, i
                slots[slot] = count
                digests[count] = digest
                known[count] = row
                ids[i] = count
                count += 1
                break
            if digests[group] == digest and _equal(row, known[group]):
                ids[i] = group
                break
            slot = (slot + 1) & mask
    return count, words.shape[0]


@compiled(nogil=True)
def number_arrays(addresses, lengths, coefficients, slots, digests, known, count, first, start, ids):
    """``number_rows`` for many arrays of rows, ``lengths[k]`` of them at ``addresses[k]``; ids end to end.

    Continues at row ``start`` of array ``first``; returns the number of distinct rows, and the array and row where
    ``known`` was full (the number of arrays and 0 at the end). Nothing is copied but distinct rows.
    """
    width = known.shape[1]
    per_line = 64 // known.itemsize
    begin = 0
    for k in range(first):
        begin += lengths[k]
    for k in range(first, lengths.size):
        if k + 1 < lengths.size:
            ahead = carray(pointer_at(addresses[k + 1], known), (min(lengths[k + 1], _AHEAD) * width,))
            for word in range(0, ahead.size, per_line):
                prefetch(ahead, word)
        words = carray(pointer_at(addresses[k], known), (lengths[k], width))
        part = ids[begin : begin + lengths[k]]
        count, done = number_rows(words, coefficients, slots, digests, known, count, start, part)
        if done < lengths[k]:
            return count, k, done
        begin += lengths[k]
        start = 0
    return count, lengths.size, 0


@compiled(nogil=True)
def refill_slots(digests, count, slots):
    """Enter ``count`` distinct rows into a larger, empty slot table."""
    mask = np.int64(slots.size - 1)
    for group in range(count):
        slot = np.int64(digests[group] >> np.uint64(20)) & mask
        while slots[slot] >= 0:
            slot = (slot + 1) & mask
        slots[slot] = group


@compiled(nogil=True)
def narrow(ids, size, out):
    """Copy int64 ``ids`` to int32 ``out``; returns the first index that is not in [0, size), or -1."""
    bad = False
    for k in range(ids.size):
        bad |= ids[k] < 0 or ids[k] >= size
        out[k] = ids[k]
    if bad:
        for k in range(ids.size):
            if ids[k] < 0 or ids[k] >= size:
                return k
    return -1


@compiled(nogil=True)
def mark(ids, used):
    """Set ``used`` (bool) at each of ``ids``."""
    for k in ids:
        used[k] = True
