"""Kernels that advance one pair in each lane of the processor's vectors. Knows padded ids and a cost table.

Inside one pair the recurrence is a chain (min, then add, from column to column); across pairs it is
independent. Lanes of a group have different lengths: shorter sequences are padded *in front* with the id
``pad`` (the table's last row and column). A cell of two pads costs 0, of one pad infinity: the only way into
the real cells is the diagonal step from pad to real, which costs nothing, and every lane ends in the last
cell of the last row.

Rows are worked off four at a time: the four chains overlap, and only the fourth row goes through memory.
The virtual row above the first is 0 left of a lane's first real column; the virtual column to the left is 0
down to a lane's first real row.
"""

# pyright: reportCallIssue=false
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload

from steca_gym.distances._simd import (
    vadd,
    vany_within,
    vfull,
    vgather,
    vload,
    vload_ids,
    vmin_bits,
    vstore,
    vwithin,
)


@njit(cache=True, nogil=True, forceinline=True)
def _cell(cost, diagonal, up, left):
    # The minimum of the two older values first: only one min and one add stay on the chain.
    return vadd(cost, vmin_bits(vmin_bits(diagonal, up), left))


def _in_band(value: Any, offset: Any, shift: Any, width: Any, inf: Any) -> Any:
    """``value`` inside the band, ``inf`` outside; without a band (None) nothing is compiled for it."""
    raise NotImplementedError("only inside kernels")


@overload(_in_band)
def _in_band_kernel(value, offset, shift, width, inf):
    if isinstance(shift, types.NoneType):
        return lambda value, offset, shift, width, inf: value
    return lambda value, offset, shift, width, inf: vwithin(value, offset, shift, width, inf)


def _band_of(array: Any, index: Any, like: Any) -> Any:
    """The lanes of row ``index`` of a band array, or None for None."""
    raise NotImplementedError("only inside kernels")


@overload(_band_of)
def _band_of_kernel(array, index, like):
    if isinstance(array, types.NoneType):
        return lambda array, index, like: None
    return lambda array, index, like: vload_ids(array[index], 0, like)


@njit(cache=True, nogil=True, forceinline=True)
def _rows4(costs, p0, p1, p2, p3, above, row, low, high, d0, d1, shift, width, i, lanes):
    """Four rows over columns [low, high); ``costs[p + j * lanes]`` are lane costs; returns (last, best)."""
    inf = vfull(row, np.inf)
    x0 = x1 = x2 = x3 = inf
    best = inf
    diagonal, e1, e2, e3 = d0, d1, d1, d1
    for j in range(low, high):
        k = j * lanes
        up = vload(above, k)
        y0 = _in_band(_cell(vload(costs, p0 + k), diagonal, up, x0), j - i, shift, width, inf)
        y1 = _in_band(_cell(vload(costs, p1 + k), e1, y0, x1), j - i - 1, shift, width, inf)
        y2 = _in_band(_cell(vload(costs, p2 + k), e2, y1, x2), j - i - 2, shift, width, inf)
        y3 = _in_band(_cell(vload(costs, p3 + k), e3, y2, x3), j - i - 3, shift, width, inf)
        vstore(row, k, y3)
        best = vmin_bits(best, y3)
        diagonal, e1, e2, e3 = up, y0, y1, y2
        x0, x1, x2, x3 = y0, y1, y2, y3
    return x3, best


@njit(cache=True, nogil=True, forceinline=True)
def _rows1(costs, p0, above, row, low, high, d0, shift, width, i, lanes):
    """One row; see ``_rows4``."""
    inf = vfull(row, np.inf)
    x0 = inf
    best = inf
    diagonal = d0
    for j in range(low, high):
        k = j * lanes
        up = vload(above, k)
        x0 = _in_band(_cell(vload(costs, p0 + k), diagonal, up, x0), j - i, shift, width, inf)
        vstore(row, k, x0)
        best = vmin_bits(best, x0)
        diagonal = up
    return x0, best


@njit(cache=True, nogil=True)
def _fetch(table, u, ids_b, length, lanes, costs, slots, owners, used):
    """Offset in ``costs`` of the lane costs of step ``u``, gathered at first use; (offset, slots used)."""
    slot = slots[u]
    if slot < 0:
        slot = used
        used += 1
        slots[u] = slot
        owners[slot] = u
        base = slot * length * lanes
        start = u * table.shape[1]
        flat = table.reshape(table.size)
        for j in range(length):
            vstore(costs, base + j * lanes, vgather(flat, start, vload_ids(ids_b, j * lanes, table)))
    return np.int64(slot) * length * lanes, used


