"""Local costs between steps: checked embeddings in, a (unique x unique) table out.

Knows cosine, Euclidean and exact-match costs. Knows no sequences and no warping.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from steca_gym.errors import DataError

FloatArray = NDArray[np.floating[Any]]

NEAR = 1e-3
"""below this squared distance, relative to the squared norms, the Gram form has lost digits: compute it
directly
"""


@njit(cache=True, nogil=True)
def _finish_table(gram, a, b, norms_a, norms_b, cosine, near, mirror):
    """Turn a Gram matrix into costs in place.

    Near-equal rows are computed from their difference in float64: equal rows cost exactly 0 and small costs
    keep their digits (a Gram matrix in float32 gives 1e-7 of noise, and thresholds such as d_max = 1e-22
    exist). ``mirror``: both sides are the same rows; only the upper half is computed.
    """
    dim = a.shape[1]
    for i in range(gram.shape[0]):
        na = norms_a[i]
        for j in range(i if mirror else 0, gram.shape[1]):
            nb = norms_b[j]
            if cosine:
                value = 1.0 - gram[i, j]
                if value < near:
                    total = 0.0
                    for k in range(dim):
                        diff = np.float64(a[i, k]) / na - np.float64(b[j, k]) / nb
                        total += diff * diff
                    value = 0.5 * total  # 1 - cos = |a/|a| - b/|b||^2 / 2
                elif value > 2.0:
                    value = 2.0
            else:
                value = na * na + nb * nb - 2.0 * gram[i, j]
                if value < near * (na * na + nb * nb):
                    total = 0.0
                    for k in range(dim):
                        diff = np.float64(a[i, k]) - np.float64(b[j, k])
                        total += diff * diff
                    value = total
                value = np.sqrt(value)
            gram[i, j] = value
            if mirror:
                gram[j, i] = value


@njit(cache=True, nogil=True)
def row_norms(rows, out):
    """Euclidean norm of each row in float64; NaN or infinite where the row is."""
    for i in range(rows.shape[0]):
        total = 0.0
        for k in range(rows.shape[1]):
            x = np.float64(rows[i, k])
            total += x * x
        out[i] = np.sqrt(total)


def checked_norms(rows: FloatArray, cosine: bool, where: Callable[[int], str]) -> NDArray[np.float64]:
    """The norm of each row; raises DataError for a NaN, an infinite value or (cosine) a zero row.

    ``where`` says in words which of the caller's steps row ``i`` is.
    """
    norms = np.empty(len(rows), np.float64)
    row_norms(rows, norms)
    if not np.isfinite(norms).all():
        index = int(np.flatnonzero(~np.isfinite(norms))[0])
        columns = np.flatnonzero(~np.isfinite(rows[index]))
        got = f"component {int(columns[0])} is {rows[index, columns[0]]}" if columns.size else "its norm overflows"
        raise DataError(f"embeddings must be finite, but in {where(index)} {got}; drop or repair that step")
    if cosine and not norms.all():
        index = int(np.flatnonzero(norms == 0)[0])
        raise DataError(f"{where(index)} is all zeros, so its cosine is undefined; use cost='l2' or repair that step")
    return norms


def cost_table(
    a: FloatArray,
    b: FloatArray,
    norms_a: NDArray[np.float64],
    norms_b: NDArray[np.float64],
    cosine: bool,
    pad: bool,
) -> FloatArray:
    """Costs between all rows, shape (len(a), len(b)), in the rows' dtype; >= 0, exactly 0 for equal rows.

    ``b is a`` gives a table that is symmetric to the bit. ``pad`` adds the row and column that ``pad_table``
    adds.
    """
    left = _padded(a, norms_a, cosine, pad)
    right = left if b is a else _padded(b, norms_b, cosine, pad)
    table: FloatArray = left @ right.T
    _finish_table(table[: len(a), : len(b)], a, b, norms_a, norms_b, cosine, NEAR, b is a)
    if pad:
        _fill_pad(table)
    return table


def _padded(rows: FloatArray, norms: NDArray[np.float64], cosine: bool, pad: bool) -> FloatArray:
    """The rows, of unit length for cosine, and a zero row behind them for ``pad``."""
    if not (cosine or pad):
        return rows
    out = np.zeros((len(rows) + pad, rows.shape[1]), rows.dtype)
    if cosine:
        np.multiply(rows, (1.0 / norms).astype(rows.dtype)[:, None], out=out[: len(rows)])
    else:
        out[: len(rows)] = rows
    return out


def _fill_pad(table: FloatArray) -> None:
    table[-1, :] = np.inf
    table[:, -1] = np.inf
    table[-1, -1] = 0


def pad_table(table: FloatArray) -> FloatArray:
    """A copy with one more row and column, ``inf``, and 0 in their corner: the lane kernels' padding step."""
    out = np.empty((table.shape[0] + 1, table.shape[1] + 1), table.dtype)
    out[:-1, :-1] = table
    _fill_pad(out)
    return out
