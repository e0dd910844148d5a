"""Numbering of equal rows: against a dictionary of their bytes, whatever the width, the type and the threads."""

from __future__ import annotations

import numpy as np
import pytest

from steca_gym.distances._kernels import row_numbers


def by_bytes(rows):
    seen = {}
    return [seen.setdefault(row.tobytes(), len(seen)) for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("width", [1, 3, 8, 67, 130])
def test_equal_rows_share_a_number(width, dtype):
    rng = np.random.default_rng(width)
    # Sparse rows of few values: many differ in one component only, which a weak digest would confuse.
    distinct = rng.integers(0, 3, (700, width)) * (rng.random((700, width)) < 0.1)
    rows = distinct[rng.integers(0, 700, 3000)].astype(dtype)
    (ids,), known = row_numbers.number_all((rows,), 1)
    assert ids.tolist() == by_bytes(rows)
    np.testing.assert_array_equal(known[ids], rows)


def test_lists_batches_and_threads_give_rows_that_are_equal(monkeypatch):
    monkeypatch.setattr(row_numbers, "_PARALLEL_BYTES", 0)
    monkeypatch.setattr(row_numbers, "_CHUNK_BYTES", 500)
    rng = np.random.default_rng(0)
    distinct = rng.normal(size=(50, 16)).astype(np.float32)
    chosen = [rng.integers(0, 50, n) for n in rng.integers(1, 9, 60)]
    lists = [[distinct[x] for x in chosen[:30]], [distinct[x] for x in chosen[30:]]]
    for threads in (1, 3):
        (ids_a, ids_b), known = row_numbers.number_all(lists, threads)
        assert len(known) == len(set(np.concatenate(chosen).tolist()))
        np.testing.assert_array_equal(known[ids_a], np.concatenate(lists[0]))
        np.testing.assert_array_equal(known[ids_b], np.concatenate(lists[1]))