@njit(cache=True, nogil=True)
def cross_group(
    table, ids_a, off_a, chosen, ids_b, above, length, shifts, widths, bounds, costs, slots, owners, row, out
):
    """Accumulated costs of sequences ``chosen`` of A against one group of B's, one in each lane.

    The lane costs of a step of A (its table row, gathered by the group's ids) are laid out once in ``costs``
    and read as whole vectors by every further row with that step; when ``costs`` is full it is started
    afresh.

    Args:
        table: float (U + 1, V + 1), C order, with the row and column of ``pad``.
        ids_a: int32, flat.
        off_a: its offsets.
        chosen: which sequences.
        ids_b: int32 (length * lanes), padded in front.
        above: float (length * lanes), the virtual row.
        length: columns.
        shifts: int32 (n_chosen, lanes) or None: the band, as ``vwithin`` reads it on ``j - i``.
        widths: as ``shifts``.
        bounds: float (n_chosen, lanes) or None: accumulated costs above which lanes may stop.
        costs: float scratch, at least 4 * length * lanes.
        slots: int32 (U + 1), all -1 at the start and the end.
        owners: int32 scratch, one per slot.
        row: float scratch (length * lanes).
        out: float (n_chosen, lanes).
    """
    lanes = out.shape[1]
    inf = vfull(row, np.inf)
    zero = vfull(row, 0.0)
    capacity = min(owners.size, costs.size // (length * lanes))
    used = 0
    results = out.reshape(out.size)
    for c in range(chosen.size):
        first = off_a[chosen[c]]
        n = off_a[chosen[c] + 1] - first
        source = above
        edge = zero
        last = inf
        low = 0
        high = length
        shift = _band_of(shifts, c, row)
        width = _band_of(widths, c, row)
        if shifts is not None:
            reach_low = length
            reach_high = -length
            for lane in range(lanes):
                reach_low = min(reach_low, -shifts[c, lane])
                reach_high = max(reach_high, widths[c, lane] - shifts[c, lane])
            for j in range(length):
                vstore(row, j * lanes, inf)
        i = 0
        while i < n:
            rows = 4 if n - i >= 4 else 1
            if used + rows > capacity:
                for s in range(used):
                    slots[owners[s]] = -1
                used = 0
            if shifts is not None:
                low = max(0, i + reach_low)
                high = min(length, i + rows + reach_high)
                if low > 0:
                    edge = vload(source, (low - 1) * lanes)
            p0, used = _fetch(table, ids_a[first + i], ids_b, length, lanes, costs, slots, owners, used)
            if rows == 4:
                p1, used = _fetch(table, ids_a[first + i + 1], ids_b, length, lanes, costs, slots, owners, used)
                p2, used = _fetch(table, ids_a[first + i + 2], ids_b, length, lanes, costs, slots, owners, used)
                p3, used = _fetch(table, ids_a[first + i + 3], ids_b, length, lanes, costs, slots, owners, used)
                last, best = _rows4(costs, p0, p1, p2, p3, source, row, low, high, edge, inf, shift, width, i, lanes)
            else:
                last, best = _rows1(costs, p0, source, row, low, high, edge, shift, width, i, lanes)
            i += rows
            source = row
            edge = inf
            if bounds is not None:
                if not vany_within(best, vload(bounds[c], 0)):
                    last = inf
                    break
        vstore(results, c * lanes, last)
    for s in range(used):
        slots[owners[s]] = -1


@njit(cache=True, nogil=True)
def pairs_group(table, ids_a, ids_b, height, length, above, edges, shifts, widths, bounds, row, out):
    """Accumulated costs of one group of pairs, one in each lane; costs are gathered cell by cell.

    Args:
        table: float (U + 1, V + 1), C order, with the row and column of ``pad``.
        ids_a: int32 (height * lanes), padded in front, times the table's width.
        ids_b: int32 (length * lanes), padded in front.
        height: rows.
        length: columns.
        above: float (length * lanes), the virtual row.
        edges: float (height * lanes), the virtual column.
        shifts: int32 (1, lanes) or None, see ``cross_group``.
        widths: as ``shifts``.
        bounds: float (lanes,) or None.
        row: float scratch (length * lanes).
        out: float (lanes,).
    """
    lanes = out.size
    flat = table.reshape(table.size)
    inf = vfull(row, np.inf)
    source = above
    last = inf
    shift = _band_of(shifts, 0, row)
    width = _band_of(widths, 0, row)
    for i in range(0, height - 1, 2):
        base0 = vload_ids(ids_a, i * lanes, row)
        base1 = vload_ids(ids_a, (i + 1) * lanes, row)
        diagonal = vload(edges, i * lanes)
        e1 = vload(edges, (i + 1) * lanes)
        x0 = x1 = best = inf
        for j in range(length):
            k = j * lanes
            columns = vload_ids(ids_b, k, row)
            up = vload(source, k)
            y0 = _in_band(_cell(vgather(flat, 0, vadd(base0, columns)), diagonal, up, x0), j - i, shift, width, inf)
            y1 = _in_band(_cell(vgather(flat, 0, vadd(base1, columns)), e1, y0, x1), j - i - 1, shift, width, inf)
            vstore(row, k, y1)
            best = vmin_bits(best, y1)
            diagonal, e1, x0, x1 = up, y0, y0, y1
        source = row
        last = x1
        if bounds is not None:
            if not vany_within(best, vload(bounds, 0)):
                vstore(out, 0, inf)
                return
    if height % 2:
        i = height - 1
        base0 = vload_ids(ids_a, i * lanes, row)
        diagonal = vload(edges, i * lanes)
        last = inf
        for j in range(length):
            k = j * lanes
            up = vload(source, k)
            cost = vgather(flat, 0, vadd(base0, vload_ids(ids_b, k, row)))
            last = _in_band(_cell(cost, diagonal, up, last), j - i, shift, width, inf)
            diagonal = up
    vstore(out, 0, last)
