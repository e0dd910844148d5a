"""dnDTW in plain Python lists, cell by cell, to hold the kernels against."""

from __future__ import annotations

import math

INF = math.inf


def local_cost(x, y, cost):
    if cost == "exact":
        return 0.0 if list(x) == list(y) else 1.0
    if cost == "l2":
        return math.dist(x, y)
    dot = sum(p * q for p, q in zip(x, y, strict=True))
    return 1.0 - dot / math.hypot(*x) / math.hypot(*y)


def accumulate(costs, band=None):
    """All cells of C for a list of lists of local costs; a virtual row and column come first."""
    n, m = len(costs), len(costs[0])
    radius = max(n, m) if band is None else max(band, abs(n - m))
    cells = [[INF] * (m + 1) for _ in range(n + 1)]
    cells[0][0] = 0.0
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            if abs(i - j) <= radius:
                before = min(cells[i - 1][j - 1], cells[i - 1][j], cells[i][j - 1])
                cells[i][j] = costs[i - 1][j - 1] + before
    return cells


def dndtw(a, b, cost="cosine", normalize="sqrt", band=None, d_max=None):
    costs = [[local_cost(x, y, cost) for y in b] for x in a]
    n, m = len(a), len(b)
    raw = accumulate(costs, band)[n][m]
    value = raw / {"sqrt": math.sqrt(n * n + m * m), "sum": n + m, "none": 1}[normalize]
    return INF if d_max is not None and value > d_max else value
